package meshtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"maps"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// indexOffset is what a FaultProxy adds to every index, so that an index can
// go back far although a young Consul's is small.
const indexOffset = 1_000_000_000

// FaultProxy stands between meshd and a real Consul and makes that fail in ways
// that it does not fail by itself. It is stricter than most networks: a fault
// hits the queries that wait already, and what hung never gets an answer.
type FaultProxy struct {
	Address string // HOST:PORT, HTTPS with the certificates of the Consul behind

	target    string
	transport *http.Transport

	mu      sync.Mutex // guards what follows
	fault   *proxyFault
	changed chan struct{}     // closed and replaced when a fault begins
	offset  map[string]uint64 // by watch
	sunk    map[string]bool   // watches that have had an answer in this fault
	counts  map[Asked]int
}

// Asked is what a FaultProxy counts requests by. Name is the parameter of that
// name, where there is one.
type Asked struct{ Token, Path, Name string }

// ProxyFault is how a FaultProxy fails. Fault's Hang, Reset, Delay, Status,
// Body and Index are understood.
type ProxyFault struct {
	Fault
	Prefix string // paths that it concerns; "" is all
	// Drop resets the connections of queries that wait when it begins.
	Drop bool
	// Sink takes that much off the index of a watch with its next answer, for
	// good; with Often with every answer, until the fault ends.
	Sink  uint64
	Often bool
}

type proxyFault struct{ ProxyFault }

// FaultProxy puts one before the Consul until the test ends.
func (s *SecuredServer) FaultProxy(t testing.TB) *FaultProxy {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
	if err != nil {
		t.Fatalf("meshtest: fault proxy: %v", err)
	}
	roots, err := os.ReadFile(s.CAFile)
	if err != nil {
		t.Fatalf("meshtest: fault proxy: %v", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	l, err := tls.Listen("tcp", FreeAddr(t).String(), &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	})
	if err != nil {
		t.Fatalf("meshtest: fault proxy: %v", err)
	}
	p := &FaultProxy{
		Address: l.Addr().String(), target: s.Address, offset: make(map[string]uint64), sunk: make(map[string]bool),
		transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, MaxIdleConnsPerHost: 256},
		changed:   make(chan struct{}), counts: make(map[Asked]int),
	}
	server := &http.Server{Handler: p, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan struct{}) // closed by the goroutine below; the cleanup waits
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
		p.transport.CloseIdleConnections()
	})
	return p
}

// Break begins a fault, in the place of one before.
func (p *FaultProxy) Break(f ProxyFault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = &proxyFault{f}
	clear(p.counts)
	clear(p.sunk)
	close(p.changed)
	p.changed = make(chan struct{})
}

// Mend ends the fault and returns how many requests came during it.
func (p *FaultProxy) Mend() map[Asked]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault != nil && p.fault.Often {
		clear(p.offset)
	}
	p.fault = nil
	return maps.Clone(p.counts)
}

// now returns the fault that a path runs into, if any, and what is closed when
// another one begins.
func (p *FaultProxy) now(path string) (*proxyFault, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault == nil || !strings.HasPrefix(path, p.fault.Prefix) {
		return nil, p.changed
	}
	return p.fault, p.changed
}

// sink returns the offset of a watch after the fault, if there is one, has had
// its way with it.
func (p *FaultProxy) sink(r *http.Request, fault *proxyFault) uint64 {
	key := r.Header.Get("X-Consul-Token") + r.URL.Path + r.URL.Query().Get("name")
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.offset[key] == 0 {
		p.offset[key] = indexOffset
	}
	if fault != nil && (fault.Often || !p.sunk[key]) {
		p.offset[key] -= fault.Sink
		p.sunk[key] = true
	}
	return p.offset[key]
}

var errInterrupted = errors.New("a fault has begun")

// ServeHTTP implements http.Handler.
func (p *FaultProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.counts[Asked{r.Header.Get("X-Consul-Token"), r.URL.Path, r.URL.Query().Get("name")}]++
	p.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	wait := true
	for {
		fault, changed := p.now(r.URL.Path)
		if fault != nil && fault.Drop && !wait {
			abort(w)
			return
		}
		if fault != nil && !fault.before(w, r) {
			return
		}
		answer, content, err := p.forward(r, body, wait, changed)
		if errors.Is(err, errInterrupted) {
			wait = false // what it waited for is the fault
			continue
		}
		if err != nil {
			abort(w)
			return
		}
		p.reply(w, r, fault, answer, content)
		return
	}
}

// before does what a fault does instead of asking Consul, and returns whether
// Consul is asked all the same.
func (f *proxyFault) before(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case f.Hang:
		<-r.Context().Done()
		return false
	case f.Reset:
		abort(w)
		return false
	case f.Delay > 0:
		select {
		case <-r.Context().Done():
			return false
		case <-time.After(f.Delay):
		}
	}
	if f.Status != 0 {
		w.WriteHeader(f.Status)
		if f.Body != nil {
			io.WriteString(w, *f.Body)
		}
		return false
	}
	return true
}

// forward asks Consul. With wait it is a held query, which a fault that begins
// interrupts.
func (p *FaultProxy) forward(r *http.Request, body []byte, wait bool, changed <-chan struct{}) (*http.Response, []byte, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	ended := make(chan struct{})
	var watcher sync.WaitGroup // for the goroutine below
	defer watcher.Wait()
	defer close(ended)
	out := r.Clone(ctx)
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host, out.Host = "https", p.target, p.target
	out.Body = io.NopCloser(bytes.NewReader(body))
	q := out.URL.Query()
	if index, err := strconv.ParseUint(q.Get("index"), 10, 64); err == nil {
		watcher.Go(func() {
			select {
			case <-changed:
				if f, _ := p.now(r.URL.Path); f != nil {
					cancel(errInterrupted)
				}
			case <-ended:
			}
		})
		offset := p.sink(r, nil)
		q.Set("index", strconv.FormatUint(index-min(index, offset), 10))
		if !wait || index <= offset {
			q.Del("index")
		}
		out.URL.RawQuery = q.Encode()
	}
	answer, err := p.transport.RoundTrip(out)
	var content []byte
	if err == nil {
		content, err = io.ReadAll(answer.Body)
		answer.Body.Close()
	}
	if err != nil && context.Cause(ctx) == errInterrupted {
		err = errInterrupted
	}
	return answer, content, err
}

// reply gives Consul's answer, spoiled.
func (p *FaultProxy) reply(w http.ResponseWriter, r *http.Request, fault *proxyFault, answer *http.Response, content []byte) {
	header := w.Header()
	maps.Copy(header, answer.Header)
	if index, err := strconv.ParseUint(header.Get("X-Consul-Index"), 10, 64); err == nil {
		header.Set("X-Consul-Index", strconv.FormatUint(index+p.sink(r, fault), 10))
	}
	if fault != nil {
		if fault.Body != nil {
			content = []byte(*fault.Body)
		}
		if fault.Index != nil {
			header.Set("X-Consul-Index", strconv.FormatUint(*fault.Index, 10))
		}
	}
	header.Set("Content-Length", strconv.Itoa(len(content)))
	w.WriteHeader(answer.StatusCode)
	w.Write(content)
}
