package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"meshd/internal/identity"
	"meshd/internal/wire"
)

// A link begins in a goroutine, because crypto/tls shakes hands by blocking
// calls; it moves to its loop when both sides have accepted each other. The
// accepting side says so with a ping: in TLS 1.3 the dialling side is done
// before the other has looked at its certificate, and a request sent into a
// refusal would count as delivered.

// dial opens a link for s in a goroutine that Run waits for.
func (p *Proxy) dial(s *linkSet, limit time.Duration) {
	w, t := s.w, s.target
	p.handshakes.Add(1)
	go func() {
		defer p.handshakes.Done()
		ctx, cancel := context.WithTimeout(p.life, limit)
		defer cancel()
		l, err := p.connect(ctx, w, t)
		if err != nil {
			o := dialOutcome(err)
			why := err.Error()
			p.counts.handshake(reasonOf(err))
			w.loop.Post(func() { s.arrived(nil, o, why) })
			return
		}
		p.counts.handshake("ok")
		if !w.loop.Post(func() { l.attach(w, s) }) {
			l.conn.tcp.Close()
		}
	}()
}

// fresh is an established TLS connection that is not on a loop yet.
type fresh struct {
	conn  *shim
	tls   *tls.Conn
	first []byte // read beyond the handshake
	peer  identity.Name
	local string // service
}

