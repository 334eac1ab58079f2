package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"meshd/internal/identity"
	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/telemetry"
	"meshd/internal/wire"
)

// rawLink is a link of which the test is one side, with real certificates, to
// say on it what no agent would.
type rawLink struct {
	*tls.Conn
	t   testing.TB
	dec wire.Decoder
	buf []byte
}

// rawPeer listens where an agent would.
type rawPeer struct {
	net.Listener
	t     testing.TB
	store *identity.Store // of the host whose services it pretends to have
}

func newRawPeer(t testing.TB) *rawPeer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &rawPeer{Listener: l, t: t}
}

// accept shakes hands and greets.
func (r *rawPeer) accept() *rawLink {
	r.t.Helper()
	l := r.shake()
	l.write(wire.AppendPing(nil, 0, false))
	return l
}

func (r *rawPeer) shake() *rawLink {
	r.t.Helper()
	cfg := r.store.ServerConfig(func(string) bool { return true })
	cfg.NextProtos = []string{wire.ALPN}
	r.Listener.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	tcp, err := r.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	l := &rawLink{Conn: tls.Server(tcp, cfg), t: r.t}
	r.t.Cleanup(func() { l.tcp().Close() })
	l.SetDeadline(time.Now().Add(patience))
	if err := l.Handshake(); err != nil {
		r.t.Fatal(err)
	}
	l.SetDeadline(time.Time{})
	return l
}

// dialLink opens a link to the service world of b in the name of a's caller.
func dialLink(t testing.TB, p *pair) *rawLink {
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
	if f := l.next(); f.Type != wire.TypePing {
		t.Fatalf("greeted by %s", f.Type)
	}
	return l
}

func (l *rawLink) tcp() *net.TCPConn { return l.NetConn().(*net.TCPConn) }

func (l *rawLink) write(b []byte) {
	l.t.Helper()
	l.SetWriteDeadline(time.Now().Add(patience))
	if _, err := l.Conn.Write(b); err != nil {
		l.t.Fatal(err)
	}
}

// frame reads one frame; its payload is a copy.
func (l *rawLink) frame() (wire.Frame, error) {
	l.SetReadDeadline(time.Now().Add(patience))
	for {
		f, n, err := l.dec.Next(l.buf)
		if err != nil {
			return f, err
		}
		f.Payload = append([]byte(nil), f.Payload...)
		l.buf = l.buf[n:]
		if f.Type != wire.None {
			return f, nil
		}
		if n > 0 {
			continue
		}
		b := make([]byte, 64<<10)
		k, err := l.Conn.Read(b)
		l.buf = append(l.buf, b[:k]...)
		if err != nil && k == 0 {
			return f, err
		}
	}
}

// next reads the next frame that is no ping, except for the greeting.
func (l *rawLink) next() wire.Frame {
	l.t.Helper()
	f, err := l.frame()
	if err != nil {
		l.t.Fatal(err)
	}
	return f
}

// wants reads a frame of the type on the stream.
func (l *rawLink) wants(typ wire.Type, stream uint32) wire.Frame {
	l.t.Helper()
	f := l.next()
	if f.Type != typ || f.Stream != stream {
		l.t.Fatalf("got %s on %08x, want %s on %08x", f.Type, f.Stream, typ, stream)
	}
	return f
}

// wantsReset reads a reset of the stream.
func (l *rawLink) wantsReset(stream uint32, want wire.Code, delivered bool) {
	l.t.Helper()
	f := l.wants(wire.TypeReset, stream)
	code, d, err := wire.ParseReset(f.Payload)
	if err != nil || code != want || d != delivered {
		l.t.Fatalf("reset says %s, delivered %v, %v; want %s, %v", code, d, err, want, delivered)
	}
}

// wantsBroken reads on until goaway with the code and the end of the link.
func (l *rawLink) wantsBroken(code wire.Code) {
	l.t.Helper()
	last := wire.Frame{}
	for {
		f, err := l.frame()
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				l.t.Fatal("the link goes on")
			}
			break
		}
		last = f
	}
	if last.Type != wire.TypeGoaway {
		l.t.Fatalf("the link ended after %s, want goaway", last.Type)
	}
	if c, _ := wire.ParseGoaway(last.Payload); c != code {
		l.t.Fatalf("goaway says %s, want %s", c, code)
	}
}

