package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/telemetry"
)

// reset closes c so that the other side sees a reset.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// TestTCPEnds lets either side end first, each way there is, and wants the
// other one to see the same.
func TestTCPEnds(t *testing.T) {
	const client, app = "client", "app"
	for _, c := range []struct {
		name      string
		play      func(t *testing.T, client, app *net.TCPConn)
		out, in   string // outcomes at the two hosts
		appAtOnce bool   // the client says nothing before the application does
	}{
		{"the client ends first", func(t *testing.T, c, a *net.TCPConn) {
			send(t, c, "question")
			c.CloseWrite()
			if got, cut := ending(t, app, a); string(got) != "question" || cut {
				t.Fatalf("the application got %q, cut %v", got, cut)
			}
			quiet(t, client, c)
			send(t, a, "answer")
			a.Close()
			if got, cut := ending(t, client, c); string(got) != "answer" || cut {
				t.Fatalf("the client got %q, cut %v", got, cut)
			}
		}, "ok=1", "ok=1", false},
		{"the application speaks and ends first", func(t *testing.T, c, a *net.TCPConn) {
			send(t, a, "banner")
			a.CloseWrite()
			if got, cut := ending(t, client, c); string(got) != "banner" || cut {
				t.Fatalf("the client got %q, cut %v", got, cut)
			}
			quiet(t, app, a)
			send(t, c, "late")
			c.Close()
			if got, cut := ending(t, app, a); string(got) != "late" || cut {
				t.Fatalf("the application got %q, cut %v", got, cut)
			}
		}, "ok=1", "ok=1", true},
		{"both end without a byte", func(t *testing.T, c, a *net.TCPConn) {
			c.CloseWrite()
			a.CloseWrite()
			for who, conn := range map[string]*net.TCPConn{client: c, app: a} {
				if got, cut := ending(t, who, conn); len(got) != 0 || cut {
					t.Fatalf("%s got %q, cut %v", who, got, cut)
				}
			}
		}, "ok=1", "ok=1", true},
		{"the client resets", func(t *testing.T, c, a *net.TCPConn) {
			send(t, c, "half a")
			gets(t, app, a, "half a")
			reset(c)
			if _, cut := ending(t, app, a); !cut {
				t.Fatal("the application saw a regular end")
			}
		}, "client_closed=1", "client_closed=1", false},
		{"the client resets after it ended", func(t *testing.T, c, a *net.TCPConn) {
			c.CloseWrite()
			ending(t, app, a)
			reset(c)
			wantWriteError(t, a)
		}, "client_closed=1", "client_closed=1", false},
		{"the client closes while the application writes", func(t *testing.T, c, a *net.TCPConn) {
			send(t, a, "first")
			gets(t, client, c, "first")
			c.Close()
			ending(t, app, a)
			wantWriteError(t, a)
		}, "client_closed=1", "client_closed=1", true},
		{"the application resets", func(t *testing.T, c, a *net.TCPConn) {
			send(t, a, "half an")
			gets(t, client, c, "half an")
			reset(a)
			if _, cut := ending(t, client, c); !cut {
				t.Fatal("the client saw a regular end")
			}
		}, "local_reset=1", "local_reset=1", true},
		{"the application answers and closes with the rest unread", func(t *testing.T, c, a *net.TCPConn) {
			send(t, c, "a long question")
			gets(t, app, a, "a")
			time.Sleep(20 * time.Millisecond) // the rest must have arrived: then close resets
			send(t, a, "no")
			a.Close()
			if got, cut := ending(t, client, c); string(got) != "no" || !cut {
				t.Fatalf("the client got %q, cut %v", got, cut)
			}
		}, "local_reset=1", "local_reset=1", false},
		{"the application answers and closes while the client writes", func(t *testing.T, c, a *net.TCPConn) {
			writing := make(chan struct{})
			go func() {
				defer close(writing)
				for _, err := c.Write(make([]byte, 1000)); err == nil; _, err = c.Write(make([]byte, 1000)) {
				}
			}()
			a.Read(make([]byte, 100))
			send(t, a, "too much")
			a.Close()
			// The write may have been told of the reset, and nobody is told twice.
			if got, _ := ending(t, client, c); string(got) != "too much" {
				t.Fatalf("the client got %q", got)
			}
			<-writing
		}, "local_reset=1", "local_reset=1", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			onLoops(t, func(t *testing.T, loops int) {
				a := newRawApp(t)
				p := newPair(t, loops, mesh.TCP, mustAddr(a.Addr()))
				// The first needs a link to be made, the second finds one on
				// its loop when there is but one.
				for n := 1; n <= 2; n++ {
					conn := dial(t, p.addr)
					c.play(t, conn, a.accept(t))
					p.a.counts(telemetry.Outbound, mesh.TCP, c.out[:len(c.out)-1]+fmt.Sprint(n))
					p.b.counts(telemetry.Inbound, mesh.TCP, c.in[:len(c.in)-1]+fmt.Sprint(n))
				}
				p.calm()
			})
		})
	}
}

