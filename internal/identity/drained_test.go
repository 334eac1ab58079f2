package identity

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

// The data path reads a link's TLS connection when its loop says that bytes
// are there, over a net.Conn that cannot wait: Read says "try again" when the
// socket is drained, Write only appends to a buffer. crypto/tls promises this
// nowhere. The tests below pin it, so that a Go release which changes it fails
// here and not in somebody's traffic.

// tryAgain is what the connection answers when drained: a net.Error that is
// Temporary. crypto/tls keeps every other error for ever.
type tryAgain struct{}

func (tryAgain) Error() string   { return "nothing to read yet" }
func (tryAgain) Timeout() bool   { return false }
func (tryAgain) Temporary() bool { return true }

var (
	errAgain  net.Error = tryAgain{}
	errSticky           = errors.New("nothing to read yet, and not temporary")
)

// drained is the connection. It starts as an ordinary one for the handshake
// and then reads from in and writes to out, as a link does when it moves to
// its loop.
type drained struct {
	net.Conn
	live  bool // the handshake is over
	in    []byte
	empty error // what Read answers when in is empty
	out   bytes.Buffer
}

func (d *drained) Read(p []byte) (int, error) {
	if !d.live {
		return d.Conn.Read(p)
	}
	if len(d.in) == 0 {
		return 0, d.empty
	}
	n := copy(p, d.in)
	d.in = d.in[n:]
	return n, nil
}

func (d *drained) Write(p []byte) (int, error) {
	if !d.live {
		return d.Conn.Write(p)
	}
	return d.out.Write(p)
}

// drainedPair gives both ends of a link after its handshake, by the store's
// own configurations. What one writes is in its out; to move it is up to the test.
func drainedPair(t testing.TB) (client, server *tls.Conn, c, s *drained) {
	t.Helper()
	ca := newCA(t, nil, nil)
	a, b := net.Pipe()
	c, s = &drained{Conn: a, empty: errAgain}, &drained{Conn: b, empty: errAgain}
	client = tls.Client(c, clientConfig(t, testStore(t, ca, "web"), "web", "payments"))
	server = tls.Server(s, testStore(t, ca, "payments").ServerConfig(every))
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	a.Close()
	b.Close()
	c.live, s.live = true, true
	return client, server, c, s
}

// wake reads until the connection is drained, as a loop does when it is told
// that bytes are there, and returns what ended it.
func wake(conn *tls.Conn, buf []byte, got *bytes.Buffer) error {
	for {
		n, err := conn.Read(buf)
		if got != nil {
			got.Write(buf[:n])
		}
		if err != nil {
			return err
		}
	}
}

func TestDrainedConnectionLosesNothing(t *testing.T) {
	client, server, c, s := drainedPair(t)
	r := rand.New(rand.NewPCG(1, 2))
	ends := []struct {
		from, to   *tls.Conn
		out, in    *drained
		sent, read bytes.Buffer
		way        []byte // written and not yet arrived
	}{
		{from: client, to: server, out: c, in: s},
		{from: server, to: client, out: s, in: c},
	}
	buf := make([]byte, 20<<10)
	drain := func(i int, n int) {
		t.Helper()
		e := &ends[i]
		e.way = append(e.way, e.out.out.Bytes()...)
		e.out.out.Reset()
		n = min(n, len(e.way))
		e.in.in = append(e.in.in, e.way[:n]...)
		e.way = e.way[n:]
		if err := wake(e.to, buf[:1+r.IntN(len(buf))], &e.read); err != errAgain {
			t.Fatalf("direction %d: Read ended with %v after %d octets", i, err, e.read.Len())
		}
		if len(e.in.in) != 0 {
			t.Fatal("Read said drained with octets left")
		}
	}
	for range 3000 {
		i := r.IntN(2)
		switch e := &ends[i]; r.IntN(8) {
		case 0: // more than one record
			p := make([]byte, 1+r.IntN(40<<10))
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			n, err := e.from.Write(p)
			if n != len(p) || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
			e.sent.Write(p)
		case 1: // a wake-up for nothing
			drain(i, 0)
		case 2, 3: // octets that end anywhere, in a record's header too
			drain(i, 1+r.IntN(8))
		default:
			drain(i, 1+r.IntN(20<<10))
		}
	}
	for i := range ends {
		for len(ends[i].way) > 0 || ends[i].out.out.Len() > 0 {
			drain(i, 1+r.IntN(4<<10))
		}
		if !bytes.Equal(ends[i].sent.Bytes(), ends[i].read.Bytes()) {
			t.Errorf("direction %d: %d octets sent, %d read, or others", i, ends[i].sent.Len(), ends[i].read.Len())
		}
		if ends[i].sent.Len() < 1<<20 {
			t.Errorf("direction %d: only %d octets were sent", i, ends[i].sent.Len())
		}
	}
}