var tcpOpen = &wire.Open{Kind: wire.KindTCP}

func httpOpen(path string) *wire.Open {
	return &wire.Open{Kind: wire.KindHTTP, Head: mesh.Head{Method: []byte("GET"), Scheme: schemeHTTP, Authority: []byte("world"), Path: []byte(path)}}
}

func open(stream uint32, o *wire.Open, end bool) []byte {
	b, ok := wire.AppendOpen(nil, stream, o, end)
	if !ok {
		panic("open frame is too large")
	}
	return b
}

// opened reads the open frame that the agent sends.
func (l *rawLink) opened() uint32 {
	l.t.Helper()
	for {
		f := l.next()
		if f.Type == wire.TypePing {
			continue // the answer to the greeting, or a probe
		}
		if f.Type != wire.TypeOpen {
			l.t.Fatalf("got %s, want an open", f.Type)
		}
		return f.Stream
	}
}

// TestLinkProtocolAcceptor breaks the rules as a dialling side. Link errors end
// the link with goaway, stream errors reset the stream; after either, a well
// behaved link to the same agent works.
func TestLinkProtocolAcceptor(t *testing.T) {
	const s1, s1b = uint32(1 << 16), uint32(2 << 16)
	head := func(stream uint32) []byte {
		b, _ := wire.AppendHead(nil, stream, &mesh.Head{Status: 200}, true)
		return b
	}
	for _, c := range []struct {
		name     string
		protocol mesh.Protocol
		play     func(t *testing.T, l *rawLink, app *rawApp)
	}{
		{"octets that are no frame", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(make([]byte, 9))
			l.wantsBroken(wire.CodeProtocolError)
		}},
		{"slot out of range", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(open(1<<16|wire.MaxStreams, tcpOpen, false))
			l.wantsBroken(wire.CodeProtocolError)
		}},
		{"slot in use", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(open(s1, tcpOpen, false))
			a := app.accept(t)
			l.write(open(s1b, tcpOpen, false))
			l.wantsBroken(wire.CodeProtocolError)
			if _, cut := ending(t, "app", a); !cut {
				t.Error("the application of a lost link saw a regular end")
			}
		}},
		{"data beyond the credit", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(open(s1, tcpOpen, false))
			a := app.accept(t) // reads nothing
			go func() {
				data := wire.AppendData(nil, s1, make([]byte, wire.MaxData), false)
				for l.Conn.SetWriteDeadline(time.Now().Add(patience)); ; {
					if _, err := l.Conn.Write(data); err != nil {
						return
					}
				}
			}()
			l.wantsBroken(wire.CodeProtocolError)
			a.Close()
		}},
		{"a head from the dialling side", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(head(s1)) // of no stream at all
			l.wantsBroken(wire.CodeProtocolError)
		}},
		{"reset without payload", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write([]byte{0, 0, 0, byte(wire.TypeReset), 0, 0, 1, 0, 0})
			l.wantsBroken(wire.CodeProtocolError)
		}},
		{"data after the end", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(open(s1, tcpOpen, true))
			a := app.accept(t)
			ending(t, "app", a)
			l.write(wire.AppendData(nil, s1, []byte("more"), false))
			l.wantsReset(s1, wire.CodeProtocolError, true)
			wantWriteError(t, a)
			l.works(t, s1b, app)
		}},
		{"trailers after the end", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(open(s1, tcpOpen, true))
			app.accept(t)
			b, _ := wire.AppendTrailers(nil, s1, nil)
			l.write(b)
			l.wantsReset(s1, wire.CodeProtocolError, true)
		}},
		{"credit of nothing", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(open(s1, tcpOpen, false))
			app.accept(t)
			l.write(wire.AppendCredit(nil, s1, 0))
			l.wantsReset(s1, wire.CodeProtocolError, true)
			l.works(t, s1b, app)
		}},
		{"credit without end", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(open(s1, tcpOpen, false))
			a := app.accept(t)
			for range 10 {
				l.write(wire.AppendCredit(nil, s1, wire.MaxCredit))
			}
			send(t, a, "answer")
			if f := l.wants(wire.TypeData, s1); string(f.Payload) != "answer" {
				t.Errorf("got %q", f.Payload)
			}
		}},
		{"an unknown kind of stream", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(open(s1, &wire.Open{Kind: 9}, false))
			l.wantsReset(s1, wire.CodeProtocolError, false)
			l.works(t, s1b, app)
		}},
		{"http to a tcp service", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(open(s1, httpOpen("/"), true))
			l.wantsReset(s1, wire.CodeNoService, false)
			l.works(t, s1b, app)
		}},
		{"frames of no stream", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(wire.AppendData(nil, s1, []byte("x"), false))
			l.write(wire.AppendEnd(nil, s1))
			l.write(wire.AppendCredit(nil, s1, 1))
			l.write(wire.AppendReset(nil, s1, wire.CodeCancelled, false))
			l.works(t, s1, app)
		}},
		{"frames of tomorrow", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(append([]byte{3, 0, 0, 240, 255, 255, 255, 255, 255}, make([]byte, 3<<16)...))
			l.works(t, s1, app)
		}},
		{"goaway from the dialling side", mesh.TCP, func(t *testing.T, l *rawLink, app *rawApp) {
			l.write(open(s1, tcpOpen, false))
			a := app.accept(t)
			l.write(wire.AppendGoaway(nil, wire.CodeNone))
			send(t, a, "still here")
			l.wants(wire.TypeData, s1)
		}},
		{"a field that belongs to one connection", mesh.HTTP, func(t *testing.T, l *rawLink, app *rawApp) {
			o := httpOpen("/")
			o.Fields = []mesh.Field{{Name: []byte("connection"), Value: []byte("close")}}
			l.write(open(s1, o, true))
			l.wantsReset(s1, wire.CodeProtocolError, false)
			l.write(open(s1b, httpOpen("/"), true))
			app.accept(t)
		}},
		{"a body shorter than its length", mesh.HTTP, func(t *testing.T, l *rawLink, app *rawApp) {
			o := httpOpen("/")
			o.Fields = []mesh.Field{{Name: mesh.ContentLength.Bytes(), Known: mesh.ContentLength, Value: []byte("10")}}
			l.write(append(open(s1, o, false), wire.AppendData(nil, s1, []byte("12345"), true)...))
			f := l.wants(wire.TypeReset, s1)
			if code, _, _ := wire.ParseReset(f.Payload); code != wire.CodeProtocolError && code != wire.CodeInternal {
				t.Errorf("reset says %s", code)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := newRawApp(t)
			p := newPair(t, 2, c.protocol, mustAddr(app.Addr()))
			l := dialLink(t, p)
			c.play(t, l, app)
			dialLink(t, p) // the agent is there for others
			l.tcp().Close()
			if !eventually(func() bool {
				return p.b.telemetry.Series(telemetry.Inbound, "world", c.protocol.String()).Totals().Active == 0
			}) {
				t.Error("connections to the application were left")
			}
		})
	}
}

