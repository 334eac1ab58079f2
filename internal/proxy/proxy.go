package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"meshd/internal/balance"
	"meshd/internal/identity"
	"meshd/internal/loop"
	"meshd/internal/mesh"
	"meshd/internal/telemetry"
	"meshd/internal/wire"
)

// Options are what a Proxy needs from outside.
type Options struct {
	// Loops is how many event loops there may be, 1 or more.
	Loops int
	// PeerBind is where other agents connect to.
	PeerBind netip.AddrPort
	Identity *identity.Store
	// Telemetry must have been made for as many loops and OutcomeNames.
	Telemetry *telemetry.Registry
	Log       *slog.Logger
	// AccessLog gets a line per exchange; nil turns it off.
	AccessLog *slog.Logger
	// DrainTimeout is how long Run lets exchanges finish after its context ended.
	DrainTimeout time.Duration
}

// Proxy is the data path of one agent.
type Proxy struct {
	opt          Options
	workers      []*worker
	picture      atomic.Pointer[picture]
	settings     atomic.Pointer[settings]
	serverConfig *tls.Config
	peers        net.Listener
	counts       counts
	// choose returns the loop for a new connection: idlest, unless a test wants
	// every loop to work.
	choose func() *worker

	// life ends when Run returns; handshakes hold on to it. handshakes counts
	// their goroutines, accepts and dials bound them.
	life           context.Context
	end            context.CancelFunc
	handshakes     sync.WaitGroup
	accepts, dials tickets
	crowd          crowd

	// mu guards what follows: what the publishing goroutine changes and a
	// status request reads.
	mu        sync.Mutex
	registry  *registry
	listeners map[bindKey]*acceptor
	closing   map[bindKey]*acceptor // not in force, perhaps not closed yet
	draining  bool                  // nothing is listened on any more
}

// settings are the options that may change while the proxy runs.
type settings struct {
	access *slog.Logger
	drain  time.Duration
}

// Configure replaces Options.AccessLog and Options.DrainTimeout. Any goroutine
// may call it; loops see it at their next turn.
func (p *Proxy) Configure(access *slog.Logger, drain time.Duration) {
	p.settings.Store(&settings{access, drain})
}

// New binds the peer port and makes the loops. Nothing is served before Run.
func New(o Options) (*Proxy, error) {
	if o.Loops < 1 {
		return nil, fmt.Errorf("a proxy needs at least one loop, not %d", o.Loops)
	}
	p := &Proxy{
		opt: o, registry: newRegistry(o.Loops, o.Telemetry),
		listeners: make(map[bindKey]*acceptor),
		closing:   make(map[bindKey]*acceptor),
		accepts:   make(tickets, maxHandshakes), dials: make(tickets, maxHandshakes),
	}
	p.choose = p.idlest
	p.Configure(o.AccessLog, o.DrainTimeout)
	p.life, p.end = context.WithCancel(context.Background())
	p.serverConfig = o.Identity.ServerConfig(p.offered)
	p.serverConfig.NextProtos = []string{wire.ALPN}
	lc := net.ListenConfig{KeepAlive: -1}
	var err error
	if p.peers, err = lc.Listen(p.life, "tcp", o.PeerBind.String()); err != nil {
		p.end()
		return nil, fmt.Errorf("peer port: %w", err)
	}
	for i := range o.Loops {
		w, err := newWorker(p, i)
		if err != nil {
			p.close()
			return nil, fmt.Errorf("event loop %d: %w", i, err)
		}
		p.workers = append(p.workers, w)
	}
	return p, nil
}

func newWorker(p *Proxy, i int) (*worker, error) {
	w := &worker{
		p: p, log: p.opt.Log, conns: make(map[closer]struct{}), allLinks: make(map[*link]struct{}),
		plain: make([]byte, 2*tlsRecord), cipher: make([]byte, cipherRead),
		rng: balance.NewRand(uint64(time.Now().UnixNano()) + uint64(i)), maxAccepted: maxAccepted,
	}
	// Room for all there may be: a head that is refused gives none back.
	w.req.Fields = make([]mesh.Field, 0, limits1.FieldCount)
	w.resp.Fields = make([]mesh.Field, 0, limits1.FieldCount)
	var err error
	w.cutter.w = w
	w.loop, err = loop.New(loop.Options{Index: i, TurnStart: w.turnStart, TurnEnd: w.turnEnd, Log: p.opt.Log})
	return w, err
}

// close undoes New for a proxy that never ran.
func (p *Proxy) close() {
	p.end()
	p.peers.Close()
	for _, w := range p.workers {
		w.loop.Close()
	}
	for _, a := range p.listeners {
		a.shut()
	}
}

// Close frees a proxy on which Run was never called.
func (p *Proxy) Close() { p.close() }