// How a link ends over such a connection.
func TestDrainedConnectionEnds(t *testing.T) {
	buf := make([]byte, 1024)
	t.Run("close_notify", func(t *testing.T) {
		client, server, c, s := drainedPair(t)
		client.Write([]byte("last"))
		client.CloseWrite()
		var got bytes.Buffer
		whole := c.out.Bytes()
		for i := range whole {
			s.in = append(s.in, whole[i])
			want := error(errAgain)
			if i == len(whole)-1 {
				want = io.EOF
			}
			if err := wake(server, buf, &got); err != want {
				t.Fatalf("octet %d of %d: %v, want %v", i, len(whole), err, want)
			}
		}
		if got.String() != "last" {
			t.Errorf("read %q", got.String())
		}
		// The other direction still works: half-close.
		server.Write([]byte("answer"))
		c.in = append(c.in, s.out.Bytes()...)
		got.Reset()
		if err := wake(client, buf, &got); err != errAgain || got.String() != "answer" {
			t.Errorf("%q, %v", got.String(), err)
		}
	})
	// TLS 1.3 hides which record is an alert, so octets and the end never come
	// out of one Read. (With TLS 1.2 they do.)
	t.Run("octets, then the end", func(t *testing.T) {
		for _, missing := range []int{0, 1} {
			client, server, c, s := drainedPair(t)
			client.Write([]byte("last"))
			client.CloseWrite()
			s.in = c.out.Bytes()[:c.out.Len()-missing]
			want := error(io.EOF)
			if missing > 0 {
				want = errAgain
			}
			if n, err := server.Read(buf); string(buf[:n]) != "last" || err != nil {
				t.Errorf("alert without its last %d octets: Read = %q, %v", missing, buf[:n], err)
			}
			if n, err := server.Read(buf); n != 0 || err != want {
				t.Errorf("alert without its last %d octets: then Read = %d, %v, want %v", missing, n, err, want)
			}
		}
	})
	t.Run("cut", func(t *testing.T) {
		client, server, c, s := drainedPair(t)
		client.Write([]byte("last"))
		s.in = c.out.Bytes()[:c.out.Len()-1]
		if err := wake(server, buf, nil); err != errAgain {
			t.Fatal(err)
		}
		s.empty = io.EOF // the socket said so
		if err := wake(server, buf, nil); err != io.ErrUnexpectedEOF {
			t.Errorf("cut inside a record: %v", err)
		}
	})
	t.Run("forged", func(t *testing.T) {
		client, server, c, s := drainedPair(t)
		client.Write([]byte("last"))
		s.in = c.out.Bytes()
		s.in[len(s.in)-1] ^= 1
		err := wake(server, buf, nil)
		if err == errAgain || ReasonOf(err) != HandshakeFailed {
			t.Errorf("a forged record: %v", err)
		}
		if s.out.Len() == 0 {
			t.Error("no alert was written")
		}
	})
	// Why the error has to be Temporary.
	t.Run("another error stays", func(t *testing.T) {
		client, server, c, s := drainedPair(t)
		s.empty = errSticky
		if err := wake(server, buf, nil); err != errSticky {
			t.Fatal(err)
		}
		client.Write([]byte("later"))
		s.in = c.out.Bytes()
		if n, err := server.Read(buf); n != 0 || err == nil {
			t.Errorf("Read = %d, %v: crypto/tls keeps other errors no longer, so the data path may answer any", n, err)
		}
	})
}

