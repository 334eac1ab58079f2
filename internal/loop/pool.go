package loop

// classes are the buffer sizes of a pool: a head, a TLS record, a flush of a
// link, a whole read.
var classes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10}

// poolBytes bounds what each class keeps for reuse: 4 MiB, so a loop holds at
// most 16 MiB after a burst, and a burst of a thousand heads still finds its
// buffers.
const poolBytes = 4 << 20

// pool keeps buffers for reuse by one loop. The zero value is ready.
type pool struct {
	free [len(classes)][][]byte
}

func (p *pool) get(n int) []byte {
	for c, size := range classes {
		if n > size {
			continue
		}
		if k := len(p.free[c]); k > 0 {
			b := p.free[c][k-1]
			p.free[c][k-1] = nil
			p.free[c] = p.free[c][:k-1]
			return b
		}
		return make([]byte, 0, size)
	}
	return make([]byte, 0, n)
}

func (p *pool) put(b []byte) {
	for c, size := range classes {
		if cap(b) == size {
			if len(p.free[c]) < poolBytes/size {
				p.free[c] = append(p.free[c], b[:0])
			}
			return
		}
	}
}
