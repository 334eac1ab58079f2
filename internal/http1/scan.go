package http1

// LeadingCRLF returns how many bytes of empty lines stand in front of a
// request: old clients send one behind a body (RFC 9112, section 2.2). Call it
// while nothing of the head was scanned yet (ScanHead was not called or last
// returned next 0), and drop the bytes. They are no request: the time that a
// client has for its head does not start anew because of them.
func LeadingCRLF(b []byte) int {
	n := 0
	for len(b) >= n+2 && b[n] == '\r' && b[n+1] == '\n' {
		n += 2
	}
	return n
}

// ScanHead looks for the end of the head that begins at b[0]. from is 0 at
// first, then the next of the call before, so that a head that comes byte by
// byte is read once. end is just past the empty line; while it is 0 and err is
// nil, more bytes are needed. Line ends other than CRLF and control characters
// are errors as soon as they are seen, so that a sender of bare line feeds does
// not wait for a timeout. A head of more than max bytes is ErrHeadTooLarge.
func ScanHead(b []byte, from int, max int) (end int, next int, err error) {
	in := b
	if len(in) > max {
		in = in[:max]
	}
	i := from
	for {
		i = control(in, i)
		if i == len(in) {
			break
		}
		switch in[i] {
		case '\r':
			if i+1 == len(in) {
				// The line feed is still to come: look at this byte again.
				if len(b) >= max {
					return 0, i, ErrHeadTooLarge
				}
				return 0, i, nil
			}
			if in[i+1] != '\n' {
				return 0, i, ErrBareCR
			}
			if i == 0 {
				return 0, i, ErrStartLine
			}
			if in[i-1] == '\n' {
				return i + 2, i + 2, nil
			}
			i += 2
		case '\t':
			i++
		case '\n':
			return 0, i, ErrBareLF
		default:
			return 0, i, ErrControl
		}
	}
	if len(b) >= max {
		return 0, i, ErrHeadTooLarge
	}
	return 0, i, nil
}
