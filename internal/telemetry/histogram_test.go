package telemetry

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// histogramOf counts durations as a shard does.
func histogramOf(nanos ...int64) Histogram {
	s := New(1, []string{"ok"}).Series(Outbound, "x", "http")
	for _, n := range nanos {
		s.Shard(0).Exchange(0, 2, n)
	}
	return s.Totals().Latency
}

func TestEveryDurationHasOneCounter(t *testing.T) {
	for i, low := range layout.edges {
		if i > 0 && low <= layout.edges[i-1] {
			t.Fatalf("counter %d begins at %d, the one before at %d", i, low, layout.edges[i-1])
		}
		if got := counterOf(low); got != i {
			t.Errorf("counterOf(%d) = %d, want %d", low, got, i)
		}
		if i > 0 {
			if got := counterOf(low - 1); got != i-1 {
				t.Errorf("counterOf(%d) = %d, want %d", low-1, got, i-1)
			}
		}
	}
	if got := counterOf(math.MaxUint64); got != bucketCount-1 {
		t.Errorf("the longest duration is counted by %d", got)
	}
}

// maxError is what Quantile promises between 1 µs and 68 s.
const maxError = 0.06

func TestQuantileOfOneDuration(t *testing.T) {
	for v := 1024.0; v < 68e9; v *= 1.0007 {
		n := int64(v)
		got := histogramOf(n).Quantile(0.5)
		if e := math.Abs(float64(got)-float64(n)) / float64(n); e > maxError {
			t.Fatalf("%v is told as %v, %.1f %% off", time.Duration(n), got, 100*e)
		}
	}
}

func TestQuantileOfMany(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	shapes := map[string]func() float64{
		"uniform":       func() float64 { return 1e6 + r.Float64()*9e6 },
		"exponential":   func() float64 { return 2000 + r.ExpFloat64()*3e6 },
		"two humps":     func() float64 { return []float64{3e5, 2e9}[r.IntN(2)] * (1 + r.Float64()/10) },
		"over decades":  func() float64 { return math.Pow(10, 3.1+r.Float64()*7) },
		"all the same":  func() float64 { return 12345678 },
		"at the bounds": func() float64 { return float64(bounds[r.IntN(len(bounds))]) },
	}
	for name, shape := range shapes {
		values := make([]int64, 10_000)
		for i := range values {
			values[i] = int64(shape())
		}
		h := histogramOf(values...)
		slices.Sort(values)
		for _, q := range []float64{0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1} {
			want := values[max(int(math.Ceil(q*float64(len(values))))-1, 0)]
			got := h.Quantile(q)
			if e := math.Abs(float64(got)-float64(want)) / float64(want); e > maxError {
				t.Errorf("%s: quantile %g is %v, want %v, %.1f %% off", name, q, got, time.Duration(want), 100*e)
			}
		}
	}
}

func TestQuantileAtTheEdges(t *testing.T) {
	tests := []struct {
		name  string
		nanos []int64
		q     float64
		want  time.Duration
	}{
		{"empty", nil, 0.5, 0},
		{"under a microsecond", []int64{1}, 0.5, 512},
		{"negative, from a clock that was set back", []int64{-5}, 0.5, 512},
		{"longer than the buckets reach", []int64{int64(time.Hour)}, 0.5, 1 << 36},
		{"below 0 is the least", []int64{1, int64(time.Hour)}, -1, 512},
		{"above 1 is the most", []int64{1, int64(time.Hour)}, 7, 1 << 36},
	}
	for _, tt := range tests {
		if got := histogramOf(tt.nanos...).Quantile(tt.q); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	var zero Histogram
	if zero.Quantile(0.5) != 0 || zero.Count() != 0 || zero.Sum() != 0 {
		t.Error("the zero histogram is not empty")
	}
}

func TestHistogramSub(t *testing.T) {
	s := New(1, []string{"ok"}).Series(Outbound, "x", "http")
	s.Shard(0).Exchange(0, 2, int64(time.Second))
	before := s.Totals().Latency
	s.Shard(0).Exchange(0, 2, int64(time.Millisecond))
	after := s.Totals().Latency

	d := after.Sub(before)
	if d.Count() != 1 || d.Sum() != time.Millisecond || d.Quantile(1) > 2*time.Millisecond {
		t.Errorf("difference has %d durations, %v together, at most %v", d.Count(), d.Sum(), d.Quantile(1))
	}
	if d := after.Sub(Histogram{}); d.Count() != 2 {
		t.Errorf("difference to nothing has %d durations", d.Count())
	}
	if d := before.Sub(after); d.Count() != 0 || d.Sum() != 0 {
		t.Errorf("difference to a later moment has %d durations, %v together", d.Count(), d.Sum())
	}
	if d := (Histogram{}).Sub(after); d.Count() != 0 || d.Quantile(0.5) != 0 {
		t.Error("nothing less something is not empty")
	}
}

// What Prometheus gets is exact: a duration at a bound is in, the next
// nanosecond is out.
func TestExposedBoundsAreExact(t *testing.T) {
	for i, b := range bounds {
		in, out := histogramOf(int64(b)).cumulative(), histogramOf(int64(b)+1).cumulative()
		for j := range bounds {
			if want := truth(j >= i); float64(in[j]) != want {
				t.Errorf("%v counts %d at or below %v", time.Duration(b), in[j], time.Duration(bounds[j]))
			}
			if want := truth(j > i); float64(out[j]) != want {
				t.Errorf("%v and 1 ns counts %d at or below %v", time.Duration(b), out[j], time.Duration(bounds[j]))
			}
		}
	}
	r := rand.New(rand.NewPCG(2, 2))
	var want [len(bounds)]uint64
	var values []int64
	for range 5000 {
		v := int64(math.Pow(10, 2+r.Float64()*10))
		values = append(values, v)
		for j, b := range bounds {
			if uint64(v) <= b {
				want[j]++
			}
		}
	}
	if got := histogramOf(values...).cumulative(); got != want {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
