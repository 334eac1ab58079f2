// Package balance picks one endpoint out of many: of a few drawn at random the
// one with the least to do. Comparing a few is enough to keep the longest queue
// short, and unlike comparing all it does not send every agent of a mesh to the
// same idle endpoint at the same moment.
//
// The package is pure. It does not know what an endpoint is, why one is not
// eligible or how load is counted; a [View] says so. It imports the standard
// library only; proxy may import it.
package balance

// View is what the balancer sees of the endpoints of an upstream. Indexes run
// from 0 to Len()-1 and must mean the same during one call.
type View interface {
	Len() int
	// Eligible tells whether i may be picked at all.
	Eligible(i int) bool
	// Load is what i has to do now, in requests in flight.
	Load(i int) uint32
	// Weight is the share of i: one with weight 3 gets three times the requests
	// of one with weight 1. Less than 1 counts as 1.
	Weight(i int) int
}

// Weighted is implemented by a View that knows the largest of its weights.
// Without it every pick among more endpoints than choices reads all weights to
// find out, which is the difference between 20 ns and 1 µs at a thousand.
type Weighted interface {
	// Heaviest is the largest Weight. One too small favours light endpoints;
	// one too large costs time.
	Heaviest() int
}

// drawsPerChoice is how often a random index may turn out ineligible, or be
// rejected for its weight, before the endpoints are scanned instead. With half
// of the endpoints ineligible 8 draws miss once in 256 times.
const drawsPerChoice = 8

// LeastRequest draws choices endpoints, each with a probability proportional to
// its weight, and returns the index of the one with the least load for its
// weight. Equal ones are taken in the order drawn, so that idle endpoints get
// requests in proportion to their weights. When choices covers all endpoints,
// or so many are ineligible that drawing does not find one, it compares all of
// them. Fewer than one choice counts as one. It returns -1 if none is eligible,
// and allocates nothing.
func LeastRequest(v View, r *Rand, choices int) int {
	n := v.Len()
	if choices = max(choices, 1); choices >= n {
		return leastOfAll(v, r, n)
	}
	top := heaviest(v, n)
	best := draw(v, r, n, top, -1)
	if best < 0 {
		return leastOfAll(v, r, n)
	}
	for c := 1; c < choices; c++ {
		i := draw(v, r, n, top, best)
		if i < 0 {
			// The first one drawn stays in place when none is better: how
			// easily a second one is found depends on it, and drawing anew
			// would take from the heavy ones.
			i, c = leastOfAll(v, r, n), choices
		}
		if compare(v, i, best) < 0 {
			best = i
		}
	}
	return best
}

// draw returns an eligible index other than not, or -1 when it met none.
func draw(v View, r *Rand, n, top, not int) int {
	for range drawsPerChoice {
		var i int
		if not < 0 {
			i = r.N(n)
		} else if i = r.N(n - 1); i >= not {
			i++
		}
		if v.Eligible(i) && (top <= 1 || r.N(top) < weight(v, i)) {
			return i
		}
	}
	return -1
}

// leastOfAll returns the eligible index with the least load for its weight, and
// among equals one with a probability proportional to its weight.
func leastOfAll(v View, r *Rand, n int) int {
	best, total := -1, 0
	for i := range n {
		if !v.Eligible(i) {
			continue
		}
		w := weight(v, i)
		order := -1
		if best >= 0 {
			order = compare(v, i, best)
		}
		switch {
		case order < 0:
			best, total = i, w
		case order == 0:
			if total += w; r.N(total) < w {
				best = i
			}
		}
	}
	return best
}

// compare tells by its sign whether a has less to do for its weight than b.
// It multiplies crosswise, which is exact where a quotient would round.
func compare(v View, a, b int) int {
	la := uint64(v.Load(a)) * uint64(weight(v, b))
	lb := uint64(v.Load(b)) * uint64(weight(v, a))
	switch {
	case la < lb:
		return -1
	case la > lb:
		return 1
	}
	return 0
}

// maxWeight keeps sums of weights and products with a load within 64 bits.
// Consul allows 65535.
const maxWeight = 1 << 24

func weight(v View, i int) int { return min(max(v.Weight(i), 1), maxWeight) }

func heaviest(v View, n int) int {
	if w, ok := v.(Weighted); ok {
		return min(w.Heaviest(), maxWeight)
	}
	top := 1
	for i := range n {
		top = max(top, weight(v, i))
	}
	return top
}
