package proxy

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"meshd/internal/identity"
	"meshd/internal/mesh"
	"meshd/internal/telemetry"
	"meshd/internal/wire"
)

// What a peer with a certificate of the mesh, or anybody who can reach the peer
// port, may do without harm to others.

// TestPeerAsksForTunnel: a connection of the application on which CONNECT was
// answered would carry the next requests, of whomever, to where the first caller
// likes.
func TestPeerAsksForTunnel(t *testing.T) {
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	l := dialLink(t, p)
	for i, method := range []string{"CONNECT", "Connect"} {
		o := httpOpen("/")
		o.Method = []byte(method)
		id := wire.StreamID(i, 1)
		l.write(open(id, o, true))
		l.wantsReset(id, wire.CodeProtocolError, false)
	}
	select {
	case <-app.conns:
		t.Error("the application was asked for a tunnel")
	default:
	}
	p.b.counts(telemetry.Inbound, mesh.HTTP, "protocol_error=2")
}

// TestPeerHoldsLinks: links that carry nothing are closed in the end, and before
// when others need the room.
func TestPeerHoldsLinks(t *testing.T) {
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	p.b.each(func(w *worker) { w.maxAccepted = 3 })
	used := dialLink(t, p)
	used.write(open(1<<16, httpOpen("/"), true))
	head(t, app.accept(t))
	var idle []*rawLink
	for range 4 {
		idle = append(idle, dialLink(t, p))
	}
	for i, l := range idle {
		if i < len(idle)-2 {
			l.wantsEnd()
		}
	}
	if n := p.b.Counts().Links; n != 3 {
		t.Errorf("%d links, want 3", n)
	}
	if p.b.logs.count("peers hold as many links as they may", "refused=false") != 1 {
		t.Error("not one line in the log")
	}
	for i, l := range idle[2:] { // all carry something now: who comes next is refused
		l.write(open(wire.StreamID(i, 1), httpOpen("/"), true))
		head(t, app.accept(t))
	}
	refused := dialLinkUngreeted(t, p)
	refused.wantsEnd()
	if n := p.b.Counts().Links; n != 3 {
		t.Errorf("%d links, want 3", n)
	}
}

// dialLinkUngreeted is dialLink for a link that may be closed instead of greeted.
func dialLinkUngreeted(t *testing.T, p *pair) *rawLink {
	t.Helper()
	cfg, err := p.a.store.ClientConfig("web", identity.Name{Service: "world", Datacenter: identity.DevDatacenter})
	if err != nil {
		t.Fatal(err)
	}
	cfg.NextProtos = []string{wire.ALPN}
	c, err := tls.Dial("tcp", p.b.PeerAddr().String(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := &rawLink{Conn: c, t: t}
	t.Cleanup(func() { l.tcp().Close() })
	return l
}

// TestPeerLeavesLinksIdle: the dialling side closes an idle link; where it does
// not, the other one does.
func TestPeerLeavesLinksIdle(t *testing.T) {
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	l := dialLink(t, p)
	age := func(d time.Duration) int {
		p.b.each(func(w *worker) {
			for l := range w.allLinks {
				l.idleFrom = w.loop.Now() - int64(d)
				l.Expired(nil)
			}
		})
		return p.b.Counts().Links
	}
	if n := age(acceptedIdle - time.Minute); n != 1 {
		t.Fatalf("%d links before it is time", n)
	}
	if n := age(acceptedIdle); n != 0 {
		t.Errorf("%d links", n)
	}
	l.wantsEnd()
}

// TestPeerKeepsRequestOpen: a request that is answered is over, whatever the
// peer still has to send of it, so it does not hold its link.
func TestPeerKeepsRequestOpen(t *testing.T) {
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	l := dialLink(t, p)
	l.write(open(1<<16, httpOpen("/"), false))
	a := app.accept(t)
	head(t, a)
	send(t, a, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
	if f := l.wants(wire.TypeHead, 1<<16); !f.End {
		t.Fatal("the answer goes on")
	}
	l.wantsReset(1<<16, wire.CodeNone, true)
	p.b.each(func(w *worker) {
		for l := range w.allLinks {
			if l.count != 0 {
				t.Errorf("%d streams", l.count)
			}
		}
	})
	p.b.counts(telemetry.Inbound, mesh.HTTP, "ok=1")
}

// TestStrangersSayNothing: more connections than there may be handshakes, from
// one address, keep no peer of another one out.
func TestStrangersSayNothing(t *testing.T) {
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	elsewhere := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range maxHandshakes + 20 {
		c, err := elsewhere.Dial("tcp", p.b.PeerAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	if !eventually(func() bool { return p.b.Counts().Handshakes[crowded] > 0 }) {
		t.Error("nobody was turned away")
	}
	began := time.Now()
	dialLink(t, p)
	if d := time.Since(began); d > handshakeTimeout/4 {
		t.Errorf("a peer waited for %v", d)
	}
	if n := p.b.Counts().Handshaking; n < scarceHandshakes {
		t.Errorf("%d handshakes of strangers go on; one address may have %d while they are not scarce", n, scarceHandshakes)
	}
}
