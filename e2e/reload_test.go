package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"meshd/internal/admin"
	"meshd/internal/meshtest"
)

// stream is an open TCP connection through the mesh to an application that
// gives back what it gets. Blocks of random length go out with their checksum
// and have to come back as they were.
type stream struct {
	conn   net.Conn
	blocks int
	bytes  int64
	err    error
}

const streamPause = 5 * time.Millisecond

// run talks until stop is closed, then half-closes and reads to the end.
func (s *stream) run(seed uint64, stop <-chan struct{}) {
	defer s.conn.Close()
	random := rand.New(rand.NewPCG(seed, 2))
	in := bufio.NewReader(s.conn)
	block := make([]byte, 16<<10)
	for {
		select {
		case <-stop:
			if s.err = s.conn.(*net.TCPConn).CloseWrite(); s.err == nil {
				_, s.err = in.ReadByte()
			}
			if s.err == io.EOF {
				s.err = nil // the application's own end, after ours
			} else if s.err == nil {
				s.err = fmt.Errorf("bytes after the end")
			}
			return
		case <-time.After(streamPause):
		}
		n := 8 + random.IntN(len(block)-8)
		for i := 8; i < n; i++ {
			block[i] = byte(random.Uint32())
		}
		binary.BigEndian.PutUint32(block, uint32(n))
		binary.BigEndian.PutUint32(block[4:], crc32.ChecksumIEEE(block[8:n]))
		s.conn.SetDeadline(time.Now().Add(patience))
		if _, s.err = s.conn.Write(block[:n]); s.err != nil {
			return
		}
		back := make([]byte, n)
		if _, s.err = io.ReadFull(in, back); s.err != nil {
			return
		}
		if m := binary.BigEndian.Uint32(back); int(m) != n || crc32.ChecksumIEEE(back[8:]) != binary.BigEndian.Uint32(back[4:]) {
			s.err = fmt.Errorf("block %d came back changed", s.blocks)
			return
		}
		s.blocks++
		s.bytes += int64(n)
	}
}

// startStreams opens n streams to address; the function it returns ends them
// and wants that none was dropped.
func startStreams(t *testing.T, address string, n int) (finish func()) {
	t.Helper()
	stop := make(chan struct{})
	var all sync.WaitGroup // finish waits for every stream
	streams := make([]stream, n)
	for i := range streams {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		streams[i].conn = c
		all.Go(func() { streams[i].run(uint64(i), stop) })
	}
	end := sync.OnceFunc(func() { close(stop); all.Wait() })
	t.Cleanup(end)
	return func() {
		t.Helper()
		end()
		dropped, blocks, bytes := 0, 0, int64(0)
		for i := range streams {
			s := &streams[i]
			blocks, bytes = blocks+s.blocks, bytes+s.bytes
			if s.err != nil || s.blocks == 0 {
				dropped++
				t.Errorf("stream %d after %d blocks: %v", i, s.blocks, s.err)
			}
		}
		t.Logf("streams: %d open, %d dropped, %d blocks with checksums, %d MiB each way", n, dropped, blocks, bytes>>20)
	}
}

