package meshtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// recorder stands in for a test whose cleanup and verdict are looked at.
type recorder struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (r *recorder) Helper()          {}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Failed() bool     { return false }
func (r *recorder) Errorf(_ string, args ...any) {
	for _, a := range args {
		r.errors = append(r.errors, a.(string))
	}
}

// A leak check that finds nothing is worse than none.
func TestLeaksFindsWhatIsLeft(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the patience of the check")
	}
	r := &recorder{TB: t}
	Leaks(r)
	stop := make(chan struct{})
	defer close(stop)
	go leftBehind(stop)
	file, err := os.Open("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r.cleanups[0]()
	if len(r.errors) != 1 || !strings.Contains(r.errors[0], "leftBehind") || !strings.Contains(r.errors[0], "doc.go") {
		t.Errorf("the check said %q, want a goroutine in leftBehind and the descriptor of doc.go", r.errors)
	}
}

func leftBehind(stop chan struct{}) { <-stop }

func TestLeaksIsContent(t *testing.T) {
	Leaks(t)
	app := HTTPEcho(t, "a")
	fake := NewFakeConsul(t)
	for _, url := range []string{"http://" + app.Addr.String(), "http://" + fake.Address + "/v1/agent/services"} {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

func TestFreePortsAreFreeAndDiffer(t *testing.T) {
	seen := make(map[uint16]bool)
	for _, p := range FreePorts(t, 20) {
		if seen[p] {
			t.Errorf("port %d twice", p)
		}
		seen[p] = true
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv6Unspecified(), p)))
		if err != nil {
			t.Error(err)
			continue
		}
		l.Close()
	}
}