// connect runs the dialling side of a handshake.
func (p *Proxy) connect(ctx context.Context, w *worker, t *target) (*fresh, error) {
	if err := p.dials.take(ctx); err != nil {
		return nil, fmt.Errorf("wait for a handshake slot: %w", err)
	}
	defer p.dials.free()
	cfg, err := p.opt.Identity.ClientConfig(t.caller, identity.Name{Service: t.service, Datacenter: t.datacenter})
	if err != nil {
		return nil, err
	}
	cfg.NextProtos = []string{wire.ALPN}
	d := net.Dialer{KeepAlive: -1}
	tcp, err := d.DialContext(ctx, "tcp", t.address.String())
	if err != nil {
		return nil, &connectError{err}
	}
	f := &fresh{conn: &shim{tcp: tcp}, local: t.caller}
	f.tls = tls.Client(f.conn, cfg)
	if err := f.shake(ctx); err != nil {
		tcp.Close()
		return nil, err
	}
	// Wait for the greeting.
	stop := context.AfterFunc(ctx, func() { tcp.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, greetingRead)
	n, err := f.tls.Read(buf)
	if err != nil {
		tcp.Close()
		return nil, fmt.Errorf("peer refused the link: %w", err)
	}
	f.first = buf[:n]
	return f, nil
}

// greetingRead is room for the greeting and what may come right behind it.
const greetingRead = 512

// shake completes the handshake and reads who the peer is.
func (f *fresh) shake(ctx context.Context) error {
	if err := f.tls.HandshakeContext(ctx); err != nil {
		return err
	}
	cs := f.tls.ConnectionState()
	if cs.NegotiatedProtocol != wire.ALPN {
		return errNotMeshd
	}
	var err error
	f.peer, err = identity.PeerName(cs)
	return err
}

var errNotMeshd = errors.New("the peer does not speak " + wire.ALPN)

// connectError marks that the peer could not be reached at all.
type connectError struct{ err error }

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// dialOutcome tells what a failed dial means for the exchanges that wait.
func dialOutcome(err error) Outcome {
	switch identity.ReasonOf(err) {
	case identity.NoLeaf, identity.NoRoots:
		return NoIdentity
	case identity.TimedOut:
		return ConnectFailed
	}
	if _, ok := errors.AsType[*connectError](err); ok {
		return ConnectFailed
	}
	return HandshakeFailed
}

func reasonOf(err error) string {
	if _, ok := errors.AsType[*connectError](err); ok {
		return "unreachable"
	}
	return string(identity.ReasonOf(err))
}

// descriptor moves the socket out of the runtime's poller: the duplicate
// shares it, stays non-blocking, and is watched by a loop.
func (f *fresh) descriptor() (int, error) {
	tcp, ok := f.conn.tcp.(*net.TCPConn)
	if !ok {
		return -1, errors.New("not a TCP connection")
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var errno syscall.Errno
	err = raw.Control(func(old uintptr) {
		n, _, e := syscall.Syscall(syscall.SYS_FCNTL, old, syscall.F_DUPFD_CLOEXEC, 0)
		fd, errno = int(n), e
	})
	tcp.Close()
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		return -1, fmt.Errorf("duplicate socket: %w", err)
	}
	return fd, nil
}

// attach puts a dialled link on its loop.
func (f *fresh) attach(w *worker, s *linkSet) {
	if w.ended {
		f.conn.tcp.Close()
		s.dialing = false
		return
	}
	l, err := f.link(w)
	if err != nil {
		s.arrived(nil, ConnectFailed, err.Error())
		return
	}
	l.opener = true
	l.peer = s.target.service
	s.arrived(l, OK, "")
	w.loop.Again(l, 0)
	l.read()
}

// link makes the link; the caller fills in what differs between the sides.
func (f *fresh) link(w *worker) (*link, error) {
	remote := addrPort(f.conn.tcp.RemoteAddr())
	fd, err := f.descriptor()
	if err != nil {
		return nil, err
	}
	l, err := newLink(w, fd, f.tls, f.conn, f.first)
	if err != nil {
		syscall.Close(fd)
		return nil, err
	}
	l.remote, l.service, l.peer = remote, f.local, f.peer.Service
	return l, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// serveHandshake runs the accepting side for one connection to the peer port.
func (p *Proxy) serveHandshake(tcp net.Conn, from netip.Prefix) {
	ctx, cancel := context.WithTimeout(p.life, handshakeTimeout)
	defer cancel()
	f := &fresh{conn: &shim{tcp: tcp}}
	f.tls = tls.Server(f.conn, p.serverConfig)
	err := f.shake(ctx)
	p.accepts.free()
	p.crowd.leave(from)
	if err != nil {
		tcp.Close()
		reason := identity.ReasonOf(err)
		if reason == identity.PeerClosed {
			return // health checks connect and close
		}
		p.counts.handshake(string(reason))
		p.opt.Log.Warn("refused a peer", "address", tcp.RemoteAddr().String(), "reason", string(reason), "error", err)
		return
	}
	p.counts.handshake("ok")
	f.local, _ = identity.ServiceOfSNI(f.tls.ConnectionState().ServerName)
	w := p.choose()
	if !w.loop.Post(func() { f.welcome(w) }) {
		tcp.Close()
	}
}

// welcome puts an accepted link on its loop and greets the peer.
func (f *fresh) welcome(w *worker) {
	if w.ended || !w.spare(f.peer.Service) {
		f.conn.tcp.Close()
		return
	}
	l, err := f.link(w)
	if err != nil {
		w.log.Error("cannot take a link", "error", err)
		return
	}
	w.accepted++
	l.xff = []byte(l.remote.Addr().String())
	l.xfcc = []byte("By=" + w.p.spiffeOf(f.local) + ";URI=" + f.peer.SPIFFE())
	l.out = wire.AppendPing(w.room(l.out, 32), 0, false)
	w.markLink(l)
	if w.draining {
		l.retire()
	}
	l.read()
}

// spare makes room for one more accepted link. It reports false when there is
// none, because every link carries streams.
func (w *worker) spare(peer string) bool {
	if w.accepted < w.maxAccepted {
		return true
	}
	var idlest *link
	for l := range w.allLinks {
		if !l.opener && l.count == 0 && (idlest == nil || l.idleFrom < idlest.idleFrom) {
			idlest = l
		}
	}
	if now := w.loop.Now(); w.spareLogged == 0 || now-w.spareLogged >= int64(dialLogEvery) {
		w.spareLogged = now
		w.log.Warn("peers hold as many links as they may", "links", w.accepted, "newcomer", peer, "refused", idlest == nil)
	}
	if idlest == nil {
		return false
	}
	idlest.shut()
	return true
}
