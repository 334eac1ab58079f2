package telemetry

import (
	"math"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func second(n float64) time.Time { return start.Add(time.Duration(n * float64(time.Second))) }

func TestWindowTellsTheLastTenSeconds(t *testing.T) {
	s := New(1, []string{"ok", "timeout"}).Series(Outbound, "x", "http")
	var w Window
	w.Add(second(0), s.Totals())
	for i := 1; i <= 60; i++ {
		// A minute of slow failures, except the last ten seconds.
		n, outcome, nanos := 100, uint8(1), int64(5*time.Second)
		if i > 50 {
			n, outcome, nanos = 20, 0, int64(2*time.Millisecond)
		}
		for range n {
			s.Shard(0).Exchange(outcome, 2, nanos)
		}
		w.Add(second(float64(i)), s.Totals())
	}
	got := w.Summary()
	if got.Over != 10*time.Second || got.Requests != 200 || got.RPS != 20 || got.FailedShare != 0 {
		t.Errorf("summary is %+v", got)
	}
	for _, q := range []time.Duration{got.P50, got.P99} {
		if math.Abs(float64(q)/2e6-1) > maxError {
			t.Errorf("quantile is %v", q)
		}
	}
}

func TestWindowTellsFailuresAndTails(t *testing.T) {
	s := New(1, []string{"ok", "timeout"}).Series(Outbound, "x", "http")
	var w Window
	w.Add(second(0), s.Totals())
	for i := range 200 {
		nanos := int64(time.Millisecond)
		outcome := uint8(0)
		if i%20 == 0 {
			nanos, outcome = int64(time.Second), 1
		}
		s.Shard(0).Exchange(outcome, 2, nanos)
	}
	w.Add(second(2), s.Totals())
	got := w.Summary()
	if got.RPS != 100 || got.FailedShare != 0.05 || got.Worst != 1 {
		t.Errorf("summary is %+v", got)
	}
	if got.P50 > 2*time.Millisecond || got.P99 < 900*time.Millisecond {
		t.Errorf("p50 %v, p99 %v", got.P50, got.P99)
	}
}

func TestWindowThatCannotTell(t *testing.T) {
	s := New(1, []string{"ok"}).Series(Outbound, "x", "http")
	var w Window
	if got := w.Summary(); got != (Summary{}) {
		t.Errorf("empty: %+v", got)
	}
	s.Shard(0).Exchange(0, 2, 1)
	w.Add(second(0), s.Totals())
	if got := w.Summary(); got != (Summary{}) {
		t.Errorf("one sample: %+v", got)
	}
	w.Add(second(1), s.Totals())
	if got := w.Summary(); got != (Summary{Over: time.Second}) {
		t.Errorf("idle: %+v", got)
	}
}

func TestWindowLeavesOutFrequentSamples(t *testing.T) {
	s := New(1, []string{"ok"}).Series(Outbound, "x", "http")
	var w Window
	for i := range 200 { // twenty seconds, ten samples each
		s.Shard(0).Exchange(0, 2, 1)
		w.Add(second(float64(i)/10), s.Totals())
	}
	if got := w.Summary(); got.Over < 9*time.Second || math.Abs(got.RPS-10) > 0.2 {
		t.Errorf("summary is %+v", got)
	}
}

// After a pause nothing is known about the seconds in between: better to say
// nothing than to spread old requests over it.
func TestWindowAfterAPause(t *testing.T) {
	s := New(1, []string{"ok"}).Series(Outbound, "x", "http")
	var w Window
	for i := range 5 {
		s.Shard(0).Exchange(0, 2, 1)
		w.Add(second(float64(i)), s.Totals())
	}
	s.Shard(0).Exchange(0, 2, 1)
	w.Add(second(15), s.Totals())
	if got := w.Summary(); got != (Summary{}) {
		t.Errorf("summary is %+v", got)
	}
}

func TestWindowOfASeriesThatBeganAnew(t *testing.T) {
	r := New(1, []string{"ok"})
	s := r.Series(Outbound, "x", "http")
	var w Window
	for i := range 3 {
		for range 100 {
			s.Shard(0).Exchange(0, 2, 1)
		}
		w.Add(second(float64(i)), s.Totals())
	}
	r.Forget(func(Direction, string) bool { return false })
	s = r.Series(Outbound, "x", "http")
	w.Add(second(3), s.Totals())
	if got := w.Summary(); got != (Summary{}) {
		t.Errorf("summary is %+v", got)
	}
	s.Shard(0).Exchange(0, 2, 1)
	w.Add(second(4), s.Totals())
	if got := w.Summary(); got.Requests != 1 || got.RPS != 1 {
		t.Errorf("summary is %+v", got)
	}
}

// A thousand idle upstreams must not keep eleven histograms each.
func TestIdleSamplesShareMemory(t *testing.T) {
	s := New(1, []string{"ok"}).Series(Outbound, "x", "http")
	var w Window
	for i := range 5 {
		w.Add(second(float64(i)), s.Totals())
	}
	for i := 1; i < w.n; i++ {
		if &w.samples[i].totals.Latency.counts[0] != &w.samples[0].totals.Latency.counts[0] {
			t.Fatalf("sample %d has a histogram of its own", i)
		}
	}
}
