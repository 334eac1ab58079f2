package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"meshd/internal/admin"
)

// meshctl against a live agent: what it prints and how it exits.
func TestMeshctlOnALiveAgent(t *testing.T) {
	a, _, body, _ := pair(t, "")
	expectApp(t, a.url("api"), "api")
	t.Run("status", func(t *testing.T) {
		a := a.in(t)
		code, stdout, stderr := a.ctl("status")
		want := []string{"UPSTREAM", "api", a.address("api"), "1/1", "closed", "SERVICE", "web", "CERTIFICATE", "spiffe://", "CATALOG", "generation 1"}
		if code != 0 || stderr != "" || !containsAll(stdout, want) {
			t.Errorf("exit %d, stderr %q, want all of %q in\n%s", code, stderr, want, stdout)
		}
		if code, wide, _ := a.ctl("status", "-o", "wide"); code != 0 || !containsAll(wide, []string{"api.mesh.internal", "LISTENER", "LOOP"}) && !containsAll(wide, []string{"peer", "dns"}) {
			t.Errorf("wide: exit %d\n%s", code, wide)
		}
	})
	t.Run("documents", func(t *testing.T) {
		a := a.in(t)
		code, stdout, _ := a.ctl("status", "-o", "json")
		var s admin.Status
		if err := json.Unmarshal([]byte(stdout), &s); err != nil || code != 0 || len(s.Upstreams) != 1 || s.PID != a.pid {
			t.Errorf("json: exit %d, %v, %+v", code, err, s)
		}
		code, stdout, _ = a.ctl("status", "-o", "yaml")
		if code != 0 || !containsAll(stdout, []string{"\nupstreams:", "name: api", "node: host-a"}) {
			t.Errorf("yaml: exit %d\n%s", code, stdout)
		}
		if code, _, _ := a.ctl("status", "-o", "xml"); code != 2 {
			t.Errorf("xml: exit %d", code)
		}
		if code, stdout, _ := a.ctl("version", "-o", "json"); code != 0 || !json.Valid([]byte(stdout)) {
			t.Errorf("version: exit %d, %s", code, stdout)
		}
	})
	t.Run("reload", func(t *testing.T) {
		a := a.in(t)
		if code, stdout, _ := a.ctl("reload"); code != 0 || !strings.Contains(stdout, "nothing changed") {
			t.Errorf("nothing changed: exit %d, %s", code, stdout)
		}
		a.write(body + call("other", "http", `destination_name = "api"`))
		if code, stdout, _ := a.ctl("reload"); code != 0 || !strings.Contains(stdout, "+ upstream other") {
			t.Errorf("good: exit %d, %s", code, stdout)
		}
		a.write(body + "nonsense")
		if code, stdout, stderr := a.ctl("reload"); code != 2 || stdout != "" || !containsAll(stderr, []string{a.path(), "stays in force"}) {
			t.Errorf("bad: exit %d, %s, %s", code, stdout, stderr)
		}
		expectApp(t, a.url("other"), "api")
		code, stdout, _ := a.ctl("status")
		if code != 0 || !strings.Contains(stdout, "the last reload failed") {
			t.Errorf("status after it: exit %d\n%s", code, stdout)
		}
		if code, _, _ := a.ctl("status", "--strict"); code != 4 {
			t.Errorf("status --strict after it: exit %d", code)
		}
		code, stdout, _ = a.ctl("reload", "-o", "json")
		var res admin.ReloadResult
		if err := json.Unmarshal([]byte(stdout), &res); err != nil || code != 2 || res.Applied || len(res.Diagnostics) == 0 {
			t.Errorf("json: exit %d, %v, %s", code, err, stdout)
		}
	})
	t.Run("SIGHUP", func(t *testing.T) {
		a := a.in(t)
		generation := a.status().Generation
		a.write(body)
		a.signal(syscall.SIGHUP)
		a.eventually("reloaded", func() error {
			if s := a.status(); s.Generation <= generation || !s.LastReload.Success {
				return fmt.Errorf("generation %d", s.Generation)
			}
			return nil
		})
		a.write(body + "nonsense")
		a.signal(syscall.SIGHUP)
		a.eventually("refused", func() error {
			if s := a.status(); s.LastReload.Success {
				return errors.New("the last reload worked")
			}
			return nil
		})
		if !strings.Contains(a.stderr.String(), "the old one stays in force") {
			t.Error("the log does not tell it")
		}
		expectApp(t, a.url("api"), "api")
	})
	t.Run("validate", func(t *testing.T) {
		a := a.in(t)
		a.write(body)
		if code, stdout, _ := execute(t, "meshctl", "validate", a.path()); code != 0 || !strings.Contains(stdout, "good") {
			t.Errorf("exit %d, %s", code, stdout)
		}
		if code, _, stderr := execute(t, "meshctl", "validate", filepath.Join(a.dir, "none.hcl")); code != 2 || stderr == "" {
			t.Errorf("missing: exit %d, %s", code, stderr)
		}
	})
	t.Run("stop", func(t *testing.T) {
		a := a.in(t)
		a.stop()
		if code, _, stderr := a.ctl("status"); code != 3 || !strings.Contains(stderr, "systemctl status meshd") {
			t.Errorf("exit %d, %s", code, stderr)
		}
		if _, err := os.Stat(a.socket()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
	})
}
