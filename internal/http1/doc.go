// Package http1 is the codec of HTTP/1.0 and HTTP/1.1 (RFC 9110, RFC 9112):
// bytes to heads and body pieces, and back. It works in the caller's buffers:
// what it returns are views of them, field names are lower-cased where they
// stand, and nothing is allocated for a message that is in order.
//
// It has no sockets, goroutines, clocks or policy. It does not decide whether
// a message is welcome, does not follow 100-continue or upgrades (it only tells
// what was asked), and does not repair: a message that two readers could
// understand differently is an error, never a guess. The one thing taken away
// silently is what concerns a single connection, because the next hop has its
// own; see Request and Response.
//
// The order of calls on the way in is LeadingCRLF and ScanHead until the head
// is complete, Parse, then NewBody and Body.Next until Body.Done. The same
// buffer holds whatever follows, which is the next message.
//
// Imported by proxy, and by test kits. It imports mesh and the standard
// library.
package http1
