package proxy

import (
	"syscall"

	"meshd/internal/http1"
	"meshd/internal/loop"
)

// upHTTP is a connection to an application of this host, on which its HTTP/1
// answers come. It carries one exchange at a time and is kept for the next
// when both sides agree.
type upHTTP struct {
	sock
	pool *localPool
	x    *exchange // nil while idle

	state  upState
	scan   int
	body   http1.Body
	method []byte // of the request, kept short: only HEAD matters

	reused    bool
	sentAll   bool
	chunked   bool
	closing   bool  // the application closes after its answer
	remain    int64 // of a request with content-length; -1 is any
	carry     int
	starved   bool
	answering bool // a byte of the answer came
	deaf      bool // the application takes nothing more; its answer may still come

	// replay is the whole request, kept while a connection that was kept for
	// reuse may turn out to be one the application has just closed.
	replay   []byte
	timer    loop.Timer
	timerAt  int64
	idleFrom int64
	// connectBy is the loop time at which an attempt to connect is given up.
	connectBy int64
	next      *upHTTP // in the pool
	idle      bool
}

type upState uint8

const (
	upIdle upState = iota
	upHead
	upBody
	upWait // the answer is complete, the request is not
)

// arm sets the timer to the first moment at which something may be due: the
// stream has none, so the timeouts of this host's service are watched here. As
// with downHTTP it is only moved forward.
func (c *upHTTP) arm() {
	var at int64
	switch {
	case c.idle:
		at = c.idleFrom + int64(poolIdle)
	case c.x != nil:
		at, _ = c.x.dueAt()
		if c.connecting && c.connectBy != 0 && (at == 0 || c.connectBy < at) {
			at = c.connectBy
		}
	}
	if at != 0 && (!c.timer.Armed() || at < c.timerAt) {
		c.timerAt = at
		c.w.loop.Arm(&c.timer, at)
	}
}

// begin makes c the up side of x.
func (c *upHTTP) begin(x *exchange) {
	c.x, x.up = x, c
	c.state, c.scan = upHead, 0
	c.sentAll, c.chunked, c.closing, c.answering, c.starved = false, false, false, false, false
	c.remain, c.carry = -1, 0
	c.method = nil
	if string(c.w.open.Method) == "HEAD" {
		c.method = methodHead
	}
}

var methodHead = []byte("HEAD")

// Ready is told of the socket.
func (c *upHTTP) Ready(ev loop.Events) {
	if c.fd < 0 {
		return
	}
	if c.connecting && ev != 0 {
		if errno := loop.SocketError(c.fd); errno != 0 {
			c.failed(LocalConnectFailed)
			return
		}
		if ev&loop.Writable != 0 {
			c.connected(&c.pool.st.usage)
		}
	}
	c.note(ev)
	if c.idle {
		// The application closed it, or sends what nobody asked for.
		if ev&(loop.Readable|loop.PeerClosed|loop.Failed) != 0 {
			c.pool.remove(c)
			c.shut(false)
		}
		return
	}
	if ev&loop.Writable != 0 && (c.pending() > 0 || len(c.replay) > 0) {
		c.w.markDirty(c)
	}
	if !c.connecting {
		c.run()
	}
}

// run reads the answer as far as the asking side has room.
func (c *upHTTP) run() {
	if c.fd < 0 || c.idle {
		return
	}
	if len(c.in) > 0 && c.wants() {
		if !c.take(c.in) {
			return
		}
	}
	for n := 0; c.readable && c.wants(); n++ {
		if n == readsPerRun {
			c.w.loop.Again(c, 0)
			return
		}
		limit := readChunk
		if c.state == upBody {
			limit = min(limit, c.x.down.room())
		}
		b, errno := c.read(limit)
		if errno == syscall.EAGAIN {
			return
		}
		if errno != 0 || c.eof {
			c.ended()
			return
		}
		c.answering = true
		if !c.take(b) {
			return
		}
	}
}

