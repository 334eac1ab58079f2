package loop

import (
	"math"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// meterPeriod is how much loop time one sample covers at least: 100 ms. It is
// short enough to notice a loop that fills up before its queue grows, and long
// enough that the system call costs nothing.
const meterPeriod = 100e6

// meter measures the share of a core that the loop's thread uses.
type meter struct {
	at    atomic.Int64 // monotonic time of the last sample
	share atomic.Uint64
	cpu   int64 // thread time at the last sample
}

func (m *meter) start(now int64) {
	m.cpu = threadTime()
	m.at.Store(now)
}

// sample is called every turn on the loop's thread.
func (m *meter) sample(now int64) {
	elapsed := now - m.at.Load()
	if elapsed < meterPeriod {
		return
	}
	cpu := threadTime()
	share := min(max(float64(cpu-m.cpu)/float64(elapsed), 0), 1)
	m.cpu = cpu
	m.share.Store(math.Float64bits(share))
	m.at.Store(now)
}

// Load returns the share of one core, 0 to 1, that the loop's thread used in
// the last 100 ms or so. Any goroutine may call it.
func (l *Loop) Load() float64 {
	if l.sleeping.Load() && Monotonic()-l.meter.at.Load() > 2*meterPeriod {
		return 0 // no turn, so no sample, because there is nothing to do
	}
	return math.Float64frombits(l.meter.share.Load())
}

// threadTime returns the CPU time of the calling thread in nanoseconds.
func threadTime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
