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

// connectLocal begins a connection to an application within the limits of its
// service, or says why there is none. If it is not done, connected follows.
func (w *worker) connectLocal(in *inPlan) (fd int, done bool, o Outcome) {
	use := &in.st.usage
	if !take(&use.connections, in.Limits.MaxConnections) {
		if !w.claim(in.st) {
			return -1, false, Overflow
		}
		use.connections.Add(1)
	}
	fd, done, err := loop.Connect(in.Target)
	switch {
	case err != nil:
		o = LocalConnectFailed
	case !done && !take(&use.pending, in.Limits.MaxPendingRequests):
		loop.Close(fd)
		o = Overflow
	default:
		return fd, done, OK
	}
	use.connections.Add(-1)
	return -1, false, o
}

// connected is the end of connecting, for better or worse.
func (s *sock) connected(u *usage) {
	if s.connecting {
		s.connecting = false
		u.pending.Add(-1)
	}
}

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
// both together. The slice is a view of the loop's scratch: what the caller
// does not consume goes back by keep before the handler returns. So a head that
// comes byte by byte holds no more memory than its bytes.
// errno is EAGAIN when there is nothing now; io.EOF is ok with n == 0 and s.eof.
func (s *sock) read(limit int) (b []byte, errno syscall.Errno) {
	scratch := s.w.loop.Scratch()
	left := copy(scratch, s.in)
	b = scratch[left:min(left+limit, len(scratch))]
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
	return scratch[:left+n], 0
}

// keep stores the rest of what read returned, or a tail of s.in.
func (s *sock) keep(rest []byte) {
	if s.in != nil && (len(rest) == 0 || cap(s.in) < len(rest)) {
		s.w.loop.Put(s.in) // too small for rest, which thus is no part of it
		s.in = nil
	}
	if len(rest) == 0 {
		return
	}
	if s.in == nil {
		s.in = s.w.loop.Get(len(rest))
	}
	s.in = append(s.in[:0], rest...)
}

// grow returns out with space for n more bytes; the caller appends and stores
// it back. What was written already is dropped whenever space is needed: a
// reader that is never quite done would otherwise make out as long as all it
// ever read. Moving costs no more than what was written since the last time.
func (s *sock) grow(n int) []byte {
	left := s.pending()
	switch {
	case cap(s.out)-len(s.out) >= n:
	case s.off >= left && cap(s.out)-left >= n:
		s.out = s.out[:copy(s.out, s.out[s.off:])]
		s.off = 0
	default:
		g := append(s.w.loop.Get(max(left+n, 2*left)), s.out[s.off:]...)
		if s.out != nil {
			s.w.loop.Put(s.out)
		}
		s.out, s.off = g, 0
	}
	return s.out
}

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
