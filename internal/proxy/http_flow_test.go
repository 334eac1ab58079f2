package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"meshd/internal/http1"
	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/telemetry"
	"meshd/internal/wire"
)

// serve answers every request on a connection by what answer says of its
// path, until the connection ends.
func serve(a *rawApp, answer func(path string) string) {
	for c := range a.conns {
		go func() {
			defer c.Close()
			var buf []byte
			tmp := make([]byte, 64<<10)
			for {
				n, err := c.Read(tmp)
				if err != nil {
					return
				}
				buf = append(buf, tmp[:n]...)
				for {
					end := bytes.Index(buf, []byte("\r\n\r\n"))
					if end < 0 {
						break
					}
					path := strings.Fields(string(buf))[1]
					buf = buf[end+4:]
					if _, err := io.WriteString(c, answer(path)); err != nil {
						return
					}
				}
			}
		}()
	}
}

// TestPipelining sends 100 requests in one write, one of which is slow.
func TestPipelining(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	slow := make(chan bool)
	go serve(app, func(path string) string {
		if path == "/30" {
			<-slow
		}
		body := strings.Repeat(path, 1+len(path)*100)
		return fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
	})
	c := dial(t, p.addr)
	var all, before, after strings.Builder
	for i := range 100 {
		path := fmt.Sprint("/", i)
		fmt.Fprintf(&all, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		body := strings.Repeat(path, 1+len(path)*100)
		into := &before
		if i >= 30 {
			into = &after
		}
		fmt.Fprintf(into, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
	}
	send(t, c, all.String())
	gets(t, "client", c, before.String())
	quiet(t, "client", c)
	close(slow)
	gets(t, "client", c, after.String())
	p.a.expect(telemetry.Outbound, "ok=100")
	p.b.expect(telemetry.Inbound, "ok=100")
	c.Close()
	p.calm()
}

// held is how many bytes the connections of applications and the links of a
// host keep in buffers.
func (h *host) held() int {
	return h.total(func(w *worker) int {
		n := 0
		for c := range w.conns {
			var s *sock
			switch c := c.(type) {
			case *downHTTP:
				s = &c.sock
			case *upHTTP:
				s = &c.sock
			case *tcpSide:
				s = &c.sock
			}
			n += cap(s.in) + cap(s.out)
		}
		for l := range w.allLinks {
			n += cap(l.in) + cap(l.out) + cap(l.cipher)
		}
		return n
	})
}

// full fills what the kernel buffers until nothing moves for a while.
func full(t *testing.T, moved func() int64) {
	t.Helper()
	last, since := int64(-1), time.Now()
	for end := time.Now().Add(3 * patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if n := moved(); n != last {
			last, since = n, time.Now()
		} else if time.Since(since) > 150*time.Millisecond {
			return
		}
	}
	t.Fatal("it never came to rest")
}

// TestSlowReader reads a large answer slowly: it waits in the application, not
// here, and other requests on the same link go on.
func TestSlowReader(t *testing.T) {
	meshtest.Leaks(t)
	for _, framing := range []string{"content-length: 25165824", "transfer-encoding: chunked"} {
		t.Run(framing, func(t *testing.T) {
			app := newRawApp(t)
			p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
			c := dial(t, p.addr)
			c.SetReadBuffer(16 << 10)
			send(t, c, "GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
			a := app.accept(t)
			head(t, a)
			const size = 24 << 20
			written := &counter{}
			go func() {
				io.WriteString(a, "HTTP/1.1 200 OK\r\n"+framing+"\r\n\r\n")
				piece := make([]byte, 1<<16)
				for i := range piece {
					piece[i] = byte(i * 7)
				}
				for range size / len(piece) {
					out := piece
					if strings.HasPrefix(framing, "transfer") {
						out = http1.AppendChunk(nil, piece)
					}
					if _, err := a.Write(out); err != nil {
						t.Error(err)
						return
					}
					written.add(len(piece))
				}
				if strings.HasPrefix(framing, "transfer") {
					a.Write(http1.AppendLastChunk(nil, nil))
				}
			}()
			full(t, written.get)
			check := func(when string) {
				t.Helper()
				// The window of the stream at the caller, in a buffer that
				// doubles, and little at the called host.
				if n := p.a.held(); n > 3*wire.InitialCredit {
					t.Errorf("%s: %d bytes held at the caller", when, n)
				}
				if n := p.b.held(); n > 3*wire.InitialCredit {
					t.Errorf("%s: %d bytes held at the called host", when, n)
				}
			}
			check("at rest")
			go serve(app, func(string) string { return "HTTP/1.1 204 OK\r\n\r\n" })
			other := dial(t, p.addr)
			for range 20 {
				send(t, other, "GET /small HTTP/1.1\r\nHost: x\r\n\r\n")
				gets(t, "other", other, "HTTP/1.1 204 No Content\r\n\r\n")
			}
			other.Close()
			c.SetReadDeadline(time.Now().Add(60 * time.Second))
			r := bytes.NewBuffer(nil)
			piece := make([]byte, 100<<10)
			n := 0
			var body http1.Body
			headDone := false
			got := 0
			for !headDone || !body.Done() {
				k, err := c.Read(piece)
				if err != nil {
					t.Fatalf("after %d: %v", n, err)
				}
				if n += k; n>>20 != (n-k)>>20 {
					check(fmt.Sprint("after ", n))
				}
				r.Write(piece[:k])
				if !headDone {
					at := bytes.Index(r.Bytes(), []byte("\r\n\r\n"))
					if at < 0 {
						continue
					}
					r.Next(at + 4)
					headDone = true
					length := int64(size)
					if strings.HasPrefix(framing, "transfer") {
						length = http1.Chunked
					}
					body = http1.NewBody(length, http1.DefaultLimits())
				}
				for {
					d, k, err := body.Next(r.Bytes())
					if err != nil {
						t.Fatal(err)
					}
					for _, v := range d {
						if v != byte((got&0xffff)*7) {
							t.Fatalf("octet %d is wrong", got)
						}
						got++
					}
					r.Next(k)
					if k == 0 {
						break
					}
				}
			}
			if got != size {
				t.Fatalf("got %d", got)
			}
			c.Close()
			p.calm()
		})
	}
}

// counter counts what another goroutine moves.
type counter struct{ n atomic.Int64 }

func (c *counter) add(n int)  { c.n.Add(int64(n)) }
func (c *counter) get() int64 { return c.n.Load() }

// TestNeverRead asks for much and reads nothing: the connection is closed at
// last, and until then holds no more than a window.
func TestNeverRead(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()), func(a, _ *mesh.Spec) {
		a.Upstreams[0].IdleTimeout = 400 * time.Millisecond
	})
	c := dial(t, p.addr)
	send(t, c, "GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
	a := app.accept(t)
	head(t, a)
	send(t, a, "HTTP/1.1 200 OK\r\n\r\n")
	piece := make([]byte, 1<<20)
	a.SetWriteDeadline(time.Now().Add(2 * patience))
	for {
		if _, err := a.Write(piece); err != nil {
			break // cut, since the exchange was given up
		}
		if n := p.a.held() + p.b.held(); n > 6*wire.InitialCredit {
			t.Fatalf("%d bytes held", n)
		}
	}
	p.a.expect(telemetry.Outbound, "idle_timeout=1")
	p.b.expect(telemetry.Inbound, "request_timeout=1")
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, c); err == nil {
		t.Error("the answer seems whole")
	}
	c.Close()
	p.calm()
}

// TestPipeliningWithoutReading sends requests without end and reads no answer:
// they wait unread.
func TestPipeliningWithoutReading(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	pad := strings.Repeat("x", 8<<10)
	served := &counter{}
	go serve(app, func(string) string {
		served.add(1)
		return "HTTP/1.1 204 OK\r\nx-pad: " + pad + "\r\n\r\n"
	})
	c := dial(t, p.addr)
	done := make(chan int)
	const requests = 6000 // their answers are more than the kernel buffers
	go func() {
		n := 0
		for ; n < requests; n++ {
			if _, err := io.WriteString(c, fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: x\r\n\r\n", n)); err != nil {
				break
			}
		}
		c.CloseWrite()
		done <- n
	}()
	full(t, served.get)
	if n := served.get(); n == requests {
		t.Fatal("nothing held the client back")
	}
	if n := p.a.held() + p.b.held(); n > 4*outHigh {
		t.Fatalf("%d bytes held", n)
	}
	// All answers come once somebody reads.
	c.SetReadDeadline(time.Now().Add(60 * time.Second))
	got, err := io.ReadAll(c)
	if n := <-done; n != requests || err != nil {
		t.Fatalf("sent %d, %v", n, err)
	}
	if n := bytes.Count(got, []byte("HTTP/1.1 204 No Content\r\n")); n != requests {
		t.Fatalf("%d answers", n)
	}
	p.a.expect(telemetry.Outbound, fmt.Sprint("ok=", requests))
	c.Close()
	p.calm()
}

// TestSlowUpload has an application that does not read: the client's body
// waits in the client.
func TestSlowUpload(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	c := dial(t, p.addr)
	const size = 32 << 20
	sent := &counter{}
	go func() {
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", size)
		piece := bytes.Repeat([]byte("0123456789abcdef"), 1<<12)
		for range size / len(piece) {
			if _, err := c.Write(piece); err != nil {
				t.Error(err)
				return
			}
			sent.add(len(piece))
		}
	}()
	a := app.accept(t)
	head(t, a)
	full(t, sent.get)
	if n := p.a.held() + p.b.held(); n > 6*wire.InitialCredit || sent.get() == size {
		t.Fatalf("%d bytes held, %d sent", n, sent.get())
	}
	a.SetReadDeadline(time.Now().Add(60 * time.Second))
	n, err := io.CopyN(io.Discard, a, size)
	if err != nil {
		t.Fatal(n, err)
	}
	send(t, a, "HTTP/1.1 204 OK\r\n\r\n")
	gets(t, "client", c, "HTTP/1.1 204 No Content\r\n\r\n")
	c.Close()
	p.calm()
}

// TestHalfClosedSlowReader closes its writing half and then reads a large
// answer: all of it arrives.
func TestHalfClosedSlowReader(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	body := strings.Repeat("0123456789abcdef", 1<<18)
	go serve(app, func(string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
	})
	c := dial(t, p.addr)
	c.SetReadBuffer(16 << 10)
	send(t, c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	c.CloseWrite()
	full(t, func() int64 { return int64(p.a.held()) })
	rest, cut := ending(t, "client", c)
	if cut || !strings.HasSuffix(string(rest), "\r\n\r\n"+body) {
		t.Fatalf("got %d bytes, cut %v", len(rest), cut)
	}
	p.calm()
}

// TestApplicationClosesOnUpload has an application that answers a large
// request at once and closes, without reading it: the answer still arrives.
func TestApplicationClosesOnUpload(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	for range 5 {
		c := dial(t, p.addr)
		go func() { // until the connection is closed
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
			chunk := http1.AppendChunk(nil, make([]byte, 10000))
			for {
				if _, err := c.Write(chunk); err != nil {
					return
				}
			}
		}()
		a := app.accept(t)
		head(t, a)
		full(t, func() int64 { return int64(p.b.held()) })
		send(t, a, "HTTP/1.1 413 No\r\ncontent-length: 3\r\n\r\nbig")
		a.Close() // unread bytes: this is a reset
		gets(t, "client", c, "HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
		c.Close()
	}
	p.a.expect(telemetry.Outbound, "ok=5")
	p.calm()
}

// TestTimeouts has every wait of HTTP/1 come to its end.
func TestTimeouts(t *testing.T) {
	meshtest.Leaks(t)
	const short = 150 * time.Millisecond
	up := func(f func(*mesh.Upstream)) pairOption { return func(a, _ *mesh.Spec) { f(&a.Upstreams[0]) } }
	down := func(f func(*mesh.Service)) pairOption { return func(_, b *mesh.Spec) { f(&b.Services[0]) } }
	get := "-- client sends --\nGET / HTTP/1.1\nHost: world\n\n-- app gets --\nGET / HTTP/1.1\nhost: world\n{forwarded}\n\n"
	for _, c := range []struct {
		name, script string
		option       pairOption
	}{
		{"request_timeout of the upstream", get +
			"-- client gets error 504 request_timeout --\n-- app sees cut --\n-- outbound request_timeout=1 --\n-- inbound request_timeout=1 --",
			up(func(u *mesh.Upstream) { u.RequestTimeout = short })},
		{"request_timeout in the middle of the answer", get +
			"-- app sends --\nHTTP/1.1 200 OK\ncontent-length: 10\n\nabc\\\n-- client gets --\nHTTP/1.1 200 OK\ncontent-length: 10\n\nabc\\\n" +
			"-- client sees cut --\n-- app sees cut --\n-- outbound request_timeout=1 --\n-- inbound request_timeout=1 --",
			up(func(u *mesh.Upstream) { u.RequestTimeout = short })},
		{"request_timeout in the middle of the request",
			"-- client sends --\nPOST / HTTP/1.1\nHost: world\nContent-Length: 10\n\nabc\\\n-- app gets --\nPOST / HTTP/1.1\nhost: world\ncontent-length: 10\n{forwarded}\n\nabc\\\n" +
				"-- client gets error 504 request_timeout and close --\n-- client sees end --\n-- app sees cut --\n-- outbound request_timeout=1 --",
			up(func(u *mesh.Upstream) { u.RequestTimeout = short })},
		{"request_timeout of the service", get +
			"-- client gets error 504 request_timeout --\n-- app sees cut --\n-- outbound request_timeout=1 --\n-- inbound request_timeout=1 --",
			down(func(s *mesh.Service) { s.RequestTimeout = short })},
		{"idle_timeout of the upstream", get +
			"-- client gets error 504 idle_timeout --\n-- app sees cut --\n-- outbound idle_timeout=1 --\n-- inbound request_timeout=1 --",
			up(func(u *mesh.Upstream) { u.IdleTimeout = short })},
		{"idle_timeout of the service", get +
			"-- client gets error 504 request_timeout --\n-- app sees cut --\n-- outbound request_timeout=1 --\n-- inbound idle_timeout=1 --",
			down(func(s *mesh.Service) { s.IdleTimeout = short })},
		{"an idle connection", get +
			"-- app sends --\nHTTP/1.1 204 OK\n\n-- client gets --\nHTTP/1.1 204 No Content\n\n-- client sees end --\n-- outbound ok=1 --",
			up(func(u *mesh.Upstream) { u.IdleTimeout = short })},
		{"a connection that never says anything", "-- client connects --\n-- client sees end --\n-- outbound  --",
			up(func(u *mesh.Upstream) { u.IdleTimeout = short })},
	} {
		t.Run(c.name, func(t *testing.T) { story(t, c.script, c.option) })
	}
}

// TestIdleConnections measures what a connection costs that does nothing, and
// one that has sent a part of a head.
func TestIdleConnections(t *testing.T) {
	if testing.Short() {
		t.Skip("opens thousands of connections")
	}
	const count = 4000 // both ends are ours, and descriptors are limited
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	memory := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse)
	}
	before := memory()
	var conns []net.Conn
	for range count {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Skip("no more connections: ", err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	open := func() int { return p.a.total(func(w *worker) int { return len(w.conns) }) }
	if !eventually(func() bool { return open() == count }) {
		t.Fatalf("%d connections", open())
	}
	idle := (memory() - before) / count
	if held := p.a.held(); held != 0 {
		t.Errorf("idle connections hold %d bytes of buffers", held)
	}
	for _, part := range []string{"GET / HT", "TP/1.1\r\nHo", "st: x\r\n"} {
		for _, c := range conns {
			io.WriteString(c, part)
		}
	}
	if !eventually(func() bool { return p.a.held() > 0 }) {
		t.Fatal("nothing arrived")
	}
	full(t, func() int64 { return int64(p.a.held()) })
	t.Logf("an idle connection takes %d bytes, both ends and the race detector included; its head's part %d", idle, p.a.held()/count)
	if held := p.a.held(); held > count*8<<10 {
		t.Errorf("%d bytes for each part of a head", held/count)
	}
	if idle > 16<<10 {
		t.Errorf("%d bytes for each idle connection", idle)
	}
}
