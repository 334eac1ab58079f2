package admin

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSocketIsForOwnerAndGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "meshd.sock") // the folder is made
	serve(t, Options{Agent: &fakeAgent{}, Socket: path})
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != socketMode {
		t.Errorf("mode = %o, want %o", fi.Mode().Perm(), socketMode)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meshd.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as a killed agent leaves it
	l.Close()
	_, c := serve(t, Options{Agent: &fakeAgent{}, Socket: path})
	if _, err := c.Version(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSocketRefusals(t *testing.T) {
	dir := t.TempDir()
	alive := filepath.Join(dir, "alive.sock")
	serve(t, Options{Agent: &fakeAgent{}, Socket: alive})
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		alive: "another meshd answers",
		file:  "no socket is in the way",
		filepath.Join(dir, "no", "such", "folder", "s"): "make folder",
		filepath.Join(dir, strings.Repeat("x", 120)):    "longer than",
	} {
		_, err := New(Options{Agent: &fakeAgent{}, Socket: path})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New on %s = %v, want it to say %q", path, err, want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file in the way was touched: %q, %v", b, err)
	}
	if _, err := New(Options{Agent: &fakeAgent{}, Socket: filepath.Join(dir, "g.sock"), Group: "no-such-group"}); err == nil {
		t.Error("an unknown group is no error")
	}
}

func TestUnreachable(t *testing.T) {
	_, err := NewClient(filepath.Join(t.TempDir(), "none.sock")).Status(t.Context())
	var u *UnreachableError
	if !errors.As(err, &u) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Status = %v, want UnreachableError for a missing socket", err)
	}
}

// What exceeds the limit waits; a slot given back is used; Close frees a
// waiting Accept.
func TestLimit(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := limit(inner, 1)
	accepted := make(chan net.Conn)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 2 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	select {
	case <-accepted:
		t.Fatal("two connections with a limit of one")
	case <-time.After(20 * time.Millisecond):
	}
	first.Close()
	first.Close() // a second Close must not free a second slot
	select {      // kept open: the next Accept waits
	case <-accepted:
	case <-time.After(10 * time.Second):
		t.Fatal("the slot of a closed connection was not given back")
	}
	l.Close()
	<-ended
}
