package proxy

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/telemetry"
	"meshd/internal/wire"
)

// changeTime is how soon a changed permission must show: the promise is one second
// for the whole agent, of which the proxy has most to itself.
const changeTime = time.Second

// ways of taking the permission of "web" to call "world" away, and giving it back.
var ways = []struct {
	name string
	set  func(h *host, allowed bool)
}{
	{"exact intention", func(h *host, allowed bool) {
		h.intend(mesh.Deny, intention("web", 9, allowed), intention("*", 8, !allowed))
	}},
	{"wildcard intention", func(h *host, allowed bool) {
		h.intend(mesh.Deny, intention("*", 8, allowed), intention("somebody", 9, !allowed))
	}},
	{"default", func(h *host, allowed bool) {
		h.intend(map[bool]mesh.Action{true: mesh.Allowed}[allowed])
	}},
	{"no information", func(h *host, allowed bool) {
		h.intend(mesh.Allowed)
		if !allowed {
			h.catalog = nil
		}
	}},
	{"allow block", func(h *host, allowed bool) {
		h.spec.Services[0].Allow = []mesh.Allow{{Caller: map[bool]string{true: "web", false: "somebody"}[allowed]}}
	}},
	{"allow block beside an intention", func(h *host, allowed bool) {
		h.intend(mesh.Deny, intention("web", 9, true))
		h.spec.Services[0].Allow = []mesh.Allow{{Caller: map[bool]string{true: "web", false: "somebody"}[allowed]}}
	}},
}

// intend has the registry decide about calls of "world".
func (h *host) intend(fallback mesh.Action, list ...mesh.Intention) {
	h.spec.Intentions = true
	h.spec.Services[0].Allow = nil
	h.catalog = &mesh.Catalog{Intentions: map[string]mesh.Intentions{"world": {Default: fallback, List: list}}}
}

func intention(source string, precedence int, allowed bool) mesh.Intention {
	return mesh.Intention{Source: source, Precedence: precedence, Action: map[bool]mesh.Action{true: mesh.Allowed}[allowed]}
}

// inTime fails when more than changeTime has passed since start.
func inTime(t *testing.T, what string, start time.Time) {
	t.Helper()
	t.Logf("%s after %s", what, time.Since(start).Round(100*time.Microsecond))
	if d := time.Since(start); d > changeTime {
		t.Errorf("%s after %s, want within %s", what, d, changeTime)
	}
}

// TestDenyWhileStreamsRun takes a permission away and gives it back, while
// connections and requests run: new ones are refused at once, running ones are
// cut after the grace and not before, and what is allowed again works.
func TestDenyWhileStreamsRun(t *testing.T) {
	for i, way := range ways {
		for _, loops := range []int{1, 3} {
			if loops == 1 && i > 0 {
				continue // the ways differ in the picture only
			}
			t.Run(fmt.Sprintf("%s, %d loops", way.name, loops), func(t *testing.T) {
				t.Run("tcp", func(t *testing.T) { denyTCP(t, loops, way.set) })
				t.Run("http", func(t *testing.T) { denyHTTP(t, loops, way.set) })
			})
		}
	}
}

func denyTCP(t *testing.T, loops int, set func(*host, bool)) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, loops, mesh.TCP, mustAddr(app.Addr()))
	set(p.b, true)
	p.b.put()
	const running = 6
	var clients, apps []*net.TCPConn
	for i := range running {
		c := dial(t, p.addr)
		send(t, c, fmt.Sprint("hello ", i))
		a := app.accept(t)
		gets(t, "app", a, fmt.Sprint("hello ", i))
		clients, apps = append(clients, c), append(apps, a)
	}
	kept := dialLink(t, p)
	for round := range 2 {
		start := time.Now()
		set(p.b, false)
		p.b.put()
		refused := dial(t, p.addr)
		if _, cut := ending(t, "new client", refused); !cut {
			t.Error("a connection of a denied caller ended as if it had been served")
		}
		inTime(t, "a new connection is refused", start)
		kept.write(open(uint32(1+round)<<16, tcpOpen, false))
		for f := kept.next(); f.Type != wire.TypeReset; f = kept.next() {
			if f.Type != wire.TypeGoaway && f.Type != wire.TypePing {
				t.Fatalf("a kept link got %s", f.Type)
			}
		}
		for i := range clients {
			if _, cut := ending(t, "client", clients[i]); !cut {
				t.Error("the caller of a cut connection saw a regular end")
			}
			if d := time.Since(start); d < denyGrace {
				t.Errorf("cut after %s, the grace is %s", d, denyGrace)
			}
			if _, cut := ending(t, "app", apps[i]); !cut {
				t.Error("the application of a cut connection saw a regular end")
			}
		}
		inTime(t, "all are cut", start)

		start = time.Now()
		set(p.b, true)
		p.b.put()
		c := dial(t, p.addr)
		send(t, c, "again")
		a := app.accept(t)
		gets(t, "app", a, "again")
		send(t, a, "yes")
		gets(t, "client", c, "yes")
		inTime(t, "allowed again", start)
		clients, apps = []*net.TCPConn{c}, []*net.TCPConn{a}
	}
	for _, c := range append(clients, apps...) {
		c.Close()
	}
	kept.tcp().Close()
	want := fmt.Sprintf("ok=1 denied=%d", running+1+2)
	p.a.counts(telemetry.Outbound, mesh.TCP, want)
	p.b.counts(telemetry.Inbound, mesh.TCP, fmt.Sprintf("ok=1 denied=%d", running+1+2+2)) // those of the kept link
	p.calm()
	if len(app.conns) > 0 {
		t.Error("a denied caller reached the application")
	}
}

