package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"meshd/internal/identity"
	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/telemetry"
	"meshd/internal/wire"
)

// stopping begins the end of h and returns a channel that is closed after it.
func (h *host) stopping() chan struct{} {
	h.stop()
	return h.done
}

// within wants done to be closed soon.
func within(t *testing.T, what string, d time.Duration, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s: not within %v", what, d)
	}
}

// TestDrainCaller ends the agent of the side that calls: running requests and
// connections finish, idle clients are closed, nobody new is taken.
func TestDrainCaller(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		meshtest.Leaks(t)
		hold := make(chan struct{})
		app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hold" {
				<-hold
			}
			io.WriteString(w, "done")
		}))
		p := newPair(t, loops, mesh.HTTP, app)
		p.a.Configure(nil, time.Minute)
		idle, busy := dial(t, p.addr), dial(t, p.addr)
		send(t, idle, plainGet)
		gets(t, "idle client", idle, "HTTP/1.1 200 OK\r\n")
		send(t, busy, "GET /hold HTTP/1.1\r\nhost: world\r\n\r\n")
		if !eventually(func() bool { return p.a.Upstreams()[0].Requests == 1 }) {
			t.Fatal("no request runs")
		}
		done := p.a.stopping()
		ending(t, "idle client", idle)
		if !eventually(func() bool {
			c, err := net.Dial("tcp", p.addr)
			if err == nil {
				c.Close()
			}
			return errors.Is(err, syscall.ECONNREFUSED)
		}) {
			t.Error("new connections are taken")
		}
		select {
		case <-done:
			t.Fatal("the end did not wait for a running request")
		default:
		}
		close(hold)
		busy.SetReadDeadline(time.Now().Add(patience))
		answer, err := io.ReadAll(busy)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"HTTP/1.1 200 OK\r\n", "connection: close\r\n", "done"} {
			if !contains(answer, want) {
				t.Errorf("no %q in %q", want, answer)
			}
		}
		within(t, "end", patience, done)
		p.a.counts(telemetry.Outbound, mesh.HTTP, "ok=2")
	})
}

func contains(b []byte, s string) bool {
	for i := 0; i+len(s) <= len(b); i++ {
		if string(b[i:i+len(s)]) == s {
			return true
		}
	}
	return false
}

// TestDrainConnections lets TCP connections finish while either side ends, and
// cuts them when drain_timeout has passed.
func TestDrainConnections(t *testing.T) {
	for _, who := range []string{"caller", "called"} {
		for _, finish := range []bool{true, false} {
			t.Run(fmt.Sprint(who, " ends, finish ", finish), func(t *testing.T) {
				onLoops(t, func(t *testing.T, loops int) {
					meshtest.Leaks(t)
					app := newRawApp(t)
					p := newPair(t, loops, mesh.TCP, mustAddr(app.Addr()))
					h := p.a
					if who == "called" {
						h = p.b
					}
					limit := time.Minute
					if !finish {
						limit = 300 * time.Millisecond
					}
					h.Configure(nil, limit)
					c := dial(t, p.addr)
					a := app.accept(t)
					began := time.Now()
					done := h.stopping()
					if !eventually(func() bool {
						draining := false
						h.each(func(w *worker) { draining = w.draining })
						return draining
					}) {
						t.Fatal("not draining")
					}
					for range 5 {
						send(t, c, "still")
						gets(t, "app", a, "still")
						send(t, a, "there")
						gets(t, "client", c, "there")
					}
					if finish {
						c.CloseWrite()
						ending(t, "app", a)
						a.Close()
						ending(t, "client", c)
						within(t, "end", patience, done)
						p.a.counts(telemetry.Outbound, mesh.TCP, "ok=1")
						p.b.counts(telemetry.Inbound, mesh.TCP, "ok=1")
						return
					}
					for who, c := range map[string]net.Conn{"client": c, "app": a} {
						if _, cut := ending(t, who, c); !cut {
							t.Errorf("%s saw a regular end", who)
						}
					}
					within(t, "end", patience, done)
					if d := time.Since(began); d < limit {
						t.Errorf("cut after %v", d)
					}
					if h.logs.count("drain_timeout passed", "exchanges=1") != 1 {
						t.Error("the log does not say so")
					}
					p.a.counts(telemetry.Outbound, mesh.TCP, "draining=1")
					if who == "called" {
						p.b.counts(telemetry.Inbound, mesh.TCP, "draining=1")
					}
				})
			})
		}
	}
}

