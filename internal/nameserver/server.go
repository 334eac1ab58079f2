package nameserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"meshd/internal/mesh"
)

const (
	// maxQuery is the largest packet looked at over UDP; a query with every
	// sensible option has a few hundred octets.
	maxQuery = 4096
	// maxConns bounds TCP connections. Our answers fit UDP, so a resolver that
	// comes by TCP is an exception; a newcomer over it is closed at once.
	maxConns = 64
	// connIdle is how long a TCP client has for one whole query, and for
	// taking one answer (RFC 7766, section 6.2.3: in the order of seconds).
	connIdle = 5 * time.Second
	// errorPause keeps a socket error that repeats from taking a whole core.
	errorPause = 100 * time.Millisecond
	// portTries is how often New looks for a number that is free for both
	// transports, when the number does not matter.
	portTries = 16
)

// Options configure a [Server]. All are required.
type Options struct {
	Address netip.AddrPort // loopback; port 0 takes a free one
	Domain  string         // the zone, for example "mesh.internal"
	TTL     time.Duration  // of every answer and denial; whole seconds count
	// Snapshot returns the picture in force, nil before the first. It is
	// called for every query, from several goroutines.
	Snapshot func() *mesh.Snapshot
	Log      *slog.Logger
}

// Server answers queries over UDP and TCP.
type Server struct {
	o    Options
	zone *zone
	udp  *net.UDPConn
	tcp  *net.TCPListener
	addr netip.AddrPort

	byRcode   [dns.RcodeBadVers + 1]atomic.Uint64
	dropped   atomic.Uint64
	truncated atomic.Uint64
	turned    atomic.Uint64

	mu    sync.Mutex            // guards conns
	conns map[net.Conn]struct{} // nil once the server has ended
}

// New binds both sockets. They are open until [Server.Run] returns, so a
// server that is not wanted after all is run with a context that is done.
func New(o Options) (*Server, error) {
	if !o.Address.Addr().IsLoopback() {
		return nil, fmt.Errorf("dns address %s is not a loopback address: the answers are of use on this host only", o.Address)
	}
	z, err := newZone(o.Domain, o.TTL, o.Address.Addr())
	if err != nil {
		return nil, fmt.Errorf("dns domain: %w", err)
	}
	s := &Server{o: o, zone: z, conns: map[net.Conn]struct{}{}}
	if err := s.bind(); err != nil {
		return nil, fmt.Errorf("dns on %s: %w", o.Address, err)
	}
	return s, nil
}

func (s *Server) bind() error {
	tries := 1
	if s.o.Address.Port() == 0 {
		tries = portTries
	}
	for {
		tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(s.o.Address))
		if err != nil {
			return err
		}
		addr := netip.AddrPortFrom(s.o.Address.Addr(), uint16(tcp.Addr().(*net.TCPAddr).Port))
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		if err == nil {
			s.tcp, s.udp, s.addr = tcp, udp, addr
			return nil
		}
		tcp.Close()
		if tries--; tries == 0 {
			return err
		}
	}
}

// Addr returns where the server listens, with both transports.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Counts says what was done since the start.
type Counts struct {
	ByRcode map[string]uint64 // answers by rcode in lower case: "noerror", "nxdomain", …; all that occur are present
	Dropped uint64            // packets without an answer
	// Truncated answers are counted under their rcode too.
	Truncated uint64
	Refused   uint64 // TCP connections over the limit
}

// rcodes that can occur.
var rcodes = [...]struct {
	code int
	name string
}{
	{dns.RcodeSuccess, "noerror"}, {dns.RcodeFormatError, "formerr"}, {dns.RcodeServerFailure, "servfail"},
	{dns.RcodeNameError, "nxdomain"}, {dns.RcodeNotImplemented, "notimp"}, {dns.RcodeRefused, "refused"},
	{dns.RcodeBadVers, "badvers"},
}

// Counts may be called at any time.
func (s *Server) Counts() Counts {
	c := Counts{
		ByRcode: make(map[string]uint64, len(rcodes)),
		Dropped: s.dropped.Load(), Truncated: s.truncated.Load(), Refused: s.turned.Load(),
	}
	for _, r := range rcodes {
		c.ByRcode[r.name] = s.byRcode[r.code].Load()
	}
	return c
}

// Run answers until ctx is done, then closes the sockets and returns nil when
// every goroutine of the server has ended. It is called once.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup // all goroutines of the server; Run waits
	wg.Go(func() { s.serveUDP(ctx) })
	wg.Go(func() { s.serveTCP(ctx, &wg) })
	<-ctx.Done()
	s.udp.Close()
	s.tcp.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	wg.Wait()
	return nil
}

// respond answers one packet and counts it.
func (s *Server) respond(r *responder, p []byte, limit int, udp bool) []byte {
	reply, res, truncated := r.respond(p, s.o.Snapshot(), limit, udp)
	if res == dropped {
		s.dropped.Add(1)
	} else {
		s.byRcode[res].Add(1)
	}
	if truncated {
		s.truncated.Add(1)
	}
	return reply
}

func (s *Server) serveUDP(ctx context.Context) {
	r := &responder{zone: s.zone}
	buf := make([]byte, maxQuery)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if !s.pause(ctx, "read", err) {
				return
			}
			continue
		}
		if reply := s.respond(r, buf[:n], maxQuery, true); reply != nil {
			// A client that went away is its own affair.
			s.udp.WriteToUDPAddrPort(reply, from)
		}
	}
}

func (s *Server) serveTCP(ctx context.Context, wg *sync.WaitGroup) {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			if !s.pause(ctx, "accept", err) {
				return
			}
			continue
		}
		if !s.enter(c) {
			c.Close()
			continue
		}
		wg.Go(func() {
			defer s.leave(c)
			s.serveConn(c)
		})
	}
}

func (s *Server) enter(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return false
	}
	if len(s.conns) >= maxConns {
		s.turned.Add(1)
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) leave(c net.Conn) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// serveConn answers the queries of one connection in order (RFC 1035, section
// 4.2.2: each message behind its length in two octets). Whatever goes wrong
// ends the connection; the client finds out by that.
func (s *Server) serveConn(c net.Conn) {
	r := &responder{zone: s.zone}
	var length [2]byte
	var query, out []byte
	for {
		// One deadline for the whole query, so that an octet now and then
		// does not hold the place.
		c.SetDeadline(time.Now().Add(connIdle))
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if n < headerSize || n > maxQuery {
			s.dropped.Add(1)
			return
		}
		if cap(query) < n {
			query = make([]byte, maxQuery)
		}
		if _, err := io.ReadFull(c, query[:n]); err != nil {
			return
		}
		reply := s.respond(r, query[:n], dns.MaxMsgSize-1, false)
		if reply == nil {
			return
		}
		out = binary.BigEndian.AppendUint16(out[:0], uint16(len(reply)))
		out = append(out, reply...)
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

// pause waits a little after a socket error; false means that the server ends.
func (s *Server) pause(ctx context.Context, what string, err error) bool {
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return false
	}
	s.o.Log.Warn("dns socket error", "operation", what, "address", s.addr, "error", err)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(errorPause):
		return true
	}
}
