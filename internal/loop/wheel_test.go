package loop

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"testing"
	"time"
)

// clockwork is a wheel with a clock that the test turns by hand.
type clockwork struct {
	wheel
	now     int64
	expired []*Timer
	then    func(t *Timer) // optional
}

func (c *clockwork) Expired(t *Timer) {
	c.expired = append(c.expired, t)
	if c.then != nil {
		c.then(t)
	}
}

func (c *clockwork) turn(now int64) []*Timer {
	c.expired = nil
	c.now = now
	c.advance(now)
	return c.expired
}

func newClockwork(now int64) *clockwork {
	c := &clockwork{now: now}
	c.start(now)
	return c
}

// Each span crosses another number of levels. A timer must not be early, and
// following timeout alone must find it within one tick, with few wake-ups.
func TestTimerExpiresOnTimeWithFewWakeUps(t *testing.T) {
	for _, start := range []time.Duration{0, time.Hour, 27*time.Hour + 123456789} {
		for _, span := range []time.Duration{
			1, time.Microsecond, time.Millisecond, 4 * time.Millisecond, 50 * time.Millisecond, 268 * time.Millisecond,
			269 * time.Millisecond, time.Second, 17 * time.Second, 18 * time.Second, time.Minute, 20 * time.Minute,
			time.Hour, 20 * time.Hour, 60 * 24 * time.Hour,
		} {
			c := newClockwork(int64(start))
			tm := &Timer{Owner: c}
			due := int64(start + span)
			c.arm(tm, due)
			wakes := 0
			for len(c.expired) == 0 {
				ms := c.timeout(c.now)
				if ms < 0 {
					t.Fatalf("span %v: no timeout although a timer is armed", span)
				}
				if wakes++; wakes > levels+2 {
					t.Fatalf("span %v from %v: still waiting after %d wake-ups", span, start, wakes)
				}
				c.turn(c.now + int64(ms)*1e6)
			}
			if late := c.now - due; late < 0 || late > 2*tick {
				t.Errorf("span %v from %v: expired %v after it was due", span, start, time.Duration(late))
			}
			if tm.Armed() || c.count != 0 || c.timeout(c.now) != -1 {
				t.Errorf("span %v: something is left in the wheel", span)
			}
		}
	}
}

func TestExtremeTimes(t *testing.T) {
	c := newClockwork(int64(time.Hour))
	past, never := &Timer{Owner: c}, &Timer{Owner: c}
	c.arm(past, math.MinInt64)
	c.arm(never, math.MaxInt64)
	if got := c.turn(int64(time.Hour) + tick); len(got) != 1 || got[0] != past {
		t.Fatalf("expired %d timers, want the one that was over", len(got))
	}
	if got := c.turn(int64(100 * 365 * 24 * time.Hour)); len(got) != 0 || !never.Armed() {
		t.Fatal("a timer at the end of time expired")
	}
	c.disarm(never)
	c.disarm(never)
	if c.count != 0 {
		t.Fatalf("count %d after the last timer was disarmed", c.count)
	}
}

// An owner that arms in Expired for a time that is over is called once per
// turn, not for ever, also after a long sleep.
func TestRearmingInExpiredWaitsForTheNextTurn(t *testing.T) {
	c := newClockwork(0)
	tm := &Timer{Owner: c}
	c.then = func(tm *Timer) { c.arm(tm, c.now-int64(time.Minute)) }
	c.arm(tm, 1)
	for turn := int64(1); turn < 5; turn++ {
		if got := c.turn(turn * int64(time.Hour)); len(got) != 1 {
			t.Fatalf("turn %d: expired %d times, want once", turn, len(got))
		}
	}
}

// Expired may take back or move any timer, those of its own slot included.
func TestExpiredDisarmsItsNeighbours(t *testing.T) {
	c := newClockwork(0)
	ts := make([]Timer, 6)
	for i := range ts {
		ts[i].Owner = c
		c.arm(&ts[i], int64(time.Second))
	}
	c.then = func(fired *Timer) {
		for i := range ts {
			switch {
			case &ts[i] == fired:
			case i%2 == 0:
				c.disarm(&ts[i])
			default:
				c.arm(&ts[i], c.now+int64(time.Second))
			}
		}
	}
	if got := c.turn(int64(2 * time.Second)); len(got) != 1 {
		t.Fatalf("expired %d, want 1: the others were disarmed or moved by it", len(got))
	}
}

