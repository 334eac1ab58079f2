package proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"meshd/internal/identity"
	"meshd/internal/mesh"
	"meshd/internal/telemetry"
)

// host is one agent's data path with its own picture, as tests want it.
type host struct {
	*Proxy
	t         testing.TB
	store     *identity.Store
	telemetry *telemetry.Registry
	spec      mesh.Spec
	catalog   *mesh.Catalog
	gen       uint64
	stop      context.CancelFunc
	done      chan struct{}
	logs      *logs
}

// logs keeps what a host has logged.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
	t    testing.TB
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	if testing.Verbose() {
		l.t.Logf("%s", p)
	}
	return len(p), nil
}

// count says how many lines contain all of the words.
func (l *logs) count(words ...string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
lines:
	for line := range strings.Lines(l.text.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		n++
	}
	return n
}

// testCA is a folder that the hosts of one test share.
func newHost(t testing.TB, ca string, loops int, cidr string) *host {
	t.Helper()
	return newHostAt(t, loops, cidr, netip.MustParseAddrPort("127.0.0.1:0"))
}

// newHostAt is newHost with a place to wait for peers.
func newHostAt(t testing.TB, loops int, cidr string, peerBind netip.AddrPort) *host {
	t.Helper()
	h := &host{t: t, store: identity.NewStore(), done: make(chan struct{})}
	h.spec = mesh.Spec{Node: t.Name(), Domain: "mesh.internal", Loopback: netip.MustParsePrefix(cidr)}
	h.telemetry = telemetry.New(loops, OutcomeNames)
	h.logs = &logs{t: t}
	log := slog.New(slog.NewTextHandler(h.logs, &slog.HandlerOptions{Level: slog.LevelInfo}))
	var err error
	h.Proxy, err = New(Options{Loops: loops, PeerBind: peerBind, Identity: h.store,
		Telemetry: h.telemetry, Log: log, DrainTimeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	// All loops get work, however little there is.
	var turn atomic.Uint32
	h.choose = func() *worker { return h.workers[int(turn.Add(1))%loops] }
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	go func() {
		defer close(h.done)
		if err := h.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(h.end)
	return h
}

func (h *host) end() {
	h.stop()
	<-h.done
}

// publish puts the host's spec in force.
func (h *host) publish(ca string) *mesh.Snapshot {
	h.t.Helper()
	dev, err := identity.NewDev(ca, h.store, slog.New(slog.DiscardHandler))
	if err != nil {
		h.t.Fatal(err)
	}
	if err := dev.Want(h.spec.Identities()); err != nil {
		h.t.Fatal(err)
	}
	return h.put()
}

// put is publish without certificates.
func (h *host) put() *mesh.Snapshot {
	h.t.Helper()
	h.gen++
	spec := h.spec
	snap, err := mesh.Compile(mesh.CompileInput{Generation: h.gen, Spec: &spec, Catalog: h.catalog})
	if err != nil {
		h.t.Fatal(err)
	}
	for _, l := range h.Prepare(snap) {
		if l.Err != nil {
			h.t.Fatal(l.Err)
		}
	}
	h.Publish(snap)
	h.settle()
	return snap
}

// settle waits until every loop has seen the newest picture.
func (h *host) settle() { h.each(func(*worker) {}); h.each(func(*worker) {}) }

// pair is a caller "web" and a called service "world" on two hosts.
type pair struct {
	a, b *host
	ca   string
	addr string // of the upstream on a
}

type pairOption func(a, b *mesh.Spec)

func newPair(t testing.TB, loops int, protocol mesh.Protocol, app netip.AddrPort, opts ...pairOption) *pair {
	t.Helper()
	return newPairAt(t, loops, protocol, app, netip.MustParseAddrPort("127.0.0.1:0"), opts...)
}

// newPairAt is newPair with a place where both wait for peers.
func newPairAt(t testing.TB, loops int, protocol mesh.Protocol, app, peerBind netip.AddrPort, opts ...pairOption) *pair {
	t.Helper()
	p := &pair{ca: t.TempDir()}
	p.b = newHostAt(t, loops, "127.78.0.0/16", peerBind)
	// Another range in every process: several may test at the same time.
	p.a = newHostAt(t, loops, fmt.Sprintf("127.%d.0.0/16", 80+os.Getpid()%160), peerBind)
	p.b.spec.Services = []mesh.Service{{
		Name: "world", ID: "world", Address: app.Addr(), Port: app.Port(), Protocol: protocol,
		Allow: []mesh.Allow{{Caller: "web"}}, ConnectTimeout: time.Second, IdleTimeout: time.Minute,
	}}
	p.a.spec.Identity = "web"
	p.a.spec.Upstreams = []mesh.Upstream{{
		Name: "world", Destination: "world", Protocol: protocol, LocalBindAddress: netip.MustParseAddr("127.0.0.1"),
		ConnectTimeout: 2 * time.Second, RequestTimeout: 10 * time.Second, IdleTimeout: time.Minute, ChoiceCount: 2,
		Breaker: mesh.Breaker{ConsecutiveFailures: 5, OpenFor: 30 * time.Second},
	}}
	p.a.spec.Static = []mesh.StaticService{{Name: "world", Endpoints: []mesh.StaticEndpoint{
		{ID: "world", Address: p.b.PeerAddr(), Weight: 1}}}}
	for _, o := range opts {
		o(&p.a.spec, &p.b.spec)
	}
	p.b.publish(p.ca)
	snap := p.a.publish(p.ca)
	p.addr = snap.Lookup("world").Binds[0].String()
	return p
}

// httpApp serves h on a free port.
func httpApp(t testing.TB, h http.Handler) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

func mustAddr(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

func get(t testing.TB, url string) (int, string, http.Header) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 15 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// counts waits until telemetry has counted exactly want, as "ok=2 denied=1", for
// the upstream or service "world" of h in protocol.
func (h *host) counts(d telemetry.Direction, protocol mesh.Protocol, want string) {
	h.t.Helper()
	got := ""
	if !eventually(func() bool { got = h.outcomes(d, protocol); return got == want }) {
		h.t.Fatalf("%s counted %q, want %q", d, got, want)
	}
}

func (h *host) outcomes(d telemetry.Direction, protocol mesh.Protocol) string {
	var words []string
	for i, n := range h.telemetry.Series(d, "world", protocol.String()).Totals().ByOutcome {
		if n > 0 {
			words = append(words, fmt.Sprintf("%s=%d", Outcome(i), n))
		}
	}
	return strings.Join(words, " ")
}

// echo sends s on c and wants it back.
func echo(t testing.TB, c net.Conn, s string) {
	t.Helper()
	send(t, c, s)
	gets(t, "client", c, s)
}

// onLoops runs a test with one loop and with three.
func onLoops(t *testing.T, f func(t *testing.T, loops int)) {
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n, " loops"), func(t *testing.T) { f(t, n) })
	}
}

// netDial is dial for connections that may be refused.
func netDial(addr string) (*net.TCPConn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}
