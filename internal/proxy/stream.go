package proxy

import (
	"meshd/internal/mesh"
	"meshd/internal/wire"
)

// stream is one exchange on a link: the up side at the host that calls, the
// down side at the host that is called.
type stream struct {
	l  *link
	id uint32
	x  *exchange

	credit  int // bytes that we may still send
	window  int // bytes that the peer may still send
	unacked int // bytes delivered and not yet granted again

	sentEnd, gotEnd bool
	starved         bool // somebody stopped reading for lack of our room
	blocked         bool // in l.blocked
	gone            bool // out of its link

	own  exchange // of an accepted stream
	next *stream  // in the worker's free list
}

func (w *worker) newStream(l *link, id uint32) *stream {
	s := w.freeStreams
	if s == nil {
		s = new(stream)
	} else {
		w.freeStreams = s.next
	}
	s.l, s.id, s.x, s.next = l, id, nil, nil
	s.credit, s.window, s.unacked = wire.InitialCredit, wire.InitialCredit, 0
	s.sentEnd, s.gotEnd, s.starved, s.blocked, s.gone = false, false, false, false, false
	return s
}

// start opens a stream for x with the request o. It reports false when the
// request is too large for the link; nothing has happened then.
func (l *link) start(x *exchange, o *wire.Open, end bool) bool {
	slot := len(l.streams)
	if n := len(l.free); n > 0 {
		slot = l.free[n-1]
	}
	gen := uint16(1)
	if slot < len(l.gens) {
		if gen = l.gens[slot] + 1; gen == 0 {
			gen = 1
		}
	}
	id := wire.StreamID(slot, gen)
	out, ok := wire.AppendOpen(l.w.room(l.out, openGuess), id, o, end)
	l.out = out
	if !ok {
		return false
	}
	if slot == len(l.streams) {
		l.streams = append(l.streams, nil)
		l.gens = append(l.gens, 0)
	} else {
		l.free = l.free[:len(l.free)-1]
	}
	l.gens[slot] = gen
	s := l.w.newStream(l, id)
	s.x, s.sentEnd = x, end
	l.streams[slot] = s
	if l.count++; l.count == 1 {
		l.busy()
	}
	x.up = s
	l.w.markLink(l)
	return true
}

// openGuess is the room made for a head before it is known how long it is;
// longer ones make the buffer grow while appending.
const openGuess = 2 << 10

// release takes the stream out of its link.
func (s *stream) release() {
	l := s.l
	if s.gone {
		return
	}
	s.gone = true
	if !l.closed {
		slot := wire.Slot(s.id)
		l.streams[slot] = nil
		if l.opener {
			l.free = append(l.free, slot)
		}
		if l.count--; l.count == 0 {
			l.idleFrom = l.w.loop.Now()
			if l.goaway {
				l.w.markLink(l) // closes after what it still has to say
			}
		}
	}
	s.recycle()
}

// recycle puts a stream away that is out of its link and whose exchange, if it
// owns one, has been recorded. Callers up the stack may still look at it: it is
// not taken again before they return.
func (s *stream) recycle() {
	if s.gone && !s.blocked && !s.own.running && s.x != nil {
		s.x = nil
		s.next, s.l.w.freeStreams = s.l.w.freeStreams, s
	}
}

// settle releases the stream once both directions have ended.
func (s *stream) settle() {
	if s.sentEnd && s.gotEnd {
		s.release()
	}
}

// frame acts on a frame of the stream. An error breaks the link.
func (s *stream) frame(f wire.Frame) error {
	w, x := s.l.w, s.x
	switch f.Type {
	case wire.TypeReset, wire.TypeCredit:
	default:
		if s.gotEnd {
			return s.broken()
		}
	}
	switch f.Type {
	case wire.TypeData:
		if s.window -= len(f.Payload); s.window < 0 {
			return errCreditExceeded
		}
		s.gotEnd = f.End
		if s.l.opener {
			if !x.tcp && !x.respHead {
				return s.broken()
			}
			x.fromUpData(f.Payload, f.End)
		} else {
			x.fromDownData(f.Payload, f.End)
		}
	case wire.TypeUpgradeAccepted: // nobody asked for an upgrade
		return s.broken()
	case wire.TypeHead, wire.TypeInterim:
		if x.respHead || x.tcp {
			return s.broken()
		}
		if err := wire.ParseHead(f.Payload, &w.head); err != nil {
			return s.broken()
		}
		if f.Type == wire.TypeInterim {
			x.fromUpInterim(&w.head)
			return nil
		}
		s.gotEnd = f.End
		x.fromUpHead(&w.head, f.End)
	case wire.TypeTrailers:
		t, err := wire.ParseTrailers(f.Payload, w.tbuf[:0])
		if err != nil || s.l.opener && !x.respHead {
			return s.broken()
		}
		w.tbuf, s.gotEnd = t, true
		if s.l.opener {
			x.fromUpTrailers(t)
		} else {
			x.fromDownTrailers(t)
		}
	case wire.TypeEnd:
		s.gotEnd = true
		if s.l.opener {
			if !x.tcp && !x.respHead {
				return s.broken()
			}
			x.fromUpData(nil, true)
		} else {
			x.fromDownData(nil, true)
		}
	case wire.TypeReset:
		code, delivered, err := wire.ParseReset(f.Payload)
		if err != nil {
			return err
		}
		o := outcomeOf(code)
		if o == RequestTimeout && x.tcp {
			o = IdleTimeout // a connection has no other
		}
		l := s.l
		s.release()
		if l.opener {
			x.fromUpReset(o, delivered)
		} else {
			x.fromDownGone(o)
			s.recycle()
		}
		return nil
	case wire.TypeCredit:
		n, err := wire.ParseCredit(f.Payload)
		if err != nil {
			return s.broken()
		}
		s.credit = min(s.credit+int(n), wire.MaxCredit)
		if s.starved {
			s.wake()
		}
		return nil
	}
	s.settle()
	return nil
}

