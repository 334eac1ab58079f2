package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"meshd/internal/loop"
	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/telemetry"
	"meshd/internal/wire"
)

// plainGet is a request without anything special.
const plainGet = "GET / HTTP/1.1\r\nhost: world\r\n\r\n"

// TestBalance: all healthy endpoints get work; those that fail get none once
// their breaker is open, and clients do not notice as long as nothing was
// delivered.
func TestBalance(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		apps := []*meshtest.App{meshtest.HTTPEcho(t, "one"), meshtest.HTTPEcho(t, "two"), meshtest.HTTPEcho(t, "three")}
		p := newPair(t, loops, mesh.HTTP, apps[0].Addr, func(a, b *mesh.Spec) {
			one := b.Services[0]
			b.Services = nil
			peer := a.Static[0].Endpoints[0].Address
			a.Static[0].Endpoints = []mesh.StaticEndpoint{{ID: "nobody", Address: meshtest.FreeAddr(t), Weight: 1}}
			for _, app := range apps {
				s := one
				s.ID, s.Port = app.Name, app.Port()
				b.Services = append(b.Services, s)
				a.Static[0].Endpoints = append(a.Static[0].Endpoints, mesh.StaticEndpoint{ID: app.Name, Address: peer, Weight: 1})
			}
		})
		const n = 150
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				for range n / 5 {
					if code, body, _ := get(t, "http://"+p.addr+"/"); code != 200 {
						t.Errorf("%d %s", code, body)
					}
				}
			})
		}
		wg.Wait()
		for _, a := range apps {
			if got := a.Served.Load(); got < n/6 {
				t.Errorf("%s got %d of %d", a.Name, got, n)
			}
		}
		p.a.counts(telemetry.Outbound, mesh.HTTP, fmt.Sprintf("ok=%d", n))
		for _, e := range p.a.Upstreams()[0].Endpoints {
			want := "closed"
			if e.ID == "nobody" {
				want = "open"
			}
			if e.Breaker != want || (want == "open") != strings.HasPrefix(e.OpenedBy, "connect_failed: ") {
				t.Errorf("%s is %s by %q", e.ID, e.Breaker, e.OpenedBy)
			}
		}
		if tries := p.a.telemetry.Series(telemetry.Outbound, "world", "http").Totals().Attempts; tries <= n || tries > n+uint64(5*loops)+5 {
			t.Errorf("%d tries for %d requests", tries, n)
		}
	})
}

// TestBreaker walks the breaker through all its states with requests.
func TestBreaker(t *testing.T) {
	const openFor = 300 * time.Millisecond
	var status, served atomic.Int64
	hold := make(chan struct{})
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		if r.URL.Path == "/hold" {
			<-hold
		}
		w.WriteHeader(int(status.Load()))
	}))
	p := newPair(t, 2, mesh.HTTP, app, func(a, _ *mesh.Spec) {
		a.Upstreams[0].Breaker = mesh.Breaker{ConsecutiveFailures: 3, OpenFor: openFor}
	})
	state := func() string { return p.a.Upstreams()[0].Endpoints[0].Breaker }
	status.Store(500)
	for range 2 {
		get(t, "http://"+p.addr+"/")
	}
	status.Store(200) // resets the count
	get(t, "http://"+p.addr+"/")
	status.Store(503)
	for i := range 3 {
		if s := state(); s != "closed" {
			t.Fatalf("%s after %d failures", s, i)
		}
		get(t, "http://"+p.addr+"/")
	}
	if s := state(); s != "open" {
		t.Fatalf("%s after three failures", s)
	}
	before := served.Load()
	if code, _, h := get(t, "http://"+p.addr+"/"); code != 503 || h.Get("meshd-error") != "circuit_open" || served.Load() != before {
		t.Fatalf("%d %v", code, h)
	}
	time.Sleep(openFor)
	// One request finds out, the others are refused meanwhile.
	status.Store(200)
	probe := dial(t, p.addr)
	send(t, probe, "GET /hold HTTP/1.1\r\nhost: world\r\n\r\n")
	if !eventually(func() bool { return served.Load() == before+1 }) {
		t.Fatal("no probe")
	}
	for range 10 {
		if code, _, h := get(t, "http://"+p.addr+"/"); code != 503 || h.Get("meshd-error") != "circuit_open" {
			t.Fatalf("%d %v", code, h)
		}
	}
	if s := state(); s != "half-open" || served.Load() != before+1 {
		t.Fatalf("%s, %d requests in all", s, served.Load()-before)
	}
	close(hold)
	gets(t, "client", probe, "HTTP/1.1 200 ")
	if !eventually(func() bool { return state() == "closed" }) {
		t.Fatal(state())
	}
	if code, _, _ := get(t, "http://"+p.addr+"/"); code != 200 {
		t.Fatal(code)
	}
	if p.a.logs.count("circuit breaker opened", "endpoint=world", "status 503") != 1 {
		t.Error("the log does not say so once")
	}
}