func denyHTTP(t *testing.T, loops int, set func(*host, bool)) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, loops, mesh.HTTP, mustAddr(app.Addr()))
	set(p.b, true)
	p.b.put()
	begin := func(request string) (client, application *net.TCPConn) {
		c := dial(t, p.addr)
		send(t, c, request)
		a := app.accept(t)
		head(t, a)
		return c, a
	}
	// An answer on its way, a request not answered yet, a request not all there.
	streaming, streamed := begin(plainGet)
	send(t, streamed, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun")
	head(t, streaming)
	gets(t, "client", streaming, "begun")
	waiting, waited := begin(plainGet)
	sending, sent := begin("POST / HTTP/1.1\r\nhost: world\r\ncontent-length: 1000\r\n\r\nbegun")
	gets(t, "app", sent, "begun")
	// A client that keeps its connection.
	idle, served := begin(plainGet)
	send(t, served, "HTTP/1.1 204 No Content\r\n\r\n")
	head(t, idle)
	served.Close()

	start := time.Now()
	set(p.b, false)
	p.b.put()
	send(t, idle, plainGet)
	getsError(t, idle, "403 denied")
	inTime(t, "a new request is refused", start)
	getsError(t, waiting, "403 denied")
	if d := time.Since(start); d < denyGrace {
		t.Errorf("cut after %s, the grace is %s", d, denyGrace)
	}
	if rest, cut := ending(t, "client of an answer on its way", streaming); !cut || len(rest) > 0 {
		t.Errorf("got %q, reset: %v", rest, cut)
	}
	getsError(t, sending, "403 denied and close")
	inTime(t, "all are cut", start)
	for i, a := range []*net.TCPConn{streamed, waited, sent} {
		if rest, _ := ending(t, "app", a); len(rest) > 0 {
			t.Errorf("application %d got %q", i, rest)
		}
	}

	start = time.Now()
	set(p.b, true)
	p.b.put()
	send(t, idle, plainGet)
	a := app.accept(t)
	head(t, a)
	send(t, a, "HTTP/1.1 204 No Content\r\n\r\n")
	head(t, idle)
	inTime(t, "allowed again", start)
	p.a.counts(telemetry.Outbound, mesh.HTTP, "ok=2 denied=4")
	p.b.counts(telemetry.Inbound, mesh.HTTP, "ok=2 denied=4")
	// It was an answer: no endpoint is to blame.
	if s := p.a.Upstreams()[0].Endpoints[0]; s.Breaker != "closed" {
		t.Errorf("%+v", s)
	}
	for _, c := range []*net.TCPConn{idle, waiting, sending} {
		c.Close()
	}
	p.calm()
}

// TestDenyRetiresLinks: a link on which nothing is allowed any more goes, also
// when nothing runs on it. One of a caller that was never allowed stays.
func TestDenyRetiresLinks(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		p := newPair(t, loops, mesh.HTTP, meshtest.HTTPEcho(t, "world").Addr)
		if code, _, _ := get(t, "http://"+p.addr+"/"); code != 200 {
			t.Fatal(code)
		}
		p.b.intend(mesh.Deny)
		p.b.put()
		if !eventually(func() bool { return p.a.Counts().Links == 0 && p.b.Counts().Links == 0 }) {
			t.Fatalf("%d and %d links", p.a.Counts().Links, p.b.Counts().Links)
		}
		refuse := func(n int) {
			for range n {
				if code, _, h := get(t, "http://"+p.addr+"/"); code != 403 || h.Get("meshd-error") != "denied" {
					t.Fatalf("%d %s", code, h.Get("meshd-error"))
				}
			}
		}
		refuse(2 * loops) // one link per loop by then
		shaken := p.b.Counts().Handshakes["ok"]
		for range 5 {
			p.b.put()
			refuse(loops)
		}
		if n := p.b.Counts().Handshakes["ok"]; n != shaken {
			t.Errorf("%d handshakes of a caller that is refused, want none", n-shaken)
		}
		p.calm()
	})
}