// broken resets a stream whose frames make no sense, without harm to others.
func (s *stream) broken() error {
	x := s.x
	s.reset(wire.CodeProtocolError, true)
	if s.l.opener {
		x.fromUpReset(ProtocolError, true)
	} else {
		x.fromDownGone(ProtocolError)
		s.recycle()
	}
	return nil
}

func (s *stream) reset(c wire.Code, delivered bool) {
	if s.gone || s.l.closed {
		s.release()
		return
	}
	s.l.out = wire.AppendReset(s.l.w.room(s.l.out, 32), s.id, c, delivered)
	s.l.w.markLink(s.l)
	s.sentEnd, s.gotEnd = true, true
	s.release()
}

// linkLost is called for each stream of a link that broke.
func (s *stream) linkLost() {
	x := s.x
	s.blocked = false
	s.release()
	if s.l.opener {
		x.fromUpReset(LinkLost, true)
	} else {
		x.fromDownGone(ClientClosed)
		s.recycle()
	}
}

// unblock lets the side go on that stopped for lack of room.
func (s *stream) unblock() {
	s.blocked = false
	if s.gone {
		s.recycle()
		return
	}
	s.wake()
}

// wake lets the side go on that stopped for lack of our room; it asks again.
func (s *stream) wake() {
	if !s.starved || s.l.closed {
		return
	}
	s.starved = false
	if s.l.opener {
		s.x.down.resume()
	} else if s.x.up != nil {
		s.x.up.resume()
	}
}

// The side of the exchange.

func (s *stream) room() int {
	r := min(s.credit, s.l.room())
	if r <= 0 {
		s.starved = true
		if s.l.full && !s.blocked && !s.l.closed {
			s.blocked = true
			s.l.blocked = append(s.l.blocked, s)
		}
	}
	return r
}

func (s *stream) sendHead(h *mesh.Head, end bool) {
	out, ok := wire.AppendHead(s.l.w.room(s.l.out, openGuess), s.id, h, end)
	s.l.out = out
	if !ok {
		s.x.finish(BadResponse)
		return
	}
	s.sent(end)
}

func (s *stream) sendInterim(h *mesh.Head) {
	if out, ok := wire.AppendInterim(s.l.w.room(s.l.out, openGuess), s.id, h); ok {
		s.l.out = out
		s.l.w.markLink(s.l)
	}
}

func (s *stream) sendData(p []byte, end bool) {
	if len(p) == 0 && !end {
		return
	}
	s.credit -= len(p)
	out := s.l.w.room(s.l.out, len(p)+2*wire.HeaderLen)
	if len(p) == 0 {
		s.l.out = wire.AppendEnd(out, s.id)
	} else {
		s.l.out = wire.AppendData(out, s.id, p, end)
	}
	s.sent(end)
}

func (s *stream) sendTrailers(t []mesh.Field) {
	if len(t) == 0 {
		s.sendData(nil, true)
		return
	}
	out, ok := wire.AppendTrailers(s.l.w.room(s.l.out, openGuess), s.id, t)
	if !ok {
		out = wire.AppendEnd(out, s.id)
	}
	s.l.out = out
	s.sent(true)
}

func (s *stream) sent(end bool) {
	s.l.w.markLink(s.l)
	if end {
		s.sentEnd = true
		s.settle()
	}
}

func (s *stream) delivered(n int) {
	s.unacked += n
	if s.gotEnd || s.unacked < creditStep || s.l.closed {
		return
	}
	s.l.out = wire.AppendCredit(s.l.w.room(s.l.out, 32), s.id, uint32(s.unacked))
	s.window += s.unacked
	s.unacked = 0
	s.l.w.markLink(s.l)
}

// done puts the accepted stream away. Whoever has not sent all of a request
// that is answered is told not to; else the stream would keep its place, and
// its link, for as long as the peer likes.
func (s *stream) done() {
	if !s.l.opener && !s.gotEnd {
		s.reset(wire.CodeNone, true)
	}
	s.recycle()
}

// resume does nothing: a peer stops by itself when its credit is used up.
func (s *stream) resume() {}

func (s *stream) fail(o Outcome) {
	delivered := true
	if !s.l.opener {
		delivered = s.own.touched
	}
	s.reset(o.code(), delivered)
}
