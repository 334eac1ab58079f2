package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"meshd/internal/http1"
	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/telemetry"
)

// course is what happens in one exchange; client and application make the same
// one from its seed.
type course struct {
	seed        uint64
	up, down    int  // bytes of the bodies
	upChunked   bool // else content-length
	downFraming int  // 0 content-length, 1 chunked, 2 until close
	early       bool // the application answers before it has read the body
	appCut      int  // bytes of the answer's body after which the application resets; -1 is never
	clientCut   int  // bytes of the request's body after which the client resets; -1 is never
	clientStops int  // bytes of the answer's body after which the client resets; -1 is never
	interim     bool
}

func newCourse(seed uint64) course {
	r := rand.New(rand.NewPCG(seed, 7))
	c := course{seed: seed, appCut: -1, clientCut: -1, clientStops: -1}
	size := func() int {
		if r.IntN(4) == 0 {
			return 0
		}
		return r.IntN(1 << (1 + r.IntN(20)))
	}
	c.up, c.down = size(), size()
	c.upChunked = r.IntN(2) == 0
	c.downFraming = r.IntN(3)
	c.early = r.IntN(8) == 0
	c.interim = r.IntN(4) == 0
	switch r.IntN(10) {
	case 0:
		c.appCut = r.IntN(c.down + 1)
		c.down++ // so that something is missing
	case 1:
		c.clientCut = r.IntN(c.up + 1)
		c.up++
	case 2:
		c.clientStops = r.IntN(c.down + 1)
		c.down++
	}
	return c
}

// at fills p with the body from octet from on: each octet tells where it is.
func (c course) at(p []byte, from int, back bool) {
	for i := range p {
		n := uint64(from + i)
		p[i] = byte(n*7 + n>>8 + c.seed)
		if back {
			p[i] = ^p[i]
		}
	}
}

// write sends n octets of a body in pieces of random sizes, now and then with a
// pause.
func (c course) write(w io.Writer, r *rand.Rand, n int, back, chunked bool) error {
	for from := 0; from < n; {
		k := min(n-from, 1+r.IntN(1<<(1+r.IntN(17))))
		p := make([]byte, k)
		c.at(p, from, back)
		from += k
		if chunked {
			p = http1.AppendChunk(nil, p)
		}
		for len(p) > 0 { // chunks are cut anywhere
			k := len(p)
			if r.IntN(2) == 0 {
				k = 1 + r.IntN(len(p))
			}
			if _, err := w.Write(p[:k]); err != nil {
				return err
			}
			p = p[k:]
		}
		if r.IntN(20) == 0 {
			time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
		}
	}
	return nil
}

