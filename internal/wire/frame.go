package wire

import "encoding/binary"

// ALPN is the protocol name agreed on in the TLS handshake of a link; it names
// the version too.
const ALPN = "meshd/1"

const (
	// HeaderLen is the size of the header in front of every frame, in octets.
	HeaderLen = 9
	// MaxHead bounds the payload of frames with fields (open, head, interim,
	// trailers, upgrade accepted), in octets: twice what the HTTP codecs take
	// from an application, and every length inside fits 16 bits.
	MaxHead = 64<<10 - 1
	// MaxData bounds the payload of one data frame, in octets: several TLS
	// records, so that the header costs nothing, and short enough that another
	// stream's frame never waits for long.
	MaxData = 64 << 10
	// MaxControl bounds the payload of all other known frames, in octets. They
	// need 9 at most; the rest is room for later additions, which are ignored.
	MaxControl = 255
	// MaxFields bounds the fields of one frame: above what the HTTP codecs take
	// from an application plus what agents add.
	MaxFields = 256
	// InitialCredit is how much data payload each side may send on a new
	// stream before the first credit frame, in octets.
	InitialCredit = 256 << 10
	// MaxCredit bounds one credit frame and the credit open at a time, in octets.
	MaxCredit = 1<<31 - 1
	// MaxStreams is the number of stream slots of a link. Both sides index a
	// slice by slot, which this keeps small.
	MaxStreams = 8192
)

// Type says what a frame is. The numbers stand on the wire.
type Type uint8

// Frame types. None never stands on the wire: [Decoder.Next] returns it when it
// consumed octets that are nobody's business yet or ever.
const (
	None                Type = 0
	TypeOpen            Type = 1
	TypeHead            Type = 2
	TypeInterim         Type = 3
	TypeData            Type = 4
	TypeTrailers        Type = 5
	TypeEnd             Type = 6
	TypeReset           Type = 7
	TypeCredit          Type = 8
	TypeUpgradeAccepted Type = 9
	TypePing            Type = 10
	TypeGoaway          Type = 11
)

const typeCount = TypeGoaway + 1

var typeNames = [typeCount]string{
	None: "none", TypeOpen: "open", TypeHead: "head", TypeInterim: "interim", TypeData: "data",
	TypeTrailers: "trailers", TypeEnd: "end", TypeReset: "reset", TypeCredit: "credit",
	TypeUpgradeAccepted: "upgrade_accepted", TypePing: "ping", TypeGoaway: "goaway",
}

// String returns the word of docs/wire.md.
func (t Type) String() string {
	if t < typeCount {
		return typeNames[t]
	}
	return "unknown"
}

// flagEnd in the flags octet: the sender sends nothing more on this stream.
const flagEnd = 0x01

// Frame is one frame, or a piece of a data frame. Payload is a view into what
// Next was given.
type Frame struct {
	Type Type
	// End is set on the last frame (or piece) in this direction of the stream;
	// always with trailers and end frames.
	End     bool
	Stream  uint32
	Payload []byte
}

// StreamID joins a slot (below MaxStreams) and a generation (1 or more).
func StreamID(slot int, generation uint16) uint32 {
	return uint32(generation)<<16 | uint32(slot)
}

// Slot returns the slot of a stream: an index below MaxStreams for every frame
// that a Decoder returned.
func Slot(stream uint32) int { return int(stream & 0xffff) }

// Generation returns how often the slot has been used, modulo 65535, never 0.
func Generation(stream uint32) uint16 { return uint16(stream >> 16) }

// shape is what the header of a known type must look like.
type shape struct {
	min, max uint32 // payload octets
	link     bool   // concerns the link: stream 0
	end      bool   // the end flag has a meaning
}

