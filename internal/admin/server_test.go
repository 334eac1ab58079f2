package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meshd/internal/config"
)

// fakeAgent answers what the test put in.
type fakeAgent struct {
	status  Status
	result  ReloadResult
	err     error
	waiting []string
	reload  func(ctx context.Context) // runs inside Reload when set
}

func (f *fakeAgent) Status() Status { return f.status }
func (f *fakeAgent) Reload(ctx context.Context) (ReloadResult, error) {
	if f.reload != nil {
		f.reload(ctx)
	}
	return f.result, f.err
}
func (f *fakeAgent) Ready() (bool, []string) { return len(f.waiting) == 0, f.waiting }
func (f *fakeAgent) Version() Version        { return BuildVersion("meshd/1") }
func (f *fakeAgent) Catalog() Catalog        { return f.status.Catalog }
func (f *fakeAgent) Explain(upstream string) (Explanation, error) {
	return Explanation{Upstream: upstream}, f.err
}
func (f *fakeAgent) TestPolicy(from, to string) (PolicyTest, error) {
	return PolicyTest{From: from, To: to}, f.err
}

// serve runs a server until the test ends and returns it with a client.
func serve(t *testing.T, o Options) (*Server, *Client) {
	t.Helper()
	if o.Socket == "" {
		o.Socket = filepath.Join(t.TempDir(), "meshd.sock")
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if _, err := os.Lstat(o.Socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there after Run: %v", err)
		}
	})
	return s, NewClient(o.Socket)
}

func TestStatusTellsProblemsWorstFirst(t *testing.T) {
	agent := &fakeAgent{status: Status{
		Ready:    true,
		Problems: []Problem{{Severity: SeverityWarning, What: "from the agent"}},
		Identity: Identity{Provider: "dev", Roots: 1},
		Upstreams: []Upstream{
			{Name: "fine", Known: true, Healthy: 1, Endpoints: []Endpoint{{Healthy: true, Breaker: "closed"}}},
			{Name: "empty", Destination: "empty", Known: true, Rates: Rates{P50: Seconds(1500 * time.Microsecond)}},
		},
	}}
	_, c := serve(t, Options{Agent: agent})
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Problems) != 2 || s.Problems[0].Severity != SeverityError || s.Problems[1].What != "from the agent" {
		t.Errorf("problems = %+v, want the error about upstream empty, then the agent's warning", s.Problems)
	}
	if got := s.Upstreams[1].P50.Duration(); got != 1500*time.Microsecond {
		t.Errorf("p50 came back as %s", got)
	}
	if len(agent.status.Problems) != 1 || agent.status.Upstreams[1].Endpoints != nil {
		t.Error("the server wrote into the agent's status")
	}
}

// A script that counts with jq must never meet null.
func TestStatusHasNoNullLists(t *testing.T) {
	s := Status{Upstreams: []Upstream{{}}, Services: []Service{{}}}
	s.fill()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("null")) {
		t.Errorf("status has null: %s", b)
	}
}

func TestReload(t *testing.T) {
	agent := &fakeAgent{result: ReloadResult{Applied: true, Generation: 2, Changes: []Change{{Kind: "+", What: "upstream x"}}}}
	_, c := serve(t, Options{Agent: agent})
	r, err := c.Reload(t.Context())
	if err != nil || !r.Applied || r.Changes[0].String() != "+ upstream x" {
		t.Fatalf("good reload = %+v, %v", r, err)
	}
	agent.result = ReloadResult{Diagnostics: []Diagnostic{{Severity: config.SeverityError, Summary: "bad", Place: config.Place{Line: 3}}}}
	if r, err = c.Reload(t.Context()); err != nil || r.Applied || r.Diagnostics[0].Line != 3 {
		t.Fatalf("reload of bad files = %+v, %v", r, err)
	}
	// A script with curl has only the code.
	res, err := c.http.Post("http://localhost"+pathReload, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("reload of bad files answers %d, want 422", res.StatusCode)
	}
	agent.err = errors.New("draining")
	var refused *RefusedError
	if _, err = c.Reload(t.Context()); !errors.As(err, &refused) || refused.Message != "draining" {
		t.Fatalf("reload while draining = %v, want RefusedError draining", err)
	}
}

