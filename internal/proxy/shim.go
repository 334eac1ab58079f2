package proxy

import (
	"io"
	"net"
	"syscall"
	"time"

	"meshd/internal/loop"
)

// shim is the connection that crypto/tls sees. During the handshake it is the
// TCP connection, in a goroutine that may block. Afterwards it belongs to a
// loop: a read that finds the socket drained answers "try again", which
// crypto/tls does not hold against the connection, and a write is taken into a
// buffer and never fails, because crypto/tls never forgets a failed write.
type shim struct {
	tcp net.Conn
	l   *link // nil until the link moved to its loop
}

// errAgain is a net.Error that is Temporary: crypto/tls keeps only others.
type errAgain struct{}

func (errAgain) Error() string   { return "no more bytes now" }
func (errAgain) Timeout() bool   { return true }
func (errAgain) Temporary() bool { return true }

func (s *shim) Read(p []byte) (int, error) {
	if s.l == nil {
		return s.tcp.Read(p)
	}
	return s.l.readCipher(p)
}

func (s *shim) Write(p []byte) (int, error) {
	if s.l == nil {
		return s.tcp.Write(p)
	}
	s.l.cipher = append(s.l.w.room(s.l.cipher, len(p)), p...)
	return len(p), nil
}

func (s *shim) Close() error                       { return s.tcp.Close() }
func (s *shim) LocalAddr() net.Addr                { return s.tcp.LocalAddr() }
func (s *shim) RemoteAddr() net.Addr               { return s.tcp.RemoteAddr() }
func (s *shim) SetDeadline(t time.Time) error      { return s.deadline(s.tcp.SetDeadline, t) }
func (s *shim) SetReadDeadline(t time.Time) error  { return s.deadline(s.tcp.SetReadDeadline, t) }
func (s *shim) SetWriteDeadline(t time.Time) error { return s.deadline(s.tcp.SetWriteDeadline, t) }

// deadline reaches the socket only while a goroutine may block on it; on a
// loop timers do that work.
func (s *shim) deadline(set func(time.Time) error, t time.Time) error {
	if s.l != nil {
		return nil
	}
	return set(t)
}

// readCipher serves crypto/tls from the worker's buffer, filling it with one
// system call when it is empty. The budget of a run is checked only there, so
// that nothing is left in a buffer that the next link will use.
func (l *link) readCipher(p []byte) (int, error) {
	w := l.w
	if w.cipherAt == w.cipherEnd {
		if !l.readable || l.budget <= 0 {
			return 0, errAgain{}
		}
		n, errno := loop.Read(l.fd, w.cipher)
		switch {
		case errno == syscall.EAGAIN:
			l.readable = false
			return 0, errAgain{}
		case errno != 0:
			return 0, errno
		case n == 0:
			return 0, io.EOF
		}
		if n < len(w.cipher) && !l.peerClosed {
			l.readable = false
		}
		l.budget -= n
		l.lastRead = w.loop.Now()
		l.carried += int64(n)
		w.cipherAt, w.cipherEnd = 0, n
	}
	n := copy(p, w.cipher[w.cipherAt:w.cipherEnd])
	w.cipherAt += n
	return n, nil
}