// PeerAddr is where peers connect to, with the port that was given by the kernel.
func (p *Proxy) PeerAddr() netip.AddrPort { return addrPort(p.peers.Addr()) }

// offered tells a handshake whether the service is one of ours.
func (p *Proxy) offered(service string) bool {
	pic := p.picture.Load()
	return pic != nil && len(pic.services[service]) > 0
}

// Publish puts s in force: one atomic store, which the loops see at their next
// turn. Then it retires what s does not have any more. It cannot fail; an
// address that Prepare could not bind is simply not listened on.
func (p *Proxy) Publish(s *mesh.Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pic := p.registry.resolve(s)
	p.picture.Store(pic)
	p.install(pic)
	gone, keep := p.registry.sweep(pic)
	for _, w := range p.workers {
		w.loop.Post(func() { w.retire(pic, gone) })
	}
	p.opt.Telemetry.Forget(keep)
}

// retire closes what a picture has no use for: links to targets that are gone
// (after their last stream), connections of upstreams that are gone (after what
// runs on them) and what peers are not allowed any more.
func (w *worker) retire(pic *picture, gone []*target) {
	w.pic = w.p.picture.Load()
	for _, t := range gone {
		if t.slot < len(w.links) && w.links[t.slot] != nil && w.links[t.slot].target == t {
			w.links[t.slot] = nil
		}
	}
	for l := range w.allLinks {
		if l.set != nil && slices.Contains(gone, l.set.target) {
			l.retire()
		}
	}
	for c := range w.conns {
		if c.retired(w.pic) {
			c.drain()
		}
	}
	for l := range w.allLinks {
		if !l.opener {
			l.review()
		}
	}
}

// Run serves until ctx is done. Then it stops accepting, lets what runs
// finish for at most DrainTimeout, closes everything and returns.
func (p *Proxy) Run(ctx context.Context) error {
	loops, stop := context.WithCancel(context.Background())
	defer stop()
	var running sync.WaitGroup
	errs := make(chan error, len(p.workers)+1)
	for _, w := range p.workers {
		running.Go(func() {
			if err := w.loop.Run(loops); err != nil {
				errs <- fmt.Errorf("event loop: %w", err)
			}
		})
	}
	p.handshakes.Add(1)
	go func() {
		defer p.handshakes.Done()
		p.acceptPeers()
	}()
	var failed error
	select {
	case <-ctx.Done():
	case failed = <-errs:
	}
	p.peers.Close()
	if failed == nil {
		p.drain()
	}
	p.end()
	p.each((*worker).finish) // from then on nobody dials
	p.handshakes.Wait()
	stop()
	running.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draining = true
	for _, list := range []map[bindKey]*acceptor{p.listeners, p.closing} {
		for _, a := range list {
			a.closeFD()
		}
	}
	return failed
}

// acceptPeers takes connections to the peer port, as many at a time as may
// shake hands.
func (p *Proxy) acceptPeers() {
	pause := time.Duration(0)
	for {
		if p.accepts.take(p.life) != nil {
			return
		}
		tcp, err := p.peers.Accept()
		if err != nil {
			p.accepts.free()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			p.opt.Log.Error("cannot accept peers", "error", err)
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(pause):
				continue
			case <-p.life.Done():
				return
			}
		}
		pause = 0
		from := source(addrPort(tcp.RemoteAddr()).Addr())
		if !p.crowd.enter(from, len(p.accepts) > scarceHandshakes) {
			p.accepts.free()
			tcp.Close()
			p.counts.handshake(crowded)
			continue
		}
		p.handshakes.Add(1)
		go func() {
			defer p.handshakes.Done()
			p.serveHandshake(tcp, from)
		}()
	}
}

// crowded is the result of a handshake that was not begun because its address
// had begun too many.
const crowded = "crowded"

// crowd counts the handshakes that go on by where they come from.
type crowd struct {
	mu   sync.Mutex // guards from
	from map[netip.Prefix]int
}

// source is what one host can easily have many addresses of: itself in IPv4, a
// network in IPv6.
func source(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits) // the zero Prefix for no address at all
	return p
}

// enter counts one more, unless they are scarce and from has its share.
func (c *crowd) enter(from netip.Prefix, scarce bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if scarce && c.from[from] >= maxHandshakesFrom {
		return false
	}
	if c.from == nil {
		c.from = make(map[netip.Prefix]int)
	}
	c.from[from]++
	return true
}

func (c *crowd) leave(from netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.from[from]--; c.from[from] == 0 {
		delete(c.from, from)
	}
}

// tickets bound how many goroutines do something at a time.
type tickets chan struct{}

func (t tickets) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t tickets) free() { <-t }

