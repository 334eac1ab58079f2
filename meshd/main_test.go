package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"meshd/internal/admin"
	"meshd/internal/meshtest"
)

const patience = 15 * time.Second

// buffer may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func configuration(t *testing.T, dir, more string) string {
	t.Helper()
	p := meshtest.FreePorts(t, 3)
	path := filepath.Join(dir, "meshd.hcl")
	text := fmt.Sprintf(`
agent {
  node_name = "host-a"
  data_dir  = %q
  loops     = 1
}
admin {
  socket = %q
  http   = "127.0.0.1:%d"
}
identity {
  provider = "dev"
}
dns  { address = "127.0.0.1:%d" }
peer { bind = "127.0.0.1:%d" }
service "web" {
  port = 9
}
%s`, filepath.Join(dir, "data"), filepath.Join(dir, "s"), p[0], p[1], p[2], more)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

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

// The life of the process: start, SIGHUP with good and bad files, SIGTERM.
func TestSignals(t *testing.T) {
	meshtest.Leaks(t)
	dir := t.TempDir()
	path := configuration(t, dir, "")
	var stdout, stderr buffer
	code := make(chan int, 1)
	go func() { code <- run([]string{"-config", path}, &stdout, &stderr) }() // ends with the signal below
	client := admin.NewClient(filepath.Join(dir, "s"))
	generation := func(want uint64, success bool) func() error {
		return func() error {
			s, err := client.Status(context.Background())
			if err != nil {
				return err
			}
			if s.Generation != want || want > 1 && (s.LastReload == nil || s.LastReload.Success != success) {
				return fmt.Errorf("generation %d, last reload %+v", s.Generation, s.LastReload)
			}
			return nil
		}
	}
	eventually(t, generation(1, true))

	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hup := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	hup(string(good) + `
upstream "api" {}
catalog "static" {
  service "api" {
    endpoint "1" { address = "127.0.0.1:1" }
  }
}`)
	eventually(t, generation(2, true))
	hup(string(good) + "\nretires = 3\n")
	eventually(t, generation(2, false))

	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-code:
		if got != exitOK {
			t.Errorf("exit code %d after SIGTERM", got)
		}
	case <-time.After(patience):
		t.Fatal("SIGTERM did not end it")
	}
	for _, want := range []string{"meshd is running", "configuration reloaded", "configuration not reloaded", "draining", "meshd has ended"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(stderr.String())
	}
}

// early runs f before its first line is written.
type early struct {
	buffer
	once sync.Once
	f    func()
}

func (e *early) Write(p []byte) (int, error) {
	e.once.Do(e.f)
	return e.buffer.Write(p)
}

// A SIGHUP may come while the agent is being built: the first line of the log
// is a warning about the configuration, which comes before any part is there.
func TestSignalBeforeTheAgentIsThere(t *testing.T) {
	meshtest.Leaks(t)
	dir := t.TempDir()
	path := configuration(t, dir, "")
	stderr := &early{f: func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Error(err)
		}
	}}
	code := make(chan int, 1)
	go func() { code <- run([]string{"-config", path}, stderr, stderr) }() // ends with the signal below
	client := admin.NewClient(filepath.Join(dir, "s"))
	eventually(t, func() error {
		s, err := client.Status(context.Background())
		if err == nil && (s.LastReload == nil || !s.LastReload.Success) {
			err = fmt.Errorf("last reload %+v", s.LastReload)
		}
		return err
	})
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-code:
		if got != exitOK {
			t.Errorf("exit code %d after SIGTERM", got)
		}
	case <-time.After(patience):
		t.Fatal("SIGTERM did not end it")
	}
	if log := stderr.String(); !strings.Contains(strings.SplitN(log, "\n", 2)[0], "configuration: ") {
		t.Errorf("the first line is no warning about the configuration:\n%s", log)
	}
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	bad := configuration(t, dir, "upstreem \"x\" {}\n")
	impossible := configuration(t, t.TempDir(), "service \"web2\" { port = 8 }\nupstream \"x\" {}\n")
	busy := filepath.Join(t.TempDir(), "busy")
	if err := os.MkdirAll(busy, 0o700); err != nil {
		t.Fatal(err)
	}
	inTheWay := configuration(t, busy, "")
	if err := os.WriteFile(filepath.Join(busy, "s"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string // regular expression, of both outputs
	}{
		{"version", []string{"-version"}, exitOK, `^meshd \S+.*\ngo1\.\d+\S*, link protocol meshd/1\n$`},
		{"help", []string{"-h"}, exitOK, `-config file`},
		{"unknown flag", []string{"-confg", "x"}, exitUsage, `not defined: -confg`},
		{"argument", []string{"meshd.hcl"}, exitUsage, `unexpected argument "meshd.hcl"`},
		{"level", []string{"-log-level", "loud"}, exitUsage, `not "loud"`},
		{"no file", []string{"-config", filepath.Join(dir, "none.hcl")}, exitConfig, `none\.hcl`},
		{"bad file", []string{"--config", bad}, exitConfig, `(?s)line \d+.*Did you mean "upstream"`},
		{"ambiguous caller", []string{"-config", impossible}, exitConfig, `from = `},
		{"socket in the way", []string{"-config", inTheWay}, exitFailed, `no socket is in the way`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out buffer
			code := run(tc.args, &out, &out)
			if code != tc.code || !regexp.MustCompile(tc.want).MatchString(out.String()) {
				t.Errorf("exit code %d, want %d; printed\n%s\nwant %s", code, tc.code, out.String(), tc.want)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(dir, "data")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a bad configuration left a data folder")
	}
}
