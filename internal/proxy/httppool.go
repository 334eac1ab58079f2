package proxy

import (
	"meshd/internal/http1"
	"meshd/internal/mesh"
)

// localPool keeps the idle connections of one loop to one application.
type localPool struct {
	st    *serviceState
	first *upHTTP // most recently used
	size  int
}

func (p *localPool) close() {
	if p == nil {
		return
	}
	for p.first != nil {
		c := p.first
		p.remove(c)
		c.shut(false)
	}
}

func (p *localPool) remove(c *upHTTP) {
	for at := &p.first; *at != nil; at = &(*at).next {
		if *at == c {
			*at, c.next, c.idle = c.next, nil, false
			p.size--
			p.st.usage.kept.drop()
			return
		}
	}
}

// take returns the connection that was used last, nil if there is none that
// this loop may use.
func (p *localPool) take() *upHTTP {
	c := p.first
	if c == nil {
		return nil
	}
	if !p.st.usage.kept.reuse() {
		p.remove(c) // another loop has opened one in its place
		c.shut(false)
		return nil
	}
	p.first, c.next, c.idle = c.next, nil, false
	p.size--
	return c
}

// claim has a connection closed that some loop keeps and nothing runs on, so
// that this one may open one although the limit is reached. For a moment there
// is one too many.
func (w *worker) claim(st *serviceState) bool {
	if !st.usage.kept.claim() {
		return false
	}
	w.shed(st)
	for _, o := range w.p.workers {
		if o != w {
			o.loop.Post(func() { o.shed(st) })
		}
	}
	return true
}

// shed closes connections that were claimed.
func (w *worker) shed(st *serviceState) {
	if st.slot >= len(w.pools) || w.pools[st.slot] == nil || w.pools[st.slot].st != st {
		return
	}
	for p := w.pools[st.slot]; p.first != nil && st.usage.kept.claimed(); {
		c := p.first
		p.remove(c)
		c.shut(false)
	}
}

// requestLocal sends the head of a request to the application: on a kept
// connection if there is one.
func (w *worker) requestLocal(in *inPlan, l *link, x *exchange, h *mesh.Head, end bool) {
	p := w.pool(in.st)
	var c *upHTTP
	if c = p.take(); c != nil {
		c.reused = true
	} else {
		var o Outcome
		if c, o = w.openLocal(in, p); c == nil {
			x.finish(o)
			return
		}
	}
	c.begin(x)
	c.arm()
	w.trusted(l, h)
	framing := http1.FramingNone
	length, known := http1.ContentLength(h)
	switch {
	case known && end && length > 0:
		x.finish(ProtocolError) // the other agent should have seen it
		return
	case known:
		c.remain = length
	case end:
		c.remain = 0
		if expectsBody(h.Method) {
			framing = http1.FramingZero
		}
	default:
		framing, c.chunked = http1.FramingChunked, true
	}
	c.out = http1.AppendRequestHead(c.grow(openGuess), h, framing)
	c.sent(end)
}

// expectsBody tells the methods whose requests should say that they have no
// body (RFC 9110 section 8.6).
func expectsBody(m []byte) bool {
	switch string(m) {
	case "POST", "PUT", "PATCH":
		return true
	}
	return false
}

// openLocal begins a connection to the application, or returns nil and why.
func (w *worker) openLocal(in *inPlan, p *localPool) (*upHTTP, Outcome) {
	fd, done, o := w.connectLocal(in)
	if o != OK {
		return nil, o
	}
	c := &upHTTP{pool: p}
	c.sock = sock{w: w, fd: fd, connecting: !done, writable: done}
	c.timer.Owner = c
	if !w.adopt(c, fd, c, in.st.shards[w.loop.Index()], &in.st.usage) {
		c.connected(&in.st.usage)
		return nil, LocalConnectFailed
	}
	if in.ConnectTimeout > 0 {
		c.connectBy = w.loop.Now() + int64(in.ConnectTimeout)
	}
	return c, OK
}
