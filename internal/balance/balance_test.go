package balance

import (
	"math"
	"testing"
)

// fixed is a View written down.
type fixed struct {
	load   []uint32
	weight []int
	down   []bool
	asked  int // calls of Eligible
}

func (f *fixed) Len() int { return len(f.load) }
func (f *fixed) Eligible(i int) bool {
	f.asked++
	return f.down == nil || !f.down[i]
}
func (f *fixed) Load(i int) uint32 { return f.load[i] }
func (f *fixed) Weight(i int) int {
	if f.weight == nil {
		return 1
	}
	return f.weight[i]
}

// weighed also knows its heaviest weight.
type weighed struct {
	fixed
	top int
}

func (w *weighed) Heaviest() int { return w.top }

func idle(n int) *fixed { return &fixed{load: make([]uint32, n)} }

// shares picks many times without any load in between and returns how often
// each was picked, as a share of one.
func shares(t *testing.T, v View, choices int) []float64 {
	t.Helper()
	const picks = 40_000
	r := NewRand(7)
	count := make([]float64, v.Len())
	for range picks {
		i := LeastRequest(v, &r, choices)
		if i < 0 || !v.Eligible(i) {
			t.Fatalf("picked %d", i)
		}
		count[i] += 1.0 / picks
	}
	return count
}

// tolerance is beyond five standard deviations of a share after the picks of
// shares.
const tolerance = 0.0125

func expectShares(t *testing.T, got, want []float64) {
	t.Helper()
	for i := range want {
		if math.Abs(got[i]-want[i]) > tolerance {
			t.Errorf("endpoint %d got the share %.4f, want %.4f", i, got[i], want[i])
		}
	}
}

// Without load the shares are those of the weights, whatever the number of
// endpoints, choices, and the part that is down.
func TestIdleEndpointsShareByWeight(t *testing.T) {
	tests := []struct {
		name   string
		weight []int
		down   []bool
	}{
		{"one", []int{1}, nil},
		{"two alike", []int{1, 1}, nil},
		{"two unlike", []int{1, 3}, nil},
		{"three", []int{1, 2, 3}, nil},
		{"ten alike", []int{5, 5, 5, 5, 5, 5, 5, 5, 5, 5}, nil},
		{"ten, one heavy", []int{1, 1, 1, 1, 1, 1, 1, 1, 1, 91}, nil},
		{"ten, one very heavy", []int{1, 1, 1, 1, 1, 1, 1, 1, 1, 991}, nil},
		{"weights below one count as one", []int{0, -5, 1, 1}, nil},
		{"neighbour of one that is down gets no more", []int{1, 1, 1, 1, 1}, []bool{false, true, false, false, false}},
		{"many down", []int{1, 1, 2, 1, 1, 1, 1, 1, 1, 1}, []bool{false, true, false, true, true, true, true, true, true, true}},
		{"the heaviest is down", []int{1, 1, 1, 100}, []bool{false, false, false, true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			total, top := 0, 0
			for i, w := range tt.weight {
				top = max(top, w)
				if tt.down == nil || !tt.down[i] {
					total += max(w, 1)
				}
			}
			want := make([]float64, len(tt.weight))
			for i, w := range tt.weight {
				if tt.down == nil || !tt.down[i] {
					want[i] = float64(max(w, 1)) / float64(total)
				}
			}
			v := fixed{load: make([]uint32, len(tt.weight)), weight: tt.weight, down: tt.down}
			for _, choices := range []int{1, 2, 3} {
				expectShares(t, shares(t, &v, choices), want)
				expectShares(t, shares(t, &weighed{v, top}, choices), want)
			}
		})
	}
}

// The busiest is never picked as long as two different ones are compared.
func TestTheLessLoadedIsPicked(t *testing.T) {
	r := NewRand(1)
	tests := []struct {
		name    string
		view    fixed
		choices int
		never   []int
	}{
		{"the busiest loses every comparison", fixed{load: []uint32{1, 1, 9, 1, 1}}, 2, []int{2}},
		{"two endpoints: always the idle one", fixed{load: []uint32{1, 0}}, 2, []int{0}},
		{"all are compared when choices suffice", fixed{load: []uint32{3, 2, 1, 2}}, 4, []int{0, 1, 3}},
		{"more choices than endpoints", fixed{load: []uint32{3, 2, 1, 2}}, 100, []int{0, 1, 3}},
		{"load counts by weight", fixed{load: []uint32{2, 5}, weight: []int{1, 3}}, 2, []int{0}},
		{"load counts by weight, the other way", fixed{load: []uint32{1, 4}, weight: []int{1, 3}}, 2, []int{1}},
		{"huge loads and weights do not overflow", fixed{load: []uint32{math.MaxUint32, math.MaxUint32 - 1}, weight: []int{math.MaxInt, math.MaxInt}}, 2, []int{0}},
		{"the idle one that is down", fixed{load: []uint32{5, 0, 6}, down: []bool{false, true, false}}, 3, []int{1, 2}},
	}
	for _, tt := range tests {
		for range 2000 {
			got := LeastRequest(&tt.view, &r, tt.choices)
			for _, n := range tt.never {
				if got == n {
					t.Fatalf("%s: picked %d", tt.name, got)
				}
			}
		}
	}
}