// maxWakeAllocs is what crypto/tls may allocate for one wake-up of a link that
// brings up to a full record: one per filling of its buffer, and the filling
// that finds nothing is one too. The budget of the data path counts on it.
const maxWakeAllocs = 2

// maxBulkAllocs is for a wake-up that brings four full records, which is more
// than one filling takes. A wake-up then carries 64 KiB.
const maxBulkAllocs = 1 + 4

func TestDrainedReadAllocations(t *testing.T) {
	for _, c := range []struct {
		name    string
		records []int // plaintext octets of each record that came at once
		cut     int   // octets of the last record that come with the next wake-up
		max     float64
	}{
		{"nothing", nil, 0, 1},
		{"one small record", []int{100}, 0, maxWakeAllocs},
		{"one record of 1 KiB", []int{1 << 10}, 0, maxWakeAllocs},
		{"four small records", []int{100, 200, 300, 400}, 0, maxWakeAllocs},
		{"one full record", []int{16 << 10}, 0, maxWakeAllocs},
		{"four full records", []int{16 << 10, 16 << 10, 16 << 10, 16 << 10}, 0, maxBulkAllocs},
		{"small records, cut", []int{300, 300}, 100, maxWakeAllocs},
	} {
		t.Run(c.name, func(t *testing.T) {
			const runs = 50
			buf := make([]byte, 64<<10)
			client, server, cc, s := drainedPair(t)
			var wakes [][]byte
			for range runs + 2 {
				for _, n := range c.records {
					client.Write(buf[:n])
				}
				keep := max(cc.out.Len()-c.cut, 0)
				wakes = append(wakes, bytes.Clone(cc.out.Next(keep)))
			}
			run := func() {
				s.in = wakes[0]
				wakes = wakes[1:]
				if err := wake(server, buf, nil); err != errAgain {
					t.Fatal(err)
				}
			}
			run() // buffers grow once in the life of a link
			n := testing.AllocsPerRun(runs, run)
			t.Logf("%v allocations", n)
			if n > c.max {
				t.Errorf("%v allocations for one wake-up, want at most %v", n, c.max)
			}
		})
	}
}

func TestDrainedWriteAllocations(t *testing.T) {
	client, _, c, _ := drainedPair(t)
	p := make([]byte, 32<<10)
	n := testing.AllocsPerRun(50, func() {
		c.out.Reset()
		client.Write(p)
	})
	t.Logf("%v allocations for a flush of %d octets", n, len(p))
	if n > 1 {
		t.Errorf("%v allocations for one flush, want at most 1", n)
	}
}

func BenchmarkHandshake(b *testing.B) {
	b.ReportAllocs()
	ca := newCA(b, nil, nil)
	client := clientConfig(b, testStore(b, ca, "web"), "web", "payments")
	server := testStore(b, ca, "payments").ServerConfig(every)
	for b.Loop() {
		x, y := net.Pipe()
		x.SetDeadline(time.Now().Add(5 * time.Second))
		done := make(chan error, 1)
		go func() { done <- tls.Server(y, server).Handshake() }()
		if err := tls.Client(x, client).Handshake(); err != nil {
			b.Fatal(err)
		}
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		x.Close()
		y.Close()
	}
}

// BenchmarkWake is one wake-up that brings one record of 1 KiB.
func BenchmarkWake(b *testing.B) {
	client, server, c, s := drainedPair(b)
	buf := make([]byte, 64<<10)
	const batch = 1024
	var wakes [][]byte
	b.ReportAllocs()
	for range b.N { // b.Loop would have to stop its clock too often
		if len(wakes) == 0 {
			b.StopTimer()
			for range batch {
				client.Write(buf[:1024])
				wakes = append(wakes, bytes.Clone(c.out.Bytes()))
				c.out.Reset()
			}
			b.StartTimer()
		}
		s.in, wakes = wakes[0], wakes[1:]
		if err := wake(server, buf, nil); err != errAgain {
			b.Fatal(err)
		}
	}
}
