// Package wire is the codec of meshd/1, the link protocol between two agents:
// frames to bytes and bytes to frames. docs/wire.md specifies it; the tests
// read their vectors and tables out of that document.
//
// The package holds no socket, no goroutine, no clock and no state of streams
// or credit: who may send what when is the business of the data path, and the
// rules for it stand in docs/wire.md. Nothing is compressed, so a frame can be
// read without any of those before it. Both ways allocate nothing: encoders
// append to a buffer of the caller, decoders return views into one. A peer is
// authenticated but not trusted, so everything that reaches an application is
// checked while it is parsed.
//
// It imports mesh and the standard library. The data path may import it.
package wire
