package proxy

import (
	"errors"
	"net/netip"
	"syscall"
	"time"

	"meshd/internal/loop"
	"meshd/internal/mesh"
	"meshd/internal/telemetry"
)

// acceptor is one listening socket of an upstream. It lives on the first loop,
// which passes connections on when it has no time for them.
type acceptor struct {
	p     *Proxy
	key   bindKey
	file  socketFile // of a Unix socket
	mode  uint32     // of a Unix socket; guarded by Proxy.mu
	fd    int
	st    *upstreamState
	tcp   bool
	timer loop.Timer
	w     *worker       // nil until it is on its loop
	gone  chan struct{} // closed after fd
}

// Ready accepts what waits, up to a batch.
func (a *acceptor) Ready(ev loop.Events) {
	if a.fd < 0 || ev&(loop.Readable|loop.Failed) == 0 {
		return
	}
	for n := 0; ; n++ {
		if n == acceptBatch {
			a.w.loop.Again(a, loop.Readable)
			return
		}
		fd, _, errno := loop.Accept(a.fd)
		switch errno {
		case 0:
			a.place(fd)
		case syscall.EAGAIN:
			return
		case syscall.ECONNABORTED, syscall.EPROTO, syscall.EPERM:
			continue // of this one connection
		default:
			// No descriptors or no memory: trying at once would only burn the
			// loop. Edges do not repeat, so the timer has to look again.
			a.w.log.Error("cannot accept connections", "upstream", a.st.name, "address", a.key.String(), "error", errno)
			a.w.loop.Arm(&a.timer, a.w.loop.Now()+int64(acceptPause))
			return
		}
	}
}

// Expired tries again after an error of the host.
func (a *acceptor) Expired(*loop.Timer) { a.Ready(loop.Readable) }

// place gives the connection to a loop: the first one that has time for it.
func (a *acceptor) place(fd int) {
	st, tcp := a.st, a.tcp
	if w := a.p.choose(); w != a.w {
		if w.loop.Post(func() { w.take(fd, st, tcp) }) {
			return
		}
	}
	a.w.take(fd, st, tcp)
}

// take begins the connection on this loop.
func (w *worker) take(fd int, st *upstreamState, tcp bool) {
	if w.draining {
		loop.Close(fd)
		return
	}
	if plan := w.pic.out(st.slot); plan != nil && plan.st == st {
		if !take(&st.usage.connections, plan.Limits.MaxConnections) {
			st.shards[w.loop.Index()].Exchange(uint8(Overflow), 0, 0)
			loop.Abort(fd)
			return
		}
	} else {
		st.usage.connections.Add(1)
	}
	if tcp {
		w.acceptTCP(fd, st)
	} else {
		w.acceptHTTP(fd, st)
	}
}

// adopt registers a connection with an application; take has counted its place.
func (w *worker) adopt(h loop.Handler, fd int, c closer, shard *telemetry.Shard, u *usage) bool {
	if err := w.loop.Add(fd, h); err != nil {
		w.log.Error("cannot watch a connection", "error", err)
		u.connections.Add(-1)
		loop.Close(fd)
		return false
	}
	w.conns[c] = struct{}{}
	shard.ConnOpened()
	return true
}

// release is the end of what adopt began.
func (w *worker) release(c closer, shard *telemetry.Shard, u *usage) {
	delete(w.conns, c)
	u.connections.Add(-1)
	shard.ConnClosed()
}

// idlest returns the loop for a new connection: the first that is not
// overloaded, else the least loaded. Every further loop costs some of the gain
// of batching, so it gets work only when those before it are full.
func (p *Proxy) idlest() *worker {
	best := p.workers[0]
	low := best.loop.Load()
	for _, w := range p.workers {
		load := w.loop.Load()
		if load < overloadLoad {
			return w
		}
		if load < low {
			best, low = w, load
		}
	}
	return best
}

// ListenerState is how a listener of an upstream fares.
type ListenerState struct {
	Upstream string
	Address  netip.AddrPort // the zero AddrPort for a Unix socket
	Path     string         // of a Unix socket, "" for an address
	Err      error          // nil while it listens as it should
}

