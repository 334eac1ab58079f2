package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"

	"meshd/internal/mesh"
)

var (
	plainRequest = []byte("GET /v1/items?limit=10 HTTP/1.1\r\nHost: world.mesh.internal\r\nUser-Agent: bench/1\r\n" +
		"Accept: */*\r\nAccept-Encoding: gzip\r\nTraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n" +
		"X-Request-Id: 0123456789abcdef\r\nCookie: session=abcdef\r\n\r\n")
	plainResponse = append([]byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1024\r\n"+
		"Date: Fri, 20 Nov 2026 00:00:00 GMT\r\nServer: app\r\n\r\n"), bytes.Repeat([]byte("x"), 1024)...)
)

// plainApp answers every plainRequest-like request without looking at it much
// and without allocating, so that a profile shows the agents only.
func plainApp(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 16<<10)
				n := 0
				for {
					k, err := c.Read(buf[n:])
					if err != nil {
						return
					}
					n += k
					for {
						i := bytes.Index(buf[:n], []byte("\r\n\r\n"))
						if i < 0 {
							break
						}
						n = copy(buf, buf[i+4:n])
						if _, err := c.Write(plainResponse); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return mustAddr(l.Addr())
}

// plainClient sends one request after the other and reads whole answers.
type plainClient struct {
	c   net.Conn
	r   *bufio.Reader
	buf []byte
}

func dialPlain(t testing.TB, addr string) *plainClient {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &plainClient{c: c, r: bufio.NewReaderSize(c, 8<<10), buf: make([]byte, 1024)}
}

func (p *plainClient) once() error {
	if _, err := p.c.Write(plainRequest); err != nil {
		return err
	}
	status, err := p.r.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200")) {
		return fmt.Errorf("answer %q", status)
	}
	for {
		line, err := p.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			break
		}
	}
	_, err = io.ReadFull(p.r, p.buf)
	return err
}

// BenchmarkExchange is one request of 8 fields and 1 KiB of answer through two
// agents in this process, client and application included.
func BenchmarkExchange(b *testing.B) {
	for _, conns := range []int{1, 64} {
		b.Run(fmt.Sprint(conns, "conns"), func(b *testing.B) {
			p := newPair(b, 1, mesh.HTTP, plainApp(b))
			clients := make([]*plainClient, conns)
			for i := range clients {
				clients[i] = dialPlain(b, p.addr)
				if err := clients[i].once(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for i, c := range clients {
				n := b.N / conns
				if i < b.N%conns {
					n++
				}
				wg.Go(func() {
					for range n {
						if err := c.once(); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// TestNoAllocationPerRequest records every allocation while requests pass and
// names each place in our packages that made one. crypto/tls may allocate a
// little per wake-up of a link; we do not.
func TestNoAllocationPerRequest(t *testing.T) {
	old := runtime.MemProfileRate
	runtime.MemProfileRate = 1
	defer func() { runtime.MemProfileRate = old }()
	p := newPair(t, 1, mesh.HTTP, plainApp(t))
	const conns, warm, counted = 8, 200, 500
	clients := make([]*plainClient, conns)
	for i := range clients {
		clients[i] = dialPlain(t, p.addr)
	}
	run := func(each int) {
		var wg sync.WaitGroup
		for _, c := range clients {
			wg.Go(func() {
				for range each {
					if err := c.once(); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	run(warm)
	before := sites(t)
	run(counted)
	after := sites(t)
	ours, all := int64(0), int64(0)
	for site, n := range after {
		n -= before[site]
		if n <= 0 {
			continue
		}
		all += n
		if n > counted/10 {
			t.Logf("%d objects at %s", n, site)
		}
		if strings.Contains(site, "meshd/internal/") && !strings.Contains(site, "_test.go") {
			ours += n
			t.Logf("%d objects at %s", n, site)
		}
	}
	t.Logf("%d requests: %d objects at our sites, %d in all", conns*counted, ours, all)
	if raceEnabled {
		return // the race detector makes some values escape that otherwise do not
	}
	// A slice of the worker may still grow to its size once.
	if ours > conns*counted/1000 {
		t.Errorf("%d objects allocated at our sites in %d requests", ours, conns*counted)
	}
}

// sites counts the objects allocated so far by the innermost frame that is not
// the runtime's.
func sites(t *testing.T) map[string]int64 {
	t.Helper()
	// Profiles are published by the collector, two cycles late.
	runtime.GC()
	runtime.GC()
	records := make([]runtime.MemProfileRecord, 20000)
	n, ok := runtime.MemProfile(records, true)
	if !ok {
		t.Fatalf("%d allocation sites are more than the test reads", n)
	}
	out := make(map[string]int64)
	for _, r := range records[:n] {
		frames := runtime.CallersFrames(r.Stack())
		for {
			f, more := frames.Next()
			if !strings.HasPrefix(f.Function, "runtime.") && f.Function != "" {
				out[fmt.Sprintf("%s %s:%d", f.Function, f.File, f.Line)] += r.AllocObjects
				break
			}
			if !more {
				break
			}
		}
	}
	return out
}
