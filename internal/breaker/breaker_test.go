package breaker

import (
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"meshd/internal/mesh"
)

// Each story is a list of steps with the permit or state expected after them:
//
//	allow=granted|refused|probe   ask for an attempt
//	ok, fail, cancel              hand an ordinary attempt back
//	probe-ok, probe-fail, probe-cancel
//	+10s                          time passes
//	closed, open, half-open       the state must be this
//	peek, !peek                   Peek must say yes, or no
//	off, on                       a reload changes the policy
func TestStories(t *testing.T) {
	stories := []struct{ name, steps string }{
		{"a new breaker is closed", "closed peek allow=granted closed"},
		{"the third failure opens", "fail fail closed fail open !peek allow=refused"},
		{"a success starts the count anew", "fail fail ok fail fail closed fail open"},
		{"a cancelled attempt counts for nothing", "fail fail cancel closed fail open"},
		{"a cancelled attempt does not start the count anew", "fail cancel fail cancel fail open"},
		{"refused until the time has passed", "fail fail fail +9.999999999s !peek allow=refused open +1ns peek open allow=probe half-open"},
		{"one probe only", "fail fail fail +10s allow=probe !peek allow=refused +1h allow=refused half-open"},
		{"the probe's success closes, with a count of zero", "fail fail fail +10s allow=probe probe-ok closed allow=granted fail fail closed fail open"},
		{"the probe's failure opens again for the whole time", "fail fail fail +15s allow=probe +5s probe-fail open +9s allow=refused +1s allow=probe"},
		{"a cancelled probe is given to the next caller", "fail fail fail +10s allow=probe probe-cancel open peek allow=probe probe-ok closed"},
		{"ordinary attempts from before say nothing while open", "fail fail fail ok open fail open cancel open +9s fail +1s allow=probe"},
		{"ordinary attempts from before say nothing while half-open", "fail fail fail +10s allow=probe ok half-open fail half-open cancel half-open probe-ok closed"},
		{"time may seem to run backwards between loops", "fail fail fail +-5s !peek allow=refused +15s allow=probe"},
		{"off: nothing is counted", "off fail fail fail fail closed allow=granted"},
		{"turning it off lets through at once", "fail fail fail open off peek allow=granted closed on allow=granted"},
		{"turning it off forgets failures", "fail fail off fail on closed fail fail closed"},
		{"turning it off leaves a probe to its owner", "fail fail fail +10s allow=probe off peek allow=granted half-open on allow=refused probe-ok closed"},
		{"a probe that fails while off closes", "fail fail fail +10s allow=probe off probe-fail closed"},
		{"a probe handed back too late changes nothing", "fail fail fail +10s allow=probe probe-ok probe-fail closed probe-cancel closed fail fail fail probe-ok open probe-cancel open"},
	}
	for _, story := range stories {
		t.Run(story.name, func(t *testing.T) {
			on := Policy{ConsecutiveFailures: 3, OpenFor: 10 * time.Second}
			p, now := on, int64(time.Hour)
			var b Breaker
			for i, step := range strings.Fields(story.steps) {
				check := func(got, want string) {
					t.Helper()
					if got != want {
						t.Fatalf("step %d %q: got %s, want %s", i+1, step, got, want)
					}
				}
				permit := Granted
				verb := step
				if v, ok := strings.CutPrefix(step, "probe-"); ok {
					permit, verb = Probe, v
				}
				switch verb {
				case "ok":
					b.Success(permit)
				case "fail":
					was := b.State()
					opened := b.Failure(p, permit, now)
					if opened != (was != Open && b.State() == Open) {
						t.Fatalf("step %d %q: Failure returned %t, the state went from %v to %v", i+1, step, opened, was, b.State())
					}
				case "cancel":
					b.Cancel(permit)
				case "closed", "open", "half-open":
					check(b.State().String(), verb)
				case "peek", "!peek":
					if got := b.Peek(p, now); got != (verb == "peek") {
						t.Fatalf("step %d %q: Peek said %t", i+1, step, got)
					}
				case "off":
					p = Policy{}
				case "on":
					p = on
				default:
					if want, ok := strings.CutPrefix(step, "allow="); ok {
						check([...]string{Refused: "refused", Granted: "granted", Probe: "probe"}[b.Allow(p, now)], want)
						break
					}
					d, err := time.ParseDuration(strings.TrimPrefix(step, "+"))
					if err != nil {
						t.Fatal(err)
					}
					now += int64(d)
				}
			}
		})
	}
}

// model is the breaker in the plainest words, for one goroutine.
type model struct {
	state    State
	failures int
	openedAt int64
}

func (m *model) allow(p Policy, now int64) Permit {
	switch {
	case m.state == Closed:
		return Granted
	case m.state == Open && now-m.openedAt >= int64(p.OpenFor):
		m.state = HalfOpen
		return Probe
	}
	return Refused
}

func (m *model) end(p Policy, permit Permit, how string, now int64) {
	fits := m.state == Closed && permit == Granted || m.state == HalfOpen && permit == Probe
	switch {
	case !fits:
	case how == "ok":
		*m = model{}
	case how == "cancel" && permit == Probe:
		m.state = Open
	case how == "fail":
		m.failures++
		if permit == Probe || m.failures >= p.ConsecutiveFailures {
			*m = model{state: Open, openedAt: now}
		}
	}
}