// TestBreakerProbedByConnection: a TCP connection that lives long must not keep
// the endpoint half-open.
func TestBreakerProbedByConnection(t *testing.T) {
	app := newRawApp(t)
	addr := mustAddr(app.Addr())
	p := newPair(t, 1, mesh.TCP, meshtest.FreeAddr(t), func(a, _ *mesh.Spec) {
		a.Upstreams[0].Breaker = mesh.Breaker{ConsecutiveFailures: 1, OpenFor: 50 * time.Millisecond}
	})
	if c, err := netDial(p.addr); err == nil {
		c.SetReadDeadline(time.Now().Add(patience))
		c.Read(make([]byte, 1))
		c.Close()
	}
	p.a.counts(telemetry.Outbound, mesh.TCP, "local_connect_failed=1")
	p.b.spec.Services[0].Port = addr.Port()
	p.b.publish(p.ca)
	time.Sleep(60 * time.Millisecond)
	long := dial(t, p.addr)
	a := app.accept(t)
	if s := p.a.Upstreams()[0].Endpoints[0].Breaker; s != "half-open" {
		t.Fatal(s)
	}
	send(t, a, "banner")
	gets(t, "client", long, "banner")
	if s := p.a.Upstreams()[0].Endpoints[0].Breaker; s != "closed" {
		t.Fatal(s)
	}
	second := dial(t, p.addr)
	b := app.accept(t)
	send(t, b, "banner")
	gets(t, "client", second, "banner")
	long.Close()
	a.Close()
	second.Close()
	b.Close()
	p.calm()
}

