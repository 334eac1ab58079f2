package loop

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxEvents bounds the batch of one turn. A larger one would let early
	// handlers of the batch wait for their flush behind hundreds of others.
	maxEvents = 512
	// defaultReadBuffer is one read of the shared buffer: large enough that
	// bulk data needs few system calls, small enough for the L2 cache.
	defaultReadBuffer = 256 << 10
)

// Events tells what a descriptor may be ready for. They are hints: a handler
// must cope with a call for which nothing is ready.
type Events uint32

// The events a handler is told of.
const (
	Readable   Events = 1 << iota // a read may give bytes or the end of the stream
	Writable                      // a write may take bytes
	PeerClosed                    // the peer will send no more (EPOLLRDHUP)
	Failed                        // error or hang-up in both directions (EPOLLERR, EPOLLHUP)
)

// Handler is told about one descriptor, on the loop's goroutine. Epoll is
// edge-triggered: a handler that stops before EAGAIN is not told again and
// must use [Loop.Again].
type Handler interface {
	Ready(ev Events)
}

// Options configure a loop.
type Options struct {
	Index int // shown by Index; counts from 0
	// ReadBuffer is the size of Scratch in bytes; 0 is 256 KiB.
	ReadBuffer int
	// TurnStart and TurnEnd, if set, are called once per turn before the first
	// handler and after the last one: to load what is read often, and to flush
	// what was gathered. A write in TurnEnd may call Again or Post.
	TurnStart, TurnEnd func()
	Log                *slog.Logger // nil discards
}

// Loop is one event loop. Methods belong to the loop's goroutine unless they
// say otherwise.
type Loop struct {
	opt    Options
	epoll  int
	wakeup int // eventfd
	events []unix.EpollEvent
	table  []entry // by descriptor
	batch  uint32  // generation of the last Add

	now     int64
	wheel   wheel
	scratch []byte
	pool    pool

	again      []repeat // for the next turn
	againSpare []repeat // the memory again is swapped with

	// pending and sleeping let Post wake the loop only when it sleeps: the
	// loop says that it is going to sleep and then looks for tasks, Post
	// leaves a task and then looks whether the loop sleeps.
	mu         sync.Mutex
	tasks      []func() // guarded by mu
	ended      bool     // guarded by mu; also keeps wakeup from being used after close
	pending    atomic.Bool
	sleeping   atomic.Bool
	stopping   atomic.Bool
	tasksSpare []func() // the memory tasks is swapped with

	turns atomic.Uint64
	meter meter
}

type entry struct {
	handler    Handler
	generation uint32 // of the registration; tells a stale event from a fresh one
}

type repeat struct {
	handler Handler
	events  Events
}

// New opens the epoll and eventfd of a loop. Run or Close must follow.
func New(o Options) (*Loop, error) {
	if o.ReadBuffer <= 0 {
		o.ReadBuffer = defaultReadBuffer
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open epoll: %w", err)
	}
	ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(ep)
		return nil, fmt.Errorf("open eventfd: %w", err)
	}
	// Edge-triggered, so each write wakes once and nobody needs to read the
	// counter; it cannot overflow in the life of a process.
	err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, ev, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(ev)})
	if err != nil {
		unix.Close(ep)
		unix.Close(ev)
		return nil, fmt.Errorf("watch eventfd: %w", err)
	}
	l := &Loop{
		opt: o, epoll: ep, wakeup: ev,
		events:  make([]unix.EpollEvent, maxEvents),
		scratch: make([]byte, o.ReadBuffer),
		now:     Monotonic(),
	}
	l.wheel.start(l.now)
	return l, nil
}

// Index returns Options.Index. Any goroutine may call it.
func (l *Loop) Index() int { return l.opt.Index }

// Now returns the monotonic time in nanoseconds as [Monotonic] counts it, read
// once per turn.
func (l *Loop) Now() int64 { return l.now }

// Scratch returns the read buffer that all handlers share. What is in it is
// valid until the handler returns.
func (l *Loop) Scratch() []byte { return l.scratch }

// Turns returns how many turns were completed. Any goroutine may call it. A
// turn that began before some store is over once Turns has grown beyond the
// value read after that store; an empty task forces a turn.
func (l *Loop) Turns() uint64 { return l.turns.Load() }

// Get returns an empty buffer with room for n bytes or more.
func (l *Loop) Get(n int) []byte { return l.pool.get(n) }

// Put gives a buffer of Get back; nothing may use it afterwards. A buffer of
// another size is left to the garbage collector.
func (l *Loop) Put(b []byte) { l.pool.put(b) }

// Add watches fd, which must be non-blocking, and has h told about it. It is
// called once per descriptor; if fd is ready already, h is told in the next
// turn.
func (l *Loop) Add(fd int, h Handler) error {
	if fd < 0 {
		return fmt.Errorf("watch descriptor %d: %w", fd, unix.EBADF)
	}
	if fd >= len(l.table) {
		grown := make([]entry, max(fd+1, 2*len(l.table), 64))
		copy(grown, l.table)
		l.table = grown
	}
	if l.table[fd].handler != nil {
		return fmt.Errorf("watch descriptor %d: %w", fd, unix.EEXIST)
	}
	l.batch++
	ev := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET,
		Fd:     int32(fd), Pad: int32(l.batch),
	}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("watch descriptor %d: %w", fd, err)
	}
	l.table[fd] = entry{handler: h, generation: l.batch}
	return nil
}

// Remove ends what Add began. It comes before fd is closed. An event of fd
// that is still in the batch of this turn reaches nobody, also when the number
// is in use again.
func (l *Loop) Remove(fd int) {
	if !l.forget(fd) {
		return
	}
	// The only possible error is that fd is not there any more.
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil)
}