// Many attempts overlap and end in any order; the breaker must do what the
// model does, and never have two probes out.
func TestRandomSequencesFollowTheModel(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := Policy{ConsecutiveFailures: 1 + r.IntN(5), OpenFor: time.Duration(r.IntN(50))}
		var b Breaker
		var m model
		var out []Permit // attempts that have not ended
		probes := 0
		now := int64(1)
		for step := range 500 {
			now += int64(r.IntN(10))
			if peek, want := b.Peek(p, now), m; peek != (want.allow(p, now) != Refused) {
				t.Fatalf("seed %d step %d: Peek said %t in %+v", seed, step, peek, m)
			}
			if len(out) == 0 || r.IntN(2) == 0 {
				got, want := b.Allow(p, now), m.allow(p, now)
				if got != want {
					t.Fatalf("seed %d step %d: Allow = %d, want %d", seed, step, got, want)
				}
				if got == Probe {
					probes++
				}
				if got != Refused {
					out = append(out, got)
				}
			} else {
				i := r.IntN(len(out))
				permit := out[i]
				out = append(out[:i], out[i+1:]...)
				how := []string{"ok", "fail", "fail", "cancel"}[r.IntN(4)]
				switch how {
				case "ok":
					b.Success(permit)
				case "fail":
					b.Failure(p, permit, now)
				case "cancel":
					b.Cancel(permit)
				}
				m.end(p, permit, how, now)
				if permit == Probe {
					probes--
				}
			}
			if b.State() != m.state {
				t.Fatalf("seed %d step %d: state %v, want %v", seed, step, b.State(), m.state)
			}
			if probes > 1 || probes == 1 != (b.State() == HalfOpen) {
				t.Fatalf("seed %d step %d: %d probes in state %v", seed, step, probes, b.State())
			}
		}
	}
}

// Loops call at the same time. Two of them must never probe at once, and each
// opening is told to exactly one caller.
func TestConcurrentCallersGetOneProbe(t *testing.T) {
	const callers, rounds = 8, 5000
	p := Policy{ConsecutiveFailures: 3, OpenFor: 20}
	var b Breaker
	var clock, opened, closedAgain, probes atomic.Int64
	var probing atomic.Int32
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(c), 2))
			for range rounds {
				permit := b.Allow(p, clock.Add(1))
				if permit == Refused {
					continue
				}
				if permit == Probe {
					probes.Add(1)
					if n := probing.Add(1); n != 1 {
						t.Errorf("%d probes at once", n)
					}
					runtime.Gosched()
					probing.Add(-1) // before it is handed back, since then the next may begin
				}
				switch r.IntN(4) {
				case 0:
					b.Cancel(permit)
				case 1:
					b.Success(permit)
					if permit == Probe {
						closedAgain.Add(1)
					}
				default:
					if b.Failure(p, permit, clock.Load()) && permit == Granted {
						opened.Add(1)
					}
				}
			}
		})
	}
	wg.Wait()
	if probes.Load() == 0 || opened.Load() == 0 || closedAgain.Load() == 0 {
		t.Fatalf("nothing happened: %d probes, opened %d times, closed %d times", probes.Load(), opened.Load(), closedAgain.Load())
	}
	last := int64(0)
	if b.State() == Open {
		last = 1
	}
	if opened.Load() != closedAgain.Load()+last || b.State() == HalfOpen {
		t.Fatalf("opened %d times and closed %d times, and is %v", opened.Load(), closedAgain.Load(), b.State())
	}
}

// All callers ask for the probe in the same moment.
func TestOneOfManyGetsTheProbe(t *testing.T) {
	p := Policy{ConsecutiveFailures: 1, OpenFor: 10}
	for range 200 {
		var b Breaker
		b.Failure(p, Granted, 1)
		var probes atomic.Int32
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range 8 {
			wg.Go(func() {
				<-start
				if b.Allow(p, 11) == Probe {
					probes.Add(1)
				}
			})
		}
		close(start)
		wg.Wait()
		if n := probes.Load(); n != 1 {
			t.Fatalf("%d probes", n)
		}
	}
}

func TestBreakerFillsACacheLine(t *testing.T) {
	if s := unsafe.Sizeof(Breaker{}); s != cacheLine {
		t.Fatalf("a Breaker has %d bytes: neighbours would share a cache line", s)
	}
}

func TestPolicyConvertsFromTheSpec(t *testing.T) {
	got := Policy(mesh.Breaker{ConsecutiveFailures: 5, OpenFor: time.Second})
	if got != (Policy{ConsecutiveFailures: 5, OpenFor: time.Second}) {
		t.Fatal(got)
	}
}

func TestStateWords(t *testing.T) {
	if s := State(9).String(); s != "unknown" {
		t.Fatal(s)
	}
}

func BenchmarkAllowSuccess(b *testing.B) {
	p := Policy{ConsecutiveFailures: 5, OpenFor: time.Second}
	var br Breaker
	b.ReportAllocs()
	for b.Loop() {
		br.Success(br.Allow(p, 1))
	}
}

func BenchmarkAllowSuccessParallel(b *testing.B) {
	p := Policy{ConsecutiveFailures: 5, OpenFor: time.Second}
	var br Breaker
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			br.Success(br.Allow(p, 1))
		}
	})
}