func TestNothingEligible(t *testing.T) {
	r := NewRand(1)
	for _, n := range []int{0, 1, 2, 3, 50} {
		v := idle(n)
		v.down = make([]bool, n)
		for i := range v.down {
			v.down[i] = true
		}
		for _, choices := range []int{-1, 0, 1, 2, 10} {
			if got := LeastRequest(v, &r, choices); got != -1 {
				t.Errorf("%d endpoints, all down, %d choices: picked %d", n, choices, got)
			}
		}
	}
}

// One eligible endpoint among a thousand is found every time: what draws miss,
// the scan finds.
func TestTheOnlyEligibleIsFound(t *testing.T) {
	r := NewRand(1)
	v := idle(1000)
	v.down = make([]bool, 1000)
	for i := range v.down {
		v.down[i] = i != 617
	}
	for range 500 {
		if got := LeastRequest(v, &r, 2); got != 617 {
			t.Fatalf("picked %d", got)
		}
	}
}

// The good case looks at as many endpoints as it has choices, not at all of them.
func TestCostDoesNotGrowWithEndpoints(t *testing.T) {
	r := NewRand(1)
	v := &weighed{*idle(10_000), 1}
	const picks = 1000
	for range picks {
		LeastRequest(v, &r, 2)
	}
	if v.asked != 2*picks {
		t.Fatalf("asked %d endpoints for %d picks of two choices", v.asked, picks)
	}
}

// With requests that last, two choices keep the longest queue short, and
// weights show in the loads.
func TestLoadsEvenOut(t *testing.T) {
	r := NewRand(3)
	v := idle(50)
	for range 50 * 100 {
		v.load[LeastRequest(v, &r, 2)]++
	}
	for i, l := range v.load {
		if l < 96 || l > 104 {
			t.Errorf("endpoint %d has %d of 100 on average", i, l)
		}
	}
	w := &fixed{load: make([]uint32, 3), weight: []int{1, 2, 7}}
	for range 1000 {
		w.load[LeastRequest(w, &r, 3)]++
	}
	for i, l := range w.load {
		if want := uint32(100 * w.weight[i]); l+2 < want || l > want+2 {
			t.Errorf("endpoint %d of weight %d has %d", i, w.weight[i], l)
		}
	}
}

func TestRand(t *testing.T) {
	a, b, c := NewRand(1), NewRand(1), NewRand(2)
	same := true
	for range 10 {
		x := a.Uint64()
		if x != b.Uint64() {
			t.Fatal("one seed, different numbers")
		}
		same = same && x == c.Uint64()
	}
	if same {
		t.Fatal("different seeds, the same numbers")
	}
	for _, n := range []int{1, 2, 3, 10, math.MaxInt} {
		for range 1000 {
			if v := a.N(n); v < 0 || v >= n {
				t.Fatalf("N(%d) = %d", n, v)
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	r := NewRand(1)
	v := idle(20)
	v.down = make([]bool, 20)
	v.down[3] = true
	for _, choices := range []int{2, 20} {
		if n := testing.AllocsPerRun(1000, func() { LeastRequest(v, &r, choices) }); n != 0 {
			t.Fatalf("%g allocations with %d choices", n, choices)
		}
	}
}

func benchmark(b *testing.B, v View) {
	r := NewRand(1)
	b.ReportAllocs()
	for b.Loop() {
		LeastRequest(v, &r, 2)
	}
}

func BenchmarkThree(b *testing.B)             { benchmark(b, &weighed{*idle(3), 1}) }
func BenchmarkThousand(b *testing.B)          { benchmark(b, &weighed{*idle(1000), 1}) }
func BenchmarkThousandUnweighed(b *testing.B) { benchmark(b, idle(1000)) }
func BenchmarkThousandOneUp(b *testing.B) {
	v := &weighed{*idle(1000), 1}
	v.down = make([]bool, 1000)
	for i := range v.down {
		v.down[i] = i != 500
	}
	benchmark(b, v)
}