// works moves bytes on a new TCP stream of the link.
func (l *rawLink) works(t *testing.T, stream uint32, app *rawApp) {
	t.Helper()
	l.write(append(open(stream, tcpOpen, false), wire.AppendData(nil, stream, []byte("question"), false)...))
	a := app.accept(t)
	gets(t, "app", a, "question")
	send(t, a, "answer")
	if f := l.wants(wire.TypeData, stream); string(f.Payload) != "answer" {
		t.Errorf("got %q", f.Payload)
	}
}

// TestLinkProtocolOpener breaks the rules as an accepting side; the client of
// the other side must get an answer that says so, and the next one another
// link or stream.
func TestLinkProtocolOpener(t *testing.T) {
	head := func(status int) func(s uint32) []byte {
		return func(s uint32) []byte {
			b, _ := wire.AppendHead(nil, s, &mesh.Head{Status: status}, false)
			return b
		}
	}
	join := func(f ...func(s uint32) []byte) func(s uint32) []byte {
		return func(s uint32) (b []byte) {
			for _, f := range f {
				b = append(b, f(s)...)
			}
			return b
		}
	}
	data := func(s uint32) []byte { return wire.AppendData(nil, s, []byte("x"), false) }
	end := func(s uint32) []byte { return wire.AppendEnd(nil, s) }
	trailers := func(s uint32) []byte {
		b, _ := wire.AppendTrailers(nil, s, []mesh.Field{{Name: []byte("a"), Value: []byte("b")}})
		return b
	}
	upgrade := func(s uint32) []byte {
		b, _ := wire.AppendUpgradeAccepted(nil, s, &mesh.Head{Status: 101})
		return b
	}
	flood := func(s uint32) (b []byte) {
		for range 32 << 20 / wire.MaxData { // more than the sockets of the client take
			b = wire.AppendData(b, s, make([]byte, wire.MaxData), false)
		}
		return b
	}
	for _, c := range []struct {
		name    string
		says    func(s uint32) []byte
		outcome Outcome // ok: an answer came before
		link    bool    // the link is broken, not just the stream
	}{
		{"data before the head", data, ProtocolError, false},
		{"end before the head", end, ProtocolError, false},
		{"trailers before the head", trailers, ProtocolError, false},
		{"an upgrade that nobody asked for", upgrade, ProtocolError, false},
		{"two heads", join(head(200), head(200)), ProtocolError, false},
		{"data after the end", join(head(200), end, data), OK, false},
		{"an open", func(s uint32) []byte { return open(s+1, tcpOpen, false) }, LinkLost, true},
		{"octets that are no frame", func(uint32) []byte { return make([]byte, 9) }, LinkLost, true},
		{"a malformed reset", func(s uint32) []byte { return []byte{0, 0, 1, byte(wire.TypeReset), 0, 0, 1, 0, 0, 0} }, LinkLost, true},
		{"more data than credit", join(head(200), flood), LinkLost, true},
		{"a reset that is unheard of", func(s uint32) []byte { return wire.AppendReset(nil, s, 200, false) }, ProtocolError, false},
		{"refused", func(s uint32) []byte { return wire.AppendReset(nil, s, wire.CodeRefused, true) }, Draining, false},
		{"credit of nothing", func(s uint32) []byte { return wire.AppendCredit(nil, s, 0) }, ProtocolError, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer := newRawPeer(t)
			p := newPair(t, 1, mesh.HTTP, mustAddr(peer.Addr()), endpointAt(peer.Addr()))
			peer.store = p.b.store
			client := dial(t, p.addr)
			send(t, client, "GET / HTTP/1.1\r\nhost: world\r\n\r\n")
			l := peer.accept()
			s := l.opened()
			go l.Conn.Write(c.says(s)) // not all of a flood is taken
			if c.outcome == OK || c.name == "two heads" || c.name == "more data than credit" {
				// The client has an answer, which may be cut.
				client.SetReadDeadline(time.Now().Add(patience))
				if _, err := client.Read(make([]byte, 16)); err != nil && c.outcome == OK {
					t.Error(err)
				}
			} else {
				getsError(t, client, fmt.Sprint(outcomes[c.outcome].status, " ", c.outcome))
			}
			p.a.counts(telemetry.Outbound, mesh.HTTP, c.outcome.String()+"=1")
			client.Close()
			if c.link && c.name != "more data than credit" { // goaway is lost with what was not read
				l.wantsBroken(wire.CodeProtocolError)
				if p.a.logs.count("link broken by peer") != 1 {
					t.Error("the log does not say so")
				}
			}
			again := dial(t, p.addr)
			send(t, again, "GET / HTTP/1.1\r\nhost: world\r\n\r\n")
			if c.link {
				l = peer.accept()
			}
			for {
				f := l.next()
				if f.Type == wire.TypeOpen {
					s = f.Stream
					break
				}
			}
			b, _ := wire.AppendHead(nil, s, &mesh.Head{Status: 204}, true)
			l.write(b)
			gets(t, "client", again, "HTTP/1.1 204 ")
			again.Close()
			p.a.calmAlone()
		})
	}
}