// Prepare binds the addresses and Unix sockets of s that are not bound yet and
// returns all that s asks for. A taken one fails by itself; calling Prepare
// again tries it again. Those that s does not need stay until Publish.
func (p *Proxy) Prepare(s *mesh.Snapshot) []ListenerState {
	p.mu.Lock()
	defer p.mu.Unlock()
	var states []ListenerState
	for _, o := range s.Outbound {
		for _, addr := range o.Binds {
			st := ListenerState{Upstream: o.Name, Address: addr}
			if key := (bindKey{addr: addr}); p.listeners[key] == nil {
				st.Err = p.listen(key, 0)
			}
			states = append(states, st)
		}
		if o.SocketPath != "" {
			st := ListenerState{Upstream: o.Name, Path: o.SocketPath}
			key := bindKey{path: o.SocketPath}
			if a := p.listeners[key]; a == nil {
				st.Err = p.listen(key, o.SocketMode)
			} else {
				st.Err = p.keepSocket(key, a, o.SocketMode)
			}
			states = append(states, st)
		}
	}
	return states
}

var errDraining = errors.New("the agent is shutting down")

// listen binds key; mode is for Unix sockets. p.mu is held.
func (p *Proxy) listen(key bindKey, mode uint32) error {
	if p.draining {
		return errDraining
	}
	// The loop may not have closed yet what was listening there a moment ago.
	if old := p.closing[key]; old != nil {
		select {
		case <-old.gone:
			delete(p.closing, key)
		case <-time.After(closeWait):
		}
	}
	a := &acceptor{p: p, key: key, mode: mode, gone: make(chan struct{})}
	var err error
	if key.path != "" {
		a.fd, a.file, err = listenSocket(key.path, mode)
	} else {
		a.fd, _, err = loop.Listen(key.addr)
	}
	if err != nil {
		return err
	}
	p.listeners[key] = a
	return nil
}

// shut closes a listener that is not in p.listeners any more. p.mu is held.
func (p *Proxy) shut(key bindKey, a *acceptor) {
	p.closing[key] = a
	if !p.workers[0].loop.Post(a.shut) {
		a.shut()
	}
}

// install points every bound listener at its upstream in pic and closes those
// that pic has no use for. p.mu is held.
func (p *Proxy) install(pic *picture) {
	type use struct {
		st  *upstreamState
		tcp bool
	}
	wanted := make(map[bindKey]use)
	for _, o := range pic.outbound {
		if o == nil {
			continue
		}
		u := use{o.st, o.Protocol == mesh.TCP}
		for _, addr := range o.Binds {
			wanted[bindKey{addr: addr}] = u
		}
		if o.SocketPath != "" {
			wanted[bindKey{path: o.SocketPath}] = u
		}
	}
	for key, a := range p.closing {
		select {
		case <-a.gone:
			delete(p.closing, key)
		default:
		}
	}
	first := p.workers[0]
	for key, a := range p.listeners {
		u, ok := wanted[key]
		if !ok {
			delete(p.listeners, key)
			p.shut(key, a)
			continue
		}
		first.loop.Post(func() {
			a.st, a.tcp = u.st, u.tcp
			if a.w == nil && a.fd >= 0 {
				a.w = first
				a.timer.Owner = a
				if err := first.loop.Add(a.fd, a); err != nil {
					first.log.Error("cannot watch a listener", "address", a.key.String(), "error", err)
				}
			}
		})
	}
}

func (a *acceptor) shut() {
	if a.fd < 0 {
		return
	}
	if a.w != nil {
		a.w.loop.Disarm(&a.timer)
		a.w.loop.Remove(a.fd)
	}
	a.closeFD()
}

// closeFD closes the listener of a loop that does not watch it.
func (a *acceptor) closeFD() {
	if a.fd < 0 {
		return
	}
	if a.key.path != "" {
		removeSocket(a.key.path, a.file)
	}
	loop.Close(a.fd)
	a.fd = -1
	close(a.gone)
}