// A hundred reloads that add, change and remove an upstream, while 500
// requests a second and twenty open streams use two others.
func TestHundredReloadsUnderLoad(t *testing.T) {
	const reloads, rps, streams = 100, 500, 20
	api, echo := meshtest.HTTPEcho(t, "api"), meshtest.TCPEcho(t, "echo")
	ca := devCA(t)
	b := newHost(t, "host-b", ca)
	b.start(offer("api", api.Port(), "http", "", "web") + offer("echo", echo.Port(), "tcp", "", "web"))
	a := newHost(t, "host-a", ca)
	same := offer("web", 9, "http", "", "api") + call("api", "http", "") + call("echo", "tcp", "")
	port := meshtest.FreePort(t)
	files := []string{
		same + static(at("api", b.peer), at("echo", b.peer)),
		// Added, and its catalog entry with it.
		same + call("other", "http", fmt.Sprintf("destination_name = \"api\"\n local_bind_port = %d", port)) +
			static(at("api", b.peer), at("echo", b.peer), at("more", b.peer)),
		// Changed.
		same + call("other", "http", "destination_name = \"api\"\n request_timeout = \"3s\"\n limits { max_connections = 7 }") +
			static(at("api", b.peer), at("echo", b.peer)),
	}
	a.start(files[0])
	a.awaitReady()
	b.awaitReady()
	// What the agent opens for the first request and reload stays.
	expectApp(t, a.url("api"), "api")
	for _, f := range files[1:] {
		a.write(f)
		if code, _, errs := a.ctl("reload"); code != 0 {
			t.Fatal(errs)
		}
		expectApp(t, a.url("other"), "api")
	}
	a.write(files[0])
	a.ctl("reload")
	before := settled(t, a)
	beforeB := settled(t, b)

	l := startLoad(t, a.url("api"), rps)
	finish := startStreams(t, a.address("echo"), streams)
	l.await(rps / 2)
	client := admin.NewClient(a.socket())
	var slowest time.Duration
	begin := time.Now()
	for i := range reloads {
		a.write(files[(i+1)%len(files)])
		asked := time.Now()
		res, err := client.Reload(context.Background())
		if err != nil || !res.Applied || len(res.Changes) == 0 {
			t.Fatalf("reload %d: %+v, %v", i, res, err)
		}
		slowest = max(slowest, time.Since(asked))
		if i%len(files) != 2 {
			expectApp(t, a.url("other"), "api")
		}
	}
	took := time.Since(begin)
	l.await(rps / 2)
	finish()
	l.finish()
	t.Logf("%d reloads in %s, slowest %s", reloads, took.Round(time.Millisecond), slowest.Round(time.Millisecond))

	// Back to the file of the beginning, and to what was open then.
	a.write(files[0])
	if code, _, errs := a.ctl("reload"); code != 0 {
		t.Fatal(errs)
	}
	for _, c := range []struct {
		h      *host
		before footprint
	}{{a, before}, {b, beforeB}} {
		var now footprint
		c.h.eventually("goroutines and descriptors are back", func() error {
			if now = footprintOf(c.h); now.goroutines > c.before.goroutines+scrapeWorkers || now.descriptors > c.before.descriptors || now.callers > 0 {
				return fmt.Errorf("before %+v, now %+v, open: %v", c.before, now, c.h.opened())
			}
			return nil
		})
		links := c.h.metric("meshd_links")
		t.Logf("%s: before %+v, after %+v, kept for the next request: %g links, %g connections",
			c.h.name, c.before, now, links, c.h.metric("meshd_connections_active"))
		if most := 2.0 * 2 * 4; links > most { // services, loops, links that one loop keeps to one peer
			t.Errorf("%s keeps %g links, want at most %g", c.h.name, links, most)
		}
	}
	a.stop()
	b.stop()
}

// scrapeWorkers is how many goroutines more one scrape may count than another:
// the Prometheus registry asks its three collectors (ours, Go's, the
// process's) by one to three workers, as their answers are slow or quick, and
// the goroutines are counted while they run. What a reload or a stream left
// behind would be there a hundred or twenty times.
const scrapeWorkers = 2

// footprint is what an agent holds. Links and connections to applications are
// kept for the next request and counted by the agent itself, so descriptors
// are those that nobody accounts for.
type footprint struct{ goroutines, descriptors, callers int }

func footprintOf(h *host) footprint {
	kept := h.metric("meshd_links") + h.metric("meshd_connections_active")
	return footprint{
		int(h.metric("go_goroutines")), h.descriptors() - int(kept),
		int(h.metric("meshd_connections_active", `direction="outbound"`)),
	}
}

// settled returns the least that the host holds during a while: the questions
// themselves come and go.
func settled(t *testing.T, h *host) footprint {
	t.Helper()
	least := footprintOf(h)
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		now := footprintOf(h)
		least.goroutines = min(least.goroutines, now.goroutines)
		least.descriptors = min(least.descriptors, now.descriptors)
		least.callers = min(least.callers, now.callers)
	}
	return least
}
