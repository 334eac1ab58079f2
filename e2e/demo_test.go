package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/internal/meshtest"
)

// demoHome gives the demo a folder for temporary files that nobody else uses.
func demoHome(t *testing.T) {
	t.Helper()
	program(t, "meshctl")                // built before the folder changes
	dir, err := os.MkdirTemp("", "e2e-") // t.TempDir is too long for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv("TMPDIR", dir)
}

// demoFolders lists what demos have left, or use now.
func demoFolders() []string {
	list, _ := filepath.Glob(filepath.Join(os.TempDir(), "meshd-demo-*"))
	return list
}

func checkDemo(t *testing.T, args ...string) {
	t.Helper()
	demoHome(t)
	before := len(demoFolders())
	began := time.Now()
	code, stdout, stderr := execute(t, "meshctl", append([]string{"demo", "--check"}, args...)...)
	if code != 0 || !strings.Contains(stdout, "Hello world!") || !strings.Contains(stdout, "all 5 checks passed") {
		t.Errorf("exit %d\n%s\n%s", code, stdout, stderr)
	}
	t.Logf("took %s", time.Since(began).Round(time.Millisecond))
	if n := len(demoFolders()); n != before {
		t.Errorf("%d folders of demos, %d before", n, before)
	}
}

func TestDemoChecksItself(t *testing.T) { checkDemo(t) }

func TestDemoChecksItselfWithConsul(t *testing.T) {
	t.Setenv("MESHD_TEST_CONSUL", meshtest.ConsulBinary(t))
	checkDemo(t, "--consul")
}

// Ctrl-C at any moment ends every process and removes the folder.
func TestDemoEndsByInterrupt(t *testing.T) {
	for _, when := range []string{"", "meshd demo:", "Ctrl-C stops everything"} {
		name := when
		if when == "" {
			name = "at once"
		}
		t.Run(name, func(t *testing.T) {
			meshctl := program(t, "meshctl")
			demoHome(t)
			before := len(demoFolders())
			p := spawn(t, "demo", meshctl, "demo")
			for end := time.Now().Add(patience); !strings.Contains(p.stdout.String(), when); time.Sleep(5 * time.Millisecond) {
				if !p.running() || time.Now().After(end) {
					t.Fatalf("the demo did not say %q:\n%s", when, p.stdout.String())
				}
			}
			if when == "" {
				for end := time.Now().Add(patience); len(demoFolders()) == before && time.Now().Before(end); {
					time.Sleep(time.Millisecond) // until it has begun
				}
			}
			p.signal(syscall.SIGINT)
			asked := time.Now()
			code := p.wait()
			if when == "Ctrl-C stops everything" && code != 0 {
				t.Errorf("exit %d\n%s", code, p.stderr.String())
			}
			t.Logf("gone %s after SIGINT, exit %d", time.Since(asked).Round(time.Millisecond), code)
			if n := len(demoFolders()); n != before {
				t.Errorf("%d folders of demos, %d before", n, before)
			}
			if left := children(filepath.Dir(meshctl)); len(left) > 0 {
				t.Errorf("still running: %q", left)
			}
		})
	}
}

// A killed meshctl takes its agents along, and its folder soon after.
func TestDemoKilledLeavesNothing(t *testing.T) {
	meshctl := program(t, "meshctl")
	demoHome(t)
	before := len(demoFolders())
	p := spawn(t, "demo", meshctl, "demo")
	for end := time.Now().Add(patience); !strings.Contains(p.stdout.String(), "Ctrl-C stops everything"); time.Sleep(5 * time.Millisecond) {
		if !p.running() || time.Now().After(end) {
			t.Fatalf("the demo did not come up:\n%s", p.stdout.String())
		}
	}
	p.signal(syscall.SIGKILL)
	p.wait()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		left := children(filepath.Dir(meshctl))
		if len(left) == 0 && len(demoFolders()) == before {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("left: %d folders, processes %q", len(demoFolders())-before, left)
		}
	}
}

// makeTargets is what make help says.
func makeTargets(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("make", "help")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("make help: %v", err)
	}
	return string(out)
}
