package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	// maxAnswer bounds the body of one answer. An instance is about 2 KiB of
	// JSON, so this is some 30,000 instances of one service.
	maxAnswer = 64 << 20
	// dialTimeout is long for an agent on this host and short for the poll.
	dialTimeout = 3 * time.Second
	// idleConns: every watch holds a connection while its query waits, and
	// wants it again a moment later.
	idleConns = 256
	// idleTimeout is above any pause between two queries of a watch.
	idleTimeout = 90 * time.Second
)

// transport carries the requests of the API library: to the configured
// address, with the configured token and no other, with a bound on the answer,
// and noting what the library does not tell (whether there is a
// leader) and what Status shows.
type transport struct {
	base   *http.Transport
	scheme string
	host   string
	prefix string
	token  string

	mu       sync.Mutex // guards what follows
	up       bool
	contact  time.Time
	lastErr  string
	queries  uint64
	failures uint64
}

// newTransport understands HOST:PORT, http://…, https://… and unix:///PATH.
func newTransport(address, token string) (*transport, error) {
	t := &transport{scheme: "http", host: address, token: token}
	t.base = &http.Transport{
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		MaxIdleConns:           idleConns,
		MaxIdleConnsPerHost:    idleConns,
		IdleConnTimeout:        idleTimeout,
		TLSHandshakeTimeout:    dialTimeout,
		MaxResponseHeaderBytes: 64 << 10, // Consul's are under 1 KiB
	}
	if scheme, rest, ok := strings.Cut(address, "://"); ok {
		switch scheme {
		case "http", "https":
			u, err := url.Parse(address)
			if err != nil {
				return nil, fmt.Errorf("consul address %q: %w", address, err)
			}
			t.scheme, t.host, t.prefix = scheme, u.Host, strings.TrimSuffix(u.Path, "/")
		case "unix":
			t.host = "localhost"
			t.base.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", rest)
			}
			if !strings.HasPrefix(rest, "/") {
				return nil, fmt.Errorf("consul address %q: the path of the socket must be absolute", address)
			}
			return t, nil
		default:
			return nil, fmt.Errorf("consul address %q: unknown scheme %q, use HOST:PORT, http, https or unix", address, scheme)
		}
	}
	if _, _, err := net.SplitHostPort(t.host); err != nil {
		return nil, fmt.Errorf("consul address %q: want HOST:PORT: %w", address, err)
	}
	return t, nil
}

// CloseIdleConnections ends the connections that no request uses.
func (t *transport) CloseIdleConnections() { t.base.CloseIdleConnections() }

// leaderKey carries a *leader through the context of a request.
type leaderKey struct{}

// leader is what the header of an answer says about the server behind it.
// Consul 1.20 answers every held health query from a stream and then says
// "KnownLeader: false" whatever is true, so the word counts only in answers
// that did not come that way. The library tells neither apart.
type leader struct{ lost bool }

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.URL.Scheme, out.URL.Host, out.Host = t.scheme, t.host, t.host
	out.URL.Path = t.prefix + out.URL.Path
	out.Header.Del("X-Consul-Token")
	if t.token != "" {
		out.Header.Set("X-Consul-Token", t.token)
	}
	// The library adds these from the environment of this process.
	q := out.URL.Query()
	q.Del("ns")
	q.Del("partition")
	out.URL.RawQuery = q.Encode()

	resp, err := t.base.RoundTrip(out)
	if err == nil {
		if l, ok := req.Context().Value(leaderKey{}).(*leader); ok {
			l.lost = strings.EqualFold(resp.Header.Get("X-Consul-KnownLeader"), "false") &&
				!strings.EqualFold(resp.Header.Get("X-Consul-Query-Backend"), "streaming")
		}
		resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxAnswer}
	}
	t.note(req.Context(), err)
	return resp, err
}

// note remembers how a request ended. Any HTTP answer means that the agent is
// there.
func (t *transport) note(ctx context.Context, err error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		return // we hung up ourselves: that says nothing about Consul
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queries++
	if err != nil {
		t.up, t.lastErr = false, err.Error()
	} else {
		t.up, t.lastErr, t.contact = true, "", time.Now()
	}
}

// failed counts a query that brought nothing, for whatever reason. One whose
// answer began and never ended means that the agent is not there after all.
func (t *transport) failed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures++
	if errors.Is(err, context.DeadlineExceeded) {
		t.up, t.lastErr = false, err.Error()
	}
}

func (t *transport) status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Status{Reachable: t.up, Contact: t.contact, Error: t.lastErr, Queries: t.queries, Failures: t.failures}
}

// errTooLarge ends the reading of an answer over maxAnswer.
var errTooLarge = errors.New("answer is over 64 MiB")

type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}
