package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/internal/admin"
	"meshd/internal/meshtest"
)

// host is a machine with an agent: a folder, ports of its own, a process.
type host struct {
	t     *testing.T
	name  string
	dir   string
	trust string // identity and consul blocks
	peer  uint16
	dns   uint16
	http  uint16
	*process
}

// newHost chooses folder and ports; trust is what devCA or viaConsul gives.
func newHost(t *testing.T, name, trust string) *host {
	t.Helper()
	p := meshtest.FreePorts(t, 3)
	return &host{t: t, name: name, trust: trust, dir: t.TempDir(), peer: p[0], dns: p[1], http: p[2]}
}

// devCA is the identity of hosts that share a throwaway CA.
func devCA(t *testing.T) string {
	return fmt.Sprintf("identity {\n  provider = \"dev\"\n  dev { dir = %q }\n}\n", filepath.Join(t.TempDir(), "ca"))
}

// viaConsul is the identity of hosts with a Consul.
func viaConsul(address string) string {
	return fmt.Sprintf("consul { address = %q }\n", address)
}

// in returns the host for a subtest: what fails there fails that.
func (h host) in(t *testing.T) *host {
	h.t = t
	return &h
}

func (h *host) path() string   { return filepath.Join(h.dir, "meshd.hcl") }
func (h *host) socket() string { return filepath.Join(h.dir, "s") }

// loopback is a range of the host's own: one machine has several hosts here, and
// other test runs, which would give an upstream of that name the same address.
// Its peer port is its own as well.
func (h *host) loopback() string {
	const ranges = 64 // of 1,024 addresses in a /16
	return fmt.Sprintf("127.%d.%d.0/22", 80+h.peer/ranges%128, h.peer%ranges*4)
}

// write makes the configuration: what every host has, then body.
func (h *host) write(body string) {
	h.t.Helper()
	text := fmt.Sprintf(`agent {
  node_name     = %q
  data_dir      = %q
  drain_timeout = "5s"
}
admin {
  socket = %q
  http   = "127.0.0.1:%d"
}
dns { address = "127.0.0.1:%d" }
loopback { cidr = %q }
peer {
  bind      = "127.0.0.1:%d"
  advertise = "127.0.0.1"
}
%s`, h.name, filepath.Join(h.dir, "data"), h.socket(), h.http, h.dns, h.loopback(), h.peer, h.trust)
	// By rename, as an editor does: a reload may be reading.
	if err := os.WriteFile(h.path()+".new", []byte(text+body), 0o600); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Rename(h.path()+".new", h.path()); err != nil {
		h.t.Fatal(err)
	}
}

// launch starts the agent with the configuration and does not wait.
func (h *host) launch(body string) {
	h.t.Helper()
	h.write(body)
	h.process = spawn(h.t, h.name, program(h.t, "meshd"), "-config", h.path())
}

// start is launch, and waits until the socket answers.
func (h *host) start(body string) {
	h.t.Helper()
	h.launch(body)
	h.eventually("the socket answers", func() error {
		_, err := admin.NewClient(h.socket()).Version(context.Background())
		return err
	})
}

// stop ends the agent as systemd would, and wants a clean exit.
func (h *host) stop() {
	h.t.Helper()
	h.signal(syscall.SIGTERM)
	if code := h.wait(); code != 0 {
		h.t.Errorf("%s ended with %d", h.name, code)
	}
}

// eventually tries until f is content, as long as the agent lives.
func (h *host) eventually(what string, f func() error) {
	h.t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if !h.running() {
			h.t.Fatalf("%s ended with %d while waiting: %s", h.name, h.code, what)
		}
		if err = f(); err == nil {
			return
		}
	}
	h.t.Fatalf("%s: not in time: %s: %v", h.name, what, err)
}

// awaitReady returns when the host waits for nothing and every upstream has an
// endpoint.
func (h *host) awaitReady() {
	h.t.Helper()
	h.eventually("ready", func() error {
		s, err := admin.NewClient(h.socket()).Status(context.Background())
		if err != nil {
			return err
		}
		if !s.Ready {
			return fmt.Errorf("waits for %s", strings.Join(s.Waiting, ", "))
		}
		for i := range s.Upstreams {
			if u := &s.Upstreams[i]; u.Healthy == 0 {
				return fmt.Errorf("upstream %s has no healthy endpoint", u.Name)
			}
		}
		return nil
	})
}

