package proxy

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/internal/http1"
	"meshd/internal/loop"
	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/telemetry"
)

// TestOutputOfASlowReader writes a thousand pieces to a socket whose reader is
// always one piece behind: what was written must not be kept.
func TestOutputOfASlowReader(t *testing.T) {
	l, err := loop.New(loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := sock{w: &worker{loop: l}, fd: -1}
	const piece = 16 << 10
	for in, out := 0, 0; in < 1000*piece; {
		for s.pending() < outHigh-piece {
			b := s.grow(piece + chunkOverhead)
			for range piece {
				b = append(b, byte(in>>8^in))
				in++
			}
			s.out = b
		}
		for range piece {
			if got := s.out[s.off]; got != byte(out>>8^out) {
				t.Fatalf("octet %d is %d", out, got)
			}
			s.off++
			out++
		}
		if cap(s.out) > 2*outHigh {
			t.Fatalf("%d bytes for %d pending after %d", cap(s.out), s.pending(), in)
		}
	}
}

// downs runs f for every connection from an application, on its loop.
func (h *host) downs(f func(c *downHTTP)) {
	h.each(func(w *worker) {
		for c := range w.conns {
			if d, ok := c.(*downHTTP); ok {
				f(d)
			}
		}
	})
}

func (h *host) ups(f func(c *upHTTP)) {
	h.each(func(w *worker) {
		for c := range w.conns {
			if u, ok := c.(*upHTTP); ok {
				f(u)
			}
		}
	})
}

// TestHeadByteByByte sends one octet at a time. The time for the head runs from
// the first one on, whatever comes later.
func TestHeadByteByByte(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	c := dial(t, p.addr)
	var began int64
	for i, b := range []byte("GET / HTTP/1.1\r\nHost: x\r\nX: ") {
		send(t, c, string(b))
		if !eventually(func() bool {
			n, start := 0, int64(0)
			p.a.downs(func(d *downHTTP) { n, start = len(d.in), d.headStart })
			if i > 0 && start != began && n == i+1 {
				t.Fatal("the time for the head began anew")
			}
			began = start
			return n == i+1
		}) {
			t.Fatalf("octet %d did not arrive", i)
		}
	}
	p.a.downs(func(d *downHTTP) {
		if at := began + int64(headerTimeout); d.timerAt > at || !d.timer.Armed() {
			t.Errorf("the timer is due %v late", time.Duration(d.timerAt-at))
		}
		d.headStart -= int64(headerTimeout) // as if it had begun so long ago
		d.Expired(&d.timer)
	})
	getsError(t, c, "408 bad_request and close")
	if rest, cut := ending(t, "client", c); len(rest) > 0 || cut {
		t.Fatalf("%q, cut %v", rest, cut)
	}
	p.a.expect(telemetry.Outbound, "bad_request=1")
	if len(app.conns) > 0 {
		t.Error("the application got a connection")
	}
	c.Close()
	p.calm()
}

// TestUnreadAnswer has a client that never takes the last octets of a whole
// answer: the connection ends though nothing runs on it.
func TestUnreadAnswer(t *testing.T) {
	meshtest.Leaks(t)
	for _, option := range []string{"keep-alive", "close"} {
		t.Run(option, func(t *testing.T) {
			app := newRawApp(t)
			p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()), func(a, _ *mesh.Spec) {
				a.Upstreams[0].IdleTimeout, a.Upstreams[0].RequestTimeout = 0, 0
			})
			c := dial(t, p.addr)
			send(t, c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: "+option+"\r\n\r\n")
			a := app.accept(t)
			head(t, a)
			p.a.downs(func(d *downHTTP) { d.writable = false }) // as if the kernel's buffers were full
			send(t, a, "HTTP/1.1 204 OK\r\n\r\n")
			p.a.expect(telemetry.Outbound, "ok=1")
			n := 0
			p.a.downs(func(d *downHTTP) {
				n++
				if d.pending() == 0 || !d.timer.Armed() || d.timerAt > d.w.loop.Now()+int64(unreadTimeout) {
					t.Error("nobody looks at it again")
				}
				d.Expired(&d.timer)
				if d.fd < 0 {
					t.Error("it is closed too early")
				}
				d.idleFrom -= int64(unreadTimeout)
				d.Expired(&d.timer)
			})
			if n != 1 {
				t.Errorf("%d connections", n)
			}
			if _, cut := ending(t, "client", c); !cut {
				t.Error("it is not cut")
			}
			c.Close()
			p.calm()
		})
	}
}