// read checks up to n octets of a body, all if n is negative, and returns how
// many there were.
func (c course) read(b io.Reader, back bool, n int) (got int, err error) {
	p, want := make([]byte, 32<<10), make([]byte, 32<<10)
	for n < 0 || got < n {
		k := len(p)
		if n >= 0 {
			k = min(k, n-got)
		}
		k, err = b.Read(p[:k])
		c.at(want[:k], got, back)
		if !bytes.Equal(p[:k], want[:k]) {
			return got, errors.New("the wrong octets")
		}
		got += k
		if err != nil {
			break
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return got, err
}

func abort(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// randomApp answers the requests of one connection as their courses say.
func randomApp(t *testing.T, conn *net.TCPConn) {
	defer conn.Close()
	br := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		seed, _ := strconv.ParseUint(req.URL.Path[1:], 10, 64)
		c := newCourse(seed)
		r := rand.New(rand.NewPCG(seed, 8))
		if !c.early {
			n, err := c.read(req.Body, false, -1)
			if err != nil {
				if c.clientCut < 0 && c.clientStops < 0 {
					t.Errorf("%d: the application got %d of %d octets: %v", seed, n, c.up, err)
				}
				return
			}
			if n != c.up {
				t.Errorf("%d: the application got %d octets as a whole request, want %d", seed, n, c.up)
			}
		}
		var head string
		if c.interim {
			head = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
		}
		head += "HTTP/1.1 200 OK\r\n"
		if c.early {
			head += "connection: close\r\n" // else the next POST could meet the end
		}
		switch c.downFraming {
		case 0:
			head += fmt.Sprintf("content-length: %d\r\n", c.down)
		case 1:
			head += "transfer-encoding: chunked\r\n"
		}
		if _, err := io.WriteString(conn, head+"\r\n"); err != nil {
			return
		}
		n := c.down
		if c.appCut >= 0 {
			n = c.appCut
		}
		if c.write(conn, r, n, true, c.downFraming == 1) != nil {
			return
		}
		switch {
		case c.appCut >= 0:
			abort(conn)
			return
		case c.downFraming == 1:
			if _, err := io.WriteString(conn, "0\r\n\r\n"); err != nil {
				return
			}
		}
		if c.early {
			conn.CloseWrite()
			io.Copy(io.Discard, conn)
			return
		}
		if c.downFraming == 2 {
			return
		}
	}
}

// tally is what clients saw.
type tally struct {
	mu                    sync.Mutex
	whole, cut, abandoned int
}

func (s *tally) add(n *int) {
	s.mu.Lock()
	*n++
	s.mu.Unlock()
}

// ask performs one exchange on conn. It reports whether the connection may
// serve another.
func ask(t *testing.T, conn *net.TCPConn, br *bufio.Reader, c course, seen *tally) bool {
	r := rand.New(rand.NewPCG(c.seed, 9))
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	sent := make(chan error, 1)
	go func() {
		head := fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: x\r\n", c.seed)
		if c.upChunked {
			head += "Transfer-Encoding: chunked\r\n\r\n"
		} else {
			head += fmt.Sprintf("Content-Length: %d\r\n\r\n", c.up)
		}
		_, err := io.WriteString(conn, head)
		n := c.up
		if c.clientCut >= 0 {
			n = c.clientCut
		}
		if err == nil {
			err = c.write(conn, r, n, false, c.upChunked)
		}
		if c.clientCut >= 0 {
			abort(conn)
		} else if err == nil && c.upChunked {
			_, err = io.WriteString(conn, "0\r\n\r\n")
		}
		sent <- err
	}()
	resp, err := http.ReadResponse(br, nil)
	for err == nil && resp.StatusCode == 103 {
		resp, err = http.ReadResponse(br, nil)
	}
	if c.clientCut >= 0 {
		<-sent
		seen.add(&seen.abandoned)
		return false
	}
	if err != nil && c.appCut >= 0 && errors.Is(err, syscall.ECONNRESET) {
		seen.add(&seen.cut)
		return false
	}
	if err != nil {
		t.Errorf("%d: no answer: %v", c.seed, err)
		return false
	}
	if resp.StatusCode != 200 {
		// The application's reset may overtake its head.
		if c.appCut < 0 || resp.Header.Get("meshd-error") != "local_reset" {
			t.Errorf("%d: %d %s", c.seed, resp.StatusCode, resp.Header.Get("meshd-error"))
		}
		seen.add(&seen.cut)
		return false
	}
	if c.clientStops >= 0 {
		c.read(resp.Body, true, c.clientStops)
		abort(conn)
		<-sent
		seen.add(&seen.abandoned)
		return false
	}
	n, err := c.read(resp.Body, true, -1)
	switch {
	case c.appCut >= 0:
		if err == nil || n > c.appCut {
			t.Errorf("%d: %d octets seem whole, %v", c.seed, n, err)
		}
		seen.add(&seen.cut)
	case err != nil || n != c.down:
		t.Errorf("%d: got %d of %d octets, %v", c.seed, n, c.down, err)
	default:
		seen.add(&seen.whole)
	}
	if err != nil || resp.Close {
		conn.Close()
		<-sent
		return false
	}
	return <-sent == nil
}

// TestRandomExchanges runs many exchanges at once whose bodies come in pieces
// of any size, with pauses, and which either side may reset at any octet. Every
// octet must arrive once and in order, an incomplete message must be seen as
// one, each exchange is recorded once by its outcome, and nothing is left.
func TestRandomExchanges(t *testing.T) {
	meshtest.Leaks(t)
	for _, loops := range []int{1, 2} {
		t.Run(fmt.Sprint(loops, " loops"), func(t *testing.T) {
			app := newRawApp(t)
			var apps sync.WaitGroup
			apps.Go(func() {
				for c := range app.conns {
					apps.Go(func() { randomApp(t, c) })
				}
			})
			p := newPair(t, loops, mesh.HTTP, mustAddr(app.Addr()), func(a, _ *mesh.Spec) {
				a.Upstreams[0].Breaker.ConsecutiveFailures = 0
				a.Upstreams[0].RequestTimeout = 25 * time.Second
			})
			const clients, each = 24, 25
			var seen tally
			first := rand.Uint64() >> 20
			t.Logf("seeds from %d", first)
			var all sync.WaitGroup
			for g := range clients {
				all.Go(func() {
					var conn *net.TCPConn
					var br *bufio.Reader
					for i := range each {
						if conn == nil {
							c, err := net.Dial("tcp", p.addr)
							if err != nil {
								t.Error(err)
								return
							}
							conn, br = c.(*net.TCPConn), bufio.NewReader(c)
						}
						if !ask(t, conn, br, newCourse(first+uint64(g*each+i)), &seen) {
							conn.Close()
							conn = nil
						}
					}
					if conn != nil {
						conn.Close()
					}
				})
			}
			all.Wait()
			p.calm()
			count := p.a.telemetry.Series(telemetry.Outbound, "world", "http").Totals()
			t.Logf("clients saw %d whole, %d cut, abandoned %d; %s outbound, %s inbound", seen.whole, seen.cut, seen.abandoned,
				p.a.counted(telemetry.Outbound), p.b.counted(telemetry.Inbound))
			ok, reset, gone := int(count.ByOutcome[OK]), int(count.ByOutcome[LocalReset]), int(count.ByOutcome[ClientClosed])
			if reset != seen.cut {
				t.Errorf("%d exchanges recorded as reset, clients saw %d", reset, seen.cut)
			}
			// What a client abandoned may have been complete, or unknown, to us.
			if ok < seen.whole || ok > seen.whole+seen.abandoned || ok+gone > seen.whole+seen.abandoned {
				t.Errorf("%d exchanges recorded as ok, %d as abandoned; clients saw %d whole and abandoned %d", ok, gone, seen.whole, seen.abandoned)
			}
			if int(count.Requests) != ok+reset+gone {
				t.Errorf("other outcomes: %s", p.a.counted(telemetry.Outbound))
			}
			app.Close()
			p.a.end()
			p.b.end()
			apps.Wait()
		})
	}
}
