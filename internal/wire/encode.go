package wire

import (
	"encoding/binary"
	"slices"
	"time"

	"meshd/internal/mesh"
)

// Kind says what a stream carries. The numbers stand on the wire.
type Kind uint8

// Kinds of streams.
const (
	KindHTTP Kind = 1 // one request and its response
	KindTCP  Kind = 2 // octets both ways, without heads
)

// String returns the word of docs/wire.md.
func (k Kind) String() string {
	switch k {
	case KindHTTP:
		return "http"
	case KindTCP:
		return "tcp"
	}
	return "unknown"
}

// Open is the first frame of a stream. All byte slices are views when parsed.
// With KindTCP the Head is not sent and comes out empty.
type Open struct {
	mesh.Head
	Kind Kind
	// Endpoint is the id of the service instance that is meant, as the catalog
	// has it; empty lets the peer choose.
	Endpoint []byte
	// Remaining is the time left until the caller gives up: a number of
	// milliseconds (rounded up, at most 2^32-1). 0 is no deadline.
	Remaining time.Duration
	// Attempt counts from 0: how many attempts of this exchange came before.
	Attempt uint8
	// Unit is the calling systemd unit, empty when unknown.
	Unit []byte
	// Upgrade is the protocol of the Upgrade field (RFC 9110 section 7.8) when
	// the application asks for one, else empty. A peer may ignore it.
	Upgrade []byte
}

// Sizes and layout of payloads; docs/wire.md has the tables.
const (
	openFixed = 1 + 1 + 4 + 2 // kind, attempt, remaining, length of the options
	statusLen = 2
	resetLen  = 1 + 1
	creditLen = 4
	pingLen   = 1 + 8
	goawayLen = 1
	optionLen = 1 + 2 // tag, length

	optionEndpoint = 1
	optionUnit     = 2
	optionUpgrade  = 3

	maxRemaining = (1<<32 - 1) * time.Millisecond
)

const (
	resetDelivered = 0x01
	pingAck        = 0x01
)

// header appends room for a whole frame with its header filled in, and returns
// the payload too.
func header(dst []byte, t Type, flags byte, stream uint32, length int) (all, payload []byte) {
	at := len(dst)
	dst = slices.Grow(dst, HeaderLen+length)[:at+HeaderLen+length]
	h := dst[at:]
	h[0], h[1], h[2] = byte(length>>16), byte(length>>8), byte(length)
	h[3], h[4] = byte(t), flags
	binary.BigEndian.PutUint32(h[5:], stream)
	return dst, h[HeaderLen:]
}

func endFlag(end bool) byte {
	if end {
		return flagEnd
	}
	return 0
}

// AppendOpen appends an open frame. ok is false, and nothing appended, when the
// payload would be over MaxHead or has more than MaxFields fields.
func AppendOpen(dst []byte, stream uint32, o *Open, end bool) (_ []byte, ok bool) {
	options := optionSize(o.Endpoint) + optionSize(o.Unit) + optionSize(o.Upgrade)
	size := openFixed + options
	var method, scheme byte
	if o.Kind == KindHTTP {
		method, scheme = methodIndex(o.Method), schemeIndex(o.Scheme)
		size += 1 + 1 + 2 + len(o.Authority) + 2 + len(o.Path) + fieldsSize(o.Fields, 0)
		if method == literal {
			size += 2 + len(o.Method)
		}
		if scheme == literal {
			size += 2 + len(o.Scheme)
		}
	}
	if size > MaxHead || len(o.Fields) > MaxFields {
		return dst, false
	}
	dst, p := header(dst, TypeOpen, endFlag(end), stream, size)
	p[0], p[1] = byte(o.Kind), o.Attempt
	binary.BigEndian.PutUint32(p[2:], milliseconds(o.Remaining))
	binary.BigEndian.PutUint16(p[6:], uint16(options))
	p = p[openFixed:]
	if options > 0 {
		p = putOption(p, optionEndpoint, o.Endpoint)
		p = putOption(p, optionUnit, o.Unit)
		p = putOption(p, optionUpgrade, o.Upgrade)
	}
	if o.Kind == KindHTTP {
		p[0] = method
		p = p[1:]
		if method == literal {
			p = putString(p, o.Method)
		}
		p[0] = scheme
		p = p[1:]
		if scheme == literal {
			p = putString(p, o.Scheme)
		}
		p = putString(p, o.Authority)
		p = putString(p, o.Path)
		putFields(p, o.Fields, 0)
	}
	return dst, true
}

// AppendHead appends the final head of a response (status 200 to 599). ok as
// with AppendOpen.
func AppendHead(dst []byte, stream uint32, h *mesh.Head, end bool) (_ []byte, ok bool) {
	return appendHead(dst, TypeHead, endFlag(end), stream, h)
}

// AppendInterim appends an interim response (status 100 to 199 without 101).
// ok as with AppendOpen.
func AppendInterim(dst []byte, stream uint32, h *mesh.Head) (_ []byte, ok bool) {
	return appendHead(dst, TypeInterim, 0, stream, h)
}

// AppendUpgradeAccepted appends the head that accepts an upgrade (status 101);
// afterwards the stream carries octets both ways. ok as with AppendOpen.
func AppendUpgradeAccepted(dst []byte, stream uint32, h *mesh.Head) (_ []byte, ok bool) {
	return appendHead(dst, TypeUpgradeAccepted, 0, stream, h)
}

