// Package loop runs event loops: one locked thread each, with an epoll of its
// own, posted tasks, timers and buffers that nobody else touches.
//
// A loop knows descriptors and time, and no protocol: it says that a socket
// may be read or written and leaves the rest to the handler. Handlers run one
// after the other on the loop's goroutine, so what they share needs no lock;
// in return a handler must never block. The data path does no work outside
// loops except TLS handshakes.
//
// The package is for Linux and is the only one that uses
// golang.org/x/sys/unix. internal/proxy imports it. DESIGN.md in this folder
// tells why it is built as it is.
package loop
