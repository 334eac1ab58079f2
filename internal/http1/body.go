package http1

import "meshd/internal/mesh"

// Body decodes the body of one message. It is a value without pointers to
// others; the zero value is a body that is done.
//
//	          ┌────────────────────────────────────────────────┐
//	          v                                                │
//	NewBody ─> size ─> (extension) ─> LF ─┬─> data ─> CR ─> LF ─┘
//	                                     └─> trailer section ─> done
//
// That is the chunked way; a length or the end of the connection is one state.
type Body struct {
	state  bodyState
	digits uint8 // of the chunk size so far
	left   int64 // of the body with a length, or of the chunk
	line   int   // bytes of the chunk-size line so far
	excess int   // bytes of chunk-size lines ahead of the payload, see maxChunkExcess

	maxLine, maxTrailer, maxFields int

	// trailers is the trailer section: a view of the caller's bytes if it came
	// in one piece, else a copy. scanned is where ScanHead goes on in it.
	trailers []byte
	scanned  int
	err      error
}

type bodyState uint8

const (
	bodyDone bodyState = iota
	bodyFailed
	bodyLength
	bodyClose
	chunkSize
	chunkExtension
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerFirst
	trailerLF
	trailerSection
)

// NewBody returns the decoder of a body of length bytes, or Chunked, or
// UntilClose: what Request.Length and Response.Length say.
func NewBody(length int64, lim Limits) Body {
	d := Body{maxLine: lim.ChunkLineBytes, maxTrailer: lim.TrailerBytes, maxFields: lim.FieldCount}
	switch {
	case length > 0:
		d.state, d.left = bodyLength, length
	case length == Chunked:
		d.state = chunkSize
	case length == UntilClose:
		d.state = bodyClose
	}
	return d
}

// Done tells whether the body has ended. Bytes behind it are the next message.
func (d *Body) Done() bool { return d.state == bodyDone }

// EOF tells the decoder that the connection has ended here. It returns nil if
// the body is complete, which one that lasts until then becomes by this.
func (d *Body) EOF() error {
	switch d.state {
	case bodyDone:
	case bodyClose:
		d.state = bodyDone
	case bodyFailed:
		return d.err
	default:
		return d.fail(ErrTruncated)
	}
	return nil
}

func (d *Body) fail(err error) error {
	d.state, d.err = bodyFailed, err
	return err
}

// Next takes n bytes off b and returns the payload among them, a view of b; it
// may be empty while the framing of chunks is read. Call it until n is 0: then
// all of b was taken, or the body is done, and what is left of b belongs to the
// next message. An error that stands behind payload is returned by the call
// after the one that returned the payload.
func (d *Body) Next(b []byte) (data []byte, n int, err error) {
	switch d.state {
	case bodyDone:
		return nil, 0, nil
	case bodyFailed:
		return nil, 0, d.err
	case bodyLength:
		n = len(b)
		if int64(n) >= d.left {
			n = int(d.left)
			d.state = bodyDone
		}
		d.left -= int64(n)
		return b[:n:n], n, nil
	case bodyClose:
		return b, len(b), nil
	}
	return d.chunks(b)
}

// chunks reads on in a chunked body (RFC 9112, section 7.1) until it has some
// payload and meets more, so that the end of the body is known together with
// its last bytes if they came together.
func (d *Body) chunks(b []byte) (data []byte, n int, err error) {
	for i := 0; ; {
		if i == len(b) || d.state == bodyDone {
			return data, i, nil
		}
		if d.state == chunkData {
			if data != nil {
				return data, i, nil
			}
			end := len(b)
			if int64(end-i) >= d.left {
				end = i + int(d.left)
				d.state = chunkDataCR
			}
			d.left -= int64(end - i)
			data = b[i:end:end]
			i = end
			continue
		}
		if d.state >= trailerFirst {
			i, err = d.trailer(b, i)
		} else {
			i++
			err = d.octet(b[i-1])
		}
		if err != nil {
			d.fail(err)
			if data != nil {
				return data, i, nil
			}
			return nil, i, err
		}
	}
}

