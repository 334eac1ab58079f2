package proxy

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/telemetry"
)

// TestReload publishes 200 pictures while requests and connections run. They
// add, change and remove upstreams and services; nothing that they do not
// concern may notice, and nothing of what is gone may stay.
func TestReload(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
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
		rawAddr := p.a.picture.Load().snap.Lookup("raw").Binds[0].String()
		stop := make(chan struct{})
		var load sync.WaitGroup
		var requests atomic.Int64
		for range 4 {
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
						return
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if resp.StatusCode != 200 {
						t.Errorf("%d %s", resp.StatusCode, resp.Header.Get("meshd-error"))
						return
					}
					requests.Add(1)
				}
			})
		}
		for range 5 {
			c, err := net.Dial("tcp", rawAddr)
			if err != nil {
				t.Fatal(err)
			}
			load.Go(func() {
				defer c.Close()
				msg, got := make([]byte, 4000), make([]byte, 4000)
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
					msg[n%len(msg)]++
					c.SetDeadline(time.Now().Add(patience))
					if _, err := c.Write(msg); err != nil {
						t.Error(err)
						return
					}
					if _, err := io.ReadFull(c, got); err != nil || string(got) != string(msg) {
						t.Errorf("stream dropped: %v", err)
						return
					}
				}
			})
		}
		base := p.a.spec
		services := p.b.spec.Services
		up := func(name string, change func(u *mesh.Upstream)) mesh.Upstream {
			u := base.Upstreams[0]
			u.Name, u.Destination = name, "world"
			if change != nil {
				change(&u)
			}
			return u
		}
		ports := meshtest.FreePorts(t, 2)
		picture := func(n int) {
			p.a.spec.Upstreams = append([]mesh.Upstream(nil), base.Upstreams...)
			p.b.spec.Services = services
			p.a.spec.Upstreams = append(p.a.spec.Upstreams, up("changes", func(u *mesh.Upstream) {
				u.LocalBindPort = ports[n/2%2]
				u.RequestTimeout = time.Duration(n+1) * time.Second
				u.Protocol = []mesh.Protocol{mesh.HTTP, mesh.TCP}[n/3%2]
			}))
			p.a.spec.Static[0].Endpoints = p.a.spec.Static[0].Endpoints[:1:1]
			if n%2 == 0 {
				p.a.spec.Upstreams = append(p.a.spec.Upstreams, up("comes", nil))
				s := services[0]
				s.Name, s.ID = "other", "other"
				p.b.spec.Services = append(services[:2:2], s)
			}
			p.b.publish(p.ca)
			snap := p.a.publish(p.ca)
			if n%20 != 0 {
				return
			}
			// What came works, and so it leaves links and connections behind.
			for _, name := range []string{"comes", "changes"} {
				if o := snap.Lookup(name); o != nil && o.Protocol == mesh.HTTP {
					if code, body, _ := get(t, "http://"+o.Binds[0].String()+"/"); code != 200 {
						t.Fatalf("%s: %d %s", name, code, body)
					}
				}
			}
		}
		for n := range 20 {
			picture(n)
		}
		open, routines, slots := files(t), runtime.NumGoroutine(), p.slots()
		for n := 20; n < 200; n++ {
			picture(n)
		}
		picture(19) // the same as when they were counted
		// A loop that had no link yet may have got one: two descriptors, and two
		// of a connection behind it. A leak would be one per picture.
		const slack = 12
		ok := eventually(func() bool {
			return files(t) <= open+slack && runtime.NumGoroutine() <= routines+slack
		})
		if !ok {
			t.Errorf("descriptors from %d to %d, goroutines from %d to %d", open, files(t), routines, runtime.NumGoroutine())
		}
		if s := p.slots(); s != slots {
			t.Errorf("slots grew from %s to %s", slots, s)
		}
		close(stop)
		load.Wait()
		if n := requests.Load(); n < 200 {
			t.Errorf("only %d requests", n)
		}
		// Whoever was removed is not listened for any more.
		p.a.spec.Upstreams = base.Upstreams[:1]
		p.a.publish(p.ca)
		if _, err := net.Dial("tcp", rawAddr); err == nil {
			t.Error("a removed upstream is listened for")
		}
		p.calm()
	})
}

// slots says how many of each kind were ever in use at a time.
func (p *pair) slots() string {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	r := p.a.registry
	return fmt.Sprint(r.upstreamSlots.next, r.endpointSlots.next, r.targetSlots.next, r.serviceSlots.next)
}

