package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/internal/agent"
	"meshd/internal/config"
	"meshd/internal/meshtest"
)

// pair is web on host-a, which calls api on host-b, with a throwaway CA. Natural
// ports are not known, so upstreams have assigned ones that no application has.
func pair(t *testing.T) (a, b *host, app *meshtest.App) {
	t.Helper()
	meshtest.Leaks(t)
	app = meshtest.HTTPEcho(t, "api")
	ca := filepath.Join(t.TempDir(), "ca")
	a, b = newHost(t, "host-a", ca), newHost(t, "host-b", ca)
	b.start(offer("api", app.Port(), "web"))
	a.start(a.webBody("", b.peer))
	a.awaitReady()
	b.awaitReady()
	return a, b, app
}

func (h *host) webBody(more string, peer uint16) string {
	return offer("web", 9, "nobody") + call("api", more) + known(at("api", 0, peer))
}

func TestRequestAcrossTwoAgents(t *testing.T) {
	a, b, app := pair(t)
	expectEcho(t, a.url("api"), "api")
	if app.Served.Load() != 1 {
		t.Errorf("the application saw %d requests", app.Served.Load())
	}

	s := a.status()
	if !s.Ready || s.Generation != 1 || s.Node != "host-a" || s.Version.Version != "v0.0.0-test" || len(s.Problems) != 0 {
		t.Errorf("status of host-a: ready %v, generation %d, node %q, version %q, problems %v", s.Ready, s.Generation, s.Node, s.Version.Version, s.Problems)
	}
	u := a.upstream("api")
	if u.Total != 1 || u.Failed != 0 || u.Healthy != 1 || len(u.Endpoints) != 1 || u.Caller != "web" || u.Host != "api.mesh.internal" {
		t.Errorf("upstream %+v", u)
	}
	if e := u.Endpoints[0]; e.Breaker != "closed" || e.Links != 1 || e.Address != fmt.Sprintf("127.0.0.1:%d", b.peer) {
		t.Errorf("endpoint %+v", e)
	}
	if len(s.Certificates) != 1 || !strings.HasSuffix(s.Certificates[0].SPIFFE, "/svc/web") || s.Certificates[0].Remaining.Duration() < 23*time.Hour {
		t.Errorf("certificates %+v", s.Certificates)
	}
	if s := b.status().Services; len(s) != 1 || s[0].Total != 1 || !slices.Equal(s[0].Allow, []string{"web"}) {
		t.Errorf("services of host-b %+v", s)
	}

	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", a.dns))
	}}
	got, err := resolver.LookupHost(context.Background(), "api.mesh.internal.")
	if err != nil || !slices.Equal(got, []string{u.Address}) {
		t.Errorf("api.mesh.internal is %v, %v; want %s", got, err, u.Address)
	}

	code, _, body, err := get(fmt.Sprintf("http://127.0.0.1:%d/metrics", a.http))
	if err != nil || code != 200 {
		t.Fatalf("metrics: %d, %v", code, err)
	}
	for _, want := range []string{
		`meshd_requests_total{code_class="2xx",direction="outbound",name="api",outcome="ok",protocol="http"} 1`,
		`meshd_endpoints{state="healthy",upstream="api"} 1`,
		`meshd_handshakes_total{result="ok"} 1`,
		`meshd_links{direction="outbound",name="api"} 1`,
		`meshd_generation 1`,
		`meshd_reload_success 1`,
		`meshd_build_info{version="v0.0.0-test"} 1`,
		`meshd_dns_responses_total{rcode="NOERROR"}`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if _, _, body, _ := get(fmt.Sprintf("http://127.0.0.1:%d/metrics", b.http)); !strings.Contains(body, `meshd_links{direction="inbound",name="api"} 1`) ||
		!strings.Contains(body, "meshd_handshakes_active 0") {
		t.Error("metrics of host-b do not count the link that host-a opened")
	}
	if code, _, _, err := get(fmt.Sprintf("http://127.0.0.1:%d/ready", a.http)); err != nil || code != 200 {
		t.Errorf("ready: %d, %v", code, err)
	}
}