// TestDrainCalled ends one of two called hosts under load: its goaway moves the
// load to the other one, and no request fails.
func TestDrainCalled(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		meshtest.Leaks(t)
		one, two := meshtest.HTTPEcho(t, "one"), meshtest.HTTPEcho(t, "two")
		p := newPair(t, loops, mesh.HTTP, one.Addr)
		second := newHost(t, p.ca, loops, "127.79.0.0/16")
		second.spec.Services = append([]mesh.Service(nil), p.b.spec.Services...)
		second.spec.Services[0].Port = two.Port()
		second.publish(p.ca)
		p.a.spec.Static[0].Endpoints = append(p.a.spec.Static[0].Endpoints, mesh.StaticEndpoint{ID: "world", Address: second.PeerAddr(), Weight: 1})
		p.a.publish(p.ca)
		var failed, ok atomic.Int64
		stop := make(chan struct{})
		var load sync.WaitGroup
		for range 8 {
			load.Go(func() {
				tr := &http.Transport{}
				defer tr.CloseIdleConnections()
				c := &http.Client{Transport: tr, Timeout: patience}
				for {
					select {
					case <-stop:
						return
					default:
					}
					resp, err := c.Get("http://" + p.addr + "/")
					if err != nil {
						t.Error(err)
						failed.Add(1)
						return
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if resp.StatusCode != 200 {
						t.Errorf("%d %s", resp.StatusCode, resp.Header.Get("meshd-error"))
						failed.Add(1)
						return
					}
					ok.Add(1)
				}
			})
		}
		busy := func(a *meshtest.App) func() bool {
			from := a.Served.Load()
			return func() bool { return a.Served.Load() > from+20 || failed.Load() > 0 }
		}
		if !eventually(busy(one)) || !eventually(busy(two)) {
			t.Fatal("the load does not reach both")
		}
		within(t, "end", patience, p.b.stopping())
		if !eventually(busy(two)) {
			t.Error("the load did not move")
		}
		close(stop)
		load.Wait()
		p.a.counts(telemetry.Outbound, mesh.HTTP, fmt.Sprintf("ok=%d", ok.Load()))
	})
}

// TestCrossingOpen: a stream that was opened before the goaway was read is
// served, and the accepting side waits for its peer to close the link, but not
// for ever.
func TestCrossingOpen(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.TCP, mustAddr(app.Addr()))
	p.b.Configure(nil, time.Minute)
	l := dialLink(t, p)
	done := p.b.stopping()
	f := l.next()
	if code, _ := wire.ParseGoaway(f.Payload); f.Type != wire.TypeGoaway || code != wire.CodeDraining {
		t.Fatalf("got %s", f.Type)
	}
	l.write(append(open(1<<16, tcpOpen, false), wire.AppendData(nil, 1<<16, []byte("crossed"), false)...))
	a := app.accept(t)
	gets(t, "app", a, "crossed")
	send(t, a, "answer")
	a.CloseWrite()
	if f := l.wants(wire.TypeData, 1<<16); string(f.Payload) != "answer" {
		t.Errorf("got %q", f.Payload)
	}
	l.write(wire.AppendEnd(nil, 1<<16))
	began := time.Now()
	within(t, "end", patience, done) // though the link is still there
	if d := time.Since(began); d < goawayGrace/2 {
		t.Errorf("the link was closed after %v", d)
	}
	l.wantsEnd()
}

