package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"meshd/internal/admin"
	"meshd/internal/consul"
	"meshd/internal/mesh"
	"meshd/internal/snapshot"
)

const (
	// snapshotFile keeps what Consul said last, for a start without it.
	snapshotFile = "snapshot"
	// saveEvery bounds how often it is written, and how much of the newest a
	// killed agent has not kept.
	saveEvery = 5 * time.Second
	// confirmEvery is how often it is written when nothing changed but the times
	// at which Consul confirmed it: without those a fact that never changes
	// would be too old after a restart. Consul confirms about once a minute.
	confirmEvery = time.Minute
)

// stored is the last good picture on disk: read once at the start, written
// whenever Consul has said something new. Without Consul it does nothing.
type stored struct {
	a     *Agent
	log   *slog.Logger
	o     snapshot.Options // Path is "" when Consul is not used
	certs bool             // Consul gives the certificates

	keyErr error // why private keys are not kept although they should be

	contact time.Time      // when Consul last confirmed anything before this start
	last    snapshot.State // on disk; of init, then of run
	tried   time.Time      // when run last wrote

	mu     sync.Mutex // guards what follows; not held while the disk is written
	domain string     // what is trusted, by Consul or the file
	roots  []*x509.Certificate
	saved  time.Time // last.Saved
	err    error     // why what is newer is not on disk
}

// init reads the file and gives what is in it to the catalog and the identity
// store, for as long as Consul has not said it anew. Nothing in it, and nothing
// wrong with it, keeps the agent from starting.
func (s *stored) init(a *Agent) {
	cfg := a.boot
	s.a, s.log = a, part(a.log, "snapshot")
	if !cfg.Consul.Enabled {
		return
	}
	s.certs = cfg.Identity.Provider == "consul"
	s.o.Path = filepath.Join(cfg.Agent.DataDir, snapshotFile)
	if s.certs && cfg.Agent.PersistKeys {
		if s.o.Key, s.keyErr = snapshot.LoadKey(cfg.Agent.KeyFile); s.keyErr != nil {
			s.log.Error("keys of certificates are not kept: a start without Consul will have none", "error", s.keyErr)
		}
	}
	st, err := snapshot.Load(s.o)
	var damaged *snapshot.DamagedError
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case errors.As(err, &damaged):
		s.log.Warn("the last good picture is damaged, waiting for Consul", "reason", damaged.Reason, "set_aside", damaged.Aside)
	case err != nil:
		s.log.Error("the last good picture cannot be read, waiting for Consul", "error", err)
	default:
		s.restore(st, time.Now())
		if s.o.Key == nil && s.keyErr == nil && len(st.Leafs) > 0 {
			s.forgetKeys(st)
		}
	}
}

// forgetKeys is for the first start after persist_keys was turned off. It does
// not wait for Consul to have something new to say.
func (s *stored) forgetKeys(st snapshot.State) {
	st.Leafs = nil
	if err := snapshot.Save(s.o, st); err != nil {
		s.log.Error("keys of certificates are still on disk, although they are not to be kept", "error", err)
		return
	}
	s.last = st
	s.log.Info("keys of certificates were removed from disk; the file that sealed them is not needed any more")
}

// restore puts in place what is not too old. mesh.Compile sees to the age of
// each fact, now and later.
func (s *stored) restore(st snapshot.State, now time.Time) {
	c := st.Catalog
	for k, f := range c.Services {
		s.a.catalog.put(k, f)
	}
	for k, f := range c.Chains {
		s.a.catalog.putChain(k, f)
	}
	for name, f := range c.Intentions {
		s.a.catalog.putIntentions(name, f)
	}
	s.last, s.contact, s.saved = st, st.Contact, st.Saved
	leafs := 0
	if s.certs && now.Sub(st.Contact) <= s.a.boot.Consul.Stale.DropAfter {
		s.restoreRoots(st, now)
		leafs = s.restoreLeafs(st)
	}
	withoutKeys(st.Leafs)
	s.log.Info("the last good picture was read, until Consul answers", "confirmed", st.Contact.Format(time.RFC3339),
		"age", max(now.Sub(st.Contact), 0).Round(time.Second).String(), "services", len(c.Services), "roots", len(s.roots), "leafs", leafs)
}

func (s *stored) restoreRoots(st snapshot.State, now time.Time) {
	for _, der := range st.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil || now.After(root.NotAfter) {
			continue
		}
		s.roots = append(s.roots, root)
	}
	if len(s.roots) > 0 {
		s.domain = st.TrustDomain
		s.a.identity.SetRoots(s.domain, s.roots)
	}
}

