package agent

import (
	"bytes"
	"context"
	"errors"
	"time"

	"meshd/internal/admin"
	"meshd/internal/config"
	"meshd/internal/consul"
	"meshd/internal/mesh"
	"meshd/internal/proxy"
)

const (
	// coalesce is how long a change of the catalog waits for others: a
	// deployment changes many services at once, and each picture costs a
	// compile. It is far below the second in which a removal must be obeyed.
	coalesce = 20 * time.Millisecond
	// firstAnswer is how long the first picture waits for Consul. With its
	// answer upstreams get their natural ports at once and need not move.
	firstAnswer = time.Second
	// answerPoll is how often it looks whether the answer is there.
	answerPoll = 5 * time.Millisecond
)

// view is what is in force and how that came. Nobody writes one after it was
// stored.
type view struct {
	cfg       *config.Config
	snap      *mesh.Snapshot
	listeners []proxy.ListenerState
	published time.Time       // when snap was first published
	loaded    time.Time       // when cfg was loaded
	reload    *admin.Reload   // nil: none yet
	restart   []config.Change // of cfg, waiting for a restart
	unsaved   error           // why addresses.json is not up to date
}

// publisher is the state of the one goroutine that makes pictures.
type publisher struct {
	a       *Agent
	path    string // of the assignments
	reloads chan reloadRequest
	pings   chan struct{}
	ended   chan struct{} // closed when run has returned

	next     view // what the next store of Agent.view will say
	assigned mesh.Assignments
	saved    []byte
	wildErr  error // told once
}

func (p *publisher) init(a *Agent, path string) {
	p.a, p.path = a, path
	p.reloads = make(chan reloadRequest)
	p.pings = make(chan struct{})
	p.ended = make(chan struct{})
	p.assigned = readAssignments(path, a.log)
	p.saved = encodeAssignments(p.assigned)
	p.next = view{cfg: a.boot, loaded: a.started}
}

// run makes pictures until ctx is done.
func (p *publisher) run(ctx context.Context) {
	defer close(p.ended)
	p.want(p.next.cfg)
	p.awaitCatalog(ctx, p.next.cfg)
	if snap, err := p.compile(p.next.cfg); err != nil {
		p.a.log.Error("first picture failed", "error", err) // New compiled it; only the catalog is new
	} else {
		p.publish(snap)
	}
	p.a.notify.Ready()

	retry := time.NewTicker(bindRetry)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.a.catalog.changed:
			if !sleep(ctx, coalesce) {
				return
			}
			p.recompile()
		case r := <-p.reloads:
			r.answer <- p.reload(ctx, r.cfg, r.err)
		case <-retry.C:
			p.rebind()
			p.expire()
		case <-p.pings:
		}
	}
}

