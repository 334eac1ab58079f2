package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"meshd/internal/admin"
	"meshd/internal/agent"
	"meshd/internal/config"
	"meshd/internal/meshtest"
)

// patience is how long a test waits for what must come. It is long for busy
// machines; a test that fails is the only one that takes it.
const patience = 15 * time.Second

// host is an agent as a machine would have it, with everything on free ports.
type host struct {
	t    *testing.T
	name string
	dir  string
	ca   string // folder of the throwaway CA
	peer uint16
	dns  uint16
	http uint16
	// loopback is the range of upstreams: of each host another one, since
	// tests of other packages run at the same time on the same machine.
	loopback string
	// inAgent is written into the agent block.
	inAgent string
	log     *logBuffer
	agent   *agent.Agent
	end     context.CancelFunc
	ended   chan error
}

// newHost chooses the ports. Hosts with the same ca trust each other.
func newHost(t *testing.T, name, ca string) *host {
	p := meshtest.FreePorts(t, 3)
	return &host{
		t: t, name: name, dir: t.TempDir(), ca: ca, peer: p[0], dns: p[1], http: p[2],
		loopback: fmt.Sprintf("127.%d.%d.0/24", p[0]>>8, p[0]&0xff), log: &logBuffer{},
	}
}

func (h *host) path() string   { return filepath.Join(h.dir, "meshd.hcl") }
func (h *host) socket() string { return filepath.Join(h.dir, "s") }
func (h *host) data() string   { return filepath.Join(h.dir, "data") }

// write makes the configuration: what every host has, then body.
func (h *host) write(body string) {
	h.t.Helper()
	text := fmt.Sprintf(`
agent {
  node_name     = %q
  data_dir      = %q
  loops         = 1
  drain_timeout = "5s"
  %s
}
admin {
  socket = %q
  http   = "127.0.0.1:%d"
}
dns { address = "127.0.0.1:%d" }
peer {
  bind      = "127.0.0.1:%d"
  advertise = "127.0.0.1"
}
loopback { cidr = %q }
`, h.name, h.data(), h.inAgent, h.socket(), h.http, h.dns, h.peer, h.loopback)
	if h.ca != "" {
		text += fmt.Sprintf("identity {\n  provider = \"dev\"\n  dev { dir = %q }\n}\n", h.ca)
	}
	if err := os.WriteFile(h.path(), []byte(text+body), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// build makes the agent from the file.
func (h *host) build() error {
	h.t.Helper()
	cfg, err := config.Load(h.path())
	if err != nil {
		h.t.Fatal(err)
	}
	level := new(slog.LevelVar)
	h.agent, err = agent.New(agent.Options{
		Config: cfg, ConfigPath: h.path(), Level: level, Version: "v0.0.0-test",
		Log: slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: level})),
	})
	return err
}

// start builds and runs the agent; the test's end ends it.
func (h *host) start(body string) {
	h.t.Helper()
	h.write(body)
	if err := h.build(); err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.end, h.ended = cancel, make(chan error, 1)
	go func() { h.ended <- h.agent.Run(ctx) }() // stop waits for it
	h.t.Cleanup(func() {
		h.stop()
		if h.t.Failed() {
			h.t.Logf("log of %s:\n%s", h.name, h.log.String())
		}
	})
}

// stop ends the agent and waits.
func (h *host) stop() {
	h.t.Helper()
	if h.end == nil {
		return
	}
	h.end()
	h.end = nil
	select {
	case err := <-h.ended:
		if err != nil {
			h.t.Errorf("%s ended: %v", h.name, err)
		}
	case <-time.After(patience):
		h.t.Fatalf("%s did not end", h.name)
	}
}

func (h *host) status() admin.Status {
	h.t.Helper()
	s, err := admin.NewClient(h.socket()).Status(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *host) upstream(name string) admin.Upstream {
	h.t.Helper()
	for _, u := range h.status().Upstreams {
		if u.Name == name {
			return u
		}
	}
	h.t.Fatalf("%s has no upstream %s", h.name, name)
	return admin.Upstream{}
}

// url is where applications of the host reach an upstream.
func (h *host) url(name string) string {
	h.t.Helper()
	u := h.upstream(name)
	return fmt.Sprintf("http://%s:%d/", u.Address, u.Port)
}

func (h *host) reload() admin.ReloadResult {
	h.t.Helper()
	r, err := h.agent.Reload(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// awaitReady returns when the host waits for nothing.
func (h *host) awaitReady() {
	h.t.Helper()
	eventually(h.t, func() error {
		if ok, waiting := h.agent.Ready(); !ok {
			return fmt.Errorf("%s waits for %s", h.name, strings.Join(waiting, ", "))
		}
		return nil
	})
}

// eventually tries until f is content.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// get returns status and body; a connection of its own each time.
func get(url string) (status int, header http.Header, body string, err error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	res, err := c.Get(url)
	if err != nil {
		return 0, nil, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, res.Header, string(b), err
}

// expectEcho gets url and wants the answer of the named application.
func expectEcho(t *testing.T, url, app string) {
	t.Helper()
	status, header, body, err := get(url)
	if err != nil {
		t.Fatal(err)
	}
	var e meshtest.Echo
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Name != app {
		t.Fatalf("%s: status %d, meshd-error %q, body %q; want the application %s", url, status, header.Get("meshd-error"), body, app)
	}
}

// logBuffer is a log that a test may read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// offer is a service block.
func offer(name string, port uint16, callers ...string) string {
	var allow strings.Builder
	for _, c := range callers {
		fmt.Fprintf(&allow, "  allow %q {}\n", c)
	}
	return fmt.Sprintf("service %q {\n  port     = %d\n  protocol = \"http\"\n%s}\n", name, port, allow.String())
}

// call is an upstream block.
func call(name, more string) string {
	return fmt.Sprintf("upstream %q {\n  protocol = \"http\"\n%s\n}\n", name, more)
}

// known is a static catalog with one endpoint per service; endpoints are
// pairs of name and peer port, the natural port is 0 where unknown.
func known(services ...string) string {
	return "catalog \"static\" {\n" + strings.Join(services, "") + "}\n"
}

func at(name string, natural, peer uint16) string {
	port := ""
	if natural != 0 {
		port = fmt.Sprintf("    port = %d\n", natural)
	}
	return fmt.Sprintf("  service %q {\n%s    endpoint %q { address = \"127.0.0.1:%d\" }\n  }\n", name, port, name, peer)
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// withConnTrace notes whether the connection had been used before.
func withConnTrace(reused *bool) context.Context {
	return httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { *reused = i.Reused },
	})
}

// apiPort is the application's port in the picture of the host.
func apiPort(h *host) uint16 { return h.agent.Snapshot().Offered("api")[0].Port }
