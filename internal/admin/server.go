package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Bounds of both listeners. Everybody here is local or a scraper, so they are
// tight: nothing on these ports may cost the data path memory or descriptors.
const (
	headerTimeout  = 5 * time.Second  // a client that sends its head byte by byte
	readTimeout    = 10 * time.Second // head and body; no request has a large body
	idleTimeout    = 60 * time.Second // above the usual 15 to 60 s between scrapes
	maxHeaderBytes = 16 << 10         // our requests have a handful of fields
	maxBodyBytes   = 64 << 10         // nothing reads one yet; caps what is drained

	// socketWriteTimeout also bounds ?seconds= of a profile.
	socketWriteTimeout = 2 * time.Minute
	// httpWriteTimeout is generous for a page of metrics over a slow link.
	httpWriteTimeout = 30 * time.Second

	maxSocketConns = 64 // operators and scripts at the same time
	maxHTTPConns   = 64 // scrapers keep one connection each

	// reloadTimeout ends a reload that hangs, for example on a file system
	// that does not answer. The agent then keeps the old picture.
	reloadTimeout = time.Minute
	// shutdownTimeout lets running answers finish; a profile may be cut.
	shutdownTimeout = 2 * time.Second
	// bindRetry is how often a taken TCP port is tried again.
	bindRetry = 5 * time.Second
)

// Options configure a Server.
type Options struct {
	Agent Agent
	// Socket is the path of the Unix socket. It cannot be turned off: without
	// it there would be no reload that answers.
	Socket string
	// Group is given the socket (mode 0660) when not empty.
	Group string
	// HTTP is IP:PORT of the read-only listener; "" turns it off.
	HTTP string
	// Hosts are names besides loopback names and IP addresses that may stand
	// in the Host field on TCP, for scrapers that go by name.
	Hosts []string
	// Metrics answers /metrics; nil leaves it out.
	Metrics http.Handler
	Log     *slog.Logger
}

// Server answers on the socket and on TCP.
type Server struct {
	o      Options
	socket net.Listener

	mu  sync.Mutex // guards following
	tcp net.Listener
	err error // why tcp is nil although HTTP is set
}

// New binds the socket, which may fail, and tries the TCP address. A TCP port
// that another process holds does not keep the agent from starting: it is
// reported by Listeners and tried again while Run runs. Run with an ended
// context undoes New.
func New(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l, err := listenSocket(o.Socket, o.Group)
	if err != nil {
		return nil, err
	}
	s := &Server{o: o, socket: l}
	if o.HTTP != "" {
		s.bindTCP()
	}
	return s, nil
}

// bindTCP tries the TCP address once.
func (s *Server) bindTCP() net.Listener {
	l, err := net.Listen("tcp", s.o.HTTP)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if s.err == nil { // once, not every bindRetry
			s.o.Log.Error("admin http listener not open, will retry", "address", s.o.HTTP, "error", err)
		}
		s.err = err
		return nil
	}
	if s.err != nil {
		s.o.Log.Info("admin http listener open", "address", l.Addr().String())
	}
	s.tcp, s.err = l, nil
	return l
}

// Listeners reports the socket and the TCP listener for Status.
func (s *Server) Listeners() []Listener {
	ls := []Listener{{Name: "admin", Address: s.o.Socket}}
	if s.o.HTTP == "" {
		return ls
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := Listener{Name: "http", Address: s.o.HTTP}
	if s.tcp != nil {
		h.Address = s.tcp.Addr().String()
	}
	if s.err != nil {
		h.Error = s.err.Error()
	}
	return append(ls, h)
}

// Run serves until ctx is done and returns when both listeners are closed and
// every handler has ended or shutdownTimeout has passed. The socket file is
// gone then.
func (s *Server) Run(ctx context.Context) error {
	logger := slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug)
	socket := &http.Server{
		Handler:           s.socketHandler(),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout,
		WriteTimeout: socketWriteTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: logger, ConnContext: withPeer,
	}
	tcp := &http.Server{
		Handler:           s.httpHandler(),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout,
		WriteTimeout: httpWriteTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: logger,
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup // Run waits for both
	failed := make(chan error, 2)
	serve := func(what string, srv *http.Server, l net.Listener, most int) {
		if err := srv.Serve(limit(l, most)); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serve %s: %w", what, err)
		}
	}
	wg.Go(func() { serve("admin socket", socket, s.socket, maxSocketConns) })
	if s.o.HTTP != "" {
		wg.Go(func() {
			if l := s.awaitTCP(ctx); l != nil {
				serve("admin http", tcp, l, maxHTTPConns)
			}
		})
	}

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	end, stop := context.WithTimeout(context.Background(), shutdownTimeout)
	defer stop()
	for _, srv := range []*http.Server{tcp, socket} {
		if srv.Shutdown(end) != nil {
			srv.Close()
		}
	}
	// A listener that Serve never got is not closed by Shutdown.
	s.socket.Close()
	s.mu.Lock()
	if s.tcp != nil {
		s.tcp.Close()
	}
	s.mu.Unlock()
	wg.Wait()
	return err
}

// awaitTCP returns the TCP listener as soon as it can be had, nil when ctx
// ended first.
func (s *Server) awaitTCP(ctx context.Context) net.Listener {
	s.mu.Lock()
	l := s.tcp
	s.mu.Unlock()
	for l == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(bindRetry):
		}
		l = s.bindTCP()
	}
	return l
}
