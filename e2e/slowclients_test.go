package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Clients that send a byte a second, never read, or open ten thousand
// connections cost the agent a bounded amount of memory and the others nothing.
func TestSlowAndManyClientsAreBounded(t *testing.T) {
	const (
		crowd = 10_000
		// What one waiting connection may cost, buffers of the kernel not
		// counted. The race detector keeps shadows of everything.
		perConnection = 8 << 10
		fewLimit      = 1024 // the default of limits { max_connections }
		idle          = 3 * time.Second
	)
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Cur < crowd+2000 {
		t.Fatalf("at most %d open files, the story needs %d: raise ulimit -n (%v)", files.Cur, crowd+2000, err)
	}
	more := `destination_name = "api"` + "\n"
	a, _, body, _ := pair(t, "")
	a.write(body + call("slow", "http", more+fmt.Sprintf("idle_timeout = %q", idle)) + call("few", "http", more) +
		call("many", "http", more+"limits { max_connections = 20000 }"))
	if code, _, stderr := a.ctl("reload"); code != 0 {
		t.Fatal(stderr)
	}
	for _, u := range []string{"api", "slow", "few", "many"} {
		expectApp(t, a.url(u), "api")
	}
	before := a.resident()
	l := startLoad(t, a.url("api"), 50)

	var all sync.WaitGroup // the test waits for every client below
	defer all.Wait()
	slow, unread := a.address("slow"), a.address("slow")
	all.Go(func() { oneByteASecond(t, slow) })
	all.Go(func() { neverReads(t, unread, idle) })

	few := openMany(t, a.address("few"), 2*fewLimit)
	open := few.alive()
	if open > fewLimit || open < fewLimit/2 {
		t.Errorf("limits: %d of %d connections are open, want at most %d", open, 2*fewLimit, fewLimit)
	}
	t.Logf("limits: %d of %d connections were served", open, 2*fewLimit)
	few.close()

	many := openMany(t, a.address("many"), crowd)
	many.each(func(c net.Conn) { io.WriteString(c, "GET / HTTP/1.1\r\nHost: ap") })
	a.eventually("all are held", func() error {
		if n := a.metric("meshd_connections_active", `name="many"`); n != crowd {
			return fmt.Errorf("%g connections", n)
		}
		return nil
	})
	grown := a.resident() - before
	t.Logf("%d connections with half a head: %d MiB before, %d MiB more with them and a client that does not read", crowd, before, grown)
	bound := crowd * perConnection >> 20
	if raceEnabled {
		bound *= 4
	}
	if grown > bound {
		t.Errorf("memory grew by %d MiB, want at most %d", grown, bound)
	}
	expectApp(t, a.url("many"), "api") // the crowd holds nobody up
	began := time.Now()
	a.eventually("the head timeout closes them", func() error {
		if n := a.metric("meshd_connections_active", `name="many"`); n != 0 {
			return fmt.Errorf("%g connections", n)
		}
		return nil
	})
	t.Logf("all were closed %s later", time.Since(began).Round(100*time.Millisecond))
	many.close()
	l.finish()
	if !a.running() {
		t.Error("the agent has ended")
	}
}

// oneByteASecond sends a head so slowly that it never ends.
func oneByteASecond(t *testing.T, address string) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	began := time.Now()
	ended := make(chan struct{})
	go func() { // ends with c
		defer close(ended)
		io.Copy(io.Discard, c)
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := 0; ; i++ {
		c.Write([]byte("GET / HTTP/1.1\r\nHost: api\r\nx-slow: 12345678901234567890"[i : i+1]))
		select {
		case <-ended:
			t.Logf("a byte a second: cut after %s", time.Since(began).Round(100*time.Millisecond))
			return
		case <-tick.C:
		}
		if time.Since(began) > patience {
			t.Errorf("a byte a second: still open after %s", patience)
			return
		}
	}
}

// neverReads asks for much more than fits all buffers and takes none of it.
func neverReads(t *testing.T, address string, idle time.Duration) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	began := time.Now()
	fmt.Fprintf(c, "GET /?size=%d HTTP/1.1\r\nHost: api\r\n\r\n", 256<<20)
	// A client that reads nothing notices the end by writing into it.
	for end := began.Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, err := c.Write([]byte("\r\n")); err != nil {
			took := time.Since(began)
			t.Logf("never reads: cut after %s, idle_timeout is %s", took.Round(100*time.Millisecond), idle)
			if took < idle {
				t.Errorf("never reads: cut before idle_timeout: %v", err)
			}
			return
		}
	}
	t.Errorf("never reads: still open after %s", patience)
}

// clients are many connections at once.
type clients []net.Conn

func openMany(t *testing.T, address string, n int) (list clients) {
	t.Helper()
	for range n {
		c, err := net.Dial("tcp", address)
		if errors.Is(err, syscall.ECONNRESET) {
			continue // over the limit: refused so quickly that connect saw it
		}
		if err != nil {
			t.Fatalf("connection %d: %v", len(list), err)
		}
		list = append(list, c)
	}
	t.Cleanup(list.close)
	return list
}

func (l clients) each(f func(net.Conn)) {
	for _, c := range l {
		f(c)
	}
}

func (l clients) close() { l.each(func(c net.Conn) { c.Close() }) }

// alive asks on each whether it is served.
func (l clients) alive() (n int) {
	for _, c := range l {
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "HEAD / HTTP/1.1\r\nHost: api\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "HEAD"})
		if err == nil && res.StatusCode == 200 {
			n++
		}
	}
	return n
}
