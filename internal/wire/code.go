package wire

// Code says why a stream was reset or a link goes away. The numbers stand on
// the wire; a receiver keeps one that it does not know as it is.
type Code uint8

// Codes. What each means for the receiver stands in docs/wire.md.
const (
	CodeNone               Code = 0  // nothing is wrong
	CodeCancelled          Code = 1  // the sender's application does not want the rest
	CodeRefused            Code = 2  // not taken; another link may be tried
	CodeDenied             Code = 3  // this caller is not allowed
	CodeNoService          Code = 4  // no such service or endpoint here
	CodeLocalConnectFailed Code = 5  // the application does not take connections
	CodeOverflow           Code = 6  // a limit is reached
	CodeTimeout            Code = 7  // deadline or idle time is over
	CodeProtocolError      Code = 8  // the receiver broke the rules of docs/wire.md
	CodeInternal           Code = 9  // a fault of the sender
	CodeDraining           Code = 10 // the sender shuts down
	CodeLocalReset         Code = 11 // the application broke off its connection
	CodeLocalProtocolError Code = 12 // the application did not speak its protocol
)

const codeCount = CodeLocalProtocolError + 1

var codeNames = [codeCount]string{
	CodeNone: "none", CodeCancelled: "cancelled", CodeRefused: "refused", CodeDenied: "denied",
	CodeNoService: "no_service", CodeLocalConnectFailed: "local_connect_failed", CodeOverflow: "overflow",
	CodeTimeout: "timeout", CodeProtocolError: "protocol_error", CodeInternal: "internal",
	CodeDraining: "draining", CodeLocalReset: "local_reset", CodeLocalProtocolError: "local_protocol_error",
}

// String returns the word of docs/wire.md, "unknown" for a number it does not have.
func (c Code) String() string {
	if c < codeCount {
		return codeNames[c]
	}
	return "unknown"
}

// Error is what is wrong with octets of a peer. All are made in advance: a peer
// that sends rubbish must not cost memory.
type Error struct {
	Code   Code   // what to tell the peer
	Reason string // short and fixed, for logs
}

func (e *Error) Error() string { return "link protocol: " + e.Reason }

func protocolError(reason string) *Error { return &Error{Code: CodeProtocolError, Reason: reason} }

// Errors of the link, from Decoder.Next.
var (
	errType       = protocolError("frame type 0")
	errLong       = protocolError("frame longer than its type allows")
	errShort      = protocolError("frame shorter than its type needs")
	errStream     = protocolError("stream number out of range")
	errEmptyData  = protocolError("empty data frame without end")
	errStatusType = protocolError("status does not fit the frame type")
)

// Errors of one stream, from the Parse functions.
var (
	errTruncated  = protocolError("payload ends inside an element")
	errKind       = protocolError("unknown kind of stream")
	errOption     = protocolError("malformed or repeated option")
	errTrailing   = protocolError("octets after the end of the payload")
	errMethod     = protocolError("malformed method")
	errScheme     = protocolError("malformed scheme")
	errAuthority  = protocolError("malformed authority")
	errPath       = protocolError("malformed path")
	errStatus     = protocolError("status out of range")
	errFields     = protocolError("too many fields")
	errIndex      = protocolError("field name index out of range")
	errName       = protocolError("malformed field name")
	errValue      = protocolError("malformed field value")
	errConnection = protocolError("field that belongs to one connection")
	errLength     = protocolError("malformed or repeated content-length")
	errTrailer    = protocolError("field that may not be a trailer")
	errCredit     = protocolError("credit out of range")
)