// TestReloadOfConnections: what a change does to the connections it concerns.
func TestReloadOfConnections(t *testing.T) {
	t.Run("an upstream that is removed", func(t *testing.T) {
		hold := make(chan struct{})
		app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hold" {
				<-hold
			}
		}))
		p := newPair(t, 2, mesh.HTTP, app)
		idle, busy := dial(t, p.addr), dial(t, p.addr)
		send(t, idle, plainGet)
		gets(t, "client", idle, "HTTP/1.1 200 OK\r\n")
		send(t, busy, "GET /hold HTTP/1.1\r\nhost: world\r\n\r\n")
		if !eventually(func() bool { return p.a.Upstreams()[0].Requests == 1 }) {
			t.Fatal("no request runs")
		}
		p.a.spec.Upstreams, p.a.spec.Static = nil, nil
		p.a.publish(p.ca)
		ending(t, "idle client", idle)
		close(hold)
		gets(t, "busy client", busy, "HTTP/1.1 200 OK\r\n")
		if rest, cut := ending(t, "busy client", busy); cut {
			t.Errorf("cut after %q", rest)
		}
		// The link goes once nothing runs on it, at both ends.
		if !eventually(func() bool { return p.a.Counts().Links == 0 && p.b.Counts().Links == 0 }) {

			t.Errorf("%d and %d links", p.a.Counts().Links, p.b.Counts().Links)
		}
		p.calm()
	})
	t.Run("a TCP connection of an upstream that is removed", func(t *testing.T) {
		app := meshtest.TCPEcho(t, "world")
		p := newPair(t, 2, mesh.TCP, app.Addr)
		c := dial(t, p.addr)
		echo(t, c, "before")
		p.a.spec.Upstreams, p.a.spec.Static = nil, nil
		p.a.publish(p.ca)
		echo(t, c, "after")
		c.Close()
		if !eventually(func() bool { return p.a.Counts().Links == 0 && p.b.Counts().Links == 0 }) {

			t.Errorf("%d and %d links", p.a.Counts().Links, p.b.Counts().Links)
		}
		p.calm()
	})
	t.Run("a service that is removed", func(t *testing.T) {
		app := meshtest.HTTPEcho(t, "world")
		p := newPair(t, 2, mesh.HTTP, app.Addr)
		if code, _, _ := get(t, "http://"+p.addr+"/"); code != 200 {
			t.Fatal(code)
		}
		services := p.b.spec.Services
		p.b.spec.Services = nil
		p.b.publish(p.ca)
		if !eventually(func() bool { return p.a.Counts().Links == 0 && p.b.Counts().Links == 0 }) {

			t.Errorf("%d and %d links", p.a.Counts().Links, p.b.Counts().Links)
		}
		code, _, h := get(t, "http://"+p.addr+"/")
		if e := h.Get("meshd-error"); code != 503 || e != "handshake_failed" {
			t.Errorf("%d %s", code, e)
		}
		p.b.spec.Services = services
		p.b.publish(p.ca)
		if code, _, _ := get(t, "http://"+p.addr+"/"); code != 200 {
			t.Error(code)
		}
		p.calm()
	})
	t.Run("an application that moved", func(t *testing.T) {
		one, two := meshtest.HTTPEcho(t, "one"), meshtest.HTTPEcho(t, "two")
		p := newPair(t, 1, mesh.HTTP, one.Addr)
		get(t, "http://"+p.addr+"/")
		p.b.spec.Services[0].Port = two.Port()
		p.b.publish(p.ca)
		if _, _, h := get(t, "http://"+p.addr+"/"); h.Get("echo-name") != "two" {
			t.Errorf("answered by %s", h.Get("echo-name"))
		}
		// The connections to where it was are closed.
		if !eventually(func() bool {
			n := 0
			p.b.each(func(w *worker) { n += len(w.conns) })
			return n == 1
		}) {
			t.Error("connections to the former place are kept")
		}
	})
	t.Run("an endpoint list that empties", func(t *testing.T) {
		p := newPair(t, 1, mesh.HTTP, meshtest.HTTPEcho(t, "world").Addr)
		c := dial(t, p.addr)
		send(t, c, plainGet)
		gets(t, "client", c, "HTTP/1.1 200 OK\r\n")
		p.a.spec.Static[0].Endpoints = nil
		p.a.publish(p.ca)
		c2 := dial(t, p.addr)
		send(t, c2, plainGet)
		getsError(t, c2, "503 no_endpoints")
		p.a.counts(telemetry.Outbound, mesh.HTTP, "ok=1 no_endpoints=1")
	})
}

// TestListenerTaken: an address that somebody else holds fails by itself, and
// the next Prepare tries it again.
func TestListenerTaken(t *testing.T) {
	p := newPair(t, 1, mesh.HTTP, meshtest.HTTPEcho(t, "world").Addr)
	port := meshtest.FreePort(t)
	taken, err := net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String())
	if err != nil {
		t.Fatal(err)
	}
	p.a.spec.Upstreams[0].LocalBindPort = port
	p.a.gen++
	spec := p.a.spec
	snap, err := mesh.Compile(mesh.CompileInput{Generation: p.a.gen, Spec: &spec, Catalog: p.a.catalog})
	if err != nil {
		t.Fatal(err)
	}
	failed := func() (n int) {
		for _, l := range p.a.Prepare(snap) {
			if l.Err != nil {
				n++
			}
		}
		p.a.Publish(snap)
		return n
	}
	if n := failed(); n != 1 {
		t.Fatalf("%d listeners failed", n)
	}
	o := snap.Lookup("world")
	if code, _, _ := get(t, "http://"+netip.AddrPortFrom(o.Address, o.Port).String()+"/"); code != 200 {
		t.Error("the other listener does not work")
	}
	taken.Close()
	if n := failed(); n != 0 {
		t.Fatalf("%d listeners failed after the port was free", n)
	}
	if code, _, _ := get(t, fmt.Sprintf("http://127.0.0.1:%d/", port)); code != 200 {
		t.Error(code)
	}
}

