package http1

import (
	"encoding/binary"
	"math/bits"
)

// lowered maps a token character to its lower case and every other octet to 0
// (RFC 9110, section 5.6.2). One look-up validates and converts.
var lowered = func() (t [256]byte) {
	for c := '0'; c <= '9'; c++ {
		t[c] = byte(c)
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c] = byte(c)
		t[c-'a'+'A'] = byte(c)
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = byte(c)
	}
	return t
}()

// Eight octets at a time: a byte below 0x20 leaves its top bit set after
// subtracting 0x20 unless the bit was set before, and a byte equal to 0x7f is 0
// after the exclusive or. A borrow can only spoil bytes above a true hit, so
// the lowest hit is exact.
const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// control returns the place of the first control character (below 0x20, or
// DEL) in b at or after i, or len(b).
func control(b []byte, i int) int {
	for i+8 <= len(b) {
		w := binary.LittleEndian.Uint64(b[i:])
		d := w ^ 0x7f*ones
		if m := ((w-0x20*ones)&^w | (d-ones)&^d) & highs; m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
		i += 8
	}
	for i < len(b) && b[i] >= 0x20 && b[i] != 0x7f {
		i++
	}
	return i
}

// Token tells whether b is a token: a method or a field name (RFC 9110, section
// 5.6.2). Upper case is a token too.
func Token(b []byte) bool {
	for _, c := range b {
		if lowered[c] == 0 {
			return false
		}
	}
	return len(b) > 0
}

// Value tells whether b can stand as a field value: no control characters but
// tabs, no white space at either end (RFC 9110, section 5.5). Empty is fine.
func Value(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if blank(b[0]) || blank(b[len(b)-1]) {
		return false
	}
	for i := control(b, 0); i < len(b); i = control(b, i+1) {
		if b[i] != '\t' {
			return false
		}
	}
	return true
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

func digit(c byte) bool { return c-'0' < 10 }

// unhex returns the value of a hexadecimal digit, above 15 for anything else.
func unhex(c byte) byte {
	switch {
	case c-'0' < 10:
		return c - '0'
	case c|0x20-'a' < 6:
		return c | 0x20 - 'a' + 10
	}
	return 0xff
}

// folds tells whether b is the lower-case ASCII text in any case.
func folds(b []byte, text string) bool {
	if len(b) != len(text) {
		return false
	}
	for i := range b {
		c := b[i]
		if c-'A' < 26 {
			c |= 0x20
		}
		if c != text[i] {
			return false
		}
	}
	return true
}

// equalFold compares without regard to ASCII case.
func equalFold(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if x-'A' < 26 {
			x |= 0x20
		}
		if y-'A' < 26 {
			y |= 0x20
		}
		if x != y {
			return false
		}
	}
	return true
}

func lower(b []byte) {
	for i, c := range b {
		if c-'A' < 26 {
			b[i] = c | 0x20
		}
	}
}

// element cuts the first element off a comma-separated list (RFC 9110, section
// 5.6.1) and trims it. Empty elements are given back as such.
func element(list []byte) (first, rest []byte) {
	end := len(list)
	for i, c := range list {
		if c == ',' {
			end, rest = i, list[i+1:]
			break
		}
	}
	start := 0
	for start < end && blank(list[start]) {
		start++
	}
	for end > start && blank(list[end-1]) {
		end--
	}
	return list[start:end], rest
}

// decimal reads 1*DIGIT that fits an int64 (RFC 9110, section 8.6).
func decimal(b []byte) (n int64, ok bool) {
	const most = 1<<63 - 1
	for _, c := range b {
		if !digit(c) {
			return 0, false
		}
		d := int64(c - '0')
		if n > (most-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, len(b) > 0
}
