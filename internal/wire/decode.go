package wire

import (
	"bytes"
	"encoding/binary"
	"time"

	"meshd/internal/mesh"
)

// The Parse functions take the whole payload of a frame. Their errors (always
// an *Error) concern that stream only. What they return are views into p, or
// into tables of this package: nobody may write them.

// ParseOpen fills o from the payload of an open frame and keeps the memory of
// its Fields.
func ParseOpen(p []byte, o *Open) error {
	o.Head.Reset()
	o.Endpoint, o.Unit, o.Upgrade = nil, nil, nil
	if len(p) < openFixed {
		return errTruncated
	}
	o.Kind, o.Attempt = Kind(p[0]), p[1]
	o.Remaining = time.Duration(binary.BigEndian.Uint32(p[2:])) * time.Millisecond
	options := int(binary.BigEndian.Uint16(p[6:]))
	p = p[openFixed:]
	if options > len(p) {
		return errTruncated
	}
	if options > 0 {
		if err := parseOptions(p[:options], o); err != nil {
			return err
		}
		p = p[options:]
	}
	switch o.Kind {
	case KindHTTP:
		return parseRequest(p, &o.Head)
	case KindTCP:
		if len(p) != 0 {
			return errTrailing
		}
		return nil
	}
	return errKind
}

// parseOptions skips tags that it does not know: a later agent may send them.
func parseOptions(p []byte, o *Open) error {
	for len(p) > 0 {
		if len(p) < optionLen {
			return errTruncated
		}
		tag := p[0]
		v, rest, ok := getString(p[1:])
		if !ok {
			return errTruncated
		}
		p = rest
		var to *[]byte
		switch tag {
		case optionEndpoint:
			to = &o.Endpoint
		case optionUnit:
			to = &o.Unit
		case optionUpgrade:
			to = &o.Upgrade
		default:
			continue
		}
		if *to != nil || len(v) == 0 || !validValue(v) {
			return errOption
		}
		*to = v
	}
	return nil
}

func parseRequest(p []byte, h *mesh.Head) error {
	if len(p) == 0 {
		return errTruncated
	}
	ok := true
	index := p[0]
	p = p[1:]
	switch {
	case index == literal:
		if h.Method, p, ok = getString(p); !ok {
			return errTruncated
		}
		if len(h.Method) == 0 || !all(h.Method, classToken) {
			return errMethod
		}
	case int(index) < len(methods):
		h.Method = methods[index]
	default:
		return errMethod
	}
	if len(p) == 0 {
		return errTruncated
	}
	index = p[0]
	p = p[1:]
	switch {
	case index == literal:
		if h.Scheme, p, ok = getString(p); !ok {
			return errTruncated
		}
		if len(h.Scheme) == 0 || !all(h.Scheme, classScheme) {
			return errScheme
		}
	case int(index) < len(schemes):
		h.Scheme = schemes[index]
	default:
		return errScheme
	}
	if h.Authority, p, ok = getString(p); !ok {
		return errTruncated
	}
	if !all(h.Authority, classAuthority) {
		return errAuthority
	}
	if h.Path, p, ok = getString(p); !ok {
		return errTruncated
	}
	if !validPath(h.Path, h.Method) {
		return errPath
	}
	var err error
	h.Fields, err = parseFields(p, h.Fields, ruleConnection|ruleTE|ruleUpgrade|ruleLength)
	return err
}

// ParseHead fills h from the payload of a head, interim or upgrade accepted
// frame and keeps the memory of its Fields.
func ParseHead(p []byte, h *mesh.Head) error {
	h.Reset()
	if len(p) < statusLen {
		return errTruncated
	}
	h.Status = int(binary.BigEndian.Uint16(p))
	if h.Status < 100 || h.Status > 599 {
		return errStatus
	}
	refuse := ruleConnection | ruleTE | ruleUpgrade | ruleLength
	if h.Status == 101 {
		refuse &^= ruleUpgrade
	}
	var err error
	h.Fields, err = parseFields(p[statusLen:], h.Fields, refuse)
	return err
}

// ParseTrailers appends the fields of a trailers frame to dst.
func ParseTrailers(p []byte, dst []mesh.Field) ([]mesh.Field, error) {
	return parseFields(p, dst, ruleConnection|ruleNoTrailer)
}

// parseFields appends the fields in p to dst; refuse are the rules in force.
func parseFields(p []byte, dst []mesh.Field, refuse rule) ([]mesh.Field, error) {
	var ok, length bool
	for count := 0; len(p) > 0; count++ {
		if count == MaxFields {
			return dst, errFields
		}
		var f mesh.Field
		index := p[0]
		p = p[1:]
		if index == literal {
			if f.Name, p, ok = getString(p); !ok {
				return dst, errTruncated
			}
			if len(f.Name) == 0 || !all(f.Name, className) {
				return dst, errName
			}
			// A peer may spell out a name that has an index; it must not pass
			// by the rules for it.
			f.Known = mesh.LookupKnown(f.Name)
		} else {
			if index > byte(lastStatic) {
				return dst, errIndex
			}
			f.Known, f.Name = mesh.Known(index), staticNames[index]
		}
		if f.Value, p, ok = getString(p); !ok {
			return dst, errTruncated
		}
		if !validValue(f.Value) {
			return dst, errValue
		}
		if r := rules[f.Known] & refuse; r != 0 {
			if err := check(r, f.Value, length); err != nil {
				return dst, err
			}
			length = length || r&ruleLength != 0
		}
		dst = append(dst, f)
	}
	return dst, nil
}

// check applies the rules r of a field; length says that there was a
// content-length before.
func check(r rule, value []byte, length bool) error {
	switch {
	case r&(ruleConnection|ruleUpgrade) != 0:
		return errConnection
	case r&ruleNoTrailer != 0:
		return errTrailer
	case r&ruleTE != 0 && !bytes.EqualFold(value, []byte("trailers")):
		return errConnection
	case r&ruleLength != 0 && (length || !validLength(value)):
		return errLength
	}
	return nil
}

// getString takes a length and that many octets off p.
func getString(p []byte) (s, rest []byte, ok bool) {
	if len(p) < 2 {
		return nil, nil, false
	}
	n := int(p[0])<<8 | int(p[1])
	p = p[2:]
	if n > len(p) {
		return nil, nil, false
	}
	return p[:n:n], p[n:], true
}

// ParseReset reads the payload of a reset frame.
func ParseReset(p []byte) (code Code, delivered bool, err error) {
	if len(p) < resetLen {
		return 0, false, errTruncated
	}
	return Code(p[0]), p[1]&resetDelivered != 0, nil
}

// ParseCredit reads the payload of a credit frame: 1 to MaxCredit octets.
func ParseCredit(p []byte) (n uint32, err error) {
	if len(p) < creditLen {
		return 0, errTruncated
	}
	n = binary.BigEndian.Uint32(p)
	if n == 0 || n > MaxCredit {
		return 0, errCredit
	}
	return n, nil
}

// ParsePing reads the payload of a ping frame; ack marks an answer.
func ParsePing(p []byte) (data uint64, ack bool, err error) {
	if len(p) < pingLen {
		return 0, false, errTruncated
	}
	return binary.BigEndian.Uint64(p[1:]), p[0]&pingAck != 0, nil
}

// ParseGoaway reads the payload of a goaway frame.
func ParseGoaway(p []byte) (Code, error) {
	if len(p) < goawayLen {
		return 0, errTruncated
	}
	return Code(p[0]), nil
}