// TestDenyForAMoment: what is allowed again when the grace is over was not
// denied, and denying in turns does not put the cut off.
func TestDenyForAMoment(t *testing.T) {
	p := newPair(t, 1, mesh.TCP, meshtest.TCPEcho(t, "world").Addr)
	c := dial(t, p.addr)
	echo(t, c, "before")
	p.b.intend(mesh.Deny)
	p.b.put()
	p.b.intend(mesh.Allowed)
	p.b.put()
	c.SetReadDeadline(time.Now().Add(2 * denyGrace))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %d octets, %v; the permission was back in time", n, err)
	}
	echo(t, c, "after")

	start := time.Now()
	cut := make(chan error, 1)
	go func() { // ends with the connection
		c.SetReadDeadline(time.Now().Add(patience))
		_, err := c.Read(make([]byte, 1))
		cut <- err
	}()
	for {
		p.b.intend(mesh.Allowed)
		p.b.put()
		p.b.intend(mesh.Deny)
		p.b.put()
		select {
		case err := <-cut:
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %v, want a reset", err)
			}
			inTime(t, "cut", start)
			return
		case <-time.After(denyGrace / 10):
		}
	}
}

// TestDenyConcernsOthersNot: neither another caller's streams nor those to
// another instance notice.
func TestDenyConcernsOthersNot(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		one, two := meshtest.TCPEcho(t, "one"), meshtest.TCPEcho(t, "two")
		p := newPair(t, loops, mesh.TCP, one.Addr, func(a, b *mesh.Spec) {
			b.Services[0].ID = "one"
			b.Services[0].Allow = append(b.Services[0].Allow, mesh.Allow{Caller: "shop"})
			s := b.Services[0]
			s.ID, s.Port = "two", two.Port()
			b.Services = append(b.Services, s)
			up := a.Upstreams[0]
			up.Name, up.From = "for-shop", "shop"
			a.Upstreams = append(a.Upstreams, up)
		})
		to := func(name, id string) *net.TCPConn {
			p.a.spec.Static[0].Endpoints = []mesh.StaticEndpoint{{ID: id, Address: p.b.PeerAddr(), Weight: 1}}
			snap := p.a.publish(p.ca)
			c := dial(t, snap.Lookup(name).Binds[0].String())
			echo(t, c, id)
			return c
		}
		var concerned, others []*net.TCPConn
		for range loops { // every loop has links of both callers
			concerned = append(concerned, to("world", "one"))
			others = append(others, to("world", "two"), to("for-shop", "one"), to("for-shop", "two"))
		}
		open := func() int {
			return p.b.total(func(w *worker) (n int) {
				for l := range w.allLinks {
					if !l.goaway {
						n++
					}
				}
				return n
			})
		}
		links := open()
		p.b.spec.Services[0].Allow = []mesh.Allow{{Caller: "shop"}}
		p.b.put()
		for _, c := range concerned {
			if _, cut := ending(t, "client", c); !cut {
				t.Error("a regular end")
			}
		}
		for _, c := range others {
			echo(t, c, "still here")
		}
		// web may still reach the other instance: its links stay open for more.
		if n := open(); n != links {
			t.Errorf("%d open links, had %d", n, links)
		}
		if n := p.b.logs.count("cut streams", "peer=web", "service=world"); n == 0 || n > loops {
			t.Errorf("%d lines in the log", n)
		}
		if n := p.b.logs.count("cut streams", "peer=shop"); n != 0 {
			t.Errorf("%d lines in the log about another caller", n)
		}
	})
}

// TestDenyAfterServiceCameBack: a stream of a service that was taken away may
// finish, but not once the service is back and denies.
func TestDenyAfterServiceCameBack(t *testing.T) {
	p := newPair(t, 1, mesh.TCP, meshtest.TCPEcho(t, "world").Addr)
	c := dial(t, p.addr)
	echo(t, c, "before")
	services := p.b.spec.Services
	p.b.spec.Services = nil
	p.b.publish(p.ca)
	p.b.spec.Services = services
	p.b.intend(mesh.Deny)
	p.b.publish(p.ca)
	if _, cut := ending(t, "client", c); !cut {
		t.Error("a regular end")
	}
}