// A connection on which nobody speaks proves the endpoint by living on.
func TestBreakerProbedBySilence(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for probeTime")
	}
	app := newRawApp(t)
	addr := mustAddr(app.Addr())
	p := newPair(t, 1, mesh.TCP, meshtest.FreeAddr(t), func(a, _ *mesh.Spec) {
		a.Upstreams[0].Breaker = mesh.Breaker{ConsecutiveFailures: 1, OpenFor: 50 * time.Millisecond}
	})
	if c, err := netDial(p.addr); err == nil {
		c.SetReadDeadline(time.Now().Add(patience))
		c.Read(make([]byte, 1))
		c.Close()
	}
	p.a.counts(telemetry.Outbound, mesh.TCP, "local_connect_failed=1")
	p.b.spec.Services[0].Port = addr.Port()
	p.b.publish(p.ca)
	time.Sleep(60 * time.Millisecond)
	dial(t, p.addr)
	app.accept(t)
	began := time.Now()
	for p.a.Upstreams()[0].Endpoints[0].Breaker != "closed" {
		if time.Since(began) > probeTime+patience {
			t.Fatal("still half-open")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestLimits goes over each limit of both sides by one. What is over is refused
// with overflow, and all counters come back.
func TestLimits(t *testing.T) {
	type limits = mesh.Limits
	hold := func(t *testing.T) (app http.HandlerFunc, arrived chan bool, release func()) {
		held := make(chan struct{})
		arrived = make(chan bool, 100)
		var once sync.Once
		release = func() { once.Do(func() { close(held) }) }
		t.Cleanup(release)
		return func(w http.ResponseWriter, r *http.Request) {
			arrived <- true
			<-held
		}, arrived, release
	}
	for name, set := range map[string]pairOption{
		"upstream": func(a, _ *mesh.Spec) { a.Upstreams[0].Limits = limits{MaxConcurrentRequests: 2} },
		"service":  func(_, b *mesh.Spec) { b.Services[0].Limits = limits{MaxConcurrentRequests: 2} },
		"service, connections": func(_, b *mesh.Spec) {
			b.Services[0].Limits = limits{MaxConnections: 2}
		},
	} {
		t.Run("requests of the "+name, func(t *testing.T) {
			app, arrived, release := hold(t)
			p := newPair(t, 1, mesh.HTTP, httpApp(t, app), set)
			for range 2 {
				send(t, dial(t, p.addr), plainGet)
				<-arrived
			}
			c := dial(t, p.addr)
			for range 3 {
				send(t, c, plainGet)
				getsError(t, c, "503 overflow")
			}
			release()
			p.a.counts(telemetry.Outbound, mesh.HTTP, "ok=2 overflow=3")
			send(t, c, plainGet)
			gets(t, "client", c, "HTTP/1.1 200 ")
			if s := p.a.Upstreams()[0].Endpoints[0].Breaker; s != "closed" {
				t.Errorf("the breaker is %s", s)
			}
		})
	}
	t.Run("connections of the upstream", func(t *testing.T) {
		onLoops(t, func(t *testing.T, loops int) {
			app := meshtest.TCPEcho(t, "world")
			p := newPair(t, loops, mesh.TCP, app.Addr, func(a, _ *mesh.Spec) { a.Upstreams[0].Limits = limits{MaxConnections: 2} })
			first, second := dial(t, p.addr), dial(t, p.addr)
			echo(t, first, "1")
			echo(t, second, "2")
			refused(t, p.addr)
			p.a.counts(telemetry.Outbound, mesh.TCP, "overflow=1")
			first.Close()
			p.a.counts(telemetry.Outbound, mesh.TCP, "ok=1 overflow=1")
			echo(t, dial(t, p.addr), "3")
			if n := p.a.Upstreams()[0].Connections; n != 2 {
				t.Errorf("%d connections", n)
			}
		})
	})
	t.Run("connections of the service", func(t *testing.T) {
		app := meshtest.TCPEcho(t, "world")
		p := newPair(t, 1, mesh.TCP, app.Addr, func(_, b *mesh.Spec) { b.Services[0].Limits = limits{MaxConnections: 1} })
		first := dial(t, p.addr)
		echo(t, first, "1")
		refused(t, p.addr)
		p.a.counts(telemetry.Outbound, mesh.TCP, "overflow=1")
		p.b.counts(telemetry.Inbound, mesh.TCP, "overflow=1")
		first.Close()
		p.b.counts(telemetry.Inbound, mesh.TCP, "ok=1 overflow=1")
		second := dial(t, p.addr)
		echo(t, second, "2")
		second.Close()
		p.calm()
	})
	for _, protocol := range []mesh.Protocol{mesh.TCP, mesh.HTTP} {
		t.Run("requests that wait for a connection, "+protocol.String(), func(t *testing.T) {
			full := fullApp(t)
			p := newPair(t, 1, protocol, full, func(_, b *mesh.Spec) {
				b.Services[0].Limits = limits{MaxPendingRequests: 2}
				b.Services[0].ConnectTimeout = 500 * time.Millisecond
			})
			for range 2 {
				send(t, dial(t, p.addr), plainGet)
			}
			waits := func() (n int64) {
				p.b.each(func(w *worker) { n = w.pic.inbound[0].st.usage.pending.Load() })
				return n
			}
			if !eventually(func() bool { return waits() == 2 }) {
				t.Fatal(waits())
			}
			c, err := netDial(p.addr)
			if err == nil {
				send(t, c, plainGet)
				defer c.Close()
			}
			p.b.counts(telemetry.Inbound, protocol, "overflow=1")
			p.b.counts(telemetry.Inbound, protocol, "overflow=1 local_connect_failed=2")
			p.a.counts(telemetry.Outbound, protocol, "overflow=1 local_connect_failed=2")
			if n := waits(); n != 0 {
				t.Errorf("%d still wait", n)
			}
		})
	}
	t.Run("requests that wait for a link", func(t *testing.T) {
		peer := newRawPeer(t)
		p := newPair(t, 1, mesh.HTTP, mustAddr(peer.Addr()), endpointAt(peer.Addr()), func(a, _ *mesh.Spec) {
			a.Upstreams[0].Limits = limits{MaxPendingRequests: 2}
			a.Upstreams[0].ConnectTimeout = 500 * time.Millisecond
		})
		first, second := dial(t, p.addr), dial(t, p.addr)
		send(t, first, plainGet)
		send(t, second, plainGet)
		if !eventually(func() bool { return p.a.Upstreams()[0].Pending == 2 }) {
			t.Fatal(p.a.Upstreams()[0].Pending)
		}
		c := dial(t, p.addr)
		send(t, c, plainGet)
		getsError(t, c, "503 overflow")
		getsError(t, first, "503 connect_failed")
		getsError(t, second, "503 connect_failed")
		p.a.counts(telemetry.Outbound, mesh.HTTP, "overflow=1 connect_failed=2")
		first.Close()
		second.Close()
		c.Close()
		p.a.calmAlone()
	})
}

// fullApp returns the address of an application that listens and whose backlog
// is full, so that connecting to it takes for ever.
func fullApp(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	addr := loop.LocalAddr(fd)
	for range 8 { // far more than the backlog takes
		c, _, err := loop.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { loop.Close(c) })
	}
	return addr
}

// refused wants a connection that is reset without a byte.
func refused(t *testing.T, addr string) {
	t.Helper()
	c, err := netDial(addr)
	if err == nil {
		c.SetReadDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %v, want a reset", err)
	}
}

// TestOutOfDescriptors: while the process may open no more files, connections
// wait in the backlog; nobody is lost and the loop does not spin.
func TestOutOfDescriptors(t *testing.T) {
	app := meshtest.TCPEcho(t, "world")
	p := newPair(t, 1, mesh.TCP, app.Addr)
	echo(t, dial(t, p.addr), "warm")
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "client")
	defer f.Close()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// Descriptors below the limit that are free would still be given out.
	fill, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	top := 0
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			top = max(top, n)
		}
	}
	low := old
	low.Cur = uint64(top + 1)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Skip(err)
	}
	restore := sync.OnceFunc(func() { syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old) })
	defer restore()
	var held []int
	for {
		n, err := syscall.Dup(int(fill.Fd()))
		if err != nil {
			break
		}
		held = append(held, n)
	}
	release := func() {
		for _, n := range held {
			syscall.Close(n)
		}
		held = nil
	}
	defer release()
	bind := p.a.picture.Load().snap.Lookup("world").Binds[0]
	connected := make(chan error, 1)
	go func() {
		connected <- syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(bind.Port()), Addr: bind.Addr().As4()})
	}()
	if err := <-connected; err != nil {
		t.Fatal(err)
	}
	if !eventually(func() bool { return p.a.logs.count("cannot accept connections", "upstream=world") >= 2 }) {
		t.Error("the log does not say so")
	}
	if n := p.a.logs.count("cannot accept connections"); n > 20 {
		t.Errorf("%d log lines", n)
	}
	restore()
	release()
	if _, err := io.WriteString(f, "waited"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if _, err := io.ReadFull(f, got); err != nil || string(got) != "waited" {
		t.Fatalf("%q %v", got, err)
	}
}