func appendHead(dst []byte, t Type, flags byte, stream uint32, h *mesh.Head) ([]byte, bool) {
	size := statusLen + fieldsSize(h.Fields, 0)
	if size > MaxHead || len(h.Fields) > MaxFields {
		return dst, false
	}
	dst, p := header(dst, t, flags, stream, size)
	binary.BigEndian.PutUint16(p, uint16(h.Status))
	putFields(p[statusLen:], h.Fields, 0)
	return dst, true
}

// AppendTrailers appends the trailer fields, which end this direction of the
// stream. Fields that may not be trailers (docs/wire.md) are left out, as RFC
// 9110 section 6.5.1 lets an intermediary do. ok as with AppendOpen.
func AppendTrailers(dst []byte, stream uint32, fields []mesh.Field) (_ []byte, ok bool) {
	const leave = ruleConnection | ruleNoTrailer
	size := fieldsSize(fields, leave)
	if size > MaxHead || len(fields) > MaxFields {
		return dst, false
	}
	dst, p := header(dst, TypeTrailers, flagEnd, stream, size)
	putFields(p, fields, leave)
	return dst, true
}

// AppendData appends p in as many data frames as it needs, the last one with
// the end flag when told so. Nothing is appended for an empty p without end.
func AppendData(dst []byte, stream uint32, p []byte, end bool) []byte {
	for len(p) > MaxData {
		dst = AppendDataHeader(dst, stream, MaxData, false)
		dst = append(dst, p[:MaxData]...)
		p = p[MaxData:]
	}
	if len(p) == 0 && !end {
		return dst
	}
	dst = AppendDataHeader(dst, stream, len(p), end)
	return append(dst, p...)
}

// AppendDataHeader appends the header of one data frame of n octets (1 to
// MaxData, or 0 with end), which the caller appends itself: it saves a copy
// when they are read straight into place.
func AppendDataHeader(dst []byte, stream uint32, n int, end bool) []byte {
	return append(dst, byte(n>>16), byte(n>>8), byte(n), byte(TypeData), endFlag(end),
		byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
}

// AppendEnd appends the end of this direction of the stream.
func AppendEnd(dst []byte, stream uint32) []byte {
	dst, _ = header(dst, TypeEnd, flagEnd, stream, 0)
	return dst
}

// AppendReset appends the end of both directions. delivered says that octets of
// the exchange may have reached the application of the sender of the reset.
func AppendReset(dst []byte, stream uint32, code Code, delivered bool) []byte {
	dst, p := header(dst, TypeReset, 0, stream, resetLen)
	p[0], p[1] = byte(code), 0
	if delivered {
		p[1] = resetDelivered
	}
	return dst
}

// AppendCredit lets the peer send n (1 to MaxCredit) more octets of data on the stream.
func AppendCredit(dst []byte, stream uint32, n uint32) []byte {
	dst, p := header(dst, TypeCredit, 0, stream, creditLen)
	binary.BigEndian.PutUint32(p, n)
	return dst
}

// AppendPing appends a ping, or with ack the answer to one with the same data.
func AppendPing(dst []byte, data uint64, ack bool) []byte {
	dst, p := header(dst, TypePing, 0, 0, pingLen)
	p[0] = 0
	if ack {
		p[0] = pingAck
	}
	binary.BigEndian.PutUint64(p[1:], data)
	return dst
}

// AppendGoaway asks the peer to open nothing more on this link.
func AppendGoaway(dst []byte, code Code) []byte {
	dst, p := header(dst, TypeGoaway, 0, 0, goawayLen)
	p[0] = byte(code)
	return dst
}

// milliseconds rounds up, since 0 would mean no deadline; so would a deadline
// that has passed, which becomes 1 instead.
func milliseconds(d time.Duration) uint32 {
	switch {
	case d == 0:
		return 0
	case d < time.Millisecond:
		return 1
	case d >= maxRemaining:
		return 1<<32 - 1
	}
	return uint32((d + time.Millisecond - 1) / time.Millisecond)
}

func optionSize(v []byte) int {
	if len(v) == 0 {
		return 0
	}
	return optionLen + len(v)
}

func putOption(p []byte, tag byte, v []byte) []byte {
	if len(v) == 0 {
		return p
	}
	p[0] = tag
	return putString(p[1:], v)
}

func putString(p, s []byte) []byte {
	p[0], p[1] = byte(len(s)>>8), byte(len(s))
	return p[2+copy(p[2:], s):]
}

// fieldsSize is what putFields writes.
func fieldsSize(fields []mesh.Field, leave rule) int {
	size := 0
	for i := range fields {
		f := &fields[i]
		if rules[f.Known]&leave != 0 {
			continue
		}
		size += 1 + 2 + len(f.Value)
		if !indexed(f.Known) {
			size += 2 + len(f.Name)
		}
	}
	return size
}

func putFields(p []byte, fields []mesh.Field, leave rule) {
	for i := range fields {
		f := &fields[i]
		if rules[f.Known]&leave != 0 {
			continue
		}
		if indexed(f.Known) {
			p[0] = byte(f.Known)
			p = putString(p[1:], f.Value)
			continue
		}
		p[0] = literal
		p = putString(putString(p[1:], f.Name), f.Value)
	}
}

func indexed(k mesh.Known) bool { return k != mesh.OtherField && k <= lastStatic }