// restoreLeafs returns how many leafs are good.
func (s *stored) restoreLeafs(st snapshot.State) (good int) {
	sealed := 0
	for _, l := range st.Leafs {
		if l.Key == nil {
			sealed++
			continue
		}
		key, err := x509.ParsePKCS8PrivateKey(l.Key)
		if err == nil {
			// It refuses what has expired.
			err = s.a.identity.SetLeaf(l.Service, tls.Certificate{Certificate: l.Chain, PrivateKey: key})
		}
		if err != nil {
			s.log.Info("a certificate on disk is of no use any more", "service", l.Service, "error", err)
			continue
		}
		good++
	}
	if sealed > 0 && s.o.Key != nil {
		s.log.Warn("keys of certificates on disk are sealed under another key", "leafs", sealed, "key_file", s.a.boot.Agent.KeyFile)
	}
	return good
}

// setRoots is called by Consul's watch.
func (s *stored) setRoots(domain string, roots []*x509.Certificate) {
	s.a.identity.SetRoots(domain, roots)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.domain, s.roots = domain, roots
}

// run saves until ctx is done, and then once more.
func (s *stored) run(ctx context.Context) {
	if s.o.Path == "" {
		return
	}
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			status := s.a.consul.Status()
			s.save(time.Now(), &status, true)
			return
		case now := <-tick.C:
			status := s.a.consul.Status()
			s.save(now, &status, false)
		}
	}
}

// save writes what is known if the disk does not have it. At the end the times
// of confirmation are worth it, too.
func (s *stored) save(now time.Time, status *consul.Status, end bool) {
	st := s.gather(status)
	if !st.Contact.After(s.contact) {
		// Who has learned nothing does not replace what was known: it may be
		// more than we took from it, too old for now or sealed under another key.
		return
	}
	_, failed := s.a.storedState()
	confirmed := st.Contact.After(s.last.Contact) && (end || now.Sub(s.tried) >= confirmEvery)
	if failed == nil && !confirmed && alike(&st, &s.last) {
		return
	}
	st.Saved, s.tried = now, now
	err := s.addKeys(&st)
	if err == nil {
		err = snapshot.Save(s.o, st)
	}
	switch {
	case err != nil && failed == nil: // once, not at every try
		s.log.Error("the last good picture cannot be stored, will retry: a start without Consul would know an older one, or none", "error", err)
	case err == nil && failed != nil:
		s.log.Info("the last good picture is stored again")
	}
	withoutKeys(st.Leafs)
	if err == nil {
		s.last = st
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved, s.err = s.last.Saved, err
}

// gather returns what is known, without private keys.
func (s *stored) gather(status *consul.Status) snapshot.State {
	st := snapshot.State{Contact: s.contact, Catalog: s.a.catalog.confirmed(status)}
	for i := range status.Watches {
		if at := lastTrue(&status.Watches[i]); at.After(st.Contact) {
			st.Contact = at
		}
	}
	if !s.certs {
		return st
	}
	s.mu.Lock()
	st.TrustDomain = s.domain
	for _, r := range s.roots {
		st.Roots = append(st.Roots, r.Raw)
	}
	s.mu.Unlock()
	if s.o.Key == nil {
		return st // a leaf without its key is of no use to anybody
	}
	for _, l := range s.a.identity.Leafs() {
		if c, ok := s.a.identity.Leaf(l.Service); ok {
			st.Leafs = append(st.Leafs, snapshot.Leaf{Service: l.Service, Chain: c.Certificate})
		}
	}
	return st
}

// addKeys completes leafs with their private keys.
func (s *stored) addKeys(st *snapshot.State) error {
	leafs := st.Leafs[:0:0]
	for _, l := range st.Leafs {
		c, ok := s.a.identity.Leaf(l.Service)
		if !ok {
			continue // dropped by a reload meanwhile
		}
		key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			return fmt.Errorf("key of service %q: %w", l.Service, err)
		}
		leafs = append(leafs, snapshot.Leaf{Service: l.Service, Chain: c.Certificate, Key: key})
	}
	st.Leafs = leafs
	return nil
}

// withoutKeys lets private keys be in memory once only, in the identity store.
func withoutKeys(leafs []snapshot.Leaf) {
	for i := range leafs {
		leafs[i].Key = nil
	}
}

