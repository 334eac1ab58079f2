package meshtest

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Fault is one way in which a registry fails. Fields that are not zero work
// together; Hang and Reset need no other.
type Fault struct {
	Hang  bool // the request is accepted and never answered
	Reset bool // the connection ends with a RST instead of an answer

	Delay  time.Duration // before the answer
	Status int           // instead of the real answer, with Body
	Body   *string       // instead of the real body; Text("") is an empty one
	Index  *uint64       // instead of the real X-Consul-Index; Number(0) leaves the header out
	// Leaderless says X-Consul-KnownLeader: false, and that the answer did not
	// come from a stream, where that means nothing.
	Leaderless bool
	// Cut ends the connection after that many octets of the body.
	Cut int
	// Drip is the pause after each octet of the body.
	Drip time.Duration

	// Times is how many requests it hits before it is over, 0 for all until
	// it is mended.
	Times int
}

// Text returns a pointer for Fault.Body.
func Text(s string) *string { return &s }

// Number returns a pointer for Fault.Index.
func Number(n uint64) *uint64 { return &n }

type brokenPath struct {
	prefix string
	fault  Fault
	left   int
	over   chan struct{} // closed when mended: what hangs is let go
}

// Break lets every request whose path begins with prefix run into the fault,
// queries that wait already not included. Mend ends it and lets go what hangs,
// unanswered.
func (f *FakeConsul) Break(prefix string, fault Fault) (mend func()) {
	b := &brokenPath{prefix: prefix, fault: fault, left: fault.Times, over: make(chan struct{})}
	f.mu.Lock()
	f.faults = append(f.faults, b)
	f.mu.Unlock()
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if i := slices.Index(f.faults, b); i >= 0 {
			f.faults = slices.Delete(f.faults, i, i+1)
		}
		select {
		case <-b.over:
		default:
			close(b.over)
		}
	}
}

// fault returns what the request runs into, the fault that was set last first.
// f.mu is held.
func (f *FakeConsul) fault(r *http.Request) *brokenPath {
	for _, b := range slices.Backward(f.faults) {
		if !strings.HasPrefix(r.URL.Path, b.prefix) || b.fault.Times > 0 && b.left == 0 {
			continue
		}
		b.left--
		return b
	}
	return nil
}

// serve spoils the answer that good would give.
func (b *brokenPath) serve(w http.ResponseWriter, r *http.Request, good http.Handler) {
	fault := &b.fault
	// Until the body is read the server does not notice that the client goes.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if fault.Hang {
		select {
		case <-r.Context().Done():
		case <-b.over:
		}
		abort(w)
		return
	}
	if fault.Delay > 0 {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(fault.Delay):
		}
	}
	if fault.Reset {
		abort(w)
		return
	}
	answer := httptest.NewRecorder()
	if fault.Status == 0 {
		good.ServeHTTP(answer, r)
	} else {
		answer.Code = fault.Status
	}
	header := w.Header()
	body = answer.Body.Bytes()
	for name, values := range answer.Header() {
		header[name] = values
	}
	if fault.Body != nil {
		body = []byte(*fault.Body)
	}
	if fault.Index != nil {
		header.Del("X-Consul-Index")
		if *fault.Index != 0 {
			header.Set("X-Consul-Index", strconv.FormatUint(*fault.Index, 10))
		}
	}
	if fault.Leaderless {
		header.Set("X-Consul-KnownLeader", "false")
		header.Set("X-Consul-Query-Backend", "blocking-query")
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(answer.Code)
	if fault.Cut > 0 && fault.Cut < len(body) {
		w.Write(body[:fault.Cut])
		http.NewResponseController(w).Flush()
		abort(w)
		return
	}
	if fault.Drip == 0 {
		w.Write(body)
		return
	}
	for i := range body {
		w.Write(body[i : i+1])
		http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-time.After(fault.Drip):
		}
	}
}

// abort ends the connection with a RST.
func abort(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn() // without the end that TLS would say
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}
