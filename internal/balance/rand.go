package balance

import "math/bits"

// Rand is a small pseudo-random generator (splitmix64) for one loop: no lock,
// eight bytes. It is not for secrets. The zero value is ready and always gives
// the same numbers; loops are seeded apart so that they do not pick in step.
type Rand struct{ state uint64 }

// NewRand returns a generator that starts from seed.
func NewRand(seed uint64) Rand { return Rand{state: seed} }

// Uint64 returns 64 random bits.
func (r *Rand) Uint64() uint64 {
	r.state += 0x9e3779b97f4a7c15
	z := r.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// N returns a number from 0 to n-1; n must be positive. It scales by a multiply
// instead of a division; the bias is below n/2^64.
func (r *Rand) N(n int) int {
	hi, _ := bits.Mul64(r.Uint64(), uint64(n))
	return int(hi)
}
