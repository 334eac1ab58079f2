package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net/netip"
	"syscall"

	"meshd/internal/loop"
	"meshd/internal/wire"
)

// link is one mTLS connection to another agent, on one loop, carrying many
// streams. The side that dialled opens the streams.
type link struct {
	w      *worker
	fd     int
	tls    *tls.Conn
	opener bool
	set    *linkSet // opener
	// peer is who is at the other end: the called service at the opener, the
	// calling one otherwise; service is the local one, remote its address.
	peer, service string
	remote        netip.AddrPort
	xfcc, xff     []byte // headers that an accepted link gives to its requests

	in     []byte // decrypted, not yet a whole frame
	out    []byte // frames of this turn
	cipher []byte // encrypted, not yet taken by the socket
	off    int
	dec    wire.Decoder

	streams []*stream // by slot
	gens    []uint16  // by slot, opener
	free    []int     // slots, opener
	count   int       // streams

	// grants is what the picture says of the peer, kept as long as the picture.
	grants   grants
	admitted bool  // the peer was allowed something since the link last was retired
	cutAt    int64 // loop time at which denied streams end; 0 is never

	timer    loop.Timer
	lastRead int64
	pingAt   int64 // when pinged was set
	idleFrom int64
	carried  int64 // bytes, both directions
	budget   int   // bytes that this run may still read
	pinged   bool
	owePong  bool
	pong     uint64
	blocked  []*stream // wait for room on the link

	readable, writable, peerClosed bool
	dirty, goaway, closed          bool
	full                           bool // room ran out and linkLow is not reached yet
}

// linkRun is how many bytes of ciphertext one link may read before others get
// their turn.
const linkRun = 1 << 20

// newLink puts an established TLS connection on the loop of w. first is what
// the handshake's goroutine has read beyond it.
func newLink(w *worker, fd int, conn *tls.Conn, s *shim, first []byte) (*link, error) {
	now := w.loop.Now()
	l := &link{w: w, fd: fd, tls: conn, lastRead: now, idleFrom: now, readable: true, writable: true}
	l.timer.Owner = l
	s.l = l
	if err := w.loop.Add(fd, l); err != nil {
		return nil, err
	}
	if len(first) > 0 {
		l.in = append(w.loop.Get(len(first)), first...)
	}
	w.allLinks[l] = struct{}{}
	w.loop.Arm(&l.timer, now+int64(pingIdle))
	return l, nil
}

// Ready reads what came and notes what can be written.
func (l *link) Ready(ev loop.Events) {
	if l.closed {
		return
	}
	if ev&loop.Writable != 0 && !l.writable {
		l.writable = true
		l.w.markLink(l)
	}
	if ev&(loop.PeerClosed|loop.Failed) != 0 {
		l.readable, l.peerClosed = true, true
	}
	if ev&loop.Readable != 0 {
		l.readable = true
	}
	if l.readable {
		l.read()
	}
}

// read takes decrypted bytes until the socket is drained or the run is long
// enough. crypto/tls gives at most one record per call.
func (l *link) read() {
	if l.closed {
		return
	}
	w := l.w
	l.budget = linkRun
	w.cipherAt, w.cipherEnd = 0, 0
	if len(l.in) > 0 && l.frames(l.in) { // what came with the handshake
		return
	}
	for {
		buf, k := w.plain, 0
		if len(l.in) > 0 {
			l.in = w.room(l.in, tlsRecord)
			k = len(l.in)
			buf = l.in[k:cap(l.in)]
		}
		n, err := l.tls.Read(buf)
		if n > 0 {
			b := buf[:n]
			if k > 0 {
				l.in = l.in[:k+n]
				b = l.in
			}
			if l.frames(b) {
				return
			}
		}
		if err != nil {
			if _, again := errors.AsType[errAgain](err); again {
				break
			}
			l.lost(err)
			return
		}
	}
	if l.readable {
		w.loop.Again(l, loop.Readable)
	}
	if len(l.cipher) > l.off {
		w.markLink(l) // TLS itself had something to answer
	}
}

