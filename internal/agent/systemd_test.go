package agent_test

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"meshd/internal/meshtest"
)

// The service manager hears of the start, of reloads good and bad, that the
// agent is alive, and of the end, in this order.
func TestServiceManagerIsTold(t *testing.T) {
	meshtest.Leaks(t)
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "150000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	// await returns what came before the message that matches.
	await := func(want string) (before []string) {
		t.Helper()
		re := regexp.MustCompile("^" + want + "$")
		buf := make([]byte, 8192)
		for {
			c.SetReadDeadline(time.Now().Add(patience))
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("no %s after %q: %v", want, before, err)
			}
			if got := string(buf[:n]); re.MatchString(got) {
				return before
			} else if got != "WATCHDOG=1" {
				before = append(before, got)
			}
		}
	}
	a := newHost(t, "host-a", filepath.Join(t.TempDir(), "ca"))
	a.start(offer("web", 9, "nobody"))
	if before := await("READY=1"); len(before) != 1 || !strings.HasPrefix(before[0], "STATUS=generation 1: 1 services") {
		t.Errorf("before READY=1: %q; want the first picture", before)
	}
	await("WATCHDOG=1")
	for _, body := range []string{offer("web", 9, "somebody"), "nonsense {}"} {
		a.write(body)
		a.reload()
		if before := await(`RELOADING=1\nMONOTONIC_USEC=\d+`); len(before) != 0 {
			t.Errorf("before RELOADING=1: %q", before)
		}
		await("READY=1")
	}
	a.end()
	await("STOPPING=1")
	await("STATUS=draining.*")
	a.stop()
}