func (h *host) status() admin.Status {
	h.t.Helper()
	s, err := admin.NewClient(h.socket()).Status(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// upstream waits until the picture has it: the first one waits for Consul.
func (h *host) upstream(name string) (u admin.Upstream) {
	h.t.Helper()
	h.eventually("upstream "+name, func() error {
		s := h.status()
		for _, u = range s.Upstreams {
			if u.Name == name {
				return nil
			}
		}
		return fmt.Errorf("there are %d others", len(s.Upstreams))
	})
	return u
}

// address is where applications of the host reach an upstream.
func (h *host) address(name string) string {
	h.t.Helper()
	u := h.upstream(name)
	return net.JoinHostPort(u.Address, strconv.Itoa(int(u.Port)))
}

func (h *host) url(name string) string { return "http://" + h.address(name) + "/" }

// ctl runs meshctl against the host.
func (h *host) ctl(args ...string) (code int, stdout, stderr string) {
	h.t.Helper()
	return execute(h.t, "meshctl", append([]string{"--socket", h.socket()}, args...)...)
}

// metric adds up the samples of a metric whose labels hold all the given ones.
func (h *host) metric(name string, labels ...string) float64 {
	h.t.Helper()
	_, _, body, err := get(fmt.Sprintf("http://127.0.0.1:%d/metrics", h.http))
	if err != nil {
		h.t.Fatal(err)
	}
	sum := 0.0
	for s := bufio.NewScanner(strings.NewReader(body)); s.Scan(); {
		series, value, ok := strings.Cut(s.Text(), " ")
		metric, set, _ := strings.Cut(series, "{")
		if !ok || metric != name || !containsAll(set, labels) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			h.t.Fatalf("metric %q: %v", s.Text(), err)
		}
		sum += v
	}
	return sum
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// resolver asks the agent's name server and no other.
func (h *host) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", h.dns))
	}}
}

// get asks once over a connection of its own.
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

// expectApp wants the answer of an application with that name.
func expectApp(t *testing.T, url, app string) {
	t.Helper()
	status, header, body, err := get(url)
	if err != nil {
		t.Fatal(err)
	}
	var e meshtest.Echo
	if json.Unmarshal([]byte(body), &e) != nil || status != 200 || e.Name != app {
		t.Fatalf("%s: status %d, meshd-error %q, body %.200q; want the application %s", url, status, header.Get("meshd-error"), body, app)
	}
}

// refusal wants an answer of meshd itself.
func refusal(url string, status int, outcome string) error {
	got, header, _, err := get(url)
	if err != nil {
		return err
	}
	if got != status || header.Get("meshd-error") != outcome {
		return fmt.Errorf("%s: status %d, meshd-error %q; want %d, %q", url, got, header.Get("meshd-error"), status, outcome)
	}
	return nil
}

// Blocks of the configuration.

// offer is a service; more is further lines of it.
func offer(name string, port uint16, protocol, more string, callers ...string) string {
	var allow strings.Builder
	for _, c := range callers {
		fmt.Fprintf(&allow, "  allow %q {}\n", c)
	}
	return fmt.Sprintf("service %q {\n  port     = %d\n  protocol = %q\n%s\n%s}\n", name, port, protocol, more, allow.String())
}

// call is an upstream.
func call(name, protocol, more string) string {
	return fmt.Sprintf("upstream %q {\n  protocol = %q\n%s\n}\n", name, protocol, more)
}

// static is a catalog of entries that at made.
func static(entries ...string) string {
	return "catalog \"static\" {\n" + strings.Join(entries, "") + "}\n"
}

// at is a service with one endpoint, named like it, at a peer port.
func at(name string, peer uint16) string {
	return fmt.Sprintf("  service %q {\n    endpoint %q { address = \"127.0.0.1:%d\" }\n  }\n", name, name, peer)
}
