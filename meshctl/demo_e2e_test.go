package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/internal/admin"
	"meshd/internal/meshtest"
)

// demoPatience is for a demo on a machine that runs other tests beside it.
const demoPatience = 2 * time.Minute

// buildBoth returns a folder with meshctl and meshd, as an installation has them.
func buildBoth(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and runs the whole mesh")
	}
	dir := t.TempDir()
	out, err := exec.Command("go", "build", "-o", dir, "meshd/meshctl", "meshd/meshd").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return dir
}

// demoCommand is a demo that keeps its folder in tmp.
func demoCommand(ctx context.Context, bin, tmp string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "meshctl"), append([]string{"demo"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "NO_COLOR=1", "LC_ALL=C.UTF-8")
	return cmd
}

// The demo is the first thing a newcomer runs, so it is a test: every line it
// shows works, through two real agents, and nothing is left behind.
func TestDemoCheck(t *testing.T) {
	bin := buildBoth(t)
	for _, name := range []string{"static", "consul"} {
		t.Run(name, func(t *testing.T) {
			args := []string{"--check"}
			if name == "consul" {
				t.Setenv("MESHD_TEST_CONSUL", meshtest.ConsulBinary(t))
				args = append(args, "--consul")
			}
			ctx, cancel := context.WithTimeout(t.Context(), demoPatience)
			defer cancel()
			tmp := t.TempDir()
			out, err := demoCommand(ctx, bin, tmp, args...).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range []string{
				`(?m)^✓ curl http://127\.77\.\d+\.\d+:\d+/\n    world$`,
				`(?m)^    Hello world!$`,
				`(?m)^✓ dig @127\.0\.0\.1 -p \d+ world\.mesh\.internal\n    world.mesh.internal is 127\.77\.`,
				`(?m)^    meshd_requests_total\{.*name="world".*\} [1-9]`,
				`(?m)^    host-a: healthy`,
				`(?m)^✓ all 5 checks passed$`,
			} {
				if !regexp.MustCompile(want).Match(out) {
					t.Errorf("the output does not match %s", want)
				}
			}
			if t.Failed() {
				t.Logf("%s", out)
			}
			wantEmpty(t, tmp)
		})
	}
}

// A running demo ends without a trace, however meshctl ends.
func TestDemoLeavesNothingBehind(t *testing.T) {
	bin := buildBoth(t)
	for name, sig := range map[string]syscall.Signal{"ctrl-c": syscall.SIGINT, "terminated": syscall.SIGTERM, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), demoPatience)
			defer cancel()
			tmp := t.TempDir()
			cmd := demoCommand(ctx, bin, tmp)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			shown := readUntil(t, stdout, "Ctrl-C stops everything")
			sockets, err := filepath.Glob(filepath.Join(tmp, demoPrefix+"*", "host-*", "meshd.sock"))
			if err != nil || len(sockets) != 2 {
				t.Errorf("sockets of the agents: %v, %v", sockets, err)
			}
			for _, s := range sockets {
				if _, err := admin.NewClient(s).Version(ctx); err != nil {
					t.Errorf("agent does not answer: %v", err)
				}
			}
			cmd.Process.Signal(sig)
			go io.Copy(io.Discard, stdout) // ends with the process
			err = cmd.Wait()
			if sig != syscall.SIGKILL && err != nil {
				t.Errorf("demo after %s: %v\n%s", sig, err, &stderr)
			}
			pids := regexp.MustCompile(`(?m)^host-[ab] +(\d+) `).FindAllStringSubmatch(shown, -1)
			if len(pids) != 2 {
				t.Fatalf("no two agents in\n%s", shown)
			}
			for _, m := range pids {
				pid, err := strconv.Atoi(m[1])
				if err != nil {
					t.Fatal(err)
				}
				waitUntil(t, "agent "+m[1]+" is gone", func() bool { return gone(pid) })
			}
			wantEmpty(t, tmp)
		})
	}
}

// readUntil returns what was read up to the line that holds the word.
func readUntil(t *testing.T, r io.Reader, word string) string {
	t.Helper()
	var b strings.Builder
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		b.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), word) {
			return b.String()
		}
	}
	t.Fatalf("no %q in\n%s", word, b.String())
	return ""
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	waitUntil(t, "the demo's folder is gone", func() bool {
		left, err := os.ReadDir(dir)
		return err == nil && len(left) == 0
	})
}
