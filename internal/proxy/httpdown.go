package proxy

import (
	"errors"
	"syscall"

	"meshd/internal/http1"
	"meshd/internal/loop"
	"meshd/internal/wire"
)

// downHTTP is a connection that an application of this host opened to an
// upstream and speaks HTTP/1 on. One exchange runs at a time; requests that
// are pipelined behind it wait unread.
//
//	head ──> body ──> wait ──> head      (keep-alive)
//	  │        │        └────> linger ──> closed
//	  └────────┴──── error ────^
type downHTTP struct {
	sock
	st    *upstreamState
	state downState
	scan  int // where http1.ScanHead goes on
	body  http1.Body
	x     exchange

	minor      int8
	headOnly   bool  // the request was HEAD
	closeAfter bool  // after this exchange
	answered   bool  // the response is complete in out
	chunked    bool  // the response is sent in chunks
	remain     int64 // of a response with content-length; -1 is any
	ahead      int   // bytes in out that belong to answers before this one
	carry      int   // body bytes in out that were not told as delivered

	timer     loop.Timer
	timerAt   int64
	headStart int64 // loop time of a head's first byte; 0 while there is none
	idleFrom  int64 // loop time since which nothing was asked or taken
	lingerEnd int64
	lingering int // bytes thrown away so far
	starved   bool
}

type downState uint8

const (
	downHead downState = iota
	downBody
	downWait
	downLinger
	downClosed
)

var limits1 = http1.DefaultLimits()

// acceptHTTP takes over an accepted connection.
func (w *worker) acceptHTTP(fd int, st *upstreamState) {
	c := &downHTTP{st: st, idleFrom: w.loop.Now()}
	c.sock = sock{w: w, fd: fd, writable: true}
	c.timer.Owner = c
	if !w.adopt(c, fd, c, st.shards[w.loop.Index()], &st.usage) {
		return
	}
	c.arm()
}

// Ready is told that the socket may be read or written.
func (c *downHTTP) Ready(ev loop.Events) {
	if c.fd < 0 {
		return
	}
	c.note(ev)
	if ev&loop.Writable != 0 && c.pending() > 0 {
		c.w.markDirty(c)
	}
	if ev&loop.Failed != 0 {
		// Nothing is read while an answer or room is awaited, so a reset is
		// found here.
		if loop.SocketError(c.fd) != 0 {
			c.gone()
			return
		}
	}
	c.run()
}

// run reads and parses as far as there is room for what comes of it.
func (c *downHTTP) run() {
	if c.fd < 0 {
		return
	}
	if c.answered && !c.next() {
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
		if c.state == downBody {
			limit = min(limit, c.x.up.room())
		}
		b, errno := c.read(limit)
		if errno == syscall.EAGAIN {
			return
		}
		if errno != 0 {
			c.gone()
			return
		}
		if c.eof {
			c.ended()
			return
		}
		if !c.take(b) {
			return
		}
	}
}

// wants tells whether bytes could be used now.
func (c *downHTTP) wants() bool {
	switch c.state {
	case downLinger:
		return true
	case downHead:
		// Answers without a body would else pile up for a client that sends one
		// request behind the other and does not read.
		return c.room() > 0
	case downBody:
		if c.x.up == nil || c.x.up.room() <= 0 {
			c.starved = true
			return false
		}
		return true
	}
	return false
}

// take consumes b and keeps the rest. It reports whether the connection lives.
func (c *downHTTP) take(b []byte) bool {
	rest := c.consume(b)
	if c.fd < 0 {
		return false
	}
	c.keep(rest)
	return true
}