// awaitCatalog gives Consul a moment to state what cfg is the first to need.
// It waits for no answer that cannot come.
func (p *publisher) awaitCatalog(ctx context.Context, cfg *config.Config) {
	if p.a.consul == nil {
		return
	}
	wanted := watched(cfg.Spec)
	look := time.NewTicker(answerPoll)
	defer look.Stop()
	for end := time.Now().Add(firstAnswer); time.Now().Before(end); {
		s := p.a.consul.Status()
		// Consul is away, and the last good picture has all that it would say.
		restored := s.Contact.IsZero() && s.Error != "" && p.a.catalog.has(wanted)
		if restored || answered(&s) {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
	select {
	case <-p.a.catalog.changed: // the compile that follows sees all of it
	default:
	}
}

// answered reports whether Consul has said of everything that is watched what
// it is going to say: a fact, or that there is none to be had.
func answered(s *consul.Status) bool {
	for i := range s.Watches {
		w := &s.Watches[i]
		if factual(w.Kind) && w.Confirmed.IsZero() && (s.Contact.IsZero() || w.Error == "") {
			return false
		}
	}
	return true
}

// factual tells the watches that the catalog is made of.
func factual(k consul.Kind) bool {
	switch k {
	case consul.KindService, consul.KindQuery, consul.KindChain, consul.KindIntentions:
		return true
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// ping reports whether the goroutine takes requests, or has ended in order.
func (p *publisher) ping(ctx context.Context) bool {
	select {
	case p.pings <- struct{}{}:
		return true
	case <-p.ended:
		return true
	case <-ctx.Done():
		return false
	}
}

// compile is the first step, the only one that may fail as a whole. It changes
// nothing.
func (p *publisher) compile(cfg *config.Config) (*mesh.Snapshot, error) {
	wild, err := wildcardPorts()
	if err != nil && p.wildErr == nil {
		p.a.log.Error("cannot tell which ports are in use: an upstream may take one that an application needs", "error", err)
	}
	p.wildErr = err
	spec := *cfg.Spec
	// What needs a restart stays as it was at the start.
	boot := p.a.boot.Spec
	spec.Node, spec.Domain, spec.Datacenter, spec.Intentions = boot.Node, boot.Domain, boot.Datacenter, boot.Intentions
	generation := uint64(1)
	if p.next.snap != nil {
		generation = p.next.snap.Generation + 1
	}
	return mesh.Compile(mesh.CompileInput{
		Generation: generation, Spec: &spec, Catalog: p.a.confirmedCatalog(), Assigned: p.assigned, Wildcard: wild,
		Now: time.Now(), DropAfter: cfg.Consul.Stale.DropAfter,
	})
}

// recompile puts a change of the catalog in force.
func (p *publisher) recompile() {
	snap, err := p.compile(p.next.cfg)
	if err != nil {
		p.a.log.Error("the catalog cannot be put in force, the picture before it stays", "error", err)
		return
	}
	p.publish(snap)
}

// publish is the rest: prepare, publish, retire. It cannot fail; a listener
// that cannot be had is noted and tried again.
func (p *publisher) publish(snap *mesh.Snapshot) {
	a := p.a
	listeners := a.proxy.Prepare(snap)
	p.tellListeners(listeners)
	a.proxy.Publish(snap)
	p.next.snap, p.next.listeners, p.next.published = snap, listeners, time.Now()
	p.assigned = snap.Assigned
	p.save()
	p.store()
	a.log.Debug("picture published", "generation", snap.Generation)
	a.notify.Status("generation %d: %d services, %d upstreams", snap.Generation, len(snap.Inbound), len(snap.Outbound))
}

// store makes what the publisher knows visible, from the first picture on.
// Names follow listeners: this comes after proxy.Publish.
func (p *publisher) store() {
	if p.next.snap == nil {
		return
	}
	v := p.next
	p.a.view.Store(&v)
}

// rebind tries again what is missing: ports that were taken, a disk that was full.
func (p *publisher) rebind() {
	if p.next.snap == nil {
		p.recompile()
		return
	}
	failed := func(l []proxy.ListenerState) (n int) {
		for i := range l {
			if l[i].Err != nil {
				n++
			}
		}
		return n
	}
	before, unsaved := failed(p.next.listeners), p.next.unsaved
	if before > 0 {
		listeners := p.a.proxy.Prepare(p.next.snap)
		p.tellListeners(listeners)
		p.next.listeners = listeners
		if failed(listeners) < before {
			p.a.proxy.Publish(p.next.snap) // the same picture takes its new listeners
		}
	}
	if unsaved != nil {
		p.save()
	}
	if before > 0 || unsaved != nil {
		p.store()
	}
}

// tellListeners logs what became of listeners, each change once.
func (p *publisher) tellListeners(now []proxy.ListenerState) {
	was := make(map[string]bool, len(p.next.listeners))
	for _, l := range p.next.listeners {
		was[l.Where()] = l.Err != nil
	}
	for _, l := range now {
		switch {
		case l.Err != nil && !was[l.Where()]:
			p.a.log.Error("upstream has no listener, will retry", "upstream", l.Upstream, "address", l.Where(), "error", l.Err)
		case l.Err == nil && was[l.Where()]:
			p.a.log.Info("upstream has its listener", "upstream", l.Upstream, "address", l.Where())
		}
	}
}

// save stores the addresses in force, if they differ from those on disk.
func (p *publisher) save() {
	content := encodeAssignments(p.assigned)
	if bytes.Equal(content, p.saved) {
		return
	}
	err := writeAssignments(p.path, content)
	if err != nil {
		if p.next.unsaved == nil {
			p.a.log.Error("addresses given to upstreams may change at a restart", "error", err)
		}
		p.next.unsaved = err
		return
	}
	p.next.unsaved, p.saved = nil, content
}

// want tells the sources of certificates and facts what cfg needs, and drops
// what it does not need.
func (p *publisher) want(cfg *config.Config) {
	a := p.a
	identities := cfg.Spec.Identities()
	if a.dev != nil {
		if err := a.dev.Want(identities); err != nil {
			a.log.Error("a service has no certificate", "error", err) // status and /ready name it
		}
	}
	keys := watched(cfg.Spec)
	a.catalog.retain(keys, cfg.Spec.ServiceNames())
	if a.consul != nil {
		w := consul.Wanted{Upstreams: keys}
		if a.dev == nil {
			w.Identities = identities
		}
		if a.boot.Spec.Intentions {
			w.Intentions = cfg.Spec.ServiceNames()
		}
		for _, s := range cfg.Spec.Services {
			w.Register = append(w.Register, consul.Registration{
				Service: s, PeerAddress: a.boot.Peer.Advertise, PeerPort: a.proxy.PeerAddr().Port(),
			})
		}
		a.consul.Want(w)
	}
	a.identity.Retain(identities)
}

// leave takes back what was registered.
func (a *Agent) leave() {
	if a.consul == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), deregisterTimeout)
	defer cancel()
	if err := a.consul.Deregister(ctx); err != nil {
		a.log.Warn("not everything could be deregistered from Consul; its checks will turn critical", "error", err)
	}
}

// diagnosed makes a *config.Diagnostics of an error of mesh.Compile, which
// names file and line in its text.
func diagnosed(err error) *config.Diagnostics {
	d := &config.Diagnostics{}
	list := []error{err}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		list = j.Unwrap()
	}
	for _, e := range list {
		d.List = append(d.List, config.Diagnostic{
			Severity: config.SeverityError, Summary: "Configuration cannot be put in force", Detail: e.Error() + ".",
		})
	}
	return d
}

// errEnded answers reloads that come too late.
var errEnded = errors.New("the agent is draining")