// wantWriteError writes until the connection turns out to be broken.
func wantWriteError(t *testing.T, c *net.TCPConn) {
	t.Helper()
	c.SetWriteDeadline(time.Now().Add(patience))
	for {
		if _, err := c.Write(make([]byte, 4096)); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the application can write for ever")
			}
			return
		}
	}
}

// TestTCPEverythingBeforeTheLink is what `nc -N` does: all is sent, and the end
// too, before there is a link to send it on.
func TestTCPEverythingBeforeTheLink(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		app := meshtest.TCPEcho(t, "world")
		p := newPair(t, loops, mesh.TCP, app.Addr)
		data := bytes.Repeat([]byte("0123456789abcdef"), 10<<10)
		for range 2 * loops {
			c := dial(t, p.addr)
			go func() {
				c.Write(data)
				c.CloseWrite()
			}()
			if got, cut := ending(t, "client", c); !bytes.Equal(got, data) || cut {
				t.Fatalf("got %d of %d bytes back, cut %v", len(got), len(data), cut)
			}
		}
		p.calm()
	})
}

// TestTCPGoneBeforeTheLink resets the client's connection while the link to
// its peer is still being made.
func TestTCPGoneBeforeTheLink(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	p := newPair(t, 1, mesh.TCP, mustAddr(silent.Addr()), endpointAt(silent.Addr()))
	c := dial(t, p.addr)
	send(t, c, "x")
	if !eventually(func() bool { return p.a.Upstreams()[0].Pending == 1 }) {
		t.Fatal("nothing waits for the link")
	}
	reset(c)
	p.a.counts(telemetry.Outbound, mesh.TCP, "client_closed=1")
	if u := p.a.Upstreams()[0]; u.Pending != 0 || u.Requests != 0 || u.Connections != 0 || u.Endpoints[0].InFlight != 0 {
		t.Fatalf("left behind: %+v", u)
	}
}

// endpointAt makes the upstream's only endpoint the one at a.
func endpointAt(a net.Addr) pairOption {
	return func(s, _ *mesh.Spec) { s.Static[0].Endpoints[0].Address = mustAddr(a) }
}

// TestTCPSlowReader has one client not read what the application sends without
// end. What is held for it is bounded, the application is made to wait, and
// another stream of the same link does not notice.
func TestTCPSlowReader(t *testing.T) {
	for _, dir := range []string{"client", "app"} {
		t.Run(dir+" does not read", func(t *testing.T) {
			const total = 48 << 20
			app := newRawApp(t)
			p := newPair(t, 1, mesh.TCP, mustAddr(app.Addr()))
			slow := dial(t, p.addr)
			writer := app.accept(t)
			if dir == "app" {
				slow, writer = writer, slow
			}
			written := make(chan error, 1)
			go func() {
				buf := make([]byte, 64<<10)
				for n := 0; n < total; n += len(buf) {
					for i := range buf {
						buf[i] = byte((n + i) % 251)
					}
					if _, err := writer.Write(buf); err != nil {
						written <- err
						return
					}
				}
				writer.CloseWrite()
				written <- nil
			}()
			// The other stream moves as much as it likes meanwhile.
			c := dial(t, p.addr)
			a := app.accept(t)
			go func() {
				io.Copy(a, a)
				a.CloseWrite()
			}()
			data := bytes.Repeat([]byte("other"), 1<<20)
			go func() {
				c.Write(data)
				c.CloseWrite()
			}()
			if got, cut := ending(t, "client", c); !bytes.Equal(got, data) || cut {
				t.Fatalf("the other stream got %d of %d bytes", len(got), len(data))
			}
			select {
			case err := <-written:
				t.Fatalf("the writer did not have to wait: %v", err)
			default:
			}
			for _, h := range []*host{p.a, p.b} {
				h.each(func(w *worker) {
					for l := range w.allLinks {
						if n := len(l.out) + len(l.cipher) - l.off; n > linkHigh+readChunk {
							t.Errorf("%d bytes wait on the link", n)
						}
					}
					for c := range w.conns {
						if n := c.(*tcpSide).pending(); n > outHigh {
							t.Errorf("%d bytes wait for a connection", n)
						}
					}
				})
			}
			slow.SetReadDeadline(time.Now().Add(2 * patience))
			buf := make([]byte, 64<<10)
			n := 0
			for {
				k, err := slow.Read(buf)
				for i := range buf[:k] {
					if buf[i] != byte((n+i)%251) {
						t.Fatalf("byte %d is wrong", n+i)
					}
				}
				n += k
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := <-written; err != nil || n != total {
				t.Fatalf("read %d of %d bytes, %v", n, total, err)
			}
			slow.Close()
			writer.Close()
			p.calm()
		})
	}
}

// TestTCPIdle: a connection on which nothing happens is cut, one with a byte now
// and then is not.
func TestTCPIdle(t *testing.T) {
	const idle = 300 * time.Millisecond
	for _, c := range []struct {
		name string
		opt  pairOption
		a, b string
	}{
		{"upstream", func(a, _ *mesh.Spec) { a.Upstreams[0].IdleTimeout = idle }, "idle_timeout=1", "idle_timeout=1"},
		{"service", func(_, b *mesh.Spec) { b.Services[0].IdleTimeout = idle }, "idle_timeout=1", "idle_timeout=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := newRawApp(t)
			p := newPair(t, 1, mesh.TCP, mustAddr(app.Addr()), c.opt)
			conn := dial(t, p.addr)
			peer := app.accept(t)
			for end := time.Now().Add(2 * idle); time.Now().Before(end); time.Sleep(idle / 6) {
				send(t, conn, "a")
				gets(t, "app", peer, "a")
			}
			for end := time.Now().Add(2 * idle); time.Now().Before(end); time.Sleep(idle / 6) {
				send(t, peer, "b")
				gets(t, "client", conn, "b")
			}
			began := time.Now()
			for who, c := range map[string]net.Conn{"client": conn, "app": peer} {
				if _, cut := ending(t, who, c); !cut {
					t.Errorf("%s saw a regular end", who)
				}
			}
			if d := time.Since(began); d < idle/2 {
				t.Errorf("cut after %v", d)
			}
			p.a.counts(telemetry.Outbound, mesh.TCP, c.a)
			p.b.counts(telemetry.Inbound, mesh.TCP, c.b)
			// Silence is no evidence against the endpoint.
			p.a.each(func(w *worker) {
				for _, e := range w.eps {
					if e.st.breaker.Peek(w.pic.outbound[0].breaker, w.loop.Now()) == false {
						t.Error("the breaker opened")
					}
				}
			})
			p.calm()
		})
	}
}

