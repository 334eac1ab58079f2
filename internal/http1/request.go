package http1

import "meshd/internal/mesh"

var schemeHTTP = []byte("http")

// Request is the head of a request. Head.Fields holds what goes on to the next
// hop, in order: Host is in Head.Authority, and Connection with every field it
// names, Keep-Alive, Proxy-Connection, Proxy-Authorization, Proxy-Authenticate,
// TE other than "trailers", Transfer-Encoding, Upgrade and HTTP2-Settings are
// gone. Content-Length stays, at most once and without leading zeros.
type Request struct {
	mesh.Head
	Minor int // of the version: 0 or 1
	// Length of the body in bytes; 0: none, -1: chunked. As for NewBody.
	Length int64
	// Close: the connection ends after this exchange, because the client says
	// so or speaks HTTP/1.0 without keep-alive.
	Close bool
	// Expect100: the client waits for an interim answer before it sends the
	// body. Expect is among the fields as well.
	Expect100 bool
	// Upgrade is the value of the Upgrade field if Connection lists it, else
	// nil. Always nil in HTTP/1.0.
	Upgrade []byte
}

// Parse reads head, which is exactly one head as ScanHead found it, and
// replaces all of r; only the memory of r.Fields is kept. Field names are
// lower-cased within head, and r refers to head until the next Parse. After an
// error (an *Error) r holds nothing of use and head may have been changed.
func (r *Request) Parse(head []byte, lim Limits) error {
	r.Reset()
	r.Minor, r.Length, r.Close, r.Expect100, r.Upgrade = 0, 0, false, false, nil
	if err := whole(head, lim.HeadBytes); err != nil {
		return err
	}
	p, err := r.line(head, lim.TargetBytes)
	if err != nil {
		return err
	}
	s := section{fields: r.Fields}
	err = s.read(head, p, r.Minor, &lim)
	if err != nil {
		return err
	}
	r.Fields = s.fields
	if err := r.authority(&s); err != nil {
		return err
	}
	r.Scheme = schemeHTTP
	switch {
	case s.chunked:
		r.Length = -1
	case s.length > 0:
		r.Length = s.length
	}
	r.Close = s.close || r.Minor == 0 && !s.keepAlive
	r.Expect100 = s.expects
	if s.upgrades && r.Minor > 0 && len(s.upgrade) > 0 {
		r.Upgrade = s.upgrade
	}
	return nil
}

// whole checks what the loops of the parsers rely on: head ends in an empty
// line, so that no loop that stops at a carriage return leaves it.
func whole(head []byte, max int) error {
	n := len(head)
	if n > max {
		return ErrHeadTooLarge
	}
	if n < 4 || string(head[n-4:]) != "\r\n\r\n" {
		return ErrIncomplete
	}
	return nil
}

// line reads the request line (RFC 9112, section 3) and returns the place
// behind it. Method, target and version are parted by one space each.
func (r *Request) line(head []byte, maxTarget int) (next int, err error) {
	i := 0
	for lowered[head[i]] != 0 {
		i++
	}
	if i == 0 || head[i] != ' ' {
		return 0, ErrMethod
	}
	r.Method = head[:i:i]
	i++
	start := i
	connect := string(r.Method) == "CONNECT"
	switch {
	case head[i] == '/' && !connect:
		i, err = path(head, i)
		if err != nil {
			return 0, err
		}
		r.Path = head[start:i:i]
	case connect:
		i = authorityEnd(head, i)
		r.Authority = head[start:i:i]
		if !hasPort(r.Authority) {
			return 0, ErrTarget
		}
	case head[i] == '*' && string(r.Method) == "OPTIONS":
		i++
		r.Path = head[start:i:i]
	default:
		i, err = r.absolute(head, i)
		if err != nil {
			return 0, err
		}
	}
	if i-start > maxTarget {
		return 0, ErrTargetTooLong
	}
	if head[i] != ' ' {
		return 0, ErrTarget
	}
	r.Minor, next, err = version(head, i+1)
	if err != nil {
		return 0, err
	}
	if len(head) < next+2 || head[next] != '\r' || head[next+1] != '\n' {
		return 0, ErrStartLine
	}
	return next + 2, nil
}

// version reads "HTTP/1.0" or "HTTP/1.1" at b[i] and returns the place behind.
func version(b []byte, i int) (minor, next int, err error) {
	next = i + len("HTTP/1.1")
	if next > len(b) {
		return 0, 0, ErrStartLine
	}
	switch string(b[i:next]) {
	case "HTTP/1.1":
		return 1, next, nil
	case "HTTP/1.0":
		return 0, next, nil
	}
	if v := b[i:next]; string(v[:5]) == "HTTP/" && digit(v[5]) && v[6] == '.' && digit(v[7]) {
		return 0, 0, ErrVersion
	}
	return 0, 0, ErrStartLine
}
