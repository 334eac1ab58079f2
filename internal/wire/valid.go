package wire

import "encoding/binary"

// class is a set of octet classes.
type class uint8

const (
	className      class = 1 << iota // lower-case token: field names
	classToken                       // token: methods
	classScheme                      // scheme, RFC 3986 section 3.1
	classAuthority                   // host and port, RFC 3986 section 3.2
	classValue                       // field value, RFC 9110 section 5.5
	classPath                        // anything but controls and space
)

var classes = func() (t [256]class) {
	add := func(c class, octets string) {
		for i := range len(octets) {
			t[octets[i]] |= c
		}
	}
	const digits, lower, upper = "0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	const tokenMarks = "!#$%&'*+-.^_`|~"
	add(className, lower+digits+tokenMarks)
	add(classToken, lower+upper+digits+tokenMarks)
	add(classScheme, lower+upper+digits+"+-.")
	add(classAuthority, lower+upper+digits+"-._~%!$&'()*+,;=:[]")
	add(classValue, "\t ")
	for i := 0x21; i < 0x100; i++ {
		if i != 0x7f {
			t[i] |= classValue | classPath
		}
	}
	return t
}()

// all reports whether every octet of b is of class c.
func all(b []byte, c class) bool {
	for _, o := range b {
		if classes[o]&c == 0 {
			return false
		}
	}
	return true
}

const (
	ones = 0x0101010101010101
	high = 0x8080808080808080
)

// suspect is non-zero when one of the eight octets in w is below floor (at most
// 0x80) or is DEL. Octets of 0x80 and above are never suspect.
func suspect(w, floor uint64) uint64 {
	del := w ^ 0x7f*ones
	return ((w-floor*ones)&^w | (del-ones)&^del) & high
}

// plain reports whether no octet of b is below floor or is DEL, eight octets at
// a time: field values and paths are most of the octets of a head, and one by
// one they would cost more than all the rest of the parser.
func plain(b []byte, floor uint64) bool {
	if len(b) < 8 {
		for _, o := range b {
			if uint64(o) < floor || o == 0x7f {
				return false
			}
		}
		return true
	}
	last := binary.LittleEndian.Uint64(b[len(b)-8:])
	bad := suspect(last, floor)
	for len(b) > 8 {
		bad |= suspect(binary.LittleEndian.Uint64(b), floor)
		b = b[8:]
	}
	return bad == 0
}

// validValue: no controls but tab.
func validValue(b []byte) bool {
	return plain(b, 0x20) || all(b, classValue)
}

// validPath: "/…", or "*" with OPTIONS (RFC 9112 section 3.2).
func validPath(b []byte, method []byte) bool {
	if len(b) == 0 || !plain(b, 0x21) {
		return false
	}
	return b[0] == '/' || string(b) == "*" && string(method) == "OPTIONS"
}

// validLength: 1*DIGIT that fits an int64.
func validLength(b []byte) bool {
	const digits = 19 // of the largest int64
	if len(b) == 0 || len(b) > digits {
		return false
	}
	for _, o := range b {
		if o < '0' || o > '9' {
			return false
		}
	}
	return len(b) < digits || string(b) <= "9223372036854775807"
}