// The operator's Ctrl-C must not stop a reload half way.
func TestReloadOutlivesItsClient(t *testing.T) {
	gone, began, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	agent := &fakeAgent{reload: func(ctx context.Context) {
		close(began)
		<-gone
		select {
		case <-ctx.Done():
			ended <- ctx.Err()
		case <-time.After(50 * time.Millisecond): // time for a wrong cancellation to arrive
			ended <- nil
		}
	}}
	_, c := serve(t, Options{Agent: agent})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	if _, err := c.Reload(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("client got %v", err)
	}
	close(gone)
	if err := <-ended; err != nil {
		t.Errorf("the reload was cancelled with its client: %v", err)
	}
}

func TestReadyOverTheSocket(t *testing.T) {
	_, c := serve(t, Options{Agent: &fakeAgent{waiting: []string{"roots"}}})
	ok, waiting, err := c.Ready(t.Context())
	if err != nil || ok || len(waiting) != 1 || waiting[0] != "roots" {
		t.Errorf("Ready = %v %v %v, want false [roots]", ok, waiting, err)
	}
}

// What the TCP port answers, and above all what it does not.
func TestHTTPListenerIsReadOnlyAndLocal(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "up 1\n") })
	s, _ := serve(t, Options{Agent: &fakeAgent{}, HTTP: "127.0.0.1:0", Metrics: metrics, Hosts: []string{"web-03"}})
	addr := s.Listeners()[1].Address
	for _, c := range []struct {
		method, path, host string
		want               int
	}{
		{"GET", "/metrics", addr, 200},
		{"HEAD", "/metrics", addr, 200},
		{"GET", "/ready", "localhost:9900", 200},
		{"GET", "/live", "[::1]:9900", 200},
		{"GET", "/live", "10.0.0.5", 200},
		{"GET", "/live", "WEB-03:9900", 200},
		{"GET", "/metrics", "evil.example:9900", 421},
		{"GET", "/metrics", "localhost.evil.example", 421},
		{"POST", "/v1/reload", addr, 405},
		{"GET", "/v1/reload", addr, 404},
		{"GET", "/v1/status", addr, 404},
		{"GET", "/debug/pprof/", addr, 404},
		{"GET", "/debug/pprof", addr, 404},
		{"GET", "//metrics", addr, 404},
		{"GET", "/x/../metrics", addr, 404},
		{"OPTIONS", "/metrics", addr, 405},
		{"CONNECT", "/metrics", addr, 405},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Path, req.Host = c.path, c.host
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Errorf("%s %s: %v", c.method, c.path, err)
			continue
		}
		res.Body.Close()
		if res.StatusCode != c.want {
			t.Errorf("%s %s with host %s = %d, want %d", c.method, c.path, c.host, res.StatusCode, c.want)
		}
		for name := range res.Header {
			if name == "Location" || strings.HasPrefix(name, "Access-Control") {
				t.Errorf("%s %s answers with %s", c.method, c.path, name)
			}
		}
	}
}

