package proxy

import (
	"meshd/internal/http1"
	"meshd/internal/mesh"
)

// The side of the exchange.

func (c *upHTTP) room() int {
	if c.deaf {
		return 0
	}
	return outHigh - c.pending()
}

func (c *upHTTP) sendHead(*mesh.Head, bool) {}

func (c *upHTTP) sendInterim(*mesh.Head) {}

func (c *upHTTP) sendData(p []byte, end bool) {
	if c.fd < 0 {
		return
	}
	if c.remain >= 0 {
		if c.remain -= int64(len(p)); c.remain < 0 || end && c.remain > 0 {
			// The body is not what its head promised: the application must not
			// take the next request for the rest of this one.
			x := c.x
			c.x = nil
			c.shut(true)
			x.fromUpReset(ProtocolError, true)
			return
		}
	}
	if c.deaf {
		c.sentAll = c.sentAll || end
		return
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
	c.sent(end)
}

func (c *upHTTP) sendTrailers(t []mesh.Field) {
	if !c.chunked || c.deaf {
		c.sendData(nil, true)
		return
	}
	c.out = http1.AppendLastChunk(c.grow(openGuess), t)
	c.sent(true)
}

func (c *upHTTP) sent(end bool) {
	c.sentAll = c.sentAll || end
	c.w.markDirty(c)
}

func (c *upHTTP) delivered(int) {}

func (c *upHTTP) resume() {
	c.starved = false
	c.w.later(c)
}

func (c *upHTTP) done() {}

// fail ends the request: a connection in the middle of one cannot be reused.
func (c *upHTTP) fail(o Outcome) {
	c.x = nil
	c.shut(o != OK)
}

func (c *upHTTP) drain() {
	if c.idle {
		c.pool.remove(c)
		c.shut(false)
	}
}

func (c *upHTTP) kill() {
	if c.idle {
		c.pool.remove(c)
	}
	c.failed(Draining)
}

func (c *upHTTP) retired(pic *picture) bool {
	p := pic.in(c.pool.st.slot)
	return p == nil || p.st != c.pool.st
}