// Drop is Remove and Close in one system call: closing the last reference to a
// socket takes it out of the epoll.
func (l *Loop) Drop(fd int) {
	l.forget(fd)
	Close(fd)
}

func (l *Loop) forget(fd int) bool {
	if fd < 0 || fd >= len(l.table) || l.table[fd].handler == nil {
		return false
	}
	l.table[fd] = entry{}
	return true
}

// Again has h.Ready(ev) called in the next turn, which will not wait for
// anything. It is for a handler that used up its share of a turn before it saw
// EAGAIN. The call comes also if the handler's descriptor was removed
// meanwhile.
func (l *Loop) Again(h Handler, ev Events) {
	l.again = append(l.again, repeat{h, ev})
}

// Post has f run on the loop. Any goroutine may call it. It reports false once
// the loop has ended; then f will not run.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.tasks = append(l.tasks, f)
	l.pending.Store(true)
	if l.sleeping.CompareAndSwap(true, false) {
		l.wakeLocked()
	}
	return true
}

// wakeLocked makes a waiting loop turn. The lock and ended make sure that the
// descriptor is still ours.
func (l *Loop) wakeLocked() {
	if _, errno := Write(l.wakeup, one); errno != 0 {
		l.opt.Log.Error("cannot wake event loop", "loop", l.opt.Index, "error", errno)
	}
}

// one is what an eventfd takes: a number of eight bytes in host order. It must
// be small, since nobody takes the sum out again.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// Run turns until ctx is done, then runs the tasks that were posted before and
// closes the loop's own descriptors. Those added by handlers stay theirs to
// close. It holds its thread from start to end and returns nil, or the error
// that makes waiting impossible.
func (l *Loop) Run(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stop := context.AfterFunc(ctx, func() {
		l.stopping.Store(true)
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.ended {
			l.wakeLocked()
		}
	})
	defer stop()

	l.now = Monotonic()
	l.meter.start(l.now)
	var err error
	for !l.stopping.Load() && err == nil {
		err = l.turn()
	}
	l.end()
	return err
}

// Close frees a loop that will never Run.
func (l *Loop) Close() { l.end() }

// end runs what was posted before it and refuses everything later.
func (l *Loop) end() {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return
	}
	l.ended = true
	left := l.tasks
	l.tasks = nil
	l.mu.Unlock()
	if len(left) > 0 {
		l.now = Monotonic()
		l.around(l.opt.TurnStart)
		for _, f := range left {
			f()
		}
		l.around(l.opt.TurnEnd)
	}
	l.turns.Add(1)
	unix.Close(l.epoll)
	unix.Close(l.wakeup)
}

func (l *Loop) turn() error {
	n, err := l.wait()
	if err != nil {
		return err
	}
	l.now = Monotonic()
	l.around(l.opt.TurnStart)
	again := l.again
	l.again = l.againSpare[:0]
	for i := range l.events[:n] {
		l.dispatch(&l.events[i])
	}
	l.repeat(again)
	l.wheel.advance(l.now)
	l.runTasks()
	l.around(l.opt.TurnEnd)
	l.turns.Add(1)
	l.meter.sample(l.now)
	return nil
}

func (l *Loop) around(f func()) {
	if f != nil {
		f()
	}
}

// wait fills events. It does not block while there is something to do.
func (l *Loop) wait() (int, error) {
	timeout := 0
	if len(l.again) == 0 {
		l.sleeping.Store(true)
		if !l.pending.Load() && !l.stopping.Load() {
			timeout = l.wheel.timeout(l.now)
		}
		if timeout == 0 {
			l.sleeping.Store(false)
		}
	}
	n, err := unix.EpollWait(l.epoll, l.events, timeout)
	l.sleeping.Store(false)
	if errors.Is(err, unix.EINTR) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("wait for events of loop %d: %w", l.opt.Index, err)
	}
	return n, nil
}

func (l *Loop) dispatch(e *unix.EpollEvent) {
	fd := int(e.Fd)
	if fd >= len(l.table) { // the eventfd, when no larger descriptor was added
		return
	}
	if en := &l.table[fd]; en.handler != nil && en.generation == uint32(e.Pad) {
		en.handler.Ready(translate(e.Events))
	}
}

func translate(ep uint32) Events {
	var ev Events
	if ep&unix.EPOLLIN != 0 {
		ev |= Readable
	}
	if ep&unix.EPOLLOUT != 0 {
		ev |= Writable
	}
	if ep&unix.EPOLLRDHUP != 0 {
		// The end of the stream is found by reading.
		ev |= PeerClosed | Readable
	}
	if ep&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		// The error is found by reading or writing, whichever comes first.
		ev |= Failed | Readable | Writable
	}
	return ev
}

// repeat runs the list as it stood at the start of the turn; what handlers add
// meanwhile waits for the next one, so nobody can starve the sockets.
func (l *Loop) repeat(run []repeat) {
	for i := range run {
		run[i].handler.Ready(run[i].events)
		run[i] = repeat{}
	}
	l.againSpare = run
}

// runTasks runs what was posted until now. Tasks posted by tasks wait for the
// next turn.
func (l *Loop) runTasks() {
	if !l.pending.Load() {
		return
	}
	l.mu.Lock()
	run := l.tasks
	l.tasks = l.tasksSpare[:0]
	l.pending.Store(false)
	l.mu.Unlock()
	for i, f := range run {
		f()
		run[i] = nil
	}
	l.tasksSpare = run
}

// epoch is the zero of Monotonic, one hour before the process began, so that
// neither 0 nor "some minutes ago" is ever in front of it.
var epoch = time.Now().Add(-time.Hour)

// Monotonic returns nanoseconds of a clock that all loops of the process share
// and that never goes back. Any goroutine may call it.
func Monotonic() int64 { return int64(time.Since(epoch)) }
