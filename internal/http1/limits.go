package http1

// Limits bound what one message may make its reader hold or do. All are in
// bytes or pieces and inclusive; the zero value lets nothing pass.
type Limits struct {
	HeadBytes      int // start line, fields and the empty line
	FieldCount     int // field lines of a head, those that are not passed on included; of the trailers likewise
	TargetBytes    int // request target as it came
	ChunkLineBytes int // chunk size with extensions, without CRLF
	TrailerBytes   int // trailer section with the empty line
}

// Defaults of Limits. They are those of the common servers: nginx and Apache
// stop at 8 KiB for a target, Apache at 100 fields.
const (
	defaultHeadBytes      = 32 << 10 // cookies and tokens together reach 16 KiB in the wild
	defaultFieldCount     = 100
	defaultTargetBytes    = 8 << 10
	defaultChunkLineBytes = 256
	defaultTrailerBytes   = 8 << 10
)

// DefaultLimits returns the limits for peers that are not trusted.
func DefaultLimits() Limits {
	return Limits{
		HeadBytes:      defaultHeadBytes,
		FieldCount:     defaultFieldCount,
		TargetBytes:    defaultTargetBytes,
		ChunkLineBytes: defaultChunkLineBytes,
		TrailerBytes:   defaultTrailerBytes,
	}
}

const (
	// maxConnectionNames bounds the fields that Connection may take out of one
	// head. Each costs a pass over the fields; a real client names one or two.
	maxConnectionNames = 16
	// maxChunkDigits keeps a chunk size inside an int64 without looking: 15
	// hexadecimal digits are 60 bits. Leading zeros count.
	maxChunkDigits = 15
	// maxChunkExcess bounds how far the chunk-size lines of a body, extensions
	// above all, may run ahead of its payload: a sender must not be able to keep
	// a reader busy without sending anything. chunkAllowance is forgiven per
	// chunk, and twice its payload. The figures are those of net/http.
	maxChunkExcess = 16 << 10
	chunkAllowance = 16
)