// calmAlone is pair.calm for a host without a second one.
func (h *host) calmAlone() {
	h.t.Helper()
	left := ""
	if !eventually(func() bool { left = h.remains(); return left == "" }) {
		h.t.Fatalf("left behind: %s", left)
	}
}

// TestLinkSlots reuses slots over and over, with frames of former streams in
// between.
func TestLinkSlots(t *testing.T) {
	app := newRawApp(t)
	p := newPair(t, 1, mesh.TCP, mustAddr(app.Addr()))
	l := dialLink(t, p)
	for gen := uint16(1); gen <= 50; gen++ {
		s := wire.StreamID(7, gen)
		l.write(append(open(s, tcpOpen, false), wire.AppendData(nil, s, []byte{byte(gen)}, false)...))
		a := app.accept(t)
		gets(t, "app", a, string([]byte{byte(gen)}))
		if gen%2 == 0 {
			l.write(wire.AppendReset(nil, s, wire.CodeCancelled, false))
		} else {
			a.SetLinger(0)
			a.Close()
			l.wantsReset(s, wire.CodeLocalReset, true)
		}
		// Late frames of this stream meet the next one in the slot.
		l.write(wire.AppendData(nil, s, []byte("late"), true))
	}
	if !eventually(func() bool { return p.b.outcomes(telemetry.Inbound, mesh.TCP) == "client_closed=25 local_reset=25" }) {
		t.Error(p.b.outcomes(telemetry.Inbound, mesh.TCP))
	}
}

