package proxy

import (
	"syscall"

	"meshd/internal/loop"
)

// sock is a non-blocking socket with what could not be parsed yet and what
// could not be written yet. An idle one holds no buffer.
type sock struct {
	w  *worker
	fd int // -1 when closed

	in  []byte // read and not consumed, from the loop's pool
	out []byte // to be written, from the loop's pool
	off int    // of out, already written

	connecting bool
	readable   bool // an edge said so and no read has drained it since
	writable   bool
	peerClosed bool // an edge announced the end of the stream
	eof        bool // a read returned it
	dirty      bool
	queued     bool
}

func (s *sock) runQueued() *bool { return &s.queued }
func (s *sock) dirtyFlag() *bool { return &s.dirty }

// note takes the events of an edge down.
func (s *sock) note(ev loop.Events) {
	if ev&loop.Writable != 0 {
		s.writable = true
	}
	if ev&loop.Readable != 0 {
		s.readable = true
	}
	if ev&(loop.PeerClosed|loop.Failed) != 0 {
		s.readable, s.peerClosed = true, true
	}
}

// read reads at most limit bytes after what is still unconsumed and returns
// both together. The slice is a view of the loop's scratch or of s.in: what
// the caller does not consume goes back by keep before the handler returns.
// errno is EAGAIN when there is nothing now; io.EOF is ok with n == 0 and s.eof.
func (s *sock) read(limit int) (b []byte, errno syscall.Errno) {
	left := len(s.in)
	if left == 0 {
		b = s.w.loop.Scratch()
		b = b[:min(limit, len(b))]
	} else {
		s.in = s.w.room(s.in, min(limit, readChunk))
		b = s.in[left:min(left+limit, cap(s.in))]
	}
	n, errno := loop.Read(s.fd, b)
	switch {
	case errno != 0:
		s.readable = false
		return nil, errno
	case n == 0:
		s.eof, s.readable = true, false
		return s.in, 0
	}
	// A short read drained the socket; only the end of the stream could still
	// be waiting, and that would have come with an edge of its own.
	if n < len(b) && !s.peerClosed {
		s.readable = false
	}
	if left == 0 {
		return b[:n], 0
	}
	s.in = s.in[:left+n]
	return s.in, 0
}

// keep stores the rest of what read returned.
func (s *sock) keep(rest []byte) {
	switch {
	case len(rest) == 0:
		if s.in != nil {
			s.w.loop.Put(s.in)
			s.in = nil
		}
	case len(s.in) > 0: // rest is a tail of s.in
		s.in = s.in[:copy(s.in, rest)]
	default:
		s.in = append(s.w.loop.Get(len(rest)), rest...)
	}
}

// grow returns out with space for n more bytes; the caller appends and stores
// it back with put.
func (s *sock) grow(n int) []byte { return s.w.room(s.out, n) }

func (s *sock) pending() int { return len(s.out) - s.off }

// write sends what is pending. It returns the bytes that left and the error
// that broke the connection, if one did.
func (s *sock) write() (n int, errno syscall.Errno) {
	for s.pending() > 0 && s.writable && !s.connecting {
		k, e := loop.Write(s.fd, s.out[s.off:])
		if e == syscall.EAGAIN {
			s.writable = false
			break
		}
		if e != 0 {
			return n, e
		}
		n += k
		s.off += k
	}
	if s.pending() == 0 && s.out != nil {
		s.dropOut()
	}
	return n, 0
}

func (s *sock) dropOut() {
	if s.out != nil {
		s.w.loop.Put(s.out)
		s.out, s.off = nil, 0
	}
}

// close ends the socket; abort tells the peer that it is not a regular end.
func (s *sock) close(abort bool) {
	if s.fd < 0 {
		return
	}
	s.w.loop.Remove(s.fd)
	if abort {
		loop.Abort(s.fd)
	} else {
		loop.Close(s.fd)
	}
	s.fd = -1
	s.dropOut()
	if s.in != nil {
		s.w.loop.Put(s.in)
		s.in = nil
	}
}