func (c *upHTTP) wants() bool {
	switch c.state {
	case upHead:
		return true
	case upBody:
		if c.x.down.room() <= 0 {
			c.starved = true
			return false
		}
		return true
	}
	return false
}

func (c *upHTTP) take(b []byte) bool {
	rest := c.consume(b)
	if c.fd < 0 {
		return false
	}
	if c.idle {
		if len(rest) > 0 { // bytes behind the answer: do not believe the next one
			c.pool.remove(c)
			c.shut(false)
			return false
		}
	}
	c.keep(rest)
	return !c.idle
}

func (c *upHTTP) consume(b []byte) []byte {
	for len(b) > 0 && c.fd >= 0 && c.x != nil {
		switch c.state {
		case upHead:
			end, next, err := http1.ScanHead(b, c.scan, limits1.HeadBytes)
			if err != nil {
				c.failed(BadResponse)
				return nil
			}
			if end == 0 {
				c.scan = next
				return b
			}
			c.scan = 0
			head := b[:end]
			b = b[end:]
			if !c.response(head) {
				return nil
			}
		case upBody:
			room := c.x.down.room()
			if room <= 0 {
				c.starved = true
				return b
			}
			data, n, err := c.body.Next(b[:min(len(b), room)])
			b = b[n:]
			if err != nil {
				c.failed(BadResponse)
				return nil
			}
			x := c.x
			switch {
			case c.body.Done():
				t := c.body.Trailers(c.w.tbuf[:0])
				c.w.tbuf = t
				c.complete()
				if len(t) > 0 {
					if len(data) > 0 {
						x.fromUpData(data, false)
					}
					x.fromUpTrailers(t)
				} else {
					x.fromUpData(data, true)
				}
				c.park()
			case len(data) > 0:
				x.fromUpData(data, false)
			case n == 0:
				return b
			}
		default:
			return b
		}
	}
	return b
}

// response acts on one head. It reports whether the connection goes on.
func (c *upHTTP) response(head []byte) bool {
	r := &c.w.resp
	if err := r.Parse(head, c.method, limits1); err != nil {
		c.failed(BadResponse)
		return false
	}
	c.dropReplay()
	stripMesh(&r.Head)
	if r.Status < 200 {
		if r.Status == 101 { // nobody asked for an upgrade
			c.failed(BadResponse)
			return false
		}
		c.x.fromUpInterim(&r.Head)
		return c.fd >= 0
	}
	c.closing = c.closing || r.Close
	x := c.x
	if r.Length == 0 {
		c.complete()
		x.fromUpHead(&r.Head, true)
		c.park()
		return c.fd >= 0
	}
	c.state = upBody
	c.body = http1.NewBody(r.Length, limits1)
	x.fromUpHead(&r.Head, false)
	return c.fd >= 0
}

// complete is called before the end of the answer is passed on: from then on
// the exchange may end at any moment and must find the connection in order.
func (c *upHTTP) complete() { c.state = upWait }

// park keeps the connection for the next request once answer and request are
// complete.
func (c *upHTTP) park() {
	if c.fd < 0 || c.idle || c.state != upWait {
		return
	}
	if !c.sentAll {
		// fail has been or will be called by the exchange, which closes it.
		return
	}
	c.x = nil
	if c.closing || c.deaf || c.peerClosed || c.pending() > 0 || c.w.draining || c.retired(c.w.pic) || c.pool.size >= poolSize || c.more() {
		c.shut(false)
		return
	}
	c.state, c.idle, c.idleFrom = upIdle, true, c.w.loop.Now()
	c.next, c.pool.first = c.pool.first, c
	c.pool.size++
	c.pool.st.usage.kept.add()
	c.arm()
}

// more tells whether something came behind the answer: its edge may have been
// taken down already, so nobody would be told again, and the next request's
// answer would begin with it.
func (c *upHTTP) more() bool {
	if !c.readable {
		return false
	}
	_, errno := c.read(1)
	return errno != syscall.EAGAIN
}

