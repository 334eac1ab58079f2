package proxy

import (
	"syscall"

	"meshd/internal/breaker"
	"meshd/internal/loop"
	"meshd/internal/mesh"
	"meshd/internal/telemetry"
	"meshd/internal/wire"
)

// tcpSide is a connection whose bytes nobody looks at: accepted from an
// application (the exchange is its own), or opened to one.
type tcpSide struct {
	sock
	x   *exchange
	own exchange // of an accepted connection

	st    *upstreamState // of an accepted connection
	shard *telemetry.Shard
	use   *usage

	finished bool // our writing half is to be closed after out
	finSent  bool
	readEnd  bool // the end of what it sends was passed on
	broken   bool // a write found it reset
	carry    int

	timer    loop.Timer
	progress int64         // loop time of the last write that took something
	inst     *serviceState // of an opened connection
}

// acceptTCP takes over an accepted connection and asks for a stream at once: a
// server may be the one that speaks first.
func (w *worker) acceptTCP(fd int, st *upstreamState) {
	c := &tcpSide{st: st, shard: st.shards[w.loop.Index()], use: &st.usage}
	c.sock = sock{w: w, fd: fd, writable: true}
	c.timer.Owner = c
	if !w.adopt(c, fd, c, c.shard, c.use) {
		return
	}
	c.x = &c.own
	plan := w.pic.out(st.slot)
	if plan == nil || plan.st != st {
		c.own.begin(w, c, true)
		c.own.shard = c.shard
		c.own.finish(NoEndpoints)
		return
	}
	if !c.own.beginOutbound(w, c, plan, true) {
		c.own.finish(Overflow)
		return
	}
	o := &w.open
	o.Head.Reset()
	o.Kind, o.Unit, o.Upgrade = wire.KindTCP, nil, nil
	c.own.open(o, false)
	c.arm()
}

// connectTCP opens the connection to the application for x.
func (w *worker) connectTCP(in *inPlan, x *exchange) {
	fd, done, o := w.connectLocal(in)
	if o != OK {
		x.finish(o)
		return
	}
	c := &tcpSide{x: x, inst: in.st, shard: in.st.shards[w.loop.Index()], use: &in.st.usage}
	c.sock = sock{w: w, fd: fd, connecting: !done, writable: done}
	c.timer.Owner = c
	if !w.adopt(c, fd, c, c.shard, c.use) {
		c.connected(c.use)
		x.finish(LocalConnectFailed)
		return
	}
	x.up = c
	if !done && in.ConnectTimeout > 0 {
		w.loop.Arm(&c.timer, w.loop.Now()+int64(in.ConnectTimeout))
		return
	}
	c.arm()
}

func (c *tcpSide) accepted() bool { return c.st != nil }

// other is the side that takes what this one reads; nil while there is none.
func (c *tcpSide) other() side {
	if c.x == nil || !c.x.running {
		return nil
	}
	if c.accepted() {
		return c.x.up
	}
	return c.x.down
}

// Ready is told of the socket.
func (c *tcpSide) Ready(ev loop.Events) {
	if c.fd < 0 {
		return
	}
	if c.connecting && ev != 0 {
		if loop.SocketError(c.fd) != 0 {
			c.failed(LocalConnectFailed)
			return
		}
		if ev&loop.Writable != 0 {
			c.connected(c.use)
			c.w.loop.Disarm(&c.timer)
			c.arm()
		}
	}
	c.note(ev)
	if ev&loop.Writable != 0 && (c.pending() > 0 || c.finished) {
		c.w.markDirty(c)
	}
	if c.connecting {
		return
	}
	c.run()
	// What came before a reset is passed on first, and reading finds the reset.
	// It must also be found while nothing can be read.
	if ev&loop.Failed != 0 && c.fd >= 0 && c.stalled() && loop.SocketError(c.fd) != 0 {
		c.failed(c.resetOutcome())
	}
}

// stalled tells whether run has nothing to read or nobody to read for.
func (c *tcpSide) stalled() bool {
	if c.readEnd {
		return true
	}
	o := c.other()
	return o == nil || o.room() <= 0
}

func (c *tcpSide) resetOutcome() Outcome {
	if c.accepted() {
		return ClientClosed
	}
	return LocalReset
}

func (c *tcpSide) run() {
	for n := 0; c.fd >= 0 && c.readable && !c.readEnd && !c.connecting; n++ {
		o := c.other()
		if o == nil {
			return
		}
		room := o.room()
		if room <= 0 {
			return
		}
		if n == readsPerRun {
			c.w.loop.Again(c, 0)
			return
		}
		b, errno := c.read(min(room, readChunk))
		if errno == syscall.EAGAIN {
			return
		}
		if errno != 0 || c.eof && c.broken {
			c.failed(c.resetOutcome())
			return
		}
		if c.eof {
			c.readEnd = true
			b = nil
		}
		if c.accepted() {
			c.x.fromDownData(b, c.eof)
		} else {
			c.x.touched = true
			c.x.fromUpData(b, c.eof)
		}
	}
}

