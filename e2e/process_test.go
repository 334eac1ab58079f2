package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a story waits for what must come. It is long for busy
// machines; only a story that fails takes it.
const patience = 30 * time.Second

// process is a running meshd or meshctl. The kernel kills it should the test
// binary die.
type process struct {
	t      testing.TB
	name   string
	pid    int
	stdout *buffer
	stderr *buffer
	ended  chan struct{} // closed when it has ended; then code is set
	code   int           // exit code, -1 after a signal
}

// spawn starts a program of ours; it is killed at the end of the test if it
// still runs.
func spawn(t testing.TB, name, path string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, stdout: &buffer{}, stderr: &buffer{}, ended: make(chan struct{})}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = p.stdout, p.stderr
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "NO_COLOR=1", "LC_ALL=C.UTF-8", "MESHD_SOCKET=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() { // ends with the process, which the cleanup below sees to
		// The signal at the parent's death is that of the starting thread.
		runtime.LockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		defer close(p.ended)
		_ = cmd.Wait()
		p.code = cmd.ProcessState.ExitCode()
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	t.Cleanup(func() {
		if p.running() {
			syscall.Kill(-p.pid, syscall.SIGKILL)
			<-p.ended
		}
		if strings.Contains(p.stderr.String(), "DATA RACE") {
			t.Errorf("%s has a data race", name)
		}
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", name, p.stderr.tail())
		}
	})
	return p
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if !p.running() {
		p.t.Fatalf("%s has ended with %d:\n%s", p.name, p.code, p.stderr.tail())
	}
	if err := syscall.Kill(p.pid, sig); err != nil {
		p.t.Fatalf("signal %s: %v", p.name, err)
	}
}

// wait returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("%s did not end", p.name)
	}
	return p.code
}

// descriptors counts the open files of the process.
func (p *process) descriptors() int {
	p.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(list)
}

// opened lists what the descriptors point to, for a story that failed.
func (p *process) opened() (list []string) {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.pid))
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil {
			list = append(list, target)
		}
	}
	return list
}

// resident is the memory in use, in MiB.
func (p *process) resident() int {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.Atoi(f[1])
			if err != nil {
				p.t.Fatal(err)
			}
			return kib >> 10
		}
	}
	p.t.Fatalf("no VmRSS in %s", text)
	return 0
}

// execute runs a program of ours to its end.
func execute(t testing.TB, name string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(program(t, name), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "NO_COLOR=1", "LC_ALL=C.UTF-8", "MESHD_SOCKET=")
	err := cmd.Run()
	if e := new(exec.ExitError); err != nil && !errors.As(err, &e) {
		t.Fatalf("%s: %v", name, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// children lists the live processes whose command line holds the text.
func children(text string) (found []string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range lines {
		b, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(b), text) {
			found = append(found, filepath.Dir(f)+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

// buffer is output that a test may read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *buffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *buffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// tail is the end of it, for a story that failed.
func (l *buffer) tail() string {
	const most = 6 << 10
	s := l.String()
	return s[max(0, len(s)-most):]
}
