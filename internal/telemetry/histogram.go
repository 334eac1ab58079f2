package telemetry

import (
	"math"
	"math/bits"
	"sort"
	"time"
)

// The buckets are log-linear: each power of two of nanoseconds is cut in eight
// of equal width, so the upper end of a bucket is at most 1/8 above its lower
// one, and a guess between them at most 1/17 off. Those that a bound of the
// exposed histogram falls into are cut once more, at the bound: what Prometheus
// gets is then counted, not interpolated.
const (
	firstExponent = 10 // durations under 2^10 ns, about 1 µs, share one bucket
	lastExponent  = 36 // those from 2^36 ns, about 69 s, share one too
	subBits       = 3
	linearCount   = 2 + (lastExponent-firstExponent)<<subBits
	bucketCount   = linearCount + len(bounds)
)

// bounds are the upper bounds (inclusive, ns) of the exposed histogram: from
// about one round trip in a machine room to twice the default request timeout.
var bounds = [...]uint64{
	250e3, 500e3,
	1e6, 2.5e6, 5e6, 10e6, 25e6, 50e6, 100e6, 250e6, 500e6,
	1e9, 2.5e9, 5e9, 10e9, 30e9,
}

// layout says which counter a duration belongs to. It is computed once from the
// constants above and never written again.
var layout = newLayout()

type layoutTable struct {
	cells [linearCount]cell
	// edges are the lowest durations of the counters, ascending from 0.
	edges [bucketCount]uint64
	// exposed is, by bound, the number of counters that lie at or below it.
	exposed [len(bounds)]int
}

// cell is a linear bucket: its counter, and the highest duration that belongs
// there. What is above belongs to the next counter.
type cell struct {
	highest uint64
	counter int
}

func newLayout() *layoutTable {
	var l layoutTable
	n := 0
	for i := range l.cells {
		low, next := lowest(i), lowest(i+1)
		l.cells[i] = cell{highest: math.MaxUint64, counter: n}
		l.edges[n] = low
		n++
		b := sort.Search(len(bounds), func(b int) bool { return bounds[b] >= low })
		if b < len(bounds) && bounds[b] < next {
			l.cells[i].highest = bounds[b]
			l.exposed[b] = n
			l.edges[n] = bounds[b] + 1
			n++
		}
	}
	return &l
}

// lowest returns the lowest duration of linear bucket i.
func lowest(i int) uint64 {
	switch {
	case i <= 0:
		return 0
	case i >= linearCount:
		return math.MaxUint64
	}
	i--
	octave, sub := i>>subBits, i&(1<<subBits-1)
	return uint64(1<<subBits+sub) << (octave + firstExponent - subBits)
}

// counterOf returns the counter of a duration in nanoseconds.
func counterOf(v uint64) int {
	i := 0
	switch e := bits.Len64(v) - 1; {
	case e >= lastExponent:
		i = linearCount - 1
	case e >= firstExponent:
		i = 1 + (e-firstExponent)<<subBits + int(v>>(e-subBits))&(1<<subBits-1)
	}
	c := &layout.cells[i]
	if v > c.highest {
		return c.counter + 1
	}
	return c.counter
}

// Histogram counts durations. The zero value is empty. Nobody writes one after
// it was returned, so copies may share memory.
type Histogram struct {
	counts []uint64 // nil or bucketCount
	nanos  uint64
}

// Count returns how many durations were counted.
func (h Histogram) Count() uint64 {
	var n uint64
	for _, c := range h.counts {
		n += c
	}
	return n
}

// Sum returns the durations added up. It is exact, unlike a quantile, and wraps
// around after 584 years.
func (h Histogram) Sum() time.Duration { return time.Duration(h.nanos) }

// Quantile returns the duration that the share q (0 to 1) of all stayed at or
// below, at most 6 % off between 1 µs and 68 s. Durations under 1 µs count as
// half of one, those above 69 s as 69 s. An empty histogram gives 0.
func (h Histogram) Quantile(q float64) time.Duration {
	total := h.Count()
	if total == 0 {
		return 0
	}
	// The rank of the wanted duration among all, from 1.
	rank := uint64(math.Ceil(min(max(q, 0), 1) * float64(total)))
	rank = min(max(rank, 1), total)
	var below uint64
	for i, c := range h.counts {
		if below += c; below >= rank {
			return guess(i)
		}
	}
	return guess(bucketCount - 1) // not reached: the counts add up to total
}

// guess returns the duration within counter i whose relative error is smallest
// in the worst case: the harmonic mean of both ends.
func guess(i int) time.Duration {
	low := layout.edges[i]
	switch {
	case i == 0:
		return time.Duration(layout.edges[1] / 2)
	case i == bucketCount-1:
		return time.Duration(low)
	}
	a, b := float64(low), float64(layout.edges[i+1])
	return time.Duration(2 * a * b / (a + b))
}

// Sub returns what h counted after the moment at which it was earlier.
func (h Histogram) Sub(earlier Histogram) Histogram {
	if earlier.counts == nil {
		return h
	}
	d := Histogram{counts: make([]uint64, bucketCount), nanos: h.nanos - min(earlier.nanos, h.nanos)}
	for i, c := range h.counts {
		d.counts[i] = c - min(earlier.counts[i], c)
	}
	return d
}

// cumulative returns the counts at or below each of bounds.
func (h Histogram) cumulative() [len(bounds)]uint64 {
	var out [len(bounds)]uint64
	var n uint64
	next := 0
	for i, c := range h.counts {
		n += c
		if next < len(bounds) && layout.exposed[next] == i+1 {
			out[next] = n
			next++
		}
	}
	return out
}