func TestReload(t *testing.T) {
	a, b, _ := pair(t)
	url := a.url("api")
	// This connection and the bytes on it must not notice anything.
	c := &http.Client{Transport: &http.Transport{}, Timeout: patience}
	defer c.CloseIdleConnections()
	var reused bool
	keepAlive := func() {
		t.Helper()
		ctx := withConnTrace(&reused)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 {
			t.Fatalf("status %d, %v", res.StatusCode, err)
		}
	}
	keepAlive()

	t.Run("an upstream is added", func(t *testing.T) {
		a.write(a.webBody("request_timeout = \"3s\"", b.peer) + call("other", `destination_name = "api"`))
		r := a.reload()
		var lines []string
		for _, c := range r.Changes {
			lines = append(lines, c.String())
		}
		want := []string{"~ upstream api: request_timeout 15s -> 3s", "+ upstream other"}
		if !r.Applied || r.Generation != 2 || !slices.Equal(lines, want) || len(r.Restart) > 0 {
			t.Errorf("result %+v, changes %q", r, lines)
		}
		expectEcho(t, a.url("other"), "api")
		if l := a.status().LastReload; l == nil || !l.Success {
			t.Errorf("last reload %+v", l)
		}
	})
	t.Run("a bad file keeps the old picture", func(t *testing.T) {
		a.write(a.webBody("request_timeout = \"soon\"\n retires = 3", b.peer))
		r := a.reload()
		if r.Applied || r.Generation != 2 || len(r.Diagnostics) < 2 || r.Diagnostics[0].Line == 0 {
			t.Errorf("result %+v", r)
		}
		s := a.status()
		if s.LastReload == nil || s.LastReload.Success || !strings.Contains(s.LastReload.Error, "request_timeout") {
			t.Errorf("last reload %+v", s.LastReload)
		}
		expectEcho(t, a.url("other"), "api")
		_, _, body, _ := get(fmt.Sprintf("http://127.0.0.1:%d/metrics", a.http))
		if !strings.Contains(body, "meshd_reload_success 0") {
			t.Error("metrics do not tell that the reload failed")
		}
	})
	t.Run("a picture that cannot be compiled keeps the old one", func(t *testing.T) {
		was := a.loopback
		a.loopback = "127.78.0.0/30"
		a.write(a.webBody("", b.peer) + call("x1", `destination_name = "api"`) + call("x2", `destination_name = "api"`))
		a.loopback = was
		if r := a.reload(); r.Applied || len(r.Diagnostics) == 0 {
			t.Errorf("result %+v", r)
		}
		expectEcho(t, a.url("other"), "api")
	})
	t.Run("the upstream is removed", func(t *testing.T) {
		gone := a.url("other")
		a.write(a.webBody("", b.peer))
		if r := a.reload(); !r.Applied || r.Generation != 3 {
			t.Errorf("result %+v", r)
		}
		eventually(t, func() error {
			if _, _, _, err := get(gone); !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("the listener of the removed upstream answers: %v", err)
			}
			return nil
		})
	})
	t.Run("what needs a restart is named until then", func(t *testing.T) {
		b.write(strings.Replace(offer("api", 1, "web"), "port     = 1", fmt.Sprintf("port     = %d", apiPort(b)), 1) + `
defaults { connect_timeout = "2s" }
`)
		text, err := os.ReadFile(b.path())
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.Replace(string(text), "loops         = 1", "loops         = 2\n  access_log    = true\n  log_level     = \"debug\"", 1)
		if err := os.WriteFile(b.path(), []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			r := b.reload()
			if !r.Applied || len(r.Restart) != 1 || r.Restart[0].Attribute != "loops" {
				t.Fatalf("result %+v", r)
			}
		}
		found := false
		for _, p := range b.status().Problems {
			found = found || strings.Contains(p.What, "wait for a restart")
		}
		if !found {
			t.Error("status does not tell that a setting waits for a restart")
		}
		keepAlive()
		eventually(t, func() error {
			if !strings.Contains(b.log.String(), "msg=access") || !strings.Contains(b.log.String(), "level=DEBUG") {
				return errors.New("access_log and log_level did not take effect")
			}
			return nil
		})
	})

	reused = false
	keepAlive()
	if !reused {
		t.Error("the connection from before the reloads was closed by one of them")
	}
}

// A taken port fails only its own listener; it is shown and taken once free.
func TestTakenPort(t *testing.T) {
	meshtest.Leaks(t)
	app := meshtest.HTTPEcho(t, "api")
	ca := filepath.Join(t.TempDir(), "ca")
	a, b := newHost(t, "host-a", ca), newHost(t, "host-b", ca)
	b.start(offer("api", app.Port(), "web"))
	thief, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	nameThief, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", a.dns))
	if err != nil {
		t.Fatal(err)
	}
	defer nameThief.Close()
	port := thief.Addr().(*net.TCPAddr).Port
	a.start(a.webBody(fmt.Sprintf("local_bind_port = %d\n local_bind_address = \"127.0.0.1\"", port), b.peer) +
		call("free", `destination_name = "api"`))

	eventually(t, func() error {
		if a.agent.Snapshot() == nil {
			return errors.New("no picture")
		}
		return nil
	})
	expectEcho(t, a.url("free"), "api")
	expectEcho(t, a.url("api"), "api") // its own address is not the one that is taken
	u := a.upstream("api")
	local := fmt.Sprintf("127.0.0.1:%d", port)
	found := false
	for _, bind := range u.Binds {
		if bind.Address == local {
			found = bind.State == "failed" && strings.Contains(bind.Error, "address already in use")
		} else if bind.State != "listening" {
			t.Errorf("bind %+v", bind)
		}
	}
	if !found {
		t.Errorf("binds %+v: want %s failed", u.Binds, local)
	}
	ok, waiting := a.agent.Ready()
	if want := []string{"listener " + local + " of upstream api", fmt.Sprintf("dns listener 127.0.0.1:%d", a.dns)}; ok || !slices.Equal(waiting, want) {
		t.Errorf("waits for %q, want %q", waiting, want)
	}
	if n := strings.Count(a.log.String(), "upstream has no listener"); n != 1 {
		t.Errorf("the log tells it %d times", n)
	}

	thief.Close()
	nameThief.Close()
	a.awaitReady()
	expectEcho(t, "http://"+local+"/", "api")
	if g := a.status().Generation; g != 1 {
		t.Errorf("generation %d: a healed listener is no new picture", g)
	}
}