func (c *downHTTP) consume(b []byte) []byte {
	for len(b) > 0 && c.fd >= 0 {
		switch c.state {
		case downHead:
			if c.room() <= 0 {
				return b
			}
			if c.scan == 0 {
				b = b[http1.LeadingCRLF(b):]
			}
			end, next, err := http1.ScanHead(b, c.scan, limits1.HeadBytes)
			if err != nil {
				c.refuse(err)
				return nil
			}
			if end == 0 {
				c.scan = next
				if c.headStart == 0 && len(b) > 0 {
					c.headStart = c.w.loop.Now()
					c.arm()
				}
				return b
			}
			c.scan, c.headStart = 0, 0
			head := b[:end]
			b = b[end:]
			c.request(head)
		case downBody:
			if c.x.up == nil {
				return b
			}
			room := c.x.up.room()
			if room <= 0 {
				c.starved = true
				return b
			}
			data, n, err := c.body.Next(b[:min(len(b), room)])
			b = b[n:]
			if err != nil {
				c.broken()
				return nil
			}
			switch {
			case c.body.Done():
				c.state = downWait
				t := c.body.Trailers(c.w.tbuf[:0])
				c.w.tbuf = t
				if len(t) > 0 {
					if len(data) > 0 {
						c.x.fromDownData(data, false)
					}
					c.x.fromDownTrailers(t)
				} else {
					c.x.fromDownData(data, true)
				}
			case len(data) > 0:
				c.x.fromDownData(data, false)
			case n == 0:
				return b
			}
		case downLinger:
			if c.lingering += len(b); c.lingering > lingerBytes {
				c.kill()
			}
			return nil
		default:
			return b
		}
	}
	return b
}

// request begins the exchange of one parsed head.
func (c *downHTTP) request(head []byte) {
	w, r := c.w, &c.w.req
	if err := r.Parse(head, limits1); err != nil {
		c.refuse(err)
		return
	}
	c.minor, c.closeAfter = int8(r.Minor), r.Close || w.draining
	c.headOnly = string(r.Method) == "HEAD"
	c.answered, c.chunked, c.remain = false, false, -1
	c.ahead, c.carry = c.pending(), 0
	c.state = downWait
	if r.Length != 0 {
		c.state = downBody
		c.body = http1.NewBody(r.Length, limits1)
	}
	plan := w.pic.out(c.st.slot)
	if plan == nil || plan.st != c.st {
		// The upstream was removed while the connection was idle. Nobody else
		// would close it: the idle timeout went with the upstream.
		c.closeAfter = true
		c.x.begin(w, c, false)
		c.x.shard = c.st.shards[w.loop.Index()]
		c.x.reqEnd = c.state == downWait
		c.x.finish(NoEndpoints)
		return
	}
	begun := c.x.beginOutbound(w, c, plan, false)
	c.x.reqEnd = c.state == downWait
	if !begun {
		c.x.finish(Overflow)
		return
	}
	c.arm()
	c.x.note(&r.Head)
	if string(r.Method) == "CONNECT" {
		c.closeAfter = true // what follows is no HTTP
		c.x.finish(BadRequest)
		return
	}
	o := &w.open
	o.Head, o.Kind, o.Unit = r.Head, wire.KindHTTP, nil
	o.Upgrade = nil
	o.Scheme = schemeHTTP
	c.x.open(o, c.state == downWait)
}

var schemeHTTP = []byte("http")

// refuse answers a request that is no HTTP, without asking anybody.
func (c *downHTTP) refuse(err error) {
	status := 400
	var reason string
	if he, ok := errors.AsType[*http1.Error](err); ok {
		status, reason = he.Status, he.Reason
	}
	c.state, c.minor, c.closeAfter, c.headOnly, c.headStart = downWait, 1, true, false, 0
	x := &c.x
	x.begin(c.w, c, false)
	if plan := c.w.pic.out(c.st.slot); plan != nil && plan.st == c.st {
		x.plan = plan
	}
	x.shard = c.st.shards[c.w.loop.Index()]
	x.status = status
	c.answer(status, BadRequest, reason)
	x.record(BadRequest)
	c.w.later(c)
}

// broken ends a request whose body breaks the framing.
func (c *downHTTP) broken() {
	c.closeAfter = true
	c.state = downWait
	if c.x.running {
		c.x.finish(BadRequest)
	}
}

// gone ends a connection that the application broke.
func (c *downHTTP) gone() {
	x := &c.x
	c.shut(false)
	x.fromDownGone(ClientClosed)
}