// failed ends the exchange because this connection broke.
func (c *tcpSide) failed(o Outcome) {
	x := c.x
	c.shut(true)
	if x == nil || !x.running {
		return
	}
	c.x = nil
	if c.accepted() {
		x.fromDownGone(o)
	} else {
		x.fromUpReset(o, x.touched)
	}
}

func (c *tcpSide) shut(abort bool) {
	if c.fd < 0 {
		return
	}
	c.w.loop.Disarm(&c.timer)
	c.connected(c.use)
	c.close(abort)
	c.w.release(c, c.shard, c.use)
}

// arm sets the idle timer of the exchange; only the accepted side has one, and
// the called host's opened side, since a stream has no timer of its own.
func (c *tcpSide) arm() {
	if c.x == nil || !c.x.running {
		return
	}
	at, _ := c.x.dueAt()
	if soon := c.w.loop.Now() + int64(probeTime); c.x.permit == breaker.Probe && (at == 0 || soon < at) {
		at = soon
	}
	if at != 0 {
		c.w.loop.Arm(&c.timer, at)
	}
}

// Expired ends a connect that takes too long or an exchange that is idle.
func (c *tcpSide) Expired(*loop.Timer) {
	switch {
	case c.fd < 0:
	case c.connecting:
		c.failed(LocalConnectFailed)
	case c.x != nil && c.x.running:
		if at, o := c.x.dueAt(); at != 0 && c.w.loop.Now() >= at {
			c.x.expire(o)
			return
		}
		if _, open := c.x.up.(*stream); open {
			c.x.proved() // the peer would have refused it by now
		}
		c.arm()
	case c.w.loop.Now() < c.progress+int64(unreadTimeout):
		c.w.loop.Arm(&c.timer, c.progress+int64(unreadTimeout))
	default:
		c.shut(true)
	}
}

func (c *tcpSide) flush() {
	if c.fd < 0 || c.connecting {
		return
	}
	n, errno := c.write()
	if errno != 0 {
		// What came before the reset is still to be read; behind it there is
		// an end that is none.
		c.broken, c.readable = true, true
		c.run()
		c.failed(c.resetOutcome())
		return
	}
	if n > 0 {
		c.progress = c.w.loop.Now()
	}
	if n > 0 && c.x != nil && c.x.running {
		c.x.activity = c.progress
		if !c.accepted() {
			c.x.touched = true
		}
	}
	if n > 0 && c.carry > 0 {
		n = min(n, c.carry)
		c.carry -= n
		if o := c.other(); o != nil {
			o.delivered(n)
		}
	}
	if c.finished && !c.finSent && c.pending() == 0 {
		c.finSent = true
		loop.ShutdownWrite(c.fd)
	}
	c.closeIfDone()
}

// closeIfDone closes the connection when both directions have ended and
// everything was written.
func (c *tcpSide) closeIfDone() {
	if c.finSent && c.readEnd && c.fd >= 0 {
		c.shut(false)
	}
}

// The side of the exchange.

func (c *tcpSide) room() int { return outHigh - c.pending() }

func (c *tcpSide) sendHead(*mesh.Head, bool)   {}
func (c *tcpSide) sendInterim(*mesh.Head)      {}
func (c *tcpSide) sendTrailers(t []mesh.Field) { c.sendData(nil, true) }

func (c *tcpSide) sendData(p []byte, end bool) {
	if c.fd < 0 {
		return
	}
	if len(p) > 0 {
		c.out = append(c.grow(len(p)), p...)
		c.carry += len(p)
	}
	c.finished = c.finished || end
	c.w.markDirty(c)
}

func (c *tcpSide) delivered(int) {}

func (c *tcpSide) resume() {
	if c.x != nil && c.x.permit == breaker.Probe {
		c.arm()
	}
	c.w.later(c)
}

// done lets what was taken leave, as long as somebody reads it. The exchange
// may serve somebody else from now on.
func (c *tcpSide) done() {
	if !c.accepted() {
		c.x = nil
	}
	if c.fd >= 0 {
		c.progress = c.w.loop.Now()
		c.w.loop.Arm(&c.timer, c.progress+int64(unreadTimeout))
		c.w.markDirty(c)
	}
}

func (c *tcpSide) fail(Outcome) {
	if !c.accepted() {
		c.x = nil
	}
	if c.fd >= 0 {
		c.write() // what came before the reset goes out before ours
	}
	c.shut(true)
}

func (c *tcpSide) drain() {}

func (c *tcpSide) kill() { c.failed(Draining) }

func (c *tcpSide) retired(pic *picture) bool {
	if c.accepted() {
		p := pic.out(c.st.slot)
		return p == nil || p.st != c.st
	}
	p := pic.in(c.inst.slot)
	return p == nil || p.st != c.inst
}