// TestLinkFloods: a peer that asks and asks. It gets answers or an end, and the
// agent neither grows nor stops serving others.
func TestLinkFloods(t *testing.T) {
	t.Run("pings", func(t *testing.T) {
		app := newRawApp(t)
		p := newPair(t, 1, mesh.TCP, mustAddr(app.Addr()))
		l := dialLink(t, p)
		var ping []byte
		for i := range 2000 {
			ping = wire.AppendPing(ping, uint64(i), false)
		}
		for range 100 {
			l.write(ping)
		}
		p.b.each(func(w *worker) {
			for l := range w.allLinks {
				if n := len(l.out) + len(l.cipher); n > 64<<10 {
					t.Errorf("%d bytes of answers wait", n)
				}
			}
		})
		for { // the last one is answered
			f := l.next()
			if f.Type != wire.TypePing {
				t.Fatalf("got %s", f.Type)
			}
			if n, ack, _ := wire.ParsePing(f.Payload); ack && n == 1999 {
				break
			}
		}
	})
	t.Run("opens that are refused, unread", func(t *testing.T) {
		app := newRawApp(t)
		p := newPair(t, 1, mesh.TCP, mustAddr(app.Addr()), func(_, b *mesh.Spec) { b.Services[0].Allow = nil })
		l := dialLink(t, p)
		var opens []byte
		gens := uint16(0)
		l.SetWriteDeadline(time.Now().Add(4 * patience))
		sent := 0
		for sent < 4<<20 {
			gens++
			if gens == 0 {
				gens = 1
			}
			opens = opens[:0]
			for slot := range 4096 {
				opens = append(opens, open(wire.StreamID(slot, gens), tcpOpen, false)...)
			}
			if _, err := l.Conn.Write(opens); err != nil {
				break // it was enough
			}
			sent += 4096
		}
		if sent >= 4<<20 {
			t.Error("a peer that reads nothing may open streams for ever")
		}
		if p.b.logs.count("does not read") == 0 && p.b.logs.count("link") == 0 {
			t.Log("no line in the log")
		}
		select {
		case <-app.conns:
			t.Error("a denied caller reached the application")
		default:
		}
	})
	t.Run("streams up to the limit", func(t *testing.T) {
		app := newRawApp(t)
		p := newPair(t, 1, mesh.TCP, mustAddr(app.Addr()), func(_, b *mesh.Spec) { b.Services[0].Limits.MaxConcurrentRequests = 100 })
		l := dialLink(t, p)
		var opens []byte
		for slot := range wire.MaxStreams {
			opens = append(opens, open(wire.StreamID(slot, 1), tcpOpen, false)...)
		}
		l.write(opens)
		refused := 0
		for refused < wire.MaxStreams-100 {
			f := l.next()
			if f.Type != wire.TypeReset {
				t.Fatalf("got %s", f.Type)
			}
			if c, d, _ := wire.ParseReset(f.Payload); c != wire.CodeOverflow || d {
				t.Fatalf("reset says %s, delivered %v", c, d)
			}
			refused++
		}
		l.tcp().Close()
		p.b.counts(telemetry.Inbound, mesh.TCP, fmt.Sprintf("client_closed=100 overflow=%d", refused))
		p.b.calmAlone()
	})
}