var shapes = [typeCount]shape{
	TypeOpen:            {min: openFixed, max: MaxHead, end: true},
	TypeHead:            {min: statusLen, max: MaxHead, end: true},
	TypeInterim:         {min: statusLen, max: MaxHead},
	TypeData:            {min: 0, max: MaxData, end: true},
	TypeTrailers:        {min: 0, max: MaxHead},
	TypeEnd:             {min: 0, max: MaxControl},
	TypeReset:           {min: resetLen, max: MaxControl},
	TypeCredit:          {min: creditLen, max: MaxControl},
	TypeUpgradeAccepted: {min: statusLen, max: MaxHead},
	TypePing:            {min: pingLen, max: MaxControl, link: true},
	TypeGoaway:          {min: goawayLen, max: MaxControl, link: true},
}

// Decoder finds the frames in the octets of one direction of a link. The zero
// value is ready. It remembers only the data (or unknown) frame that is under
// way, so its memory is bounded by itself.
type Decoder struct {
	left   uint32 // payload octets of the frame under way that are still to come
	stream uint32
	typ    Type // TypeData, or None while an unknown frame is skipped
	end    bool
}

// Next returns the frame at the start of b and how many octets it consumed.
// With n == 0 and no error it needs more: call again with b and what follows
// it. Head-like and control frames are returned whole, so the caller must be
// able to hold HeaderLen+MaxHead octets. A data frame is returned in pieces as
// they come, each with at least one octet, End only with the last; an empty one
// is returned only with End. Octets of unknown frames, and the header of a data
// frame whose payload has not come, are consumed under Type None.
//
// An error (always an *Error) is one of the link: nothing after it can be read.
func (d *Decoder) Next(b []byte) (f Frame, n int, err error) {
	if d.left > 0 {
		return d.piece(b, 0)
	}
	if len(b) < HeaderLen {
		return Frame{}, 0, nil
	}
	length := uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2])
	typ := Type(b[3])
	if typ >= typeCount {
		d.left, d.typ, d.end = length, None, false
		return d.piece(b, HeaderLen)
	}
	s := &shapes[typ]
	stream := binary.BigEndian.Uint32(b[5:])
	switch {
	case typ == None:
		return Frame{}, 0, errType
	case length > s.max:
		return Frame{}, 0, errLong
	case length < s.min:
		return Frame{}, 0, errShort
	case s.link != (stream == 0):
		return Frame{}, 0, errStream
	case !s.link && (Slot(stream) >= MaxStreams || Generation(stream) == 0):
		return Frame{}, 0, errStream
	}
	end := s.end && b[4]&flagEnd != 0
	if typ == TypeData {
		if length == 0 {
			if !end {
				return Frame{}, 0, errEmptyData
			}
			return Frame{Type: TypeData, End: true, Stream: stream}, HeaderLen, nil
		}
		d.left, d.typ, d.stream, d.end = length, TypeData, stream, end
		return d.piece(b, HeaderLen)
	}
	n = HeaderLen + int(length)
	if len(b) < n {
		return Frame{}, 0, nil
	}
	f = Frame{Type: typ, End: end, Stream: stream, Payload: b[HeaderLen:n:n]}
	switch typ {
	case TypeTrailers, TypeEnd:
		f.End = true
	case TypeHead, TypeInterim, TypeUpgradeAccepted:
		if !statusFits(typ, binary.BigEndian.Uint16(f.Payload)) {
			return Frame{}, 0, errStatusType
		}
	}
	return f, n, nil
}

// piece returns what b holds, from octet n on, of the frame under way.
func (d *Decoder) piece(b []byte, n int) (Frame, int, error) {
	take := len(b) - n
	if take > int(d.left) {
		take = int(d.left)
	}
	if d.typ == None || take == 0 {
		d.left -= uint32(take)
		return Frame{}, n + take, nil
	}
	d.left -= uint32(take)
	end := n + take
	return Frame{Type: TypeData, End: d.end && d.left == 0, Stream: d.stream, Payload: b[n:end:end]}, end, nil
}

// statusFits keeps the three kinds of response head apart: a final head that
// said 100 or 101 would make the next hop read the rest of the connection
// wrongly.
func statusFits(t Type, status uint16) bool {
	switch t {
	case TypeHead:
		return status >= 200 && status <= 599
	case TypeInterim:
		return status >= 100 && status <= 199 && status != 101
	default:
		return status == 101
	}
}