func TestArmMoves(t *testing.T) {
	c := newClockwork(0)
	tm := &Timer{Owner: c}
	for i := range int64(100) {
		c.arm(tm, i*int64(time.Second)+1)
	}
	if c.count != 1 {
		t.Fatalf("count %d, want 1", c.count)
	}
	if got := c.turn(int64(98 * time.Second)); len(got) != 0 {
		t.Fatal("expired where it was armed first")
	}
	if got := c.turn(int64(100 * time.Second)); len(got) != 1 {
		t.Fatal("did not expire where it was moved to")
	}
}

// The wheel against a sorted list. Each step of the script is three bytes:
// what to do, with which timer, and how far away.
func FuzzWheelAgainstList(f *testing.F) {
	f.Add([]byte{0, 1, 3, 0, 2, 200, 2, 0, 4, 1, 1, 0, 2, 0, 250})
	f.Add([]byte{0, 0, 255, 2, 0, 255, 0, 1, 0, 3, 1, 9, 2, 0, 120, 2, 0, 1})
	f.Fuzz(func(t *testing.T, script []byte) {
		c := newClockwork(int64(time.Hour))
		var timers [16]Timer
		model := map[*Timer]int64{} // when it may expire, by the rule of Arm
		for i := range timers {
			timers[i].Owner = c
		}
		for len(script) >= 3 {
			op, who, far := script[0], script[1], script[2]
			script = script[3:]
			tm := &timers[who%uint8(len(timers))]
			// Exponential, so that all levels are reached, and not aligned.
			d := int64(1) << (far % 52)
			d += d / 256 * int64(far)
			switch op % 4 {
			case 0, 3:
				at := c.now + d
				c.arm(tm, at)
				model[tm] = at
			case 1:
				c.disarm(tm)
				delete(model, tm)
			case 2:
				if c.now > math.MaxInt64/4 {
					return
				}
				now := c.now + d
				var want []*Timer
				for tm, at := range model {
					if at <= now-tick {
						want = append(want, tm)
					}
				}
				got := c.turn(now)
				for _, tm := range got {
					at, ok := model[tm]
					if !ok || at > now {
						t.Fatalf("timer expired %d ns early (armed %v)", at-now, ok)
					}
					delete(model, tm)
				}
				for _, tm := range want {
					if !slices.Contains(got, tm) {
						t.Fatalf("timer due at %d not expired at %d", model[tm], now)
					}
				}
				if !slices.IsSortedFunc(got, func(a, b *Timer) int { return cmp.Compare(a.due, b.due) }) {
					t.Fatal("expired out of order")
				}
			}
			if c.count != len(model) {
				t.Fatalf("wheel holds %d timers, list %d", c.count, len(model))
			}
			ms := c.timeout(c.now)
			if (ms < 0) != (len(model) == 0) {
				t.Fatalf("timeout %d with %d timers", ms, len(model))
			}
			for _, at := range model {
				if int64(ms)*1e6 > max(at-c.now, 0)+2*tick && ms < math.MaxInt32 {
					t.Fatalf("would sleep %d ms past a timer due in %d ns", ms, at-c.now)
				}
			}
		}
	})
}

func BenchmarkArmMove(b *testing.B) {
	c := newClockwork(0)
	timers := make([]Timer, 1024)
	for i := range timers {
		timers[i].Owner = c
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c.arm(&timers[i&1023], int64(time.Minute)+int64(i)*1000)
	}
}

func BenchmarkArmExpire(b *testing.B) {
	c := newClockwork(0)
	tm := Timer{Owner: nopExpirer{}}
	now := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		c.arm(&tm, now+int64(50*time.Millisecond))
		now += int64(60 * time.Millisecond)
		c.advance(now)
	}
}

type nopExpirer struct{}

func (nopExpirer) Expired(*Timer) {}

// A script of random steps is a stronger start for the fuzzer than its own
// first guesses, and runs with every go test.
func TestWheelRandomScripts(t *testing.T) {
	seed := uint64(1)
	for range 200 {
		c := newClockwork(int64(time.Hour))
		timers := make([]Timer, 300)
		due := map[*Timer]int64{}
		for i := range timers {
			seed = seed*6364136223846793005 + 1442695040888963407
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], seed)
			timers[i].Owner = c
			at := c.now + int64(seed>>33)<<(b[7]%12)
			c.arm(&timers[i], at)
			due[&timers[i]] = at
		}
		for len(due) > 0 {
			for _, tm := range c.turn(c.now + int64(c.timeout(c.now))*1e6) {
				if late := c.now - due[tm]; late < 0 || late > 2*tick {
					t.Fatalf("expired %v after it was due", time.Duration(late))
				}
				delete(due, tm)
			}
		}
	}
}