// Addresses survive a restart; a damaged file costs one log line.
func TestAssignmentsSurvive(t *testing.T) {
	a, b, _ := pair(t)
	before := a.url("api")
	file := filepath.Join(a.data(), "addresses.json")
	a.stop()

	// Another address than the name would give, to see that the file decides.
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	had := a.agent.Snapshot().Lookup("api").Address
	other := had.Next()
	if had.As4()[3] > 200 {
		other = had.Prev()
	}
	moved := strings.Replace(string(content), had.String(), other.String(), 1)
	if moved == string(content) {
		t.Fatalf("%s does not hold the address of %s", content, before)
	}
	if err := os.WriteFile(file, []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	a.start(a.webBody("", b.peer))
	a.awaitReady()
	if got := a.upstream("api").Address; got != other.String() {
		t.Errorf("address %s, want the one of the file", got)
	}
	expectEcho(t, a.url("api"), "api")
	a.stop()

	if err := os.WriteFile(file, []byte(moved[:len(moved)/2]), 0o600); err != nil {
		t.Fatal(err)
	}
	a.start(a.webBody("", b.peer))
	a.awaitReady()
	expectEcho(t, a.url("api"), "api")
	if got := a.url("api"); got != before {
		t.Errorf("address %s after the file was lost, want that of the name, %s", got, before)
	}
	if _, err := os.Stat(file + ".damaged"); err != nil {
		t.Errorf("the damaged file was not set aside: %v", err)
	}
	if n := strings.Count(a.log.String(), "damaged"); n == 0 {
		t.Error("the log does not tell of the damaged file")
	}
}

// What runs when the agent is told to stop finishes; nothing new begins.
func TestDrain(t *testing.T) {
	a, _, _ := pair(t)
	url := a.url("api")
	type answer struct {
		status int
		err    error
	}
	got := make(chan answer, 1)
	go func() { // ends with the answer, which the test awaits
		status, _, _, err := get(url + "?delay=700ms")
		got <- answer{status, err}
	}()
	eventually(t, func() error {
		if a.upstream("api").InFlight != 1 {
			return errors.New("the request is not on its way")
		}
		return nil
	})
	a.end()
	eventually(t, func() error {
		if _, _, _, err := get(url); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("a draining agent accepts: %v", err)
		}
		return nil
	})
	if ok, _ := a.agent.Ready(); ok {
		t.Error("a draining agent is ready")
	}
	if s := a.status(); !s.Draining {
		t.Error("status does not tell that the agent drains")
	}
	if _, err := a.agent.Reload(context.Background()); err == nil {
		t.Error("a draining agent reloads")
	}
	if r := <-got; r.err != nil || r.status != 200 {
		t.Errorf("the request that ran: %d, %v", r.status, r.err)
	}
	a.stop()
	if _, err := os.Stat(a.socket()); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket file is left")
	}
}

func TestNewGivesEverythingBack(t *testing.T) {
	meshtest.Leaks(t)
	ca := filepath.Join(t.TempDir(), "ca")
	body := offer("api", 9, "web")

	t.Run("not run", func(t *testing.T) {
		h := newHost(t, "host-a", ca)
		h.write(body)
		if err := h.build(); err != nil {
			t.Fatal(err)
		}
		h.agent.Close()
	})
	t.Run("peer port taken", func(t *testing.T) {
		h := newHost(t, "host-a", ca)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", h.peer))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		h.write(body)
		if err := h.build(); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprintf("ss -Hlntp sport = :%d", h.peer)) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("socket in use", func(t *testing.T) {
		h := newHost(t, "host-a", ca)
		h.start(body)
		other := newHost(t, "host-b", ca)
		other.dir = h.dir
		other.write(body)
		if err := other.build(); err == nil || !strings.Contains(err.Error(), "another meshd") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("cannot be compiled", func(t *testing.T) {
		h := newHost(t, "host-a", ca)
		h.loopback = "127.78.0.0/30"
		h.write(h.webBody("", 1) + call("x", `destination_name = "api"`))
		cfg, err := config.Load(h.path())
		if err == nil {
			_, err = agent.New(agent.Options{Config: cfg, Log: discard()})
		}
		var d *config.Diagnostics
		if !errors.As(err, &d) || d.Len() == 0 {
			t.Errorf("error %v, want diagnostics", err)
		}
	})
}