// ended is the end of what the application sends.
func (c *downHTTP) ended() {
	switch c.state {
	case downHead:
		// A client that sends its request and closes its writing half may still
		// be reading the answer.
		c.closeAfter, c.answered = true, true
		c.next()
	case downLinger:
		c.shut(false)
	case downBody:
		if c.body.EOF() != nil {
			c.gone()
		}
	}
}

// next goes on after a complete response. It reports false when the
// connection does not.
func (c *downHTTP) next() bool {
	if c.closeAfter {
		if c.pending() > 0 {
			c.arm()
			return false // flush goes on
		}
		c.answered = false
		c.linger()
		return c.fd >= 0
	}
	c.answered = false
	c.state, c.scan, c.headStart, c.idleFrom = downHead, 0, 0, c.w.loop.Now()
	c.arm()
	return true
}

// linger closes the connection so that what was written arrives: bytes of the
// client that nobody reads would make the kernel destroy the answer.
func (c *downHTTP) linger() {
	if c.eof || (!c.peerClosed && !c.readable && len(c.in) == 0 && c.x.reqEnd) {
		c.shut(false)
		return
	}
	c.state = downLinger
	c.lingerEnd = c.w.loop.Now() + int64(lingerTimeout)
	loop.ShutdownWrite(c.fd)
	c.arm()
}

func (c *downHTTP) shut(abort bool) {
	if c.fd < 0 {
		return
	}
	c.state = downClosed
	c.w.loop.Disarm(&c.timer)
	c.close(abort)
	c.w.release(c, c.st.shards[c.w.loop.Index()], &c.st.usage)
}

// dueAt returns the first moment at which something may be due, 0 if nothing
// is.
func (c *downHTTP) dueAt() (at int64) {
	switch {
	case c.state == downLinger:
		at = c.lingerEnd
	case c.x.running:
		at, _ = c.x.dueAt()
	case c.pending() > 0: // an answer that the client does not read
		at = c.idleFrom + int64(unreadTimeout)
	case c.headStart != 0:
		at = c.headStart + int64(headerTimeout)
	case c.state == downHead:
		if limit := c.idleLimit(); limit > 0 {
			at = c.idleFrom + limit
		}
	}
	return at
}

// arm sets the timer to what is due first. It is only moved forward: when it
// fires early it is set anew, which costs less than moving it with every byte.
func (c *downHTTP) arm() {
	if at := c.dueAt(); at != 0 && (!c.timer.Armed() || at < c.timerAt) {
		c.timerAt = at
		c.w.loop.Arm(&c.timer, at)
	}
}

func (c *downHTTP) idleLimit() (d int64) {
	if plan := c.w.pic.out(c.st.slot); plan != nil && plan.st == c.st {
		return int64(plan.IdleTimeout)
	}
	return 0
}

// Expired looks what is due.
func (c *downHTTP) Expired(*loop.Timer) {
	if c.fd < 0 {
		return
	}
	if at := c.dueAt(); at == 0 || c.w.loop.Now() < at {
		c.arm()
		return
	}
	switch {
	case c.state == downLinger:
		c.shut(false)
	case c.x.running:
		_, o := c.x.dueAt()
		c.x.expire(o)
	case c.pending() > 0:
		c.shut(true)
	case c.headStart != 0:
		c.refuse(errHeaderTimeout)
	default:
		c.shut(false)
	}
}

var errHeaderTimeout = &http1.Error{Status: 408, Reason: "header_timeout"}

// flush writes the answer.
func (c *downHTTP) flush() {
	if c.fd < 0 {
		return
	}
	n, errno := c.write()
	if errno != 0 {
		c.gone()
		return
	}
	if n > 0 {
		c.x.activity, c.idleFrom = c.w.loop.Now(), c.w.loop.Now()
	}
	before := min(n, c.ahead)
	c.ahead -= before
	if n = min(n-before, c.carry); n > 0 {
		c.carry -= n
		if c.x.up != nil {
			c.x.up.delivered(n)
		}
	}
	switch {
	case c.answered && c.pending() == 0, c.state == downHead && (c.readable || len(c.in) > 0):
		c.w.later(c)
	case c.state == downHead && c.closeAfter:
		c.drain() // an answer that had to leave kept it open
	}
}