// TestLinkLost kills the peer while requests and connections run on its link.
func TestLinkLost(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		peer := newRawPeer(t)
		p := newPair(t, loops, mesh.TCP, mustAddr(peer.Addr()), endpointAt(peer.Addr()))
		peer.store = p.b.store
		var clients []net.Conn
		var links []*rawLink
		for n := range 3 * loops {
			c := dial(t, p.addr)
			clients = append(clients, c)
			if n < loops {
				links = append(links, peer.accept())
				echoed := links[n].opened()
				links[n].write(wire.AppendData(nil, echoed, []byte("hello"), false))
				gets(t, "client", c, "hello")
			}
		}
		if !eventually(func() bool { return p.a.Upstreams()[0].Requests == int64(len(clients)) }) {
			t.Fatal("not all connections were taken")
		}
		for _, l := range links {
			l.tcp().SetLinger(0)
			l.tcp().Close()
		}
		for _, c := range clients {
			if _, cut := ending(t, "client", c); !cut {
				t.Error("a client saw a regular end")
			}
		}
		p.a.counts(telemetry.Outbound, mesh.TCP, fmt.Sprintf("link_lost=%d", 3*loops))
		p.a.calmAlone()
	})
}

// TestLinkSilent: the peer stops answering while streams run; pings notice.
func TestLinkSilent(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for pings")
	}
	peer := newRawPeer(t)
	p := newPair(t, 1, mesh.TCP, mustAddr(peer.Addr()), endpointAt(peer.Addr()))
	peer.store = p.b.store
	c := dial(t, p.addr)
	l := peer.accept()
	s := l.opened()
	l.write(wire.AppendData(nil, s, []byte("hello"), false))
	gets(t, "client", c, "hello")
	began := time.Now()
	c.SetReadDeadline(time.Now().Add(3 * time.Duration(deadAfter)))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the client got %v", err)
	}
	if d := time.Since(began); d < deadAfter-pingAfter || d > deadAfter+2*pingAfter {
		t.Errorf("noticed after %v", d)
	}
	p.a.counts(telemetry.Outbound, mesh.TCP, "link_lost=1")
	if p.a.logs.count("link lost", errDead.Error()) != 1 {
		t.Error("the log does not say why")
	}
}

// TestLinkDials: peers that take the connection and nothing more. The client
// gets an answer when connect_timeout has passed, and another endpoint is
// asked when there is one.
func TestLinkDials(t *testing.T) {
	good := meshtest.HTTPEcho(t, "world")
	for _, c := range []struct {
		name    string
		peer    func(t *testing.T, p *rawPeer) // plays one connection
		outcome Outcome
		reason  string
	}{
		{"nobody listens", nil, ConnectFailed, "unreachable"},
		{"accepts and says nothing", func(t *testing.T, p *rawPeer) {
			if c, err := p.Accept(); err == nil {
				t.Cleanup(func() { c.Close() })
			}
		}, ConnectFailed, "timeout"},
		{"accepts and closes", func(t *testing.T, p *rawPeer) {
			if c, err := p.Accept(); err == nil {
				c.Close()
			}
		}, HandshakeFailed, "peer_closed"},
		{"speaks something else", func(t *testing.T, p *rawPeer) {
			if c, err := p.Accept(); err == nil {
				io.WriteString(c, "220 mail.example ESMTP\r\n")
				t.Cleanup(func() { c.Close() })
			}
		}, HandshakeFailed, "handshake_failed"},
		{"shakes hands and does not greet", func(t *testing.T, p *rawPeer) {
			if c, err := p.Accept(); err == nil {
				cfg := p.store.ServerConfig(func(string) bool { return true })
				cfg.NextProtos = []string{wire.ALPN}
				go tls.Server(c, cfg).Handshake()
				t.Cleanup(func() { c.Close() })
			}
		}, ConnectFailed, "timeout"},
		{"speaks no meshd/1", func(t *testing.T, p *rawPeer) {
			if c, err := p.Accept(); err == nil {
				cfg := p.store.ServerConfig(func(string) bool { return true })
				go tls.Server(c, cfg).Handshake()
				t.Cleanup(func() { c.Close() })
			}
		}, HandshakeFailed, "handshake_failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			meshtest.Leaks(t)
			peer := newRawPeer(t)
			p := newPair(t, 1, mesh.HTTP, good.Addr, endpointAt(peer.Addr()), func(a, _ *mesh.Spec) {
				a.Upstreams[0].ConnectTimeout = 300 * time.Millisecond
				a.Upstreams[0].Breaker = mesh.Breaker{}
			})
			peer.store = p.b.store
			var playing sync.WaitGroup
			play := func() {
				if c.peer != nil {
					playing.Go(func() { c.peer(t, peer) })
				}
			}
			if c.peer == nil {
				peer.Close()
			}
			play()
			client := dial(t, p.addr)
			send(t, client, "GET / HTTP/1.1\r\nhost: world\r\n\r\n")
			getsError(t, client, "503 "+c.outcome.String())
			p.a.counts(telemetry.Outbound, mesh.HTTP, c.outcome.String()+"=1")
			if n := p.a.Counts().Handshakes[c.reason]; n != 1 {
				t.Errorf("handshakes: %v, want %s", p.a.Counts().Handshakes, c.reason)
			}
			if p.a.logs.count("cannot link to peer", c.outcome.String()) != 1 {
				t.Error("the log does not say so")
			}
			if u := p.a.Upstreams()[0]; u.Endpoints[0].LastError == "" || u.Pending != 0 {
				t.Errorf("state %+v", u)
			}
			// With a second endpoint the client does not notice.
			p.a.spec.Static[0].Endpoints = append(p.a.spec.Static[0].Endpoints,
				mesh.StaticEndpoint{ID: "world", Address: p.b.PeerAddr(), Weight: 1})
			p.a.publish(p.ca)
			play()
			for range 3 {
				if code, body, _ := get(t, "http://"+p.addr+"/"); code != http.StatusOK {
					t.Fatalf("%d %s", code, body)
				}
			}
			peer.Close()
			playing.Wait()
		})
	}
}

