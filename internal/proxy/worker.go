package proxy

import (
	"log/slog"

	"meshd/internal/balance"
	"meshd/internal/http1"
	"meshd/internal/loop"
	"meshd/internal/mesh"
	"meshd/internal/wire"
)

// worker is the part of the proxy that lives on one loop. Everything in it is
// touched by that loop's goroutine only, so nothing in it needs a lock.
type worker struct {
	p    *Proxy
	loop *loop.Loop
	log  *slog.Logger

	// pic is the picture of this turn; an exchange keeps the plan it was made with.
	pic    *picture
	access *slog.Logger // nil: no access log

	// links by target slot; eps by endpoint slot: indexes instead of maps.
	links []*linkSet
	eps   []*epLocal
	// pools of idle local connections by service slot.
	pools []*localPool

	// runnable sides have something to do once the current handler returned:
	// calling them at once could re-enter a buffer that is being parsed.
	runnable []runner
	// dirty sides have bytes to write; they are flushed once per turn.
	dirty      []flusher
	dirtyLinks []*link

	// plain and cipher are the buffers links are read through. They are apart
	// from loop.Scratch because a frame may make another connection read.
	plain     []byte
	cipher    []byte
	cipherAt  int // what of cipher the link being read has not taken yet
	cipherEnd int

	req  http1.Request
	resp http1.Response
	open wire.Open
	head mesh.Head
	tbuf []mesh.Field
	rng  balance.Rand
	view pickView

	cutter      cutter
	freeStreams *stream
	conns       map[closer]struct{} // all application connections, for drain and end
	allLinks    map[*link]struct{}
	accepted    int   // of allLinks, those that peers opened
	maxAccepted int   // the constant, unless a test wants less
	spareLogged int64 // loop time of the last log line about too many
	active      int   // exchanges in flight on this loop
	draining    bool
	ended       bool
}

// runner continues what it had to leave when it ran out of room.
type runner interface {
	run()
	runQueued() *bool
}

// flusher writes what was put into its buffer during a turn.
type flusher interface {
	flush()
	dirtyFlag() *bool
}

// closer is an application connection as drain sees it.
type closer interface {
	// drain closes the connection if nothing runs on it, and makes it close
	// after what runs otherwise.
	drain()
	// kill closes it at once.
	kill()
	// retired tells whether the upstream or service it belongs to has vanished.
	retired(pic *picture) bool
}

// epLocal is what this loop knows of an endpoint.
type epLocal struct {
	st       *endpointState
	inFlight uint32
}

func (w *worker) turnStart() {
	w.pic = w.p.picture.Load()
	w.access = w.p.settings.Load().access
}

// turnEnd does what the handlers of this turn left: sides that got room again
// run, then application sockets are flushed (which may grant credit), then
// links, each once. What comes up while flushing waits for the next turn only
// if it is more than a handful of rounds, so that two busy sides cannot keep a
// loop from polling.
func (w *worker) turnEnd() {
	for round := 0; round < maxTurnRounds; round++ {
		if len(w.runnable) == 0 && len(w.dirty) == 0 && len(w.dirtyLinks) == 0 {
			return
		}
		for i := 0; i < len(w.runnable); i++ {
			r := w.runnable[i]
			*r.runQueued() = false
			r.run()
		}
		clear(w.runnable)
		w.runnable = w.runnable[:0]
		for i := 0; i < len(w.dirty); i++ {
			f := w.dirty[i]
			*f.dirtyFlag() = false
			f.flush()
		}
		clear(w.dirty)
		w.dirty = w.dirty[:0]
		for i := 0; i < len(w.dirtyLinks); i++ {
			l := w.dirtyLinks[i]
			l.dirty = false
			l.flush()
		}
		clear(w.dirtyLinks)
		w.dirtyLinks = w.dirtyLinks[:0]
	}
	w.loop.Again(w, 0)
}

// Ready lets the rest of an overlong turn go on in the next one.
func (w *worker) Ready(loop.Events) {}

func (w *worker) later(r runner) {
	if q := r.runQueued(); !*q {
		*q = true
		w.runnable = append(w.runnable, r)
	}
}

func (w *worker) markDirty(f flusher) {
	if d := f.dirtyFlag(); !*d {
		*d = true
		w.dirty = append(w.dirty, f)
	}
}

func (w *worker) markLink(l *link) {
	if !l.dirty {
		l.dirty = true
		w.dirtyLinks = append(w.dirtyLinks, l)
	}
}

// The arrays below are indexed by slots that are given out again when what
// they stood for has left the picture. Whoever still holds the old object goes
// on with it; the entry belongs to whoever the slot stands for now.

// endpoint returns the loop's own state of an endpoint.
func (w *worker) endpoint(st *endpointState) *epLocal {
	for st.slot >= len(w.eps) {
		w.eps = append(w.eps, nil)
	}
	e := w.eps[st.slot]
	if e == nil || e.st != st {
		e = &epLocal{st: st}
		w.eps[st.slot] = e
	}
	return e
}

// linkSet returns the links of this loop to a target.
func (w *worker) linkSet(t *target) *linkSet {
	for t.slot >= len(w.links) {
		w.links = append(w.links, nil)
	}
	s := w.links[t.slot]
	if s != nil && s.target == t {
		return s
	}
	old := s
	s = &linkSet{w: w, target: t}
	// An exchange with an old plan must not push out the links of the target
	// that the slot stands for now.
	if old == nil || w.pic.targets[old.target.targetKey] != old.target {
		w.links[t.slot] = s
	}
	return s
}

// pool returns the idle connections of this loop to a local application.
func (w *worker) pool(st *serviceState) *localPool {
	for st.slot >= len(w.pools) {
		w.pools = append(w.pools, nil)
	}
	p := w.pools[st.slot]
	if p == nil || p.st != st {
		p.close()
		p = &localPool{st: st}
		w.pools[st.slot] = p
	}
	return p
}

// room makes space for n more bytes at the end of b, from the loop's pool.
func (w *worker) room(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	g := w.loop.Get(max(len(b)+n, 2*len(b)))
	g = append(g[:0], b...)
	if cap(b) > 0 {
		w.loop.Put(b)
	}
	return g
}
