package systemd

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// manager plays the service manager and returns how to receive one message.
func manager(t *testing.T) (receive func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		buf := make([]byte, 8192)
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func TestMessages(t *testing.T) {
	receive := manager(t)
	n := New(slog.New(slog.DiscardHandler))
	for _, tc := range []struct {
		send func()
		want string // regular expression
	}{
		{n.Ready, `READY=1`},
		{n.Stopping, `STOPPING=1`},
		{n.Alive, `WATCHDOG=1`},
		{n.Reloading, `RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*`},
		{func() { n.Status("generation %d\nREADY=1", 7) }, `STATUS=generation 7 READY=1`},
	} {
		tc.send()
		if got := receive(); !regexp.MustCompile("^" + tc.want + "$").MatchString(got) {
			t.Errorf("sent %q, want %s", got, tc.want)
		}
	}
	n.Status("%s", strings.Repeat("ü", 10_000))
	if got := receive(); len(got) > len("STATUS=")+maxStatus || strings.Contains(got, "\uFFFD") {
		t.Errorf("a long status is sent as %d bytes", len(got))
	}
}

func TestWatchdogInterval(t *testing.T) {
	n := New(slog.New(slog.DiscardHandler))
	t.Setenv("WATCHDOG_USEC", "30000000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	if got := n.Watchdog(); got != 10*time.Second {
		t.Errorf("interval %v, want a third of 30 s", got)
	}
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()+1))
	if got := n.Watchdog(); got != 0 {
		t.Errorf("interval %v although another process is watched", got)
	}
	var log bytes.Buffer
	n = New(slog.New(slog.NewTextHandler(&log, nil)))
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", "soon")
	if got := n.Watchdog(); got != 0 || log.Len() == 0 {
		t.Errorf("interval %v of nonsense, logged %q", got, log.String())
	}
}

// Without a service manager nothing happens; with one that is gone the log says so.
func TestNobodyListens(t *testing.T) {
	var log bytes.Buffer
	n := New(slog.New(slog.NewTextHandler(&log, nil)))
	t.Setenv("NOTIFY_SOCKET", "")
	n.Ready()
	if log.Len() > 0 {
		t.Errorf("logged %q", log.String())
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	n.Ready()
	if !strings.Contains(log.String(), "cannot tell the service manager") {
		t.Errorf("logged %q", log.String())
	}
}
