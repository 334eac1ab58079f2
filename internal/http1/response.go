package http1

import "meshd/internal/mesh"

// Lengths of a body other than a number of bytes.
const (
	Chunked    = -1 // chunked transfer coding
	UntilClose = -2 // what comes until the connection ends; responses only
)

// Response is the head of a response, interim ones (1xx) included. Head.Fields
// holds what goes on to the next hop; what is taken out is listed at Request.
type Response struct {
	mesh.Head
	Minor  int    // of the version: 0 or 1
	Reason []byte // as the server sent it; the encoder writes its own
	// Length of the body in bytes; 0: none, -1: chunked, -2: until the
	// connection ends. A Content-Length among the fields of a response to HEAD
	// or of a 304 describes a body that is not there.
	Length int64
	// Close: the connection cannot be used again after this response.
	Close bool
	// Upgrade is the value of the Upgrade field if Connection lists it or the
	// status is 426: the protocol switched to, or those on offer. Else nil.
	Upgrade []byte
}

// Parse reads head, which is exactly one head as ScanHead found it, of a
// response to requestMethod. Memory and errors are as for Request.Parse.
func (r *Response) Parse(head []byte, requestMethod []byte, lim Limits) error {
	r.Reset()
	r.Minor, r.Reason, r.Length, r.Close, r.Upgrade = 0, nil, 0, false, nil
	if err := whole(head, lim.HeadBytes); err != nil {
		return err
	}
	p, err := r.line(head)
	if err != nil {
		return err
	}
	s := section{fields: r.Fields}
	err = s.read(head, p, r.Minor, &lim)
	if err != nil {
		return err
	}
	r.Fields = s.fields
	r.Close = s.close || r.Minor == 0 && !s.keepAlive
	if (s.upgrades || r.Status == 426) && len(s.upgrade) > 0 {
		r.Upgrade = s.upgrade
	}
	return r.frame(&s, requestMethod)
}

// line reads the status line (RFC 9112, section 4) and returns the place behind
// it. The space before an absent reason is optional, since many servers omit it.
func (r *Response) line(head []byte) (next int, err error) {
	minor, i, err := version(head, 0)
	if err != nil {
		return 0, err
	}
	r.Minor = minor
	if len(head) < i+6 || head[i] != ' ' {
		return 0, ErrStartLine
	}
	for _, c := range head[i+1 : i+4] {
		if !digit(c) {
			return 0, ErrStatus
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	if r.Status < 100 || r.Status > 599 {
		return 0, ErrStatus
	}
	i += 4
	if head[i] == ' ' {
		i++
		start := i
		i = control(head, i)
		for head[i] == '\t' {
			i = control(head, i+1)
		}
		r.Reason = head[start:i:i]
	}
	switch {
	case head[i] == '\r' && head[i+1] == '\n':
		return i + 2, nil
	case head[i] == '\r':
		return 0, ErrBareCR
	case head[i] == '\n':
		return 0, ErrBareLF
	}
	return 0, ErrStartLine
}

// frame decides how long the body is (RFC 9112, section 6.3).
func (r *Response) frame(s *section, requestMethod []byte) error {
	switch {
	case r.Status < 200 || r.Status == 204:
		// Neither field is allowed here (RFC 9110, section 8.6 and RFC 9112,
		// section 6.1). A length of 0 is common and says the truth; anything
		// else means that bytes follow which others would take for the next
		// response.
		if s.chunked || s.length > 0 {
			return ErrBodyNotAllowed
		}
		if s.length == 0 {
			r.dropLength()
		}
	case r.Status == 304, string(requestMethod) == "HEAD",
		r.Status < 300 && string(requestMethod) == "CONNECT":
	case s.chunked:
		r.Length = Chunked
	case s.length >= 0:
		r.Length = s.length
	default:
		r.Length = UntilClose
		r.Close = true
	}
	return nil
}

func (r *Response) dropLength() {
	kept := r.Fields[:0]
	for _, f := range r.Fields {
		if f.Known != mesh.ContentLength {
			kept = append(kept, f)
		}
	}
	r.Fields = kept
}
