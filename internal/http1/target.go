package http1

// Classes of the octets of a path with query. Octets that RFC 3986 wants
// escaped but that every browser and library sends raw (quotes, braces, UTF-8)
// go on as they came: changing them would be a repair, and refusing them would
// break applications that worked without a mesh. A "#" is refused: what is
// behind it is no part of a target, and readers disagree about it.
const (
	targetStop   = iota // controls, space, DEL, "#"
	targetPlain         // goes on
	targetEscape        // "%": two hexadecimal digits must follow, in the path
	targetQuery         // the first "?" ends the path
)

var targetClass = func() (t [256]byte) {
	for c := 0x21; c < 256; c++ {
		t[c] = targetPlain
	}
	t[0x7f], t['#'], t['%'], t['?'] = targetStop, targetStop, targetEscape, targetQuery
	return t
}()

// path returns the end of the path and query that begin at b[i]. An escape that
// is not one is refused in the path, by which requests are routed; in a query it
// is common and means nothing to us.
func path(b []byte, i int) (end int, err error) {
	for {
		switch targetClass[b[i]] {
		case targetPlain:
			i++
		case targetEscape:
			if unhex(b[i+1]) > 15 || unhex(b[i+2]) > 15 {
				return 0, ErrTarget
			}
			i += 3
		case targetQuery:
			for targetClass[b[i]] != targetStop {
				i++
			}
			return i, nil
		default:
			return i, nil
		}
	}
}

// absolute reads a target in absolute form (RFC 9112, section 3.2.2). The
// scheme is http: a request for an https resource on a connection without TLS
// is misdirected.
func (r *Request) absolute(head []byte, i int) (end int, err error) {
	const prefix = "http://"
	start := i + len(prefix)
	if start > len(head) || !folds(head[i:start], prefix) {
		return 0, ErrTarget
	}
	end = authorityEnd(head, start)
	if end == start {
		return 0, ErrTarget
	}
	r.Authority = head[start:end:end]
	switch head[end] {
	case '/':
		p := end
		if end, err = path(head, p); err != nil {
			return 0, err
		}
		r.Path = head[p:end:end]
	case '?':
		// The path is empty, which means "/". There is a spare byte in front of
		// the authority: move that to make room for the slash.
		copy(head[start-1:], r.Authority)
		p := end - 1
		r.Authority = head[start-1 : p : p]
		head[p] = '/'
		if end, err = path(head, p); err != nil {
			return 0, err
		}
		r.Path = head[p:end:end]
	default:
		if string(r.Method) == "OPTIONS" {
			r.Path = pathAll // RFC 9112, section 3.2.4
		} else {
			r.Path = pathRoot
		}
	}
	return end, nil
}

var (
	pathAll  = []byte("*")
	pathRoot = []byte("/")
)

// authority settles who is asked: the Host field, which a target that names an
// authority must repeat (RFC 9112, section 3.2).
func (r *Request) authority(s *section) error {
	if s.hosts > 1 {
		return ErrManyHosts
	}
	if s.hosts == 0 && r.Minor > 0 {
		return ErrNoHost
	}
	if s.hosts == 0 {
		s.host = r.Authority
	}
	if !validHost(s.host) {
		return ErrHost
	}
	if r.Authority != nil && !equalFold(r.Authority, s.host) {
		return ErrHostMismatch
	}
	r.Authority = s.host
	return nil
}

// authorityEnd returns the end of the run of octets from b[i] on that can stand
// in an authority without userinfo. Whether they form one is for validHost.
func authorityEnd(b []byte, i int) int {
	for hostOctet[b[i]] || b[i] == ':' || b[i] == '[' || b[i] == ']' {
		i++
	}
	return i
}

// hasPort tells whether an authority ends in a colon and digits.
func hasPort(b []byte) bool {
	i := len(b)
	for i > 0 && digit(b[i-1]) {
		i--
	}
	return i < len(b) && i > 1 && b[i-1] == ':'
}
