package proxy

import (
	"bytes"

	"meshd/internal/wire"
)

// grants is what one picture says of a link that a peer opened: the instances
// of its service here, and for each whether the peer may talk to it. It is
// looked up by name once per picture and link instead of once per stream.
type grants struct {
	pic       *picture
	instances []*inPlan
	allowed   []bool
}

// lookup refreshes the grants when the picture has changed.
func (l *link) lookup() *grants {
	g := &l.grants
	if g.pic != l.w.pic {
		g.pic = l.w.pic
		g.instances, g.allowed = nil, g.allowed[:0]
		if g.pic != nil {
			g.instances = g.pic.services[l.service]
		}
		for _, in := range g.instances {
			ok := in.rules.Decide(l.peer).Allowed
			g.allowed = append(g.allowed, ok)
			l.admitted = l.admitted || ok
		}
	}
	return g
}

// instance finds the one that a stream asks for: by id, or the only one there
// is. A hand-written catalog names endpoints as it likes; with several
// instances such a name leaves the choice to us.
func (g *grants) instance(id []byte) int {
	for i, in := range g.instances {
		if string(id) == in.ID {
			return i
		}
	}
	if len(g.instances) == 0 {
		return -1
	}
	best := 0
	for i, in := range g.instances {
		if in.st.usage.requests.Load() < g.instances[best].st.usage.requests.Load() {
			best = i
		}
	}
	return best
}

// accept begins the exchange of a stream that the peer opened. An error breaks
// the link; a refusal resets the stream and says that nothing was delivered.
func (l *link) accept(f wire.Frame) error {
	w := l.w
	slot := wire.Slot(f.Stream)
	for slot >= len(l.streams) {
		l.streams = append(l.streams, nil)
	}
	if l.streams[slot] != nil {
		return errSlotInUse
	}
	s := w.newStream(l, f.Stream)
	s.x, s.gotEnd = &s.own, f.End
	l.streams[slot] = s
	if l.count++; l.count == 1 {
		l.busy()
	}
	o := &w.open
	if err := wire.ParseOpen(f.Payload, o); err != nil {
		s.reset(wire.CodeProtocolError, false)
		return nil
	}
	g := l.lookup()
	i := g.instance(o.Endpoint)
	if i < 0 {
		s.reset(wire.CodeNoService, false)
		return nil
	}
	in := g.instances[i]
	x := &s.own
	tcp := o.Kind == wire.KindTCP
	if !x.beginInbound(w, s, in, tcp, o.Remaining) {
		x.refuse(Overflow)
		return nil
	}
	x.reqEnd = f.End
	x.caller = l.peer
	switch {
	case !g.allowed[i]:
		x.refuse(Denied)
	case tcp != in.tcp():
		x.refuse(NoService)
	case tcp:
		w.connectTCP(in, x)
		if f.End && x.up != nil {
			x.up.sendData(nil, true)
		}
	case !validTarget(o.Path), bytes.EqualFold(o.Method, methodConnect):
		x.refuse(ProtocolError) // the other agent should have seen it
	default:
		x.note(&o.Head)
		w.requestLocal(in, l, x, &o.Head, f.End)
	}
	return nil
}

// methodConnect is refused whatever its target: what an application sends after
// its answer is no HTTP, and the connection would be kept for the requests of
// others.
var methodConnect = []byte("CONNECT")

// validTarget refuses what no HTTP/1 request line can carry; the codec has
// checked octets, an empty path is what is left.
func validTarget(p []byte) bool { return len(p) > 0 && (p[0] == '/' || bytes.Equal(p, star)) }

var star = []byte("*")
