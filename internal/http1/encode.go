package http1

import (
	"strconv"

	"meshd/internal/mesh"
)

// Framing says how the body behind a head is delimited.
type Framing uint8

const (
	FramingNone    Framing = iota // no body, or content-length is among the fields
	FramingChunked                // AppendChunk and AppendLastChunk follow
	FramingZero                   // no body, and the head says so
	FramingClose                  // the end of the connection ends the body; responses only
)

// remade marks the fields that the encoder writes itself or not at all. The
// parser takes them out of what comes by HTTP/1, but a head may come from a peer
// by another way, and one of these slipping through would be request smuggling.
var remade = [mesh.KnownCount]bool{
	mesh.Host: true, mesh.Connection: true, mesh.KeepAlive: true, mesh.ProxyConnection: true,
	mesh.TransferEncoding: true, mesh.HTTP2Settings: true,
}

// AppendRequestHead appends the request with h's method, path, authority and
// fields. Names are written as they are; Field.Known must be right. An Upgrade
// or TE field is named in Connection. Content-Length is left out when the
// framing is another. FramingClose is as FramingNone: a request cannot end so.
func AppendRequestHead(dst []byte, h *mesh.Head, framing Framing) []byte {
	dst = append(dst, h.Method...)
	dst = append(dst, ' ')
	if len(h.Path) > 0 {
		dst = append(dst, h.Path...)
	} else {
		dst = append(dst, h.Authority...) // CONNECT
	}
	dst = append(dst, " HTTP/1.1\r\nhost: "...)
	dst = append(dst, h.Authority...)
	dst = append(dst, '\r', '\n')
	if framing == FramingClose {
		framing = FramingNone
	}
	dst, options := appendFields(dst, h.Fields, framing != FramingNone)
	dst = appendOptions(dst, options)
	return appendFraming(dst, framing)
}

// AppendResponseHead appends the response with h's status and fields for a
// client of HTTP/1.minor. closeAfter, or FramingClose, adds "connection: close"; without
// them an HTTP/1.0 client is told that the connection stays. An Upgrade field is
// named in Connection. Interim responses and 204 get no framing at all.
func AppendResponseHead(dst []byte, h *mesh.Head, framing Framing, closeAfter bool, minor int) []byte {
	dst = appendStatusLine(dst, h.Status)
	bare := h.Status < 200 || h.Status == 204
	if bare {
		framing = FramingNone
	}
	dst, options := appendFields(dst, h.Fields, bare || framing != FramingNone)
	options &^= optionTE
	switch {
	case closeAfter || framing == FramingClose:
		options |= optionClose
	case minor == 0 && h.Status >= 200:
		options |= optionKeepAlive
	}
	dst = appendOptions(dst, options)
	return appendFraming(dst, framing)
}

// Connection options to write, a set.
const (
	optionUpgrade = 1 << iota
	optionTE
	optionClose
	optionKeepAlive
)

var optionNames = [...]string{", upgrade", ", te", ", close", ", keep-alive"}

// appendFields appends all fields that are not remade. It returns the
// connection options that they ask for.
func appendFields(dst []byte, fields []mesh.Field, skipLength bool) ([]byte, uint8) {
	var options uint8
	for i := range fields {
		f := &fields[i]
		switch f.Known {
		case mesh.OtherField:
		case mesh.ContentLength:
			if skipLength {
				continue
			}
		case mesh.Upgrade:
			options |= optionUpgrade
		case mesh.TE:
			options |= optionTE
		default:
			if f.Known < mesh.KnownCount && remade[f.Known] {
				continue
			}
		}
		dst = appendField(dst, f)
	}
	return dst, options
}

func appendField(dst []byte, f *mesh.Field) []byte {
	dst = append(dst, f.Name...)
	dst = append(dst, ':', ' ')
	dst = append(dst, f.Value...)
	return append(dst, '\r', '\n')
}

func appendOptions(dst []byte, options uint8) []byte {
	if options == 0 {
		return dst
	}
	dst = append(dst, "connection:"...)
	comma := len(dst)
	for i, name := range optionNames {
		if options&(1<<i) != 0 {
			dst = append(dst, name...)
		}
	}
	// The comma in front of the first name is one too many.
	dst = append(dst[:comma], dst[comma+1:]...)
	return append(dst, '\r', '\n')
}

// appendFraming ends a head.
func appendFraming(dst []byte, framing Framing) []byte {
	switch framing {
	case FramingChunked:
		return append(dst, "transfer-encoding: chunked\r\n\r\n"...)
	case FramingZero:
		return append(dst, "content-length: 0\r\n\r\n"...)
	}
	return append(dst, '\r', '\n')
}

// AppendChunk appends p as one chunk. An empty p appends nothing, because an
// empty chunk would end the body.
func AppendChunk(dst, p []byte) []byte {
	if len(p) == 0 {
		return dst
	}
	dst = strconv.AppendUint(dst, uint64(len(p)), 16)
	dst = append(dst, '\r', '\n')
	dst = append(dst, p...)
	return append(dst, '\r', '\n')
}

// AppendLastChunk ends a chunked body. Fields that Body would refuse in a
// trailer section are left out.
func AppendLastChunk(dst []byte, trailers []mesh.Field) []byte {
	dst = append(dst, '0', '\r', '\n')
	for i := range trailers {
		if trailable(trailers[i].Known, trailers[i].Name) {
			dst = appendField(dst, &trailers[i])
		}
	}
	return append(dst, '\r', '\n')
}

// ContentLength returns the value of the Content-Length among the fields of h.
// ok is false if there is none, or if a peer sent one that is no number or more
// than one.
func ContentLength(h *mesh.Head) (n int64, ok bool) {
	for i := range h.Fields {
		if h.Fields[i].Known != mesh.ContentLength {
			continue
		}
		if ok {
			return 0, false
		}
		if n, ok = decimal(h.Fields[i].Value); !ok {
			return 0, false
		}
	}
	return n, ok
}
