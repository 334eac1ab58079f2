package meshtest

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// App is a small application on 127.0.0.1, the thing behind or before a mesh.
type App struct {
	Name string
	Addr netip.AddrPort
	// Served counts requests (HTTP) or connections (TCP).
	Served atomic.Int64

	close func()
}

// Port returns the port the application listens on.
func (a *App) Port() uint16 { return a.Addr.Port() }

// Close ends the application and its connections before the test ends.
func (a *App) Close() { a.close() }

// Echo is what HTTPEcho answers in JSON.
type Echo struct {
	Name    string // of the application
	Method  string
	URI     string
	Host    string
	Proto   string
	Header  http.Header
	Body    string
	Trailer http.Header
}

// HTTPEcho starts an HTTP/1.1 application that describes each request as an
// [Echo] and names itself in the header "echo-name". The path /raw gives the
// body back as it came instead, piece by piece, with its trailers. Query parameters change the answer:
// status=CODE, size=BYTES (a body of that many x), delay=DURATION.
func HTTPEcho(t testing.TB, name string) *App { return HTTPEchoAt(t, name, "127.0.0.1:0") }

// HTTPEchoAt is HTTPEcho on a given address.
func HTTPEchoAt(t testing.TB, name, address string) *App {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatalf("meshtest: HTTP application %s: %v", name, err)
	}
	app := &App{Name: name, Addr: l.Addr().(*net.TCPAddr).AddrPort()}
	server := &http.Server{Handler: http.HandlerFunc(app.echo)}
	done := make(chan struct{}) // closed by the goroutine below; Close waits for it
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	app.close = sync.OnceFunc(func() {
		server.Close()
		<-done
	})
	t.Cleanup(app.close)
	return app
}

func (a *App) echo(w http.ResponseWriter, r *http.Request) {
	a.Served.Add(1)
	w.Header().Set("Echo-Name", a.Name)
	q := r.URL.Query()
	if d, err := time.ParseDuration(q.Get("delay")); err == nil {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
			return
		}
	}
	status := http.StatusOK
	if n, err := strconv.Atoi(q.Get("status")); err == nil {
		status = n
	}
	if r.URL.Path == "/raw" {
		raw(w, r, status)
		return
	}
	if n, err := strconv.Atoi(q.Get("size")); err == nil {
		w.Header().Set("Content-Length", strconv.Itoa(n))
		w.WriteHeader(status)
		io.CopyN(w, endless('x'), int64(n))
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(Echo{
		Name: a.Name, Method: r.Method, URI: r.RequestURI, Host: r.Host, Proto: r.Proto,
		Header: r.Header, Body: string(body), Trailer: r.Trailer,
	})
}

// raw gives the body back while it comes.
func raw(w http.ResponseWriter, r *http.Request, status int) {
	rc := http.NewResponseController(w)
	rc.EnableFullDuplex()
	if ct := r.Header.Get("Content-Type"); ct != "" {
		w.Header().Set("Content-Type", ct)
	}
	for name := range r.Trailer {
		w.Header().Add("Trailer", name)
	}
	w.WriteHeader(status)
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			rc.Flush()
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				return
			}
			break
		}
	}
	for name, values := range r.Trailer {
		w.Header()[name] = values
	}
}

// endless reads as the same octet for ever.
type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

// TCPEcho starts an application that gives every octet back and ends its
// direction only after the other side ended its own.
func TCPEcho(t testing.TB, name string) *App {
	return TCPApp(t, name, func(c *net.TCPConn) {
		io.Copy(c, c)
		c.CloseWrite()
	})
}

// TCPApp starts an application that runs handle for every connection, on a
// goroutine of its own, and closes the connection when it returns.
func TCPApp(t testing.TB, name string, handle func(*net.TCPConn)) *App {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatalf("meshtest: TCP application %s: %v", name, err)
	}
	app := &App{Name: name, Addr: l.Addr().(*net.TCPAddr).AddrPort()}
	var (
		mu    sync.Mutex // guards open and ended
		open  = make(map[*net.TCPConn]bool)
		ended bool
		all   sync.WaitGroup // Close waits for accept and every handle
	)
	all.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			mu.Lock()
			if ended {
				mu.Unlock()
				c.Close()
				return
			}
			open[c] = true
			mu.Unlock()
			app.Served.Add(1)
			all.Go(func() {
				handle(c)
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	app.close = sync.OnceFunc(func() {
		l.Close()
		mu.Lock()
		ended = true
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	t.Cleanup(app.close)
	return app
}
