package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meshd/internal/meshtest"
)

// badFiles are configurations that nobody may put in force: what is appended
// to a good one, and what the diagnostics must hold.
var badFiles = []struct{ name, body, want string }{
	{"unknown block", "upstraem \"x\" {}\n", `Did you mean "upstream"?`},
	{"unknown attribute", "upstream \"x\" { conect_timeout = \"1s\" }\n", `Did you mean "connect_timeout"?`},
	{"not supported yet", "upstream \"x\" {\n  retries {\n    budget = 0.2\n  }\n}\n", "not supported yet"},
	{"wrong type", "upstream \"x\" { local_bind_port = \"soon\" }\n", "local_bind_port"},
	{"a unit is missing", "upstream \"x\" { request_timeout = 5 }\n", "request_timeout"},
	{"duplicate", "upstream \"api\" {}\n", "api"},
	{"port of another upstream", "upstream \"x\" { local_bind_port = 20999 }\nupstream \"y\" { local_bind_port = 20999 }\n", "20999"},
	{"no HCL", "upstream \"x\" {\n", "meshd.hcl"},
}

// pair is web on host-a, which calls api on host-b by HTTP and by TCP.
func pair(t *testing.T, more string) (a, b *host, body string, app *meshtest.App) {
	t.Helper()
	app = meshtest.HTTPEcho(t, "api")
	ca := devCA(t)
	b = newHost(t, "host-b", ca)
	b.start(offer("api", app.Port(), "http", "", "web"))
	a = newHost(t, "host-a", ca)
	body = offer("web", 9, "http", "", "api") + call("api", "http", more) + static(at("api", b.peer))
	a.start(body)
	a.awaitReady()
	b.awaitReady()
	return a, b, body, app
}

// A start with a bad file ends with 78 and says where and why; a reload with
// it ends with 2, says the same, and no request notices.
func TestBadConfigurationIsRefusedAndTrafficUntouched(t *testing.T) {
	a, _, body, _ := pair(t, "")
	l := startLoad(t, a.url("api"), 200)
	l.await(20)
	generation := a.status().Generation
	for _, bad := range badFiles {
		t.Run(bad.name, func(t *testing.T) {
			a := a.in(t)
			other := newHost(t, "host-c", a.trust)
			other.write(body + bad.body)
			code, stdout, stderr := execute(t, "meshd", "-config", other.path())
			if code != 78 || stdout != "" {
				t.Errorf("start: exit %d, stdout %q", code, stdout)
			}
			diagnosed(t, "start", stderr, other.path(), bad.want)
			if _, err := os.Stat(other.socket()); err == nil {
				t.Error("start: a socket was left")
			}

			a.write(body + bad.body)
			code, _, stderr = a.ctl("reload")
			if code != 2 {
				t.Errorf("reload: exit %d", code)
			}
			diagnosed(t, "reload", stderr, a.path(), bad.want)
			if s := a.status(); s.Generation != generation || s.LastReload == nil || s.LastReload.Success {
				t.Errorf("reload: generation %d, was %d; last reload %+v", s.Generation, generation, s.LastReload)
			}
			code, _, stderr = execute(t, "meshctl", "validate", a.path())
			if code != 2 {
				t.Errorf("validate: exit %d", code)
			}
			diagnosed(t, "validate", stderr, a.path(), bad.want)
		})
	}
	if n := a.metric("meshd_reload_success"); n != 0 {
		t.Errorf("meshd_reload_success %g", n)
	}
	a.write(body)
	if code, _, stderr := a.ctl("reload"); code != 0 {
		t.Errorf("the good file again: exit %d, %s", code, stderr)
	}
	l.finish()
}

// diagnosed wants an error with its place and the word.
func diagnosed(t *testing.T, when, stderr, path, want string) {
	t.Helper()
	if !strings.Contains(stderr, "Error: ") || !strings.Contains(stderr, path+" line ") || !strings.Contains(stderr, want) {
		t.Errorf("%s: diagnostics %q, want file, line and %q", when, stderr, want)
	}
}

// Wrong usage is told apart from a bad file.
func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{{"-no-such-flag"}, {"stray"}, {"-log-level", "loud"}} {
		code, _, stderr := execute(t, "meshd", args...)
		if code != 2 || stderr == "" {
			t.Errorf("meshd %v: exit %d, %q", args, code, stderr)
		}
	}
	missing := filepath.Join(t.TempDir(), "none.hcl")
	if code, _, stderr := execute(t, "meshd", "-config", missing); code != 78 || !strings.Contains(stderr, missing) {
		t.Errorf("missing file: exit %d, %q", code, stderr)
	}
}

// Another process holds a port: only that listener is missing, it is shown and
// comes as soon as the port is free.
func TestTakenPortHealsWhenFree(t *testing.T) {
	thief, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", meshtest.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	taken := thief.Addr().String()
	app := meshtest.HTTPEcho(t, "api")
	ca := devCA(t)
	b := newHost(t, "host-b", ca)
	b.start(offer("api", app.Port(), "http", "", "web"))
	a := newHost(t, "host-a", ca)
	a.start(offer("web", 9, "http", "", "api") + call("free", "http", `destination_name = "api"`) +
		call("api", "http", fmt.Sprintf("local_bind_port = %d", thief.Addr().(*net.TCPAddr).Port)) + static(at("api", b.peer)))
	a.eventually("the first picture", func() error {
		if len(a.status().Upstreams) != 2 {
			return fmt.Errorf("%+v", a.status().Upstreams)
		}
		return nil
	})
	expectApp(t, a.url("free"), "api")
	expectApp(t, a.url("api"), "api")
	code, stdout, _ := a.ctl("status")
	if code != 1 || !strings.Contains(stdout, taken) || !strings.Contains(stdout, "address already in use") {
		t.Errorf("status: exit %d, %s", code, stdout)
	}
	if n := a.metric("meshd_listeners", `state="failed"`); n != 1 {
		t.Errorf("%g failed listeners among the metrics", n)
	}
	status, _, waiting, err := get(fmt.Sprintf("http://127.0.0.1:%d/ready", a.http))
	if err != nil || status != 503 || !strings.Contains(waiting, taken) {
		t.Errorf("/ready: %d, %q, %v", status, waiting, err)
	}
	l := startLoad(t, a.url("free"), 100)
	thief.Close()
	freed := time.Now()
	a.eventually("the listener is there", func() error {
		status, _, _, err := get("http://" + taken + "/")
		if err == nil && status != 200 {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
	t.Logf("the port was taken %s after it came free", time.Since(freed).Round(time.Millisecond))
	l.finish()
	a.awaitReady()
	if code, stdout, _ := a.ctl("status"); code != 0 {
		t.Errorf("status afterwards: exit %d, %s", code, stdout)
	}
}

// The application beside host-b does not listen: not the mesh's fault, and
// told so.
func TestApplicationNotListening(t *testing.T) {
	a, b, _, app := pair(t, "")
	expectApp(t, a.url("api"), "api")
	app.Close()
	if err := refusal(a.url("api"), 503, "local_connect_failed"); err != nil {
		t.Error(err)
	}
	for _, h := range []*host{a, b} {
		h.eventually("counted", func() error {
			if n := h.metric("meshd_requests_total", `outcome="local_connect_failed"`, `code_class="5xx"`); n != 1 {
				return fmt.Errorf("%g requests counted", n)
			}
			return nil
		})
	}
	meshtest.HTTPEchoAt(t, "api again", app.Addr.String())
	expectApp(t, a.url("api"), "api again")
}
