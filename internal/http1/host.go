package http1

// hostOctet marks unreserved and sub-delims of RFC 3986. Escapes ("%") are left
// out: no name that resolves has one, and readers disagree about what they mean.
var hostOctet = func() (t [256]bool) {
	for c := range t {
		t[c] = digit(byte(c)) || byte(c)|0x20-'a' < 26
	}
	for _, c := range "-._~!$&'()*+,;=" {
		t[c] = true
	}
	return t
}()

const (
	maxPort    = 1<<16 - 1
	ipv6Groups = 8
)

// validHost checks the value of a Host field: uri-host [ ":" port ] (RFC 9110,
// section 7.2). The empty value is valid; a port needs a host.
func validHost(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	i := 0
	if b[0] == '[' {
		for i < len(b) && b[i] != ']' {
			i++
		}
		if i == len(b) || !validIPv6(b[1:i]) {
			return false
		}
		i++
	} else {
		for i < len(b) && hostOctet[b[i]] {
			i++
		}
		if i == 0 {
			return false
		}
	}
	if i == len(b) {
		return true
	}
	return b[i] == ':' && validPort(b[i+1:])
}

// validPort accepts an empty port too, as the grammar does.
func validPort(b []byte) bool {
	n := 0
	for _, c := range b {
		if !digit(c) {
			return false
		}
		if n = n*10 + int(c-'0'); n > maxPort {
			return false
		}
	}
	return true
}

// validIPv6 checks the text form of an address (RFC 3986, section 3.2.2),
// without a zone. net/netip would do, but its errors keep the text, and so it
// would have to be copied for each request.
func validIPv6(b []byte) bool {
	count, short := 0, false // groups seen; whether "::" was
	i := 0
	if len(b) >= 2 && b[0] == ':' && b[1] == ':' {
		short = true
		i = 2
	}
	for i < len(b) {
		if count == ipv6Groups {
			return false
		}
		start := i
		for i < len(b) && i-start < 4 && unhex(b[i]) < 16 {
			i++
		}
		if i == start {
			return false
		}
		if i < len(b) && b[i] == '.' {
			// The last two groups as an IPv4 address.
			count += 2
			return validIPv4(b[start:]) && filled(count, short)
		}
		count++
		if i == len(b) {
			break
		}
		if b[i] != ':' || i+1 == len(b) {
			return false
		}
		i++
		if b[i] == ':' {
			if short {
				return false
			}
			short = true
			i++
		}
	}
	return filled(count, short)
}

// filled tells whether that many groups make an address: all eight, or fewer
// where "::" stands for at least one.
func filled(count int, short bool) bool {
	if short {
		return count < ipv6Groups
	}
	return count == ipv6Groups
}

// validIPv4 checks four decimal numbers below 256 without leading zeros.
func validIPv4(b []byte) bool {
	const parts = 4
	for part := 1; ; part++ {
		n, i := 0, 0
		for i < len(b) && i < 3 && digit(b[i]) {
			n = n*10 + int(b[i]-'0')
			i++
		}
		if i == 0 || n > 255 || i > 1 && b[0] == '0' {
			return false
		}
		if part == parts {
			return i == len(b)
		}
		if i == len(b) || b[i] != '.' {
			return false
		}
		b = b[i+1:]
	}
}
