package loop

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// running returns a loop that turns until the test ends.
func running(t testing.TB, o Options) *Loop {
	t.Helper()
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l
}

// on runs f on the loop and waits for it.
func on(t testing.TB, l *Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Post(func() { defer close(done); f() }) {
		t.Fatal("loop has ended")
	}
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("task did not run")
	}
}

func pair(t testing.TB) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

type handlerFunc func(Events)

func (f handlerFunc) Ready(ev Events) { f(ev) }

func TestPostFromManyGoroutines(t *testing.T) {
	l := running(t, Options{})
	const posters, each = 8, 500
	sum := 0 // written on the loop only: the race detector watches
	var wg sync.WaitGroup
	for range posters {
		wg.Go(func() {
			for i := range each {
				l.Post(func() { sum++ })
				if i%50 == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	wg.Wait()
	on(t, l, func() {
		if sum != posters*each {
			t.Errorf("%d tasks ran, want %d", sum, posters*each)
		}
	})
}

// A sleeping loop must wake for every single post: each waits for the one
// before, so a lost wake-up hangs.
func TestNoWakeUpIsLost(t *testing.T) {
	l := running(t, Options{})
	for range 5000 {
		on(t, l, func() {})
	}
}

func TestPostOrderAndPostFromTask(t *testing.T) {
	l := running(t, Options{})
	var order []int
	on(t, l, func() {
		l.Post(func() { order = append(order, 2) })
		order = append(order, 1)
	})
	on(t, l, func() { order = append(order, 3) })
	on(t, l, func() {
		for i, v := range order {
			if v != i+1 {
				t.Fatalf("order %v", order)
			}
		}
	})
}

func TestReadinessFollowsTheSocket(t *testing.T) {
	l := running(t, Options{})
	a, b := pair(t)
	got := make(chan Events, 16)
	on(t, l, func() {
		if err := l.Add(a, handlerFunc(func(ev Events) { got <- ev })); err != nil {
			t.Error(err)
		}
	})
	expect := func(want Events) {
		t.Helper()
		for {
			select {
			case ev := <-got:
				if ev&want == want {
					return
				}
			case <-time.After(patience):
				t.Fatalf("no event with bits %b", want)
			}
		}
	}
	expect(Writable)
	Write(b, []byte("hello"))
	expect(Readable)
	ShutdownWrite(b)
	expect(PeerClosed | Readable)
	Close(b)
	expect(Failed)
	on(t, l, func() { l.Drop(a) })
}

func TestAddRefusesWhatItCannotWatch(t *testing.T) {
	l := running(t, Options{})
	a, b := pair(t)
	file, err := os.Open("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	on(t, l, func() {
		h := handlerFunc(func(Events) {})
		if err := l.Add(a, h); err != nil {
			t.Error(err)
		}
		for fd, want := range map[int]error{a: unix.EEXIST, -1: unix.EBADF, 1 << 20: unix.EBADF, int(file.Fd()): unix.EPERM} {
			if err := l.Add(fd, h); !errors.Is(err, want) {
				t.Errorf("Add(%d) = %v, want %v", fd, err, want)
			}
		}
		l.Remove(a)
		l.Remove(a)
		l.Remove(1 << 20)
		if err := l.Add(a, h); err != nil {
			t.Errorf("Add after Remove: %v", err)
		}
		l.Drop(a)
		Close(b)
	})
}

// Two descriptors become ready in the same batch; whichever handler is first
// closes the other one and has its number used anew. The newcomer must not be
// told that it failed.
func TestStaleEventDoesNotReachTheNextOwner(t *testing.T) {
	l := running(t, Options{})
	type end struct{ fd, peer int }
	var ends [2]end
	var spare end
	ends[0].fd, ends[0].peer = pair(t)
	ends[1].fd, ends[1].peer = pair(t)
	spare.fd, spare.peer = pair(t)
	calls, stale := 0, 0
	on(t, l, func() {
		for i := range ends {
			other := &ends[1-i]
			l.Add(ends[i].fd, handlerFunc(func(ev Events) {
				if ev&Failed == 0 {
					return
				}
				if calls++; calls > 1 {
					return
				}
				l.Remove(other.fd)
				Close(other.fd)
				if err := unix.Dup3(spare.fd, other.fd, unix.O_CLOEXEC); err != nil {
					t.Error(err)
				}
				if err := l.Add(other.fd, handlerFunc(func(ev Events) {
					if ev&(Failed|PeerClosed) != 0 {
						stale++
					}
				})); err != nil {
					t.Error(err)
				}
			}))
		}
	})
	on(t, l, func() { Close(ends[0].peer); Close(ends[1].peer) })
	on(t, l, func() {})
	on(t, l, func() {
		if calls != 1 || stale != 0 {
			t.Errorf("%d failures seen, want 1; %d stale ones at the new owner, want 0", calls, stale)
		}
		l.Drop(ends[0].fd)
		l.Drop(ends[1].fd)
		Close(spare.fd)
		Close(spare.peer)
	})
}

func TestAgainComesInTheNextTurn(t *testing.T) {
	l := running(t, Options{})
	var turns []uint64
	done := make(chan struct{})
	var h handlerFunc
	h = func(ev Events) {
		if ev != Readable {
			t.Errorf("events %b, want those given to Again", ev)
		}
		turns = append(turns, l.Turns())
		if len(turns) == 100 {
			close(done)
			return
		}
		l.Again(h, Readable)
	}
	l.Post(func() { l.Again(h, Readable) })
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("an Again was forgotten")
	}
	for i := 1; i < len(turns); i++ {
		if turns[i] != turns[i-1]+1 {
			t.Fatalf("turns %v: want one call per turn", turns[:i+1])
		}
	}
}

// A handler that always has more must not keep others from running.
func TestBusyHandlerStarvesNobody(t *testing.T) {
	l := running(t, Options{})
	var stop atomic.Bool
	var h handlerFunc
	h = func(Events) {
		if !stop.Load() {
			l.Again(h, Readable)
		}
	}
	l.Post(func() { l.Again(h, Readable) })
	a, b := pair(t)
	got := make(chan struct{}, 64)
	on(t, l, func() {
		l.Add(a, handlerFunc(func(ev Events) {
			if ev&Readable != 0 {
				got <- struct{}{}
			}
		}))
	})
	Write(b, []byte("x"))
	expired := make(chan struct{})
	tm := &Timer{Owner: expirerFunc(func(*Timer) { close(expired) })}
	on(t, l, func() { l.Arm(tm, l.Now()+int64(20*time.Millisecond)) })
	for _, c := range []<-chan struct{}{got, expired} {
		select {
		case <-c:
		case <-time.After(patience):
			t.Fatal("starved")
		}
	}
	stop.Store(true)
	on(t, l, func() { l.Drop(a); Close(b) })
}

type expirerFunc func(*Timer)

func (f expirerFunc) Expired(t *Timer) { f(t) }

func TestTimerOfRealLoop(t *testing.T) {
	l := running(t, Options{})
	const span = 50 * time.Millisecond
	done := make(chan time.Duration, 1)
	tm := &Timer{}
	on(t, l, func() {
		due := l.Now() + int64(span)
		tm.Owner = expirerFunc(func(*Timer) { done <- time.Duration(Monotonic() - due) })
		l.Arm(tm, due)
	})
	select {
	case late := <-done:
		if late < 0 || late > time.Second { // a busy machine may be late, never early
			t.Errorf("expired %v after it was due", late)
		}
	case <-time.After(patience):
		t.Fatal("timer did not expire")
	}
}

// An idle loop with a far timer sleeps: a wake-up per tick would be 250 a
// second and host.
func TestIdleLoopSleeps(t *testing.T) {
	l := running(t, Options{})
	tm := &Timer{Owner: expirerFunc(func(*Timer) { t.Error("expired") })}
	on(t, l, func() { l.Arm(tm, l.Now()+int64(time.Hour)) })
	before := l.Turns()
	time.Sleep(300 * time.Millisecond) // real time is what is measured
	if n := l.Turns() - before; n > 2 {
		t.Errorf("%d turns in 300 ms of nothing to do", n)
	}
	on(t, l, func() { l.Disarm(tm) })
}

func TestLoad(t *testing.T) {
	l := running(t, Options{})
	deadline := Monotonic() + int64(patience)
	for l.Load() < 0.3 {
		if Monotonic() > deadline {
			t.Fatalf("load %.2f of a loop that spins", l.Load())
		}
		on(t, l, func() {
			for end := Monotonic() + 20e6; Monotonic() < end; {
			}
		})
	}
	for l.Load() > 0.05 {
		if Monotonic() > deadline {
			t.Fatalf("load %.2f of a loop that sleeps", l.Load())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestTurnHooks(t *testing.T) {
	var starts, ends atomic.Int64
	l := running(t, Options{TurnStart: func() { starts.Add(1) }, TurnEnd: func() { ends.Add(1) }})
	on(t, l, func() {
		if starts.Load() != ends.Load()+1 {
			t.Errorf("in a turn: %d starts, %d ends", starts.Load(), ends.Load())
		}
	})
	before := l.Turns()
	on(t, l, func() {})
	on(t, l, func() {})
	if l.Turns() <= before {
		t.Error("an empty task forced no turn")
	}
}

// Run ends with the context, runs what was posted before, refuses what comes
// later, and closes what it opened.
func TestEnd(t *testing.T) {
	before := descriptors(t)
	l, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var posted, ran atomic.Int64
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for l.Post(func() { ran.Add(1) }) {
				posted.Add(1)
				runtime.Gosched()
			}
		})
	}
	for ran.Load() < 100 {
		runtime.Gosched()
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if posted.Load() != ran.Load() {
		t.Errorf("%d tasks accepted, %d ran", posted.Load(), ran.Load())
	}
	if l.Post(func() {}) {
		t.Error("Post after the end says that it will run")
	}
	l.Close()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestCloseWithoutRun(t *testing.T) {
	before := descriptors(t)
	l, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if after := descriptors(t); after != before || l.Post(func() {}) {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestContextDoneBeforeRun(t *testing.T) {
	l, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestPool(t *testing.T) {
	var p pool
	for _, n := range []int{0, 1, 4096, 4097, 65536, 262144, 300000} {
		b := p.get(n)
		if len(b) != 0 || cap(b) < n {
			t.Errorf("get(%d): len %d cap %d", n, len(b), cap(b))
		}
	}
	b := p.get(100)
	b = append(b, "left over"...)
	p.put(b)
	if c := p.get(5); len(c) != 0 || &c[:1][0] != &b[0] {
		t.Error("the buffer did not come back, or not empty")
	}
	p.put(make([]byte, 5000)) // of no class
	p.put(nil)
	for range 3 * poolBytes / classes[3] {
		p.put(make([]byte, 0, classes[3]))
	}
	if n := len(p.free[3]) * classes[3]; n != poolBytes {
		t.Errorf("pool keeps %d bytes of a class, want at most %d", n, poolBytes)
	}
}

// echo answers what it reads, on the loop. It keeps what the socket did not
// take, as every handler must.
type echo struct {
	l       *Loop
	fd      int
	pending []byte // of buffer
	buffer  []byte
}

func (e *echo) Ready(Events) {
	for {
		for len(e.pending) > 0 {
			n, errno := Write(e.fd, e.pending)
			if errno == syscall.EAGAIN {
				return
			}
			if errno != 0 {
				e.l.Drop(e.fd)
				return
			}
			e.pending = e.pending[n:]
		}
		n, errno := Read(e.fd, e.l.Scratch())
		if errno == syscall.EAGAIN {
			return
		}
		if n == 0 || errno != 0 {
			e.l.Drop(e.fd)
			return
		}
		e.buffer = append(e.buffer[:0], e.l.Scratch()[:n]...)
		e.pending = e.buffer
	}
}

func echoServer(t testing.TB, l *Loop, addr string) netip.AddrPort {
	t.Helper()
	fd, bound, err := Listen(netip.MustParseAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	on(t, l, func() {
		if err := l.Add(fd, handlerFunc(func(Events) {
			for {
				c, _, errno := Accept(fd)
				if errno != 0 {
					return
				}
				if err := l.Add(c, &echo{l: l, fd: c}); err != nil {
					t.Error(err)
				}
			}
		})); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { on(t, l, func() { l.Drop(fd) }) })
	return bound
}

// Bulk both ways over real sockets: edge-triggered readiness must lose nothing
// when buffers fill up.
func TestEchoBulk(t *testing.T) {
	l := running(t, Options{ReadBuffer: 16 << 10})
	addr := echoServer(t, l, "127.0.0.1:0")
	const size = 8 << 20
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c, err := net.Dial("tcp", addr.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			go func() { // ends with the write or with the connection
				buf := make([]byte, 64<<10)
				for i := range buf {
					buf[i] = byte(i)
				}
				for sent := 0; sent < size; sent += len(buf) {
					if _, err := c.Write(buf); err != nil {
						t.Error(err)
						return
					}
				}
			}()
			got := make([]byte, size)
			if _, err := io.ReadFull(c, got); err != nil {
				t.Error(err)
				return
			}
			for i, v := range got {
				if v != byte(i) {
					t.Errorf("byte %d is %d", i, v)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkPostRoundTrip(b *testing.B) {
	l := running(b, Options{})
	done := make(chan struct{}, 1)
	f := func() { done <- struct{}{} }
	b.ReportAllocs()
	for b.Loop() {
		l.Post(f)
		<-done
	}
}

// The client is another loop, so that what is measured is ours. 64 bytes, 32
// connections.
func BenchmarkEcho(b *testing.B) {
	server, client := running(b, Options{}), running(b, Options{Index: 1})
	addr := echoServer(b, server, "127.0.0.1:0")
	const conns = 32
	left := 0
	done := make(chan struct{}, 1)
	var fds [conns]int
	message := make([]byte, 64)
	on(b, client, func() {
		for i := range fds {
			fd, _, err := Connect(addr)
			if err != nil {
				b.Error(err)
				return
			}
			fds[i] = fd
			started := false
			client.Add(fd, handlerFunc(func(ev Events) {
				if !started {
					started = ev&Writable != 0
					if started {
						done <- struct{}{}
					}
					return
				}
				for {
					if n, _ := Read(fd, client.Scratch()); n < len(message) {
						return
					}
					if left--; left >= 0 {
						Write(fd, message)
					} else if left == -conns {
						done <- struct{}{}
					}
				}
			}))
			client.Post(func() {})
		}
	})
	for range conns {
		<-done
	}
	b.ReportAllocs()
	b.ResetTimer()
	client.Post(func() {
		left = b.N
		for _, fd := range fds {
			Write(fd, message)
		}
	})
	<-done
	b.StopTimer()
	on(b, client, func() {
		for _, fd := range fds {
			client.Drop(fd)
		}
	})
}