// frames decodes b and acts on it; what is no whole frame yet is kept. It
// reports whether the link is closed.
func (l *link) frames(b []byte) bool {
	for len(b) > 0 {
		f, n, err := l.dec.Next(b)
		if err != nil {
			l.violated(err)
			return true
		}
		if n == 0 {
			break
		}
		b = b[n:]
		if f.Type == wire.None {
			continue
		}
		if err := l.frame(f); err != nil {
			l.violated(err)
			return true
		}
		if l.closed {
			return true
		}
	}
	switch {
	case len(b) == 0:
		if l.in != nil {
			l.w.loop.Put(l.in)
			l.in = nil
		}
	case len(l.in) > 0: // b is a tail of it
		l.in = l.in[:copy(l.in, b)]
	default:
		l.in = append(l.w.loop.Get(len(b)), b...)
	}
	return false
}

// frame acts on one frame. An error breaks the link.
func (l *link) frame(f wire.Frame) error {
	switch f.Type {
	case wire.TypePing:
		data, ack, err := wire.ParsePing(f.Payload)
		if err != nil {
			return err
		}
		l.pinged = false
		if !ack {
			// Only the latest is answered: a peer that asks and does not read
			// must not fill our memory with answers.
			l.pong, l.owePong = data, true
			l.w.markLink(l)
		}
		return nil
	case wire.TypeGoaway:
		l.goaway = true
		l.closeIfDone()
		return nil
	case wire.TypeOpen:
		if l.opener {
			return errOpenFromAcceptor
		}
		return l.accept(f)
	case wire.TypeHead, wire.TypeInterim, wire.TypeUpgradeAccepted:
		if !l.opener {
			return errHeadFromOpener
		}
	}
	slot := wire.Slot(f.Stream)
	if slot >= len(l.streams) || l.streams[slot] == nil || l.streams[slot].id != f.Stream {
		return nil // of a stream that has ended here: its last frames crossed ours
	}
	return l.streams[slot].frame(f)
}

var (
	errOpenFromAcceptor = errors.New("link protocol: the accepting side opened a stream")
	errHeadFromOpener   = errors.New("link protocol: the dialing side sent a head")
	errSlotInUse        = errors.New("link protocol: a stream was opened in a slot that is in use")
	errCreditExceeded   = errors.New("link protocol: more data than credit")
)

// room is how much more may be put on the link now.
func (l *link) room() int {
	r := linkHigh - (len(l.out) + len(l.cipher) - l.off)
	if r <= 0 {
		l.full = true
	}
	return r
}

// flush encrypts what the turn produced and writes it with one system call.
// While the socket does not take what was encrypted before, frames stay as they
// are: they cost less memory and a reset stream's can still be left out.
func (l *link) flush() {
	if l.closed {
		return
	}
	if !l.writeCipher() {
		return
	}
	if l.owePong && len(l.cipher) == 0 {
		l.owePong = false
		l.out = wire.AppendPing(l.w.room(l.out, 32), l.pong, true)
	}
	if len(l.out) > 0 && len(l.cipher) == 0 && (!l.encrypt() || !l.writeCipher()) {
		return
	}
	if len(l.out)+len(l.cipher)-l.off > linkMax {
		l.lost(errUnread)
		return
	}
	if l.full && len(l.out)+len(l.cipher)-l.off <= linkLow {
		l.full = false
		waiting := l.blocked
		l.blocked = nil
		for _, s := range waiting {
			s.unblock()
		}
	}
	l.closeIfDone()
}

// encrypt turns the frames of this turn into records. It reports whether the
// link is still there.
func (l *link) encrypt() bool {
	out := l.out
	l.out = nil
	l.carried += int64(len(out))
	if _, err := l.tls.Write(out); err != nil {
		l.lost(err)
		return false
	}
	l.w.loop.Put(out)
	return true
}

// writeCipher reports whether the link is still there.
func (l *link) writeCipher() bool {
	for len(l.cipher) > l.off && l.writable {
		n, errno := loop.Write(l.fd, l.cipher[l.off:])
		if errno == syscall.EAGAIN {
			l.writable = false
			break
		}
		if errno != 0 {
			l.lost(errno)
			return false
		}
		l.off += n
	}
	if l.off == len(l.cipher) && l.cipher != nil {
		l.w.loop.Put(l.cipher)
		l.cipher, l.off = nil, 0
	}
	return true
}