// TestDenyUnderLoad flips the permission at odd moments while requests with and
// without bodies, and connections, come and go. Each of them ends well or says
// that it was denied; while the permission is away for good nothing arrives.
func TestDenyUnderLoad(t *testing.T) {
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
		var load sync.WaitGroup
		stop := make(chan struct{})
		var ok, denied, cut atomic.Int64
		for i := range 6 {
			load.Go(func() {
				tr := &http.Transport{}
				defer tr.CloseIdleConnections()
				c := &http.Client{Transport: tr, Timeout: patience}
				body := strings.Repeat("x", i*20_000)
				for running(stop) {
					resp, err := c.Post("http://"+p.addr+"/", "text/plain", strings.NewReader(body))
					if err != nil {
						cut.Add(1) // an answer that had begun
						continue
					}
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					switch why := resp.Header.Get("meshd-error"); {
					case err != nil:
						cut.Add(1)
					case resp.StatusCode == 200:
						ok.Add(1)
					case resp.StatusCode == 403 && why == "denied":
						denied.Add(1)
					default:
						t.Errorf("%d %s", resp.StatusCode, why)
					}
				}
			})
		}
		for range 4 {
			load.Go(func() {
				buf := make([]byte, 1000)
				for running(stop) {
					c, err := net.Dial("tcp", rawAddr)
					if errors.Is(err, syscall.ECONNRESET) {
						cut.Add(1) // before the dialler looked
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					c.SetDeadline(time.Now().Add(patience))
					for n := 0; err == nil && n < 200; n++ {
						if _, err = c.Write(buf); err == nil {
							_, err = io.ReadFull(c, buf)
						}
					}
					c.Close()
					switch {
					case err == nil:
						ok.Add(1)
					case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
						cut.Add(1)
					default:
						t.Error(err)
					}
				}
			})
		}
		rng := rand.New(rand.NewPCG(1, uint64(loops)))
		set := func(allowed bool) {
			caller := map[bool]string{true: "web", false: "somebody"}[allowed]
			p.b.spec.Services = slices.Clone(p.b.spec.Services)
			for i := range p.b.spec.Services {
				p.b.spec.Services[i].Allow = []mesh.Allow{{Caller: caller}}
			}
			p.b.put()
		}
		for range 8 {
			set(false)
			time.Sleep(time.Duration(rng.Int64N(int64(denyGrace * 5 / 4))))
			set(true)
			time.Sleep(time.Duration(rng.Int64N(int64(denyGrace / 4))))
		}
		set(false)
		if !eventually(func() bool { return p.b.total(func(w *worker) int { return w.active }) == 0 }) {
			t.Error("something runs although nothing is allowed")
		}
		served, open := web.Served.Load(), raw.Served.Load()
		time.Sleep(denyGrace / 2)
		if n, m := web.Served.Load()-served, raw.Served.Load()-open; n != 0 || m != 0 {
			t.Errorf("%d requests and %d connections arrived while nothing was allowed", n, m)
		}
		close(stop)
		load.Wait()
		if ok.Load() == 0 || denied.Load() == 0 || cut.Load() == 0 {
			t.Errorf("%d ended well, %d were denied, %d cut: want some of each", ok.Load(), denied.Load(), cut.Load())
		}
		t.Logf("%d ended well, %d were denied, %d cut", ok.Load(), denied.Load(), cut.Load())
		p.calm()
	})
}

func running(stop chan struct{}) bool {
	select {
	case <-stop:
		return false
	default:
		return true
	}
}

// TestDenyOneAfterTheOther: each pair has its own grace, also when another's
// has begun.
func TestDenyOneAfterTheOther(t *testing.T) {
	p := newPair(t, 1, mesh.TCP, meshtest.TCPEcho(t, "world").Addr, func(a, b *mesh.Spec) {
		b.Services[0].Allow = append(b.Services[0].Allow, mesh.Allow{Caller: "shop"})
		up := a.Upstreams[0]
		up.Name, up.From = "for-shop", "shop"
		a.Upstreams = append(a.Upstreams, up)
	})
	web, shop := dial(t, p.addr), dial(t, p.a.picture.Load().snap.Lookup("for-shop").Binds[0].String())
	echo(t, web, "web")
	echo(t, shop, "shop")
	p.b.spec.Services[0].Allow = []mesh.Allow{{Caller: "shop"}}
	p.b.put()
	time.Sleep(denyGrace / 2)
	start := time.Now()
	p.b.spec.Services[0].Allow = nil
	p.b.put()
	ending(t, "web", web)
	if d := time.Since(start); d >= denyGrace {
		t.Errorf("the first was cut %s after the second was denied", d)
	}
	ending(t, "shop", shop)
	if d := time.Since(start); d < denyGrace {
		t.Errorf("the second was cut after %s, the grace is %s", d, denyGrace)
	}
	inTime(t, "the second is cut", start)
}
