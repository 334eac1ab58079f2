package meshtest

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// leakPatience is how long goroutines and descriptors may take to go after a
// test. Under the race detector on a busy machine a TLS connection needs a
// while to be torn down on both sides.
const leakPatience = 5 * time.Second

// Leaks fails the test if goroutines or descriptors that exist at its end did
// not exist when Leaks was called. Call it first: what is registered with
// t.Cleanup later ends before it looks. It sees the whole process, so it is
// not for tests that run in parallel with others.
func Leaks(t testing.TB) {
	t.Helper()
	ports.Lock()
	// Its listener, and what the runtime opens for the first one, stay for the
	// life of the process.
	reserve(t)
	ports.Unlock()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	routines, descriptors := goroutines(), openFiles()
	t.Cleanup(func() {
		if t.Failed() {
			return // it ended early; what it left says nothing
		}
		var leaked []string
		for end := time.Now().Add(leakPatience); ; time.Sleep(10 * time.Millisecond) {
			http.DefaultTransport.(*http.Transport).CloseIdleConnections()
			leaked = leaks(routines, descriptors)
			if len(leaked) == 0 {
				return
			}
			if time.Now().After(end) {
				break
			}
		}
		t.Errorf("meshtest: left behind after the test:\n%s", strings.Join(leaked, "\n"))
	})
}

func leaks(routines map[string]string, descriptors map[string]string) (leaked []string) {
	for id, stack := range goroutines() {
		if _, ok := routines[id]; !ok {
			leaked = append(leaked, "goroutine "+stack)
		}
	}
	for fd, target := range openFiles() {
		if descriptors[fd] != target {
			leaked = append(leaked, fmt.Sprintf("descriptor %s -> %s", fd, target))
		}
	}
	slices.Sort(leaked)
	return leaked
}

// benign marks goroutines that come and go with the test binary itself.
var benign = []string{
	"testing.(*M).",
	"testing.tRunner(", // of other tests; a test's own ends with it
	"testing.(*T).Run(",
	"testing.runFuzzing(",
	"runtime/trace.",
	"runtime/pprof.",
	"os/signal.signal_recv(",
	"os/signal.loop(",
	"runtime.ensureSigM",
}

// goroutines returns the stacks by the goroutine's id, this one left out.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := make(map[string]string)
	for i, g := range bytes.Split(buf, []byte("\n\n")) {
		if i == 0 {
			continue // the caller
		}
		stack := string(g)
		id, _, _ := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		if !slices.ContainsFunc(benign, func(b string) bool { return strings.Contains(stack, b) }) {
			all[id] = stack
		}
	}
	return all
}

// openFiles returns what the descriptors of this process point to.
func openFiles() map[string]string {
	open := make(map[string]string)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return open
	}
	for _, e := range entries {
		// The descriptor of the directory itself is closed by now.
		if target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil {
			open[e.Name()] = target
		}
	}
	return open
}