func TestHTTPEcho(t *testing.T) {
	Leaks(t)
	app := HTTPEcho(t, "world")
	resp, err := http.Post("http://"+app.Addr.String()+"/x?y=1&status=503", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var echo Echo
	if err := json.NewDecoder(resp.Body).Decode(&echo); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 503 || echo.Name != "world" || echo.Method != "POST" || echo.URI != "/x?y=1&status=503" || echo.Body != "hello" {
		t.Errorf("status %d, %+v", resp.StatusCode, echo)
	}
	if n := app.Served.Load(); n != 1 {
		t.Errorf("served %d, want 1", n)
	}
}

// The raw path must not wait for the end of the body, and trailers come along.
func TestHTTPEchoRaw(t *testing.T) {
	Leaks(t)
	app := HTTPEcho(t, "world")
	c, err := net.Dial("tcp", app.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, "POST /raw HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3)
	if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != "abc" {
		t.Fatalf("first piece %q, %v", got, err)
	}
	io.WriteString(c, "2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n")
	rest, err := io.ReadAll(resp.Body)
	if err != nil || string(rest) != "de" || resp.Trailer.Get("X-Sum") != "5" {
		t.Errorf("rest %q, trailer %v, %v", rest, resp.Trailer, err)
	}
}

// What is sent comes back after the sender ended its own direction.
func TestTCPEchoHalfClose(t *testing.T) {
	Leaks(t)
	app := TCPEcho(t, "tcp")
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(app.Addr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := bytes.Repeat([]byte("meshd"), 10_000)
	go func() { // ends with the connection, which Leaks checks
		c.Write(sent)
		c.CloseWrite()
	}()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d octets of %d, %v", len(got), len(sent), err)
	}
}

// fetch makes one request to the fake and says how it ended.
func fetch(t *testing.T, url string, limit time.Duration) (resp *http.Response, body string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err = http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func TestFakeConsulBlocks(t *testing.T) {
	Leaks(t)
	f := NewFakeConsul(t)
	f.SetService("web", f.Entry("web", "web-1", netip.MustParseAddrPort("10.0.0.1:21900"), 8080))
	url := "http://" + f.Address + "/v1/health/connect/web"
	resp, _, err := fetch(t, url, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	index := resp.Header.Get("X-Consul-Index")
	if _, _, err := fetch(t, url+"?index="+index, 50*time.Millisecond); err == nil {
		t.Error("a query with the index of now was answered at once")
	}
	done := make(chan string, 1)
	go func() {
		_, body, _ := fetch(t, url+"?index="+index, 10*time.Second)
		done <- body
	}()
	f.SetService("web")
	if body := strings.TrimSpace(<-done); body != "[]" {
		t.Errorf("after the change: %s", body)
	}
}

func TestFakeConsulFaults(t *testing.T) {
	Leaks(t)
	f := NewFakeConsul(t)
	url := "http://" + f.Address + "/v1/health/connect/web"
	const limit = 300 * time.Millisecond
	for _, c := range []struct {
		name  string
		fault Fault
		check func(resp *http.Response, body string, err error) bool
	}{
		{"hang", Fault{Hang: true}, func(_ *http.Response, _ string, err error) bool { return os.IsTimeout(err) || err != nil }},
		{"reset", Fault{Reset: true}, func(_ *http.Response, _ string, err error) bool {
			return err != nil && !os.IsTimeout(err)
		}},
		{"500", Fault{Status: 500, Body: Text("No cluster leader")}, func(r *http.Response, b string, _ error) bool {
			return r.StatusCode == 500 && b == "No cluster leader"
		}},
		{"empty body", Fault{Body: Text("")}, func(r *http.Response, b string, err error) bool {
			return r.StatusCode == 200 && b == "" && err == nil
		}},
		{"no index", Fault{Index: Number(0)}, func(r *http.Response, _ string, _ error) bool {
			return r.Header.Get("X-Consul-Index") == ""
		}},
		{"leaderless", Fault{Leaderless: true}, func(r *http.Response, _ string, _ error) bool {
			return r.Header.Get("X-Consul-KnownLeader") == "false"
		}},
		{"cut", Fault{Body: Text("[1,2,3]"), Cut: 3}, func(_ *http.Response, b string, err error) bool {
			return err != nil && len(b) <= 3
		}},
		{"drip", Fault{Body: Text(strings.Repeat(" ", 100)), Drip: 20 * time.Millisecond}, func(_ *http.Response, b string, err error) bool {
			return err != nil && len(b) > 0 && len(b) < 100
		}},
		{"once", Fault{Status: 500, Times: 1}, func(r *http.Response, _ string, _ error) bool {
			again, _, err := fetch(t, url, limit)
			return r.StatusCode == 500 && err == nil && again.StatusCode == 200
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mend := f.Break("/v1/health/", c.fault)
			resp, body, err := fetch(t, url, limit)
			if !c.check(resp, body, err) {
				t.Errorf("response %v, body %q, error %v", resp, body, err)
			}
			mend()
			if resp, _, err := fetch(t, url, 10*time.Second); err != nil || resp.StatusCode != 200 {
				t.Errorf("after mending: %v %v", resp, err)
			}
		})
	}
}

// A persistent server is the same one after a restart; a paused one is silent.
func TestConsulRestartAndPause(t *testing.T) {
	Leaks(t)
	s := ConsulWith(t, ConsulOptions{Persistent: true})
	before, _, err := s.Client.Agent().ConnectCARoots(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "kept", Port: 80}); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if _, err := s.Client.Agent().Self(); err == nil {
		t.Error("a stopped consul answers")
	}
	s.Restart()
	after, _, err := s.Client.Agent().ConnectCARoots(nil)
	if err != nil {
		t.Fatal(err)
	}
	if before.TrustDomain != after.TrustDomain {
		t.Errorf("trust domain %s became %s", before.TrustDomain, after.TrustDomain)
	}
	if local, err := s.Client.Agent().Services(); err != nil || local["kept"] == nil {
		t.Errorf("services after the restart: %v, %v", local, err)
	}
	s.Pause()
	if _, _, err := fetch(t, "http://"+s.Address+"/v1/status/leader", 200*time.Millisecond); err == nil {
		t.Error("a paused consul answers")
	}
	s.Resume()
	if _, _, err := fetch(t, "http://"+s.Address+"/v1/status/leader", 10*time.Second); err != nil {
		t.Error(err)
	}
}
