package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/internal/config"
	"meshd/internal/mesh"
)

// What the demo writes must be what meshd reads, and what the README shows:
// no warning, no setting that is not needed.
func TestDemoConfigurationsAreGood(t *testing.T) {
	for _, consul := range []string{"", "127.0.0.1:15001"} {
		d := &demo{dir: t.TempDir(), consulAddress: consul, demoOptions: demoOptions{out: t.Output()}}
		ports, err := d.choosePorts()
		if err != nil {
			t.Fatal(err)
		}
		for i := range d.hosts {
			h := &d.hosts[i]
			text := d.configuration(h, ports)
			cfg, err := config.Parse(map[string][]byte{"meshd.hcl": text})
			if err != nil {
				t.Fatalf("%s, consul %q: %v\n%s", h.name, consul, err, text)
			}
			for _, w := range cfg.Warnings {
				t.Errorf("%s, consul %q: %s", h.name, consul, w)
			}
			if cfg.Consul.Enabled != (consul != "") {
				t.Errorf("%s: consul enabled = %v", h.name, cfg.Consul.Enabled)
			}
			if h.name == "host-a" && consul == "" {
				s, err := mesh.Compile(mesh.CompileInput{Generation: 1, Spec: cfg.Spec})
				if err != nil {
					t.Fatal(err)
				}
				if u := s.Lookup("world"); u == nil || u.Healthy != 1 || int(u.Port) != ports.world || u.Caller != "hello" {
					t.Errorf("upstream world of host-a = %+v", u)
				}
			}
		}
	}
}

func TestDemoPortsAvoidWhatIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().(*net.TCPAddr).Port
	c := portChooser{next: demoLastPort, taken: map[int]bool{}}
	p := c.preferred(taken)
	if p == taken || len(c.moved) != 1 || !strings.Contains(c.moved[0], strconv.Itoa(taken)) {
		t.Errorf("preferred(%d) = %d, told %q", taken, p, c.moved)
	}
	c.taken[demoFirstPort], c.next = true, demoFirstPort // free on the machine, but given out
	if p := c.free(); p == demoFirstPort {
		t.Errorf("port %d was given twice", p)
	}
	seen := []int{p}
	for range 20 { // over the end of the range
		p := c.free()
		if p < demoFirstPort || p > demoLastPort || slices.Contains(seen, p) {
			t.Errorf("free port %d: out of range or given twice (%v)", p, seen)
		}
		seen = append(seen, p)
	}
}

func TestDemoApplications(t *testing.T) {
	world, err := serveDemoApp(0, worldApp())
	if err != nil {
		t.Fatal(err)
	}
	defer world.close()
	hello, err := serveDemoApp(0, helloApp(world.address))
	if err != nil {
		t.Fatal(err)
	}
	defer hello.close()
	if got, err := expectBody(t.Context(), "http://"+hello.address+"/", "Hello world!"); err != nil {
		t.Errorf("hello: %q, %v", got, err)
	}
	world.close()
	if _, err := expectBody(t.Context(), "http://"+hello.address+"/", "Hello world!"); err == nil || !strings.Contains(err.Error(), "502") {
		t.Errorf("hello without world: %v, want a 502", err)
	}
}

// A check that fails shows why, in the words of the mesh.
func TestFetchTellsWhatMeshdSaid(t *testing.T) {
	a, err := serveDemoApp(0, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("meshd-error", "no_endpoints")
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if _, err := get(t.Context(), "http://"+a.address+"/"); err == nil || !strings.Contains(err.Error(), "meshd-error: no_endpoints") {
		t.Errorf("err = %v, want the meshd-error in it", err)
	}
}

// stop asks first; it ends also a child that does not listen, and what that
// one started.
func TestFamilyStopsTheStubborn(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for stopTimeout")
	}
	dir := t.TempDir()
	f := &family{died: func(err error) { t.Errorf("reported as died: %v", err) }}
	ready := filepath.Join(dir, "ready")
	stubborn, err := f.start("stubborn", filepath.Join(dir, "s.log"), "/bin/sh", "-c",
		`trap "" TERM; sleep 600 & echo $! >`+ready+`.tmp; mv `+ready+`.tmp `+ready+`; while :; do wait; done`)
	if err != nil {
		t.Fatal(err)
	}
	drained, waiting := filepath.Join(dir, "drained"), filepath.Join(dir, "waiting")
	if _, err := f.start("mild", filepath.Join(dir, "m.log"), "/bin/sh", "-c",
		`trap "touch `+drained+`; kill $!; exit 0" TERM; sleep 600 & touch `+waiting+`; wait`); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the mild script runs", func() bool { return exists(waiting) })
	var grandchild int
	waitUntil(t, "the script runs", func() bool {
		b, err := os.ReadFile(ready)
		if err == nil {
			grandchild, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return err == nil
	})
	f.stop()
	if !exists(drained) {
		t.Error("the mild child was not asked to end")
	}
	for _, pid := range []int{stubborn.pid, grandchild} {
		waitUntil(t, "process "+strconv.Itoa(pid)+" is gone", func() bool { return gone(pid) })
	}
}

func TestFamilyReportsWhoDied(t *testing.T) {
	died := make(chan error, 1)
	f := &family{died: func(err error) { died <- err }}
	if _, err := f.start("brief", filepath.Join(t.TempDir(), "log"), "/bin/sh", "-c", "echo last words; exit 7"); err != nil {
		t.Fatal(err)
	}
	err := <-died
	if !strings.Contains(err.Error(), "brief ended by itself") || !strings.Contains(err.Error(), "last words") {
		t.Errorf("died with %q, want name and last words", err)
	}
	f.stop()
	if _, err := f.start("none", filepath.Join(t.TempDir(), "log"), "/no/such/program"); err == nil {
		t.Error("a program that is not there starts")
	}
}

func TestSweepRemovesOnlyDemos(t *testing.T) {
	base := t.TempDir()
	demoDir, other, unmarked := filepath.Join(base, demoPrefix+"1"), filepath.Join(base, "other"), filepath.Join(base, demoPrefix+"2")
	for _, dir := range []string{demoDir, other, unmarked} {
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{demoDir, other} {
		if err := os.WriteFile(filepath.Join(dir, demoMarker), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for dir, wantErr := range map[string]bool{demoDir: false, other: true, unmarked: true, filepath.Join(base, demoPrefix+"none"): false} {
		if err := sweep(t.Context(), dir); (err != nil) != wantErr {
			t.Errorf("sweep(%s) = %v", dir, err)
		}
	}
	if exists(demoDir) || !exists(other) || !exists(unmarked) {
		t.Errorf("demo exists: %v, other: %v, unmarked: %v", exists(demoDir), exists(other), exists(unmarked))
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// gone: a zombie whose parent does not reap is as good as gone.
func gone(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return true
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(b), ") Z ")
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