// TestTCPManyShort opens and ends many connections at once.
func TestTCPManyShort(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		meshtest.Leaks(t)
		app := meshtest.TCPEcho(t, "world")
		p := newPair(t, loops, mesh.TCP, app.Addr)
		const workers, each = 16, 40
		var wg sync.WaitGroup
		for g := range workers {
			wg.Go(func() {
				for i := range each {
					c, err := net.Dial("tcp", p.addr)
					if err != nil {
						t.Error(err)
						return
					}
					c.SetDeadline(time.Now().Add(patience))
					msg := fmt.Sprint("hello ", g, " ", i)
					if i%4 == 3 { // a scanner: connects and goes
						c.Close()
						continue
					}
					io.WriteString(c, msg)
					c.(*net.TCPConn).CloseWrite()
					got, err := io.ReadAll(c)
					if err != nil || string(got) != msg {
						t.Errorf("got %q, %v, want %q", got, err, msg)
					}
					c.Close()
				}
			})
		}
		wg.Wait()
		p.calm()
		totals := p.a.telemetry.Series(telemetry.Outbound, "world", "tcp").Totals()
		if totals.Requests != workers*each || totals.Failed != totals.ByOutcome[ClientClosed] || totals.Active != 0 {
			t.Errorf("counted %s, %d active", p.a.outcomes(telemetry.Outbound, mesh.TCP), totals.Active)
		}
		if in := p.b.telemetry.Series(telemetry.Inbound, "world", "tcp").Totals(); in.Active != 0 || in.Opened == 0 {
			t.Errorf("inbound: %d opened, %d active", in.Opened, in.Active)
		}
	})
}

// TestTCPRefused: the application does not listen. The client sees a reset, and
// the outcome is told apart from failures of the mesh.
func TestTCPRefused(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		p := newPair(t, loops, mesh.TCP, meshtest.FreeAddr(t))
		for n := 1; n <= 3; n++ {
			c, err := net.Dial("tcp", p.addr)
			if err == nil {
				c.SetReadDeadline(time.Now().Add(patience))
				_, err = c.Read(make([]byte, 1))
				c.Close()
			}
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("got %v, want a reset", err)
			}
			p.a.counts(telemetry.Outbound, mesh.TCP, fmt.Sprint("local_connect_failed=", n))
			p.b.counts(telemetry.Inbound, mesh.TCP, fmt.Sprint("local_connect_failed=", n))
		}
		p.calm()
	})
}
