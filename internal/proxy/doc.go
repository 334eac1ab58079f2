// Package proxy is the data path: it accepts what applications of this host
// open, decides where it goes, attempts it over a link to another agent, and
// records once how it ended; and the same at the other end of a link, towards
// the applications this host offers.
//
// The shape is in DESIGN.md beside this file. In short: a [worker] belongs to
// one event loop and owns everything it touches; an exchange joins two sides
// (an application's connection and a stream of a link); a side turns protocol
// events into calls and calls into bytes. Nothing here takes a lock, starts a
// goroutine or allocates per request; handshakes and listening for peers are
// ordinary goroutines whose results are handed to a loop.
//
// The package deliberately knows nothing of configuration files, of Consul, or
// of disk. agent is its only importer.
package proxy