// TestApplicationDeafToTheRest writes to an application that has answered and
// closed before anything of it was read here.
func TestApplicationDeafToTheRest(t *testing.T) {
	meshtest.Leaks(t)
	for _, c := range []struct{ name, answer, want string }{
		{"an answer with a length", "HTTP/1.1 413 No\r\ncontent-length: 3\r\n\r\nbig",
			"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig"},
		{"an answer until the end, which a reset is not", "HTTP/1.1 200 OK\r\n\r\nbig", ""},
		{"no answer", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := newRawApp(t)
			p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
			client := dial(t, p.addr)
			send(t, client, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
			a := app.accept(t)
			head(t, a) // but not the body: closing will be a reset
			if !eventually(func() (sent bool) {
				p.b.ups(func(u *upHTTP) { sent = u.pending() == 0 && u.x.received == 3 })
				return sent
			}) {
				t.Fatal("the body did not arrive")
			}
			p.b.ups(func(u *upHTTP) {
				send(t, a, c.answer)
				a.Close()
				for range 1000 { // until the kernel knows of the reset
					if n, errno := loop.Write(u.fd, []byte("d")); n == 0 && errno != syscall.EAGAIN {
						break
					}
				}
				u.out = append(u.grow(1), 'e')
				u.flush()
				if !u.deaf {
					t.Error("the write did not fail")
				}
			})
			switch {
			case c.want != "":
				gets(t, "client", client, c.want)
				p.a.expect(telemetry.Outbound, "ok=1")
			case c.answer != "":
				rest, _ := ending(t, "client", client)
				if strings.HasSuffix(string(rest), "0\r\n\r\n") {
					t.Errorf("the answer seems whole: %q", rest)
				}
				p.a.expect(telemetry.Outbound, "local_reset=1")
			default:
				getsError(t, client, "502 local_reset and close")
				p.a.expect(telemetry.Outbound, "local_reset=1")
			}
			client.Close()
			p.calm()
		})
	}
}

// TestLinger answers a client that is still sending: the answer arrives, what
// it sends is thrown away, and not for ever.
func TestLinger(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	c := dial(t, p.addr)
	send(t, c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
	a := app.accept(t)
	head(t, a)
	send(t, a, "HTTP/1.1 413 No\r\ncontent-length: 3\r\n\r\nbig")
	gets(t, "client", c, "HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
	if rest, cut := ending(t, "client", c); cut || len(rest) > 0 {
		t.Fatalf("%q, cut %v", rest, cut)
	}
	send(t, c, "5\r\nhello\r\n") // nobody minds
	chunk := http1.AppendChunk(nil, make([]byte, 10000))
	sent := 0
	for ; sent < 4*lingerBytes; sent += len(chunk) {
		if _, err := c.Write(chunk); err != nil {
			break
		}
		if p.a.total(func(w *worker) int { return len(w.conns) }) == 0 {
			break
		}
	}
	if sent >= 4*lingerBytes {
		t.Error("it is read for ever")
	}
	c.Close()
	p.a.expect(telemetry.Outbound, "ok=1")
	p.calm()
}

// TestClientResetUnread has a client break off while nothing of it is read,
// because the application does not take its body.
func TestClientResetUnread(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	c := dial(t, p.addr)
	send(t, c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	a := app.accept(t)
	head(t, a)
	sent := &counter{}
	stopped := make(chan bool)
	go func() {
		defer close(stopped)
		chunk := http1.AppendChunk(nil, make([]byte, 10000))
		for {
			if _, err := c.Write(chunk); err != nil {
				return
			}
			sent.add(1)
		}
	}()
	full(t, sent.get)
	c.SetLinger(0)
	c.Close()
	<-stopped
	p.a.expect(telemetry.Outbound, "client_closed=1")
	p.b.expect(telemetry.Inbound, "client_closed=1")
	a.Close()
	p.calm()
}

// TestInterimFlood has an application that sends interim answers without end to
// a client that does not read.
func TestInterimFlood(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	c := dial(t, p.addr)
	send(t, c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	a := app.accept(t)
	head(t, a)
	interim := "HTTP/1.1 103 Hints\r\nlink: " + strings.Repeat("x", 8<<10) + "\r\n\r\n"
	for range 4000 {
		send(t, a, interim)
		if n := p.a.held() + p.b.held(); n > 8*outHigh {
			t.Fatalf("%d bytes held", n)
		}
	}
	send(t, a, "HTTP/1.1 204 OK\r\n\r\n")
	rest := make(chan string)
	go func() {
		c.SetReadDeadline(time.Now().Add(4 * patience))
		var tail string
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			if tail += string(buf[:n]); err != nil || strings.HasSuffix(tail, "HTTP/1.1 204 No Content\r\n\r\n") {
				rest <- tail
				return
			}
			tail = tail[max(0, len(tail)-100):]
		}
	}()
	if s := <-rest; !strings.HasSuffix(s, "HTTP/1.1 204 No Content\r\n\r\n") {
		t.Fatalf("no answer at last: %q", s)
	}
	c.Close()
	p.calm()
}

// TestPoolForgets closes kept connections that nobody needs, and those that say
// something unasked.
func TestPoolForgets(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	c := dial(t, p.addr)
	round := func() (kept int) {
		send(t, c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		a := app.accept(t)
		head(t, a)
		send(t, a, "HTTP/1.1 204 OK\r\n\r\n")
		gets(t, "client", c, "HTTP/1.1 204 No Content\r\n\r\n")
		quiet(t, "application", a)
		// Too early: it stays.
		p.b.ups(func(u *upHTTP) { u.Expired(&u.timer) })
		p.b.ups(func(u *upHTTP) { kept++ })
		return kept
	}
	if n := round(); n != 1 {
		t.Fatalf("%d connections kept", n)
	}
	p.b.ups(func(u *upHTTP) {
		u.idleFrom -= int64(poolIdle)
		u.Expired(&u.timer)
	})
	if n := round(); n != 1 {
		t.Fatalf("%d connections kept after an old one went", n)
	}
	c.Close()
	p.calm()
}
