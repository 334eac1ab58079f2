package loop

import (
	"math"
	"math/bits"
)

// The wheel has seven levels of 64 slots. A slot of level 0 is one tick wide,
// a slot of level n is as wide as all of level n-1. Seven levels are 42 bits of
// ticks: every time that fits into an int64 has its slot, and nothing wraps.
const (
	tickBits = 22 // a tick is 2^22 ns, 4.2 ms
	tick     = 1 << tickBits
	slotBits = 6
	slots    = 1 << slotBits
	levels   = 7
)

// Expirer owns timers. Expired is called on the loop's goroutine, with the
// timer no longer armed; it may arm it again.
type Expirer interface {
	Expired(t *Timer)
}

// Timer is embedded in what it belongs to, so arming allocates nothing. The
// zero value with an Owner is ready. It must not be copied while armed.
type Timer struct {
	Owner Expirer

	next, prev *Timer
	due        int64 // in ticks
	slot       int16 // 1 + level*slots + index in level; 0 is not armed
}

// Armed reports whether the timer will expire.
func (t *Timer) Armed() bool { return t.slot != 0 }

// Arm has t expire at a time of Now: never earlier, and up to about 5 ms
// later. Arming an armed timer moves it. A time that is over counts as the next tick.
func (l *Loop) Arm(t *Timer, at int64) { l.wheel.arm(t, at) }

// Disarm takes back Arm. It is harmless on a timer that is not armed.
func (l *Loop) Disarm(t *Timer) { l.wheel.disarm(t) }

// wheel is a hierarchical timing wheel, aligned to powers of two: a timer sits
// on the level of the highest digit in which its due tick differs from the
// current tick. So all timers of a level are due before all of the level
// above, and the first used slot of the lowest used level is the next to look
// at. It reads no clock.
type wheel struct {
	current int64 // the tick that places are computed from
	floor   int64 // the tick up to which advance expires; current has reached it except inside advance
	used    [levels]uint64
	heads   [levels * slots]*Timer
	count   int
}

func (w *wheel) start(now int64) { w.current, w.floor = now>>tickBits, now>>tickBits }

func (w *wheel) arm(t *Timer, at int64) {
	w.disarm(t)
	if at > math.MaxInt64-tick {
		at = math.MaxInt64 - tick // rounding up must not overflow
	}
	// A time that has passed becomes the next tick after this turn, so that an
	// owner which arms in Expired cannot keep advance busy.
	t.due = max((at+tick-1)>>tickBits, w.floor+1)
	w.insert(t)
	w.count++
}

func (w *wheel) disarm(t *Timer) {
	if t.slot == 0 {
		return
	}
	i := int(t.slot) - 1
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		w.heads[i] = t.next
		if t.next == nil {
			w.used[i/slots] &^= 1 << (i % slots)
		}
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	t.next, t.prev, t.slot = nil, nil, 0
	w.count--
}

// insert links t where its due tick, which lies after current, belongs.
func (w *wheel) insert(t *Timer) {
	level := (63 - bits.LeadingZeros64(uint64(t.due^w.current)|(slots-1))) / slotBits
	index := int(t.due>>(level*slotBits)) & (slots - 1)
	i := level*slots + index
	t.slot = int16(i + 1)
	t.prev, t.next = nil, w.heads[i]
	if t.next != nil {
		t.next.prev = t
	}
	w.heads[i] = t
	w.used[level] |= 1 << index
}

// first returns the slot that comes next and the tick at which it begins.
func (w *wheel) first() (slot int, begins int64, ok bool) {
	for level, used := range w.used {
		if used == 0 {
			continue
		}
		index := bits.TrailingZeros64(used)
		shift := level * slotBits
		begins = w.current>>(shift+slotBits)<<(shift+slotBits) | int64(index)<<shift
		return level*slots + index, begins, true
	}
	return 0, 0, false
}

// advance expires every timer that is due at now.
func (w *wheel) advance(now int64) {
	target := now >> tickBits
	if target <= w.floor {
		return
	}
	w.floor = target
	for w.count > 0 {
		slot, begins, ok := w.first()
		if !ok || begins > target {
			break
		}
		w.current = begins
		w.empty(slot)
	}
	w.current = target
}

// empty takes the timers of a slot that begins now: those that are due expire,
// the others go to lower levels. Owners may arm and disarm any timer
// meanwhile, those of this slot included, hence one at a time.
func (w *wheel) empty(slot int) {
	for t := w.heads[slot]; t != nil; t = w.heads[slot] {
		w.disarm(t)
		if t.due > w.current {
			w.insert(t)
			w.count++
			continue
		}
		t.Owner.Expired(t)
	}
}

// timeout returns how many milliseconds to wait from now for the next slot,
// for epoll_wait: -1 is for ever.
func (w *wheel) timeout(now int64) int {
	_, begins, ok := w.first()
	if !ok {
		return -1
	}
	ns := begins<<tickBits - now
	if ns <= 0 {
		return 0
	}
	ms := (ns + 1e6 - 1) / 1e6
	return int(min(ms, math.MaxInt32))
}