// files counts the descriptors of the process.
func files(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestListenerBack takes an upstream away and brings it back before its loop has
// had time to close the listener.
func TestListenerBack(t *testing.T) {
	p := newPair(t, 1, mesh.HTTP, meshtest.HTTPEcho(t, "world").Addr)
	with := p.a.picture.Load().snap
	spec := p.a.spec
	spec.Upstreams = nil
	without, err := mesh.Compile(mesh.CompileInput{Generation: 2, Spec: &spec})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		p.a.workers[0].loop.Post(func() { time.Sleep(5 * time.Millisecond) })
		p.a.Prepare(without)
		p.a.Publish(without)
		for _, l := range p.a.Prepare(with) {
			if l.Err != nil {
				t.Fatal(l.Err)
			}
		}
		p.a.Publish(with)
		if code, _, _ := get(t, "http://"+p.addr+"/"); code != 200 {
			t.Fatal(code)
		}
	}
}

// TestRemovedWhileUnread: an upstream is removed while a client has not read the
// end of an answer. Once it has, its connection is closed, also when it asks for
// more: nothing else would ever do it.
func TestRemovedWhileUnread(t *testing.T) {
	const size, buffer, unread = 2 << 20, 32 << 10, 200 << 10
	for _, more := range []bool{false, true} {
		t.Run(fmt.Sprint("asks for more: ", more), func(t *testing.T) {
			app := newRawApp(t)
			p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
			c := dial(t, p.addr)
			if err := c.SetReadBuffer(buffer); err != nil {
				t.Fatal(err)
			}
			send(t, c, "GET / HTTP/1.1\r\nhost: world\r\n\r\n")
			a := app.accept(t)
			head(t, a)
			p.a.each(func(w *worker) {
				for c := range w.conns {
					if err := syscall.SetsockoptInt(c.(*downHTTP).fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, buffer); err != nil {
						t.Error(err)
					}
				}
			})
			go fmt.Fprintf(a, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", size, strings.Repeat("x", size))
			head(t, c)
			if _, err := io.CopyN(io.Discard, c, size-unread); err != nil {
				t.Fatal(err)
			}
			p.a.counts(telemetry.Outbound, mesh.HTTP, "ok=1")
			p.a.each(func(w *worker) {
				if w.unsent() != 1 {
					t.Error("all of the answer has left, which shows nothing")
				}
			})
			p.a.spec.Upstreams = nil
			p.a.publish(p.ca)
			if more {
				send(t, c, "GET / HTTP/1.1\r\nhost: world\r\n\r\n")
			}
			c.SetReadDeadline(time.Now().Add(patience))
			if n, err := io.CopyN(io.Discard, c, unread); err != nil {
				t.Fatalf("%d bytes, %v", n, err)
			}
			if more {
				getsError(t, c, "503 no_endpoints and close")
			}
			if rest, cut := ending(t, "client", c); len(rest) != 0 || cut {
				t.Errorf("got %.80q, cut %v; want an end", rest, cut)
			}
		})
	}
}

// TestRefusedAfterRemoval: the access log does not take a bad request on a
// connection of a removed upstream for one to whatever has come in its place.
func TestRefusedAfterRemoval(t *testing.T) {
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	log := &logs{t: t}
	p.a.Configure(slog.New(slog.NewTextHandler(log, nil)), time.Second)
	c := dial(t, p.addr)
	send(t, c, "GET / HT")
	if !eventually(func() bool {
		begun := false
		p.a.each(func(w *worker) {
			for c := range w.conns {
				begun = c.(*downHTTP).headStart != 0
			}
		})
		return begun
	}) {
		t.Fatal("the request did not arrive")
	}
	other := p.a.spec.Upstreams[0]
	other.Name = "other"
	p.a.spec.Upstreams = nil
	p.a.publish(p.ca)
	p.a.spec.Upstreams = []mesh.Upstream{other}
	p.a.publish(p.ca)
	send(t, c, "\n")
	getsError(t, c, "400 bad_request and close")
	if !eventually(func() bool { return log.count("bad_request") == 1 }) {
		t.Fatal("no line in the access log")
	}
	if log.count("name=other") != 0 {
		t.Error("the line names another upstream")
	}
}