// TestDrainSlowLink: what the application has answered reaches a peer that reads
// slowly, though all of it is on the link already when the host ends.
func TestDrainSlowLink(t *testing.T) {
	const size, streams, buffer = 250 << 10, 3, 32 << 10
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	p.b.Configure(nil, time.Minute)
	l := dialLink(t, p)
	l.tcp().SetReadBuffer(buffer)
	p.b.each(func(w *worker) {
		for l := range w.allLinks {
			if err := syscall.SetsockoptInt(l.fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, buffer); err != nil {
				t.Error(err)
			}
		}
	})
	for slot := range streams {
		l.write(open(wire.StreamID(slot, 1), httpOpen("/"), true))
	}
	for range streams {
		a := app.accept(t)
		head(t, a)
		go fmt.Fprintf(a, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", size, strings.Repeat("x", size))
	}
	done := p.b.stopping()
	began := time.Now()
	got := 0
	for got < streams*size {
		f, err := l.frame()
		if err != nil {
			t.Fatalf("%d of %d bytes after %v, %v", got, streams*size, time.Since(began), err)
		}
		if f.Type == wire.TypeData {
			got += len(f.Payload)
			time.Sleep(time.Duration(len(f.Payload)) * 4 * time.Microsecond)
		}
	}
	if d := time.Since(began); d < 2*goawayGrace {
		t.Errorf("it took %v only, which shows nothing", d)
	}
	l.tcp().Close()
	within(t, "end", patience, done)
}

// wantsEnd reads to the end of the link.
func (l *rawLink) wantsEnd() {
	l.t.Helper()
	for {
		if _, err := l.frame(); err != nil {
			return
		}
	}
}

// TestBothEnd ends two agents at the same time, under load, with connections
// in every state.
func TestBothEnd(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		for range 5 {
			func() {
				meshtest.Leaks(t)
				web, raw := meshtest.HTTPEcho(t, "world"), meshtest.TCPEcho(t, "raw")
				p := newPair(t, loops, mesh.HTTP, web.Addr, func(a, b *mesh.Spec) {
					s := b.Services[0]
					s.Name, s.ID, s.Port, s.Protocol = "raw", "raw", raw.Port(), mesh.TCP
					b.Services = append(b.Services, s)
					u := a.Upstreams[0]
					u.Name, u.Destination, u.Protocol = "raw", "raw", mesh.TCP
					a.Upstreams = append(a.Upstreams, u)
					a.Static = append(a.Static, mesh.StaticService{Name: "raw", Endpoints: []mesh.StaticEndpoint{
						{ID: "raw", Address: a.Static[0].Endpoints[0].Address, Weight: 1}}})
				})
				for _, h := range []*host{p.a, p.b} {
					h.Configure(nil, 200*time.Millisecond)
				}
				rawAddr := p.a.picture.Load().snap.Lookup("raw").Binds[0].String()
				var load sync.WaitGroup
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				for n := range 12 {
					load.Go(func() {
						for ctx.Err() == nil {
							addr := p.addr
							if n%2 == 0 {
								addr = rawAddr
							}
							c, err := netDial(addr)
							if err != nil {
								return // the end has begun
							}
							c.SetDeadline(time.Now().Add(time.Second))
							io.WriteString(c, plainGet)
							io.ReadFull(c, make([]byte, 16))
							if n%3 == 0 {
								time.Sleep(time.Millisecond)
							}
							c.Close()
						}
					})
				}
				// Somebody asks for the state all the time.
				load.Go(func() {
					for ctx.Err() == nil {
						p.a.Counts()
						p.a.Upstreams()
						p.b.Services()
					}
				})
				load.Go(func() {
					for ctx.Err() == nil {
						// As the agent does; listeners may fail from now on.
						snap := p.a.picture.Load().snap
						p.a.Prepare(snap)
						p.a.Publish(snap)
						time.Sleep(time.Millisecond)
					}
				})
				if !eventually(func() bool { return web.Served.Load() > 5 && raw.Served.Load() > 5 }) {
					t.Fatal("no load")
				}
				a, b := p.a.stopping(), p.b.stopping()
				within(t, "end of the caller", patience, a)
				within(t, "end of the called", patience, b)
				cancel()
				load.Wait()
				p.a.Counts()
				p.a.Upstreams()
			}()
		}
	})
}

// TestStartStop leaves nothing behind, whether it ran or not.
func TestStartStop(t *testing.T) {
	meshtest.Leaks(t)
	ca := t.TempDir()
	t.Run("ran", func(t *testing.T) {
		for range 3 {
			h := newHost(t, ca, 3, "127.77.0.0/16")
			h.end()
		}
	})
	t.Run("ran with listeners", func(t *testing.T) {
		app := meshtest.TCPEcho(t, "world")
		for range 3 {
			p := newPair(t, 3, mesh.TCP, app.Addr)
			echo(t, dial(t, p.addr), "hello")
			p.a.end()
			p.b.end()
		}
	})
	t.Run("never ran", func(t *testing.T) {
		store := identity.NewStore()
		p, err := New(Options{Loops: 3, PeerBind: netip.MustParseAddrPort("127.0.0.1:0"), Identity: store,
			Telemetry: telemetry.New(3, OutcomeNames), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		spec := mesh.Spec{Domain: "mesh.internal", Loopback: netip.MustParsePrefix("127.81.0.0/16"), Identity: "web",
			Upstreams: []mesh.Upstream{{Name: "world", Destination: "world", LocalBindAddress: netip.MustParseAddr("127.0.0.1")}}}
		snap, err := mesh.Compile(mesh.CompileInput{Generation: 1, Spec: &spec})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range p.Prepare(snap) {
			if l.Err != nil {
				t.Fatal(l.Err)
			}
		}
		p.Publish(snap)
		p.Close()
	})
	t.Run("a taken port", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, err = New(Options{Loops: 3, PeerBind: mustAddr(l.Addr()), Identity: identity.NewStore(),
			Telemetry: telemetry.New(3, OutcomeNames), Log: slog.New(slog.DiscardHandler)})
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	})
}