// The questions about one name: 400 without it, 404 with what the agent has, and
// never null where a script counts.
func TestQuestions(t *testing.T) {
	agent := &fakeAgent{status: Status{Catalog: Catalog{Source: "consul", Age: Seconds(time.Minute)}}}
	_, c := serve(t, Options{Agent: agent})
	for path, want := range map[string]int{
		"/v1/catalog": 200, "/v1/config/explain": 400, "/v1/config/explain?upstream=a": 200,
		"/v1/policy/test?from=a": 400, "/v1/policy/test?to=a": 400, "/v1/policy/test?from=a&to=b": 200,
	} {
		res, err := c.http.Get("http://localhost" + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != want || bytes.Contains(body, []byte("null")) {
			t.Errorf("GET %s = %d %s %v, want %d", path, res.StatusCode, body, err, want)
		}
	}
	if k, err := c.Catalog(t.Context()); err != nil || k.Age != Seconds(time.Minute) || k.Denied == nil {
		t.Errorf("catalog = %+v, %v", k, err)
	}
	// What a name may hold must not become another question.
	if e, err := c.Explain(t.Context(), "a&upstream=b /?"); err != nil || e.Upstream != "a&upstream=b /?" {
		t.Errorf("explain = %+v, %v", e, err)
	}
	if p, err := c.TestPolicy(t.Context(), "we b", "pay&from=x"); err != nil || p.From != "we b" || p.To != "pay&from=x" {
		t.Errorf("policy = %+v, %v", p, err)
	}
	for want, err := range map[int]error{404: &NotFoundError{Message: "there is no such thing; there is a"}, 500: errors.New("broken")} {
		agent.err = err
		var refused *RefusedError
		if _, got := c.Explain(t.Context(), "x"); !errors.As(got, &refused) || refused.Code != want || refused.Message != err.Error() {
			t.Errorf("explain = %v, want %d with the agent's words", got, want)
		}
		if _, got := c.TestPolicy(t.Context(), "x", "y"); !errors.As(got, &refused) || refused.Code != want {
			t.Errorf("policy = %v, want %d", got, want)
		}
	}
}

func TestProfilesOnTheSocketOnly(t *testing.T) {
	_, c := serve(t, Options{Agent: &fakeAgent{}})
	for path, want := range map[string]int{"/debug/pprof/": 200, "/debug/pprof/heap": 200, "/debug/pprof/cmdline": 404} {
		res, err := c.http.Get("http://localhost" + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("GET %s = %d, want %d", path, res.StatusCode, want)
		}
	}
}

func TestReloadIsNotAGet(t *testing.T) {
	_, c := serve(t, Options{Agent: &fakeAgent{reload: func(context.Context) { t.Error("GET reloaded") }}})
	res, err := c.http.Get("http://localhost" + pathReload)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET %s = %d, want 405", pathReload, res.StatusCode)
	}
}

// A scraper's port held by somebody else costs the metrics, not the mesh.
func TestTakenHTTPPort(t *testing.T) {
	holder, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	s, c := serve(t, Options{Agent: &fakeAgent{}, HTTP: holder.Addr().String()})
	if l := s.Listeners()[1]; l.Error == "" {
		t.Errorf("listener %+v shows no error", l)
	}
	if _, err := c.Version(t.Context()); err != nil {
		t.Errorf("socket does not answer: %v", err)
	}
}

// Connections over the limit wait in the kernel, cost no descriptor here, and
// are served when another one ends.
func TestConnectionsAreLimited(t *testing.T) {
	s, _ := serve(t, Options{Agent: &fakeAgent{}, HTTP: "127.0.0.1:0"})
	addr := s.Listeners()[1].Address
	ask := func(c net.Conn, patience time.Duration) error {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, "GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			return err
		}
		return await(c)
	}
	var held []net.Conn
	for range maxHTTPConns + 1 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c)
	}
	last := held[maxHTTPConns]
	for i, c := range held[:maxHTTPConns] { // keep-alive: the slot stays taken
		if err := ask(c, 10*time.Second); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if err := ask(last, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the connection over the limit got %v, want no answer", err)
	}
	held[0].Close()
	last.SetDeadline(time.Now().Add(10 * time.Second))
	if err := await(last); err != nil {
		t.Errorf("the connection over the limit, after another has ended: %v", err)
	}
}

// await reads one answer.
func await(c net.Conn) error {
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

func TestReloadLogsWhoAsked(t *testing.T) {
	var log bytes.Buffer
	_, c := serve(t, Options{Agent: &fakeAgent{result: ReloadResult{Applied: true}}, Log: slog.New(slog.NewJSONHandler(&log, nil))})
	if _, err := c.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	var line struct{ UID *int }
	if err := json.Unmarshal(log.Bytes(), &line); err != nil || line.UID == nil || *line.UID != os.Getuid() {
		t.Errorf("log line %q does not carry uid %d", log.String(), os.Getuid())
	}
}
