package http1

import "meshd/internal/mesh"

// section collects what the fields of a head say. It lives on the stack of a
// Parse and reads requests and responses alike.
type section struct {
	fields    []mesh.Field // what goes on
	host      []byte
	hosts     int
	length    int64 // of content-length; -1: not given
	chunked   bool
	close     bool // Connection: close
	keepAlive bool // Connection: keep-alive
	upgrades  bool // Connection: upgrade
	named     bool // Connection names fields; its fields are still in fields
	expects   bool // Expect: 100-continue
	upgrade   []byte
}

// field takes one field line apart that begins at b[p]: the name is
// b[p:nameEnd], in lower case from now on, the trimmed value is
// b[start:stop], and next is behind the line end. b must end in CRLF.
func field(b []byte, p int) (nameEnd, start, stop, next int, err error) {
	i := p
	for {
		c := lowered[b[i]]
		if c == 0 {
			break
		}
		b[i] = c
		i++
	}
	nameEnd = i
	if b[i] != ':' || i == p {
		return 0, 0, 0, 0, badName(b, p, i)
	}
	i++
	for blank(b[i]) {
		i++
	}
	start = i
	i = control(b, i)
	for b[i] == '\t' {
		i = control(b, i+1)
	}
	if b[i] != '\r' {
		if b[i] == '\n' {
			return 0, 0, 0, 0, ErrBareLF
		}
		return 0, 0, 0, 0, ErrControl
	}
	// b ends in CRLF, so that a carriage return is never its last byte.
	if b[i+1] != '\n' {
		return 0, 0, 0, 0, ErrBareCR
	}
	next = i + 2
	for i > start && blank(b[i-1]) {
		i--
	}
	return nameEnd, start, i, next, nil
}

// badName says why the octet at b[i] cannot follow the name that began at p.
func badName(b []byte, p, i int) error {
	switch {
	case blank(b[i]) && i == p:
		return ErrFold
	case blank(b[i]):
		return ErrSpaceBeforeColon
	case b[i] == '\n':
		return ErrBareLF
	}
	return ErrFieldName
}

// read takes in the fields of head from p on to the empty line, which must be
// its end. Everything that concerns this connection only is kept out of
// s.fields (RFC 9110, section 7.6.1).
func (s *section) read(head []byte, p int, minor int, lim *Limits) error {
	s.length = -1
	fields := s.fields[:0]
	for count := 0; head[p] != '\r'; count++ {
		if count >= lim.FieldCount {
			return ErrTooManyFields
		}
		nameEnd, start, stop, next, err := field(head, p)
		if err != nil {
			return err
		}
		name, value := head[p:nameEnd:nameEnd], head[start:stop:stop]
		p = next
		known := mesh.LookupKnown(name)
		if perHop[known] {
			if value, err = s.consider(known, value, minor); err != nil {
				return err
			}
			if value == nil {
				continue
			}
		}
		fields = append(fields, mesh.Field{Name: name, Value: value, Known: known})
	}
	s.fields = fields
	if head[p+1] != '\n' {
		return ErrBareCR
	}
	if p+2 != len(head) {
		return ErrExcess
	}
	if s.chunked && s.length >= 0 {
		return ErrLengthAndCoding
	}
	if s.named {
		return s.dropNamed()
	}
	return nil
}

// perHop marks the names that consider decides about.
var perHop = [mesh.KnownCount]bool{
	mesh.Host: true, mesh.ContentLength: true, mesh.TransferEncoding: true, mesh.Connection: true,
	mesh.KeepAlive: true, mesh.ProxyConnection: true, mesh.TE: true, mesh.Upgrade: true,
	mesh.HTTP2Settings: true, mesh.ProxyAuthorization: true, mesh.ProxyAuthenticate: true,
	mesh.Expect: true, mesh.Trailer: true,
}

// consider takes note of a field that has to do with framing or with the
// connection. It returns the value that goes on, nil if none does.
func (s *section) consider(known mesh.Known, value []byte, minor int) ([]byte, error) {
	switch known {
	case mesh.Host:
		s.host = value
		s.hosts++
		return nil, nil
	case mesh.ContentLength:
		if s.length >= 0 {
			return nil, ErrManyLengths
		}
		n, ok := decimal(value)
		if !ok {
			return nil, ErrContentLength
		}
		s.length = n
		// Readers that take a leading zero for octal must not see one.
		for len(value) > 1 && value[0] == '0' {
			value = value[1:]
		}
		return value, nil
	case mesh.TransferEncoding:
		switch {
		case minor == 0:
			return nil, ErrCodingVersion
		case s.chunked:
			return nil, ErrManyCodings
		case !folds(value, "chunked"):
			return nil, ErrTransferCoding
		}
		s.chunked = true
		return nil, nil
	case mesh.Connection:
		return s.connection(value)
	case mesh.TE:
		// The one word that says something about the far end: trailers are
		// welcome. The encoder names it in Connection again.
		if folds(value, "trailers") {
			return value, nil
		}
		return nil, nil
	case mesh.Upgrade:
		if s.upgrade != nil {
			return nil, ErrUpgrade
		}
		s.upgrade = value
		return nil, nil
	case mesh.Expect:
		if folds(value, "100-continue") {
			if minor == 0 {
				return nil, nil // RFC 9110, section 10.1.1: ignored
			}
			s.expects = true
		}
		return value, nil
	case mesh.Trailer:
		return value, announced(value)
	}
	return nil, nil
}

// announced refuses a Trailer field that announces framing: a reader that
// merges trailers into the head would see a second length.
func announced(value []byte) error {
	for rest := value; len(rest) > 0; {
		var name []byte
		name, rest = element(rest)
		if folds(name, "content-length") || folds(name, "transfer-encoding") || folds(name, "trailer") {
			return ErrTrailerNames
		}
	}
	return nil
}