// Expired probes a silent link and closes one that is dead, idle or old.
func (l *link) Expired(*loop.Timer) {
	if l.closed {
		return
	}
	now := l.w.loop.Now()
	quiet := now - l.lastRead
	every := int64(pingIdle)
	if l.count > 0 {
		every = int64(pingAfter)
	}
	switch {
	case l.pinged && quiet >= int64(deadAfter) && now-l.pingAt >= int64(deadAfter-pingAfter):
		l.lost(errDead)
		return
	case l.count == 0 && now-l.idleFrom >= l.idleLimit():
		l.shut()
		return
	case quiet >= every && !l.pinged:
		l.pinged, l.pingAt = true, now
		l.out = wire.AppendPing(l.w.room(l.out, 32), uint64(now), false)
		l.w.markLink(l)
	}
	if l.pinged {
		every = int64(pingAfter)
	}
	l.w.loop.Arm(&l.timer, now+every)
}

func (l *link) idleLimit() int64 {
	if l.opener {
		return int64(linkIdle)
	}
	return int64(acceptedIdle)
}

var (
	errDead   = errors.New("the peer does not answer a ping")
	errUnread = errors.New("the peer does not read")
)

// busy moves the probe of a link forward that got its first stream.
func (l *link) busy() {
	l.w.loop.Arm(&l.timer, l.w.loop.Now()+int64(pingAfter))
}

// retire tells that the link takes no new stream and closes it after the last.
func (l *link) retire() {
	if l.closed || l.goaway {
		return
	}
	l.goaway = true
	if !l.opener {
		l.out = wire.AppendGoaway(l.w.room(l.out, 32), wire.CodeDraining)
		l.w.markLink(l)
		return
	}
	l.closeIfDone()
}

// closeIfDone closes a link that said or heard goaway when nothing runs on it.
// Only the opener does: it alone knows that no stream is about to begin.
func (l *link) closeIfDone() {
	if l.goaway && l.opener && l.count == 0 && !l.closed && len(l.out) == 0 && len(l.cipher) == 0 {
		l.shut()
	}
}

// shut closes the link in order, after what the socket still takes.
func (l *link) shut() {
	if l.closed {
		return
	}
	if len(l.out) > 0 && len(l.cipher) == 0 && !l.encrypt() {
		return
	}
	_ = l.tls.CloseWrite() // cannot fail: it goes to a buffer
	if l.writeCipher() {
		l.end(nil)
	}
}

func (l *link) violated(err error) {
	if l.closed {
		return
	}
	l.w.log.Warn("link broken by peer", "peer", l.peer, "address", l.remote.String(), "error", err)
	l.out = wire.AppendGoaway(l.w.room(l.out, 32), wire.CodeProtocolError)
	l.flush()
	l.end(err)
}

func (l *link) lost(err error) {
	if l.closed {
		return
	}
	if l.count > 0 {
		l.w.log.Info("link lost", "peer", l.peer, "address", l.remote.String(), "streams", l.count, "error", err)
	} else if !errors.Is(err, io.EOF) {
		l.w.log.Debug("idle link lost", "peer", l.peer, "address", l.remote.String(), "error", err)
	}
	l.end(err)
}

// end takes the link off the loop. Streams that still run count as delivered:
// nobody can tell any more.
func (l *link) end(err error) {
	if l.closed {
		return
	}
	l.closed = true
	w := l.w
	w.cipherAt, w.cipherEnd = 0, 0
	w.loop.Disarm(&l.timer)
	w.loop.Remove(l.fd)
	loop.Close(l.fd)
	l.fd = -1
	delete(w.allLinks, l)
	if !l.opener {
		w.accepted--
	}
	if l.set != nil {
		l.set.remove(l)
	}
	streams := l.streams
	l.streams, l.blocked = nil, nil
	for _, s := range streams {
		if s != nil {
			s.linkLost()
		}
	}
	for _, b := range [...]*[]byte{&l.in, &l.out, &l.cipher} {
		// l.in may be the very buffer that the caller of this decodes from, so
		// it is left to the garbage collector: links do not end often.
		*b = nil
	}
}