// ended is the end of what the application sends.
func (c *upHTTP) ended() {
	// Once a write has failed the connection was reset, so that its end is not
	// the end that was meant.
	if c.state == upBody && c.eof && !c.deaf && c.body.EOF() == nil {
		c.closing = true
		x := c.x
		c.complete()
		x.fromUpData(nil, true)
		c.park()
		return
	}
	if c.state == upHead && c.reused && !c.answering && len(c.replay) > 0 {
		c.again()
		return
	}
	c.failed(LocalReset)
}

// again sends the request once more on a new connection: the application had
// closed the kept one before it saw the request, as far as anybody can tell,
// and the request may be repeated (RFC 9110 section 9.2.2).
func (c *upHTTP) again() {
	x, w := c.x, c.w
	request := c.replay
	c.replay, c.x, x.up = nil, nil, nil
	sentAll, method := c.sentAll, c.method
	c.shut(false)
	n, o := w.openLocal(x.inbound, c.pool)
	if n == nil {
		x.finish(o)
		return
	}
	n.begin(x)
	n.sentAll, n.method, n.out, n.remain = sentAll, method, request, 0
	n.arm()
	w.markDirty(n)
}

// failed ends the attempt.
func (c *upHTTP) failed(o Outcome) {
	x := c.x
	c.x = nil
	delivered := x != nil && x.touched
	c.shut(true)
	if x != nil {
		x.fromUpReset(o, delivered)
	}
}

func (c *upHTTP) shut(abort bool) {
	if c.fd < 0 {
		return
	}
	c.w.loop.Disarm(&c.timer)
	c.dropReplay()
	st := c.pool.st
	c.connected(&st.usage)
	c.close(abort)
	c.w.release(c, st.shards[c.w.loop.Index()], &st.usage)
}

func (c *upHTTP) dropReplay() {
	if c.replay != nil {
		c.w.loop.Put(c.replay)
		c.replay = nil
	}
}

// Expired ends a connect or an exchange that takes too long, or a connection
// nobody needs.
func (c *upHTTP) Expired(*loop.Timer) {
	now := c.w.loop.Now()
	switch {
	case c.fd < 0:
		return
	case c.idle:
		if now >= c.idleFrom+int64(poolIdle) {
			c.pool.remove(c)
			c.shut(false)
			return
		}
	case c.connecting && c.connectBy != 0 && now >= c.connectBy:
		c.failed(LocalConnectFailed)
		return
	case c.x != nil:
		if at, o := c.x.dueAt(); at != 0 && now >= at {
			c.x.expire(o)
			return
		}
	}
	c.arm()
}

// flush writes the request.
func (c *upHTTP) flush() {
	if c.fd < 0 || c.connecting {
		return
	}
	var n int
	var errno syscall.Errno
	if c.replay == nil && c.reused && c.sentAll && !c.answering && c.off == 0 && c.x != nil && c.x.received == 0 &&
		c.pending() > 0 && repeatable(c.out) {
		c.replay = append(c.w.loop.Get(len(c.out)), c.out...)
	}
	n, errno = c.write()
	if n > 0 && c.x != nil {
		c.x.touched = true
		c.x.activity = c.w.loop.Now()
	}
	if errno != 0 {
		if c.x == nil {
			c.shut(true)
			return
		}
		// The application closed; it may have answered before, which is common
		// when it does not want the rest of a request.
		c.dropOut()
		c.deaf, c.readable = true, true
		c.w.later(c)
		return
	}
	if c.carry > 0 && n > 0 && c.x != nil {
		n = min(n, c.carry)
		c.carry -= n
		c.x.down.delivered(n)
	}
}

// repeatable tells whether sending the request twice is the same as once
// (RFC 9110 section 9.2.2), by its method.
func repeatable(request []byte) bool {
	for _, m := range idempotent {
		if len(request) > len(m) && string(request[:len(m)]) == m {
			return true
		}
	}
	return false
}

var idempotent = [...]string{"GET ", "HEAD ", "PUT ", "DELETE ", "OPTIONS ", "TRACE "}