// alike compares what two states say, not when it was said.
func alike(a, b *snapshot.State) bool {
	timeless := func(s *snapshot.State) snapshot.State {
		c := mesh.Catalog{Services: maps.Clone(s.Catalog.Services), Chains: maps.Clone(s.Catalog.Chains), Intentions: maps.Clone(s.Catalog.Intentions)}
		for k, f := range c.Services {
			f.Updated, f.Source = time.Time{}, ""
			c.Services[k] = f
		}
		for k, f := range c.Chains {
			f.Updated = time.Time{}
			c.Chains[k] = f
		}
		for k, f := range c.Intentions {
			f.Updated = time.Time{}
			c.Intentions[k] = f
		}
		t := snapshot.State{Catalog: &c, TrustDomain: s.TrustDomain, Roots: s.Roots}
		for _, l := range s.Leafs {
			t.Leafs = append(t.Leafs, snapshot.Leaf{Service: l.Service, Chain: l.Chain})
		}
		return t
	}
	return a.Catalog != nil && b.Catalog != nil && reflect.DeepEqual(timeless(a), timeless(b))
}

// storedState tells when the file on disk was written, zero if there is none,
// and why it is not newer. What is there is older than that where Consul was
// already away.
func (a *Agent) storedState() (saved time.Time, err error) {
	s := &a.stored
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saved, s.err
}

// problems are those that no other fact of the status shows.
func (s *stored) problems() (list []admin.Problem) {
	if _, err := s.a.storedState(); err != nil {
		list = append(list, admin.Problem{
			Severity: admin.SeverityWarning, What: "the last good picture cannot be stored: a start without Consul would know an older one, or none",
			Why: err.Error(), Next: "is agent { data_dir } there, writable, and with room? df -h " + filepath.Dir(s.o.Path),
		})
	}
	if s.keyErr != nil {
		list = append(list, admin.Problem{
			Severity: admin.SeverityWarning, What: "keys of certificates are not kept: a start without Consul will have none",
			Why: s.keyErr.Error(), Next: "mend agent { key_file }, or set persist_keys = false, and restart",
		})
	}
	return list
}

// confirmedCatalog is what is known, with the times at which Consul last
// confirmed it. Consul's watches pass on only what changed.
func (a *Agent) confirmedCatalog() *mesh.Catalog {
	if a.consul == nil {
		return a.catalog.take()
	}
	status := a.consul.Status()
	return a.catalog.confirmed(&status)
}

// confirmed is take with the times of status, which was read before: a fact
// that came between the two has its own, newer one.
func (c *catalog) confirmed(status *consul.Status) *mesh.Catalog {
	out := c.take()
	for i := range status.Watches {
		w := &status.Watches[i]
		at := lastTrue(w)
		if at.IsZero() {
			continue
		}
		key := mesh.ServiceKey{Name: w.Name, Datacenter: w.Datacenter, Query: w.Kind == consul.KindQuery}
		switch w.Kind {
		case consul.KindService, consul.KindQuery:
			if f, ok := out.Services[key]; ok && at.After(f.Updated) {
				f.Updated = at
				out.Services[key] = f
			}
		case consul.KindChain:
			if f, ok := out.Chains[key]; ok && at.After(f.Updated) {
				f.Updated = at
				out.Chains[key] = f
			}
		case consul.KindIntentions:
			if f, ok := out.Intentions[w.Name]; ok && at.After(f.Updated) {
				f.Updated = at
				out.Intentions[w.Name] = f
			}
		}
	}
	return out
}

// lastTrue is when the registry itself, not a cache before it, last stated what
// the watch knows; zero is never.
func lastTrue(w *consul.WatchStatus) time.Time {
	if w.Confirmed.IsZero() {
		return w.Confirmed
	}
	return w.Confirmed.Add(-w.Behind)
}

// expire makes a new picture when something in the one in force has become too
// old, and when what was too old has been confirmed.
func (p *publisher) expire() {
	if p.next.snap == nil || p.a.consul == nil {
		return
	}
	limit := p.next.cfg.Consul.Stale.DropAfter
	now := time.Now()
	facts := p.a.confirmedCatalog()
	old := func(updated time.Time) bool { return limit > 0 && !updated.IsZero() && now.Sub(updated) > limit }
	for _, o := range p.next.snap.Outbound {
		f, ok := facts.Services[o.Key()]
		if ok && o.Source != "static" && old(f.Updated) != (o.Refused == mesh.RefusedStale) {
			p.recompile()
			return
		}
	}
	for _, in := range p.next.snap.Inbound {
		f, ok := facts.Intentions[in.Name]
		if ok && old(f.Updated) != (in.Intentions == nil) {
			p.recompile()
			return
		}
	}
}