// TestStopWhileDialling ends an agent whose peer never greets: Run must not wait
// for connect_timeout.
func TestStopWhileDialling(t *testing.T) {
	meshtest.Leaks(t)
	peer := newRawPeer(t)
	p := newPair(t, 1, mesh.TCP, netip.MustParseAddrPort("127.0.0.1:1"), endpointAt(peer.Addr()), func(a, _ *mesh.Spec) {
		a.Upstreams[0].ConnectTimeout = time.Minute
	})
	peer.store = p.b.store
	c := dial(t, p.addr)
	peer.shake()
	p.a.Configure(nil, 50*time.Millisecond)
	began := time.Now()
	p.a.end()
	if d := time.Since(began); d > patience {
		t.Errorf("the end took %v", d)
	}
	if _, cut := ending(t, "client", c); !cut {
		t.Error("the client saw a regular end")
	}
}

// TestOpenBesideInbound: a loop that just served a peer's open sends one of its
// own, which must not carry anything of the other.
func TestOpenBesideInbound(t *testing.T) {
	app := newRawApp(t)
	peer := newRawPeer(t)
	p := newPair(t, 1, mesh.TCP, mustAddr(app.Addr()), func(_, b *mesh.Spec) {
		b.Services[0].Allow = append(b.Services[0].Allow, mesh.Allow{Caller: "world"})
		b.Upstreams = []mesh.Upstream{{Name: "back", Destination: "back", ConnectTimeout: time.Second, ChoiceCount: 2}}
		b.Static = []mesh.StaticService{{Name: "back", Endpoints: []mesh.StaticEndpoint{{ID: "back-1", Address: mustAddr(peer.Addr()), Weight: 1}}}}
	})
	peer.store = p.a.store
	back := p.b.picture.Load().snap.Lookup("back").Binds[0].String()
	p.a.spec.Services = []mesh.Service{{Name: "back", ID: "back", Address: netip.MustParseAddr("127.0.0.1"), Port: 1}}
	p.a.publish(p.ca) // so that there is a leaf

	l := dialLink(t, p)
	o := *tcpOpen
	o.Endpoint = make([]byte, 100)
	for i := range o.Endpoint {
		o.Endpoint[i] = 'e'
	}
	l.write(open(1<<16, &o, false))
	a := app.accept(t)
	nothing := string(make([]byte, 200))
	l.write(wire.AppendData(nil, 1<<16, []byte(nothing), false))
	gets(t, "app", a, nothing)

	c := dial(t, back)
	link := peer.accept()
	for {
		f := link.next()
		if f.Type != wire.TypeOpen {
			continue
		}
		var got wire.Open
		if err := wire.ParseOpen(f.Payload, &got); err != nil || string(got.Endpoint) != "back-1" || got.Remaining != 0 || got.Attempt != 0 {
			t.Errorf("%+v %v", got, err)
		}
		link.write(wire.AppendData(nil, f.Stream, []byte("hello"), false))
		break
	}
	gets(t, "client", c, "hello")
}