// octet reads one octet of the framing around the payload.
func (d *Body) octet(c byte) error {
	switch d.state {
	case chunkSize:
		if x := unhex(c); x < 16 {
			if d.digits == maxChunkDigits {
				return ErrChunkSize
			}
			d.digits++
			d.left = d.left<<4 | int64(x)
			return d.lengthen()
		}
		switch {
		case d.digits == 0:
			return ErrChunkSize
		case c == '\r':
			d.state = chunkSizeLF
		case c == ';':
			d.state = chunkExtension
			return d.lengthen()
		default:
			return ErrChunkSize
		}
	case chunkExtension:
		switch {
		case c == '\r':
			d.state = chunkSizeLF
		case c < 0x20 && c != '\t' || c == 0x7f:
			return ErrControl
		default:
			return d.lengthen()
		}
	case chunkSizeLF:
		if c != '\n' {
			return ErrBareCR
		}
		return d.begin()
	case chunkDataCR:
		if c != '\r' {
			return ErrChunkEnd
		}
		d.state = chunkDataLF
	case chunkDataLF:
		if c != '\n' {
			return ErrChunkEnd
		}
		d.state = chunkSize
	}
	return nil
}

func (d *Body) lengthen() error {
	if d.line++; d.line > d.maxLine {
		return ErrChunkLine
	}
	return nil
}

// begin starts the chunk whose size line has ended.
func (d *Body) begin() error {
	const lineEnd = 2
	d.excess += d.line + lineEnd - chunkAllowance - 2*int(min(d.left, maxChunkExcess))
	if d.excess = max(d.excess, 0); d.excess > maxChunkExcess {
		return ErrChunkOverhead
	}
	d.digits, d.line = 0, 0
	if d.left == 0 {
		d.state = trailerFirst
	} else {
		d.state = chunkData
	}
	return nil
}

// trailer reads the trailer section from b[i] on and returns the place behind
// what it took.
func (d *Body) trailer(b []byte, i int) (int, error) {
	switch d.state {
	case trailerFirst:
		if b[i] == '\r' {
			d.state = trailerLF
			return i + 1, nil
		}
		d.state = trailerSection
	case trailerLF:
		if b[i] != '\n' {
			return i, ErrBareCR
		}
		d.state = bodyDone
		return i + 1, nil
	}
	old := len(d.trailers)
	section := b[i:]
	if old > 0 {
		section = append(d.trailers, section[:min(len(section), d.maxTrailer-old)]...)
	}
	end, next, err := ScanHead(section, d.scanned, d.maxTrailer)
	switch {
	case err == ErrHeadTooLarge:
		return i, ErrTrailersTooLarge
	case err != nil:
		return i, err
	case end == 0:
		if old == 0 {
			section = append([]byte(nil), section...)
		}
		d.trailers, d.scanned = section, next
		return len(b), nil
	}
	d.trailers = section[:end:end]
	d.state = bodyDone
	return i + end - old, d.checkTrailers()
}

func (d *Body) checkTrailers() error {
	b := d.trailers
	for p, count := 0, 0; b[p] != '\r'; count++ {
		if count >= d.maxFields {
			return ErrTooManyFields
		}
		nameEnd, _, _, next, err := field(b, p)
		if err != nil {
			return err
		}
		if name := b[p:nameEnd]; !trailable(mesh.LookupKnown(name), name) {
			return ErrTrailerNotAllowed
		}
		p = next
	}
	return nil
}

// trailable tells whether a field may come behind the body (RFC 9110, section
// 6.5.1): not what frames or routes the message, not what concerns the
// connection, and not what meshd vouches for, since a reader may merge trailers
// into the head.
func trailable(known mesh.Known, name []byte) bool {
	switch known {
	case mesh.OtherField, mesh.Via, mesh.XForwardedFor, mesh.XForwardedProto, mesh.XForwardedHost,
		mesh.XForwardedClientCert, mesh.MeshdError:
		return !written(name)
	case mesh.Expect, mesh.Trailer, mesh.Authorization, mesh.Cookie, mesh.Forwarded, mesh.ContentEncoding,
		mesh.ContentType, mesh.ContentRange:
		return false
	}
	return known >= mesh.KnownCount || !perHop[known]
}

// Trailers appends the trailer fields of a chunked body that is done to dst.
// They are views of the bytes last given to Next or of a copy in d: use them
// before either goes.
func (d *Body) Trailers(dst []mesh.Field) []mesh.Field {
	if d.state != bodyDone || len(d.trailers) == 0 {
		return dst
	}
	b := d.trailers
	for p := 0; b[p] != '\r'; {
		nameEnd, start, stop, next, err := field(b, p)
		if err != nil {
			return dst // the caller has overwritten its buffer
		}
		name := b[p:nameEnd:nameEnd]
		dst = append(dst, mesh.Field{Name: name, Value: b[start:stop:stop], Known: mesh.LookupKnown(name)})
		p = next
	}
	return dst
}
