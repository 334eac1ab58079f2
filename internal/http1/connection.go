package http1

import (
	"bytes"

	"meshd/internal/mesh"
)

// connection reads one Connection field. Options that this package knows are
// noted; when the field names others, its value is returned in lower case and
// stands among the fields until dropNamed has used it, because the fields that
// it names may come later.
func (s *section) connection(value []byte) ([]byte, error) {
	lower(value)
	named := false
	for rest := value; len(rest) > 0; {
		var option []byte
		option, rest = element(rest)
		switch string(option) {
		case "":
		case "close":
			s.close = true
		case "keep-alive":
			s.keepAlive = true
		case "upgrade":
			s.upgrades = true
		case "te", "http2-settings", "proxy-connection":
			// Dropped, or kept, whether named or not.
		default:
			if !Token(option) {
				return nil, ErrConnection
			}
			if essential(option) {
				return nil, ErrConnectionNames
			}
			named = true
		}
	}
	if !named {
		return nil, nil
	}
	s.named = true
	return value, nil
}

// essential tells whether a field may not be taken out by naming it in
// Connection. Framing and routing must reach the next hop, and what agents and
// other proxies write about the caller must not be removable by the caller.
func essential(name []byte) bool {
	switch mesh.LookupKnown(name) {
	case mesh.Host, mesh.ContentLength, mesh.TransferEncoding, mesh.Expect, mesh.Trailer,
		mesh.Forwarded, mesh.Via, mesh.XRequestID, mesh.XRequestDeadlineMs:
		return true
	}
	return written(name)
}

// written tells whether meshd writes fields of that name. Many applications
// read "_" as "-", so both are looked at.
func written(name []byte) bool {
	return begins(name, "x-forwarded-") || begins(name, "meshd-")
}

func begins(name []byte, prefix string) bool {
	if len(name) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		c := name[i]
		if c == '_' {
			c = '-'
		}
		if c != prefix[i] {
			return false
		}
	}
	return true
}

// dropNamed takes the fields that Connection names out of s.fields, and the
// Connection fields themselves.
func (s *section) dropNamed() error {
	names := 0
	for i := range s.fields {
		if s.fields[i].Known != mesh.Connection {
			continue
		}
		for rest := s.fields[i].Value; len(rest) > 0; {
			var name []byte
			name, rest = element(rest)
			if len(name) == 0 {
				continue
			}
			if names++; names > maxConnectionNames {
				return ErrConnection
			}
			for j := range s.fields {
				f := &s.fields[j]
				if bytes.Equal(f.Name, name) && f.Known != mesh.TE {
					f.Name = nil // struck out; a name is never empty
				}
			}
		}
	}
	kept := s.fields[:0]
	for _, f := range s.fields {
		if f.Name != nil && f.Known != mesh.Connection {
			kept = append(kept, f)
		}
	}
	s.fields = kept
	return nil
}