// drain waits until no exchange runs and the peers have closed their links, at
// most DrainTimeout. A link that still has something to say is waited for as
// long as its peer takes any of it: an exchange ends for us when the link has
// taken its last byte, which may be seconds before the peer has it.
func (p *Proxy) drain() {
	p.mu.Lock()
	p.draining = true
	for _, a := range p.listeners {
		p.workers[0].loop.Post(a.shut)
	}
	p.mu.Unlock()
	for _, w := range p.workers {
		w.loop.Post(w.beginDrain)
	}
	limit := time.NewTimer(p.settings.Load().drain)
	defer limit.Stop()
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	var idle time.Time
	left := 0
	for {
		was := left
		left = p.total((*worker).unsentLinks)
		switch {
		case p.total(func(w *worker) int { return w.active + w.unsent() }) > 0:
			idle = time.Time{}
		case left == 0 && p.total((*worker).acceptedLinks) == 0:
			return
		case idle.IsZero() || left > 0 && left != was:
			idle = time.Now()
		case left > 0 && time.Since(idle) < deadAfter: // until it is known to be dead
		case time.Since(idle) >= goawayGrace:
			return
		}
		select {
		case <-limit.C:
			if n := p.total(func(w *worker) int { return w.active }); n > 0 {
				p.opt.Log.Warn("drain_timeout passed: cutting what still runs", "exchanges", n)
			}
			return
		case <-tick.C:
		}
	}
}

// drainPoll is how often a draining proxy looks whether it is done.
const drainPoll = 10 * time.Millisecond

// total asks every loop and adds the answers.
func (p *Proxy) total(f func(*worker) int) int {
	sum := 0
	p.each(func(w *worker) { sum += f(w) })
	return sum
}

// each runs f on every loop, one after the other, and waits. A loop that takes
// the task also runs it, be it as the last thing it does.
func (p *Proxy) each(f func(*worker)) {
	done := make(chan struct{}, 1)
	for _, w := range p.workers {
		if w.loop.Post(func() { f(w); done <- struct{}{} }) {
			<-done
		}
	}
}

// unsent counts connections with bytes that have not left.
func (w *worker) unsent() int {
	n := 0
	for c := range w.conns {
		if p, ok := c.(interface{ pending() int }); ok && p.pending() > 0 {
			n++
		}
	}
	return n
}

// unsentLinks adds up the bytes that the peers of all links have not got yet.
func (w *worker) unsentLinks() int {
	n := 0
	for l := range w.allLinks {
		n += len(l.out) + len(l.cipher) - l.off + loop.Unacked(l.fd)
	}
	return n
}

// acceptedLinks counts those that peers opened.
func (w *worker) acceptedLinks() int { return w.accepted }

// beginDrain stops taking anything new on this loop.
func (w *worker) beginDrain() {
	w.draining = true
	for l := range w.allLinks {
		if !l.opener {
			l.retire()
		}
	}
	for c := range w.conns {
		c.drain()
	}
}

// finish closes everything that is left.
func (w *worker) finish() {
	w.draining, w.ended = true, true
	for c := range w.conns {
		c.kill()
	}
	for l := range w.allLinks {
		l.shut()
	}
}

// spiffeOf is the name that this host has as service.
func (p *Proxy) spiffeOf(service string) string {
	leaf, ok := p.opt.Identity.Leaf(service)
	if !ok || leaf.Leaf == nil {
		return ""
	}
	name, err := identity.ParseCertificate(leaf.Leaf)
	if err != nil {
		return ""
	}
	return name.SPIFFE()
}

// Counts are totals since the start.
type Counts struct {
	Links       int               // open now, both directions
	Handshaking int               // handshakes that go on now, both directions
	Handshakes  map[string]uint64 // by result: "ok" or the reason of the refusal
}

type counts struct {
	mu         sync.Mutex // guards handshakes; handshakes are rare
	handshakes map[string]uint64
}

func (c *counts) handshake(result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handshakes == nil {
		c.handshakes = make(map[string]uint64)
	}
	c.handshakes[result]++
}

// Counts asks the loops; it must not be called from one.
func (p *Proxy) Counts() Counts {
	p.counts.mu.Lock()
	h := maps.Clone(p.counts.handshakes)
	p.counts.mu.Unlock()
	accepting := max(len(p.accepts)-1, 0) // one ticket waits in Accept
	return Counts{
		Links:       p.total(func(w *worker) int { return len(w.allLinks) }),
		Handshaking: accepting + len(p.dials), Handshakes: h,
	}
}

// Loads returns the share of a core that each loop used lately.
func (p *Proxy) Loads() []float64 {
	out := make([]float64, len(p.workers))
	for i, w := range p.workers {
		out[i] = w.loop.Load()
	}
	return out
}