// TestLimitAcrossLoops: connections that one loop keeps for later do not use up
// the limit for the others.
func TestLimitAcrossLoops(t *testing.T) {
	const loops, limit = 3, 2
	app := meshtest.HTTPEcho(t, "world")
	p := newPair(t, loops, mesh.HTTP, app.Addr, func(_, b *mesh.Spec) { b.Services[0].Limits.MaxConnections = limit })
	var links []*rawLink
	for range loops {
		links = append(links, dialLink(t, p))
	}
	for n := range 60 {
		l := links[n%loops]
		for slot := range limit {
			l.write(open(wire.StreamID(slot, uint16(n+1)), httpOpen("/"), true))
		}
		for answers := 0; answers < limit; {
			f := l.next()
			if f.Type == wire.TypeReset {
				code, _, _ := wire.ParseReset(f.Payload)
				t.Fatalf("round %d is refused: %s", n, code)
			}
			if f.End {
				answers++
			}
		}
	}
	u := &p.b.picture.Load().inbound[0].st.usage
	idle := func() int {
		return p.b.total(func(w *worker) (n int) {
			for _, pool := range w.pools {
				if pool != nil {
					n += pool.size
				}
			}
			return n
		})
	}
	if !eventually(func() bool {
		n := uint64(idle())
		return n <= limit && u.kept.word.Load() == n && u.connections.Load() == int64(n)
	}) {
		t.Errorf("%d connections are kept, %x counted, of %d", idle(), u.kept.word.Load(), u.connections.Load())
	}
}
