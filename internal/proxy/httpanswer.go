package proxy

import (
	"strconv"

	"meshd/internal/http1"
	"meshd/internal/mesh"
)

// The side of the exchange.

func (c *downHTTP) room() int { return outHigh - c.pending() }

func (c *downHTTP) sendInterim(h *mesh.Head) {
	if c.minor == 0 || h.Status == 101 {
		return
	}
	c.out = http1.AppendResponseHead(c.grow(openGuess), h, http1.FramingNone, false, int(c.minor))
	c.w.markDirty(c)
}

func (c *downHTTP) sendHead(h *mesh.Head, end bool) {
	framing := http1.FramingNone
	length, known := http1.ContentLength(h)
	switch {
	case c.headOnly || h.Status == 204 || h.Status == 304:
		c.remain = 0
	case known:
		c.remain = length
	case end:
		framing, c.remain = http1.FramingZero, 0
	case c.minor == 0:
		framing, c.closeAfter = http1.FramingClose, true
	default:
		framing, c.chunked = http1.FramingChunked, true
	}
	if !c.x.reqEnd {
		c.closeAfter = true // the rest of the request would be taken for another
	}
	if c.w.draining {
		c.closeAfter = true
	}
	c.out = http1.AppendResponseHead(c.grow(openGuess), h, framing, c.closeAfter, int(c.minor))
	if end && c.remain > 0 {
		c.cut()
		return
	}
	c.complete(end)
}

func (c *downHTTP) sendData(p []byte, end bool) {
	if c.fd < 0 {
		return
	}
	if c.remain >= 0 {
		if c.remain -= int64(len(p)); c.remain < 0 || end && c.remain > 0 {
			c.cut()
			return
		}
	}
	if len(p) > 0 {
		out := c.grow(len(p) + chunkOverhead)
		if c.chunked {
			c.out = http1.AppendChunk(out, p)
		} else {
			c.out = append(out, p...)
		}
		c.carry += len(p)
	}
	if end && c.chunked {
		c.out = http1.AppendLastChunk(c.grow(chunkOverhead), nil)
	}
	c.complete(end)
}

// chunkOverhead is more than the framing of one chunk takes.
const chunkOverhead = 32

func (c *downHTTP) sendTrailers(t []mesh.Field) {
	if !c.chunked {
		t = nil
		c.sendData(nil, true) // HTTP/1.0 and content-length have no place for them
		return
	}
	c.out = http1.AppendLastChunk(c.grow(openGuess), t)
	c.complete(true)
}

func (c *downHTTP) complete(end bool) {
	c.answered = c.answered || end
	c.w.markDirty(c)
}

// cut ends an answer whose length is not what its head promised: the client
// must not take it for a whole one.
func (c *downHTTP) cut() {
	x := &c.x
	c.shut(true)
	if x.running {
		up := x.up
		x.up = nil
		x.record(ProtocolError)
		if up != nil {
			up.fail(ProtocolError)
		}
	}
}

func (c *downHTTP) delivered(int) {}

func (c *downHTTP) resume() {
	if c.starved {
		c.starved = false
	}
	c.w.later(c)
}

func (c *downHTTP) done() { c.w.later(c) }

// fail answers with the outcome, or cuts an answer that has begun.
func (c *downHTTP) fail(o Outcome) {
	if c.fd < 0 {
		return
	}
	if c.x.respHead {
		c.write() // what there is of it; whether it arrives changes nothing
		c.shut(true)
		return
	}
	if c.state == downBody || !c.x.reqEnd {
		c.closeAfter = true
	}
	c.state = downWait
	status := outcomes[o].status
	if status == 0 {
		c.shut(true)
		return
	}
	c.answer(status, o, "")
	c.w.later(c)
}

// answer writes an answer of our own.
func (c *downHTTP) answer(status int, o Outcome, reason string) {
	body := "meshd: " + o.String()
	if hint := outcomes[o].hint; hint != "" {
		body += ": " + hint
	}
	if reason != "" {
		body += " (" + reason + ")"
	}
	body += "\n"
	h := &c.w.head
	h.Reset()
	h.Status = status
	h.Fields = append(h.Fields,
		mesh.Field{Name: mesh.ContentType.Bytes(), Value: textPlain, Known: mesh.ContentType},
		mesh.Field{Name: mesh.ContentLength.Bytes(), Value: []byte(strconv.Itoa(len(body))), Known: mesh.ContentLength},
		mesh.Field{Name: mesh.MeshdError.Bytes(), Value: []byte(o.String()), Known: mesh.MeshdError})
	if o == CircuitOpen || o == Overflow {
		h.Fields = append(h.Fields, mesh.Field{Name: mesh.RetryAfter.Bytes(), Value: retrySoon, Known: mesh.RetryAfter})
	}
	c.out = http1.AppendResponseHead(c.grow(openGuess), h, http1.FramingNone, c.closeAfter || c.w.draining, int(c.minor))
	if !c.headOnly {
		c.out = append(c.out, body...)
	}
	c.complete(true)
}

var (
	textPlain = []byte("text/plain; charset=utf-8")
	retrySoon = []byte("1")
)

// drain closes the connection when nothing runs on it.
func (c *downHTTP) drain() {
	c.closeAfter = true
	if c.state == downHead && c.headStart == 0 && c.pending() == 0 {
		c.shut(false)
	}
}

func (c *downHTTP) kill() {
	x := &c.x
	c.shut(true)
	x.fromDownGone(Draining)
}

func (c *downHTTP) retired(pic *picture) bool {
	p := pic.out(c.st.slot)
	return p == nil || p.st != c.st
}
