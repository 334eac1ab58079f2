package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxAnswer bounds the body of one answer. An instance is about 2 KiB of
	// JSON, so this is some 30,000 instances of one service.
	maxAnswer = 64 << 20
	// dialTimeout is long for an agent on this host and short for the poll.
	dialTimeout = 2 * time.Second
	// idleConns: every watch holds a connection while its query waits, and
	// wants it again a moment later.
	idleConns = 1024
	// idleTimeout is above any pause between two queries of a watch.
	idleTimeout = 30 * time.Second
)

// transport carries the requests of the API library: to the configured
// address, with the token of their purpose and no other, with a bound on the
// answer, and noting what the library does not tell (see notes) and what Status
// shows.
type transport struct {
	scheme string
	host   string
	prefix string
	token  *secret // of requests that name none
	tls    TLS
	dial   func(ctx context.Context, network, address string) (net.Conn, error)

	mu       sync.Mutex      // guards what follows
	base     *http.Transport // nil while the TLS files cannot be used
	seen     [3]stamp        // of the TLS files that base was made of
	tlsErr   error           // why they could not be used the last time
	up       bool
	contact  time.Time
	lastErr  string
	queries  uint64
	failures uint64
}

// newTransport understands HOST:PORT, http://…, https://… and unix:///PATH.
func newTransport(address string, token *secret, files TLS) (*transport, error) {
	t := &transport{scheme: "http", host: address, token: token, tls: files, dial: newSources().dial}
	if files != (TLS{}) {
		t.scheme = "https"
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
			t.host, t.scheme = "localhost", "http"
			t.dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", rest)
			}
			if !strings.HasPrefix(rest, "/") {
				return nil, fmt.Errorf("consul address %q: the path of the socket must be absolute", address)
			}
			t.renew()
			return t, nil
		default:
			return nil, fmt.Errorf("consul address %q: unknown scheme %q, use HOST:PORT, http, https or unix", address, scheme)
		}
	}
	if _, _, err := net.SplitHostPort(t.host); err != nil {
		return nil, fmt.Errorf("consul address %q: want HOST:PORT: %w", address, err)
	}
	t.renew()
	return t, nil
}

// renew makes the connections of now on by the TLS files of now, if those
// changed, and reports whether it did. Files that cannot be used keep what is
// in force.
func (t *transport) renew() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	var seen [3]stamp
	if t.scheme == "https" {
		seen = t.tls.stamps()
	}
	if t.base != nil && t.tlsErr == nil && seen == t.seen {
		return false
	}
	base := &http.Transport{
		DialContext:         t.dial,
		MaxIdleConns:        idleConns,
		MaxIdleConnsPerHost: idleConns,
		IdleConnTimeout:     idleTimeout,
		TLSHandshakeTimeout: dialTimeout,
		// Consul's are under 1 KiB.
		MaxResponseHeaderBytes: 64 << 10,
	}
	if t.scheme == "https" {
		config, err := t.tls.load()
		if err != nil {
			t.tlsErr = fmt.Errorf("consul tls: %w", err)
			return false
		}
		base.TLSClientConfig = config
	}
	old := t.base
	t.base, t.seen, t.tlsErr = base, seen, nil
	if old != nil {
		// Requests under way end on the old connections, which close behind
		// them: nobody asks for those again.
		old.CloseIdleConnections()
	}
	return old != nil
}

// CloseIdleConnections ends the connections that no request uses.
func (t *transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.base != nil {
		t.base.CloseIdleConnections()
	}
}

// current returns what carries a request now.
func (t *transport) current() (*http.Transport, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.base == nil {
		return nil, t.tlsErr
	}
	return t.base, nil
}

// secretKey carries a *secret through the context of a request.
type secretKey struct{}

func withSecret(ctx context.Context, s *secret) context.Context {
	return context.WithValue(ctx, secretKey{}, s)
}

// notesKey carries a *notes through the context of a request.
type notesKey struct{}

// notes is what the headers of an answer say and the library does not tell.
type notes struct {
	// leaderless is true when the server behind the answer knows no leader.
	// Consul 1.20 says so of every streamed answer whatever is true, so the
	// word counts only in answers that did not come that way.
	leaderless bool
	// streamed is true when the answer came from a stream of the agent. Such
	// an answer is silent about missing rights: a token that may not read a
	// service, or that does not exist, gets an empty list with a good index.
	streamed bool
	// filtered is true when rights were missing for a part of the answer.
	filtered bool
	// behind is how long the agent has been without servers, when it answered
	// out of its cache.
	behind time.Duration
	// policy is what ACLs do by default: "allow", "deny", or "" if unknown.
	policy string
}

func (n *notes) read(h http.Header) {
	n.streamed = strings.EqualFold(h.Get("X-Consul-Query-Backend"), "streaming")
	n.leaderless = strings.EqualFold(h.Get("X-Consul-KnownLeader"), "false") && !n.streamed
	n.filtered = strings.EqualFold(h.Get("X-Consul-Results-Filtered-By-ACLs"), "true")
	n.policy = strings.ToLower(h.Get("X-Consul-Default-ACL-Policy"))
	n.behind = 0
	if s, err := strconv.ParseUint(h.Get("Age"), 10, 31); err == nil {
		n.behind = time.Duration(s) * time.Second
	}
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	base, err := t.current()
	if err != nil {
		t.note(req.Context(), err)
		return nil, err
	}
	out := req.Clone(req.Context())
	out.URL.Scheme, out.URL.Host, out.Host = t.scheme, t.host, t.host
	out.URL.Path = t.prefix + out.URL.Path
	if out.URL.RawPath != "" {
		out.URL.RawPath = t.prefix + out.URL.RawPath
	}
	out.Header.Del("X-Consul-Token")
	token := t.token
	if s, ok := req.Context().Value(secretKey{}).(*secret); ok {
		token = s
	}
	if v := token.value(); v != "" {
		out.Header.Set("X-Consul-Token", v)
	}
	// The library adds these from the environment of this process.
	q := out.URL.Query()
	q.Del("ns")
	q.Del("partition")
	out.URL.RawQuery = q.Encode()

	resp, err := base.RoundTrip(out)
	if err == nil {
		if n, ok := req.Context().Value(notesKey{}).(*notes); ok {
			n.read(resp.Header)
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
	s := Status{Reachable: t.up, Contact: t.contact, Error: t.lastErr, Queries: t.queries, Failures: t.failures}
	if t.tlsErr != nil {
		word := "; what was in force before is used"
		if t.base == nil {
			word = "; Consul cannot be asked"
		}
		s.Problems = append(s.Problems, t.tlsErr.Error()+word)
	}
	return s
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

// perSource is how many connections are opened from one loopback address.
// Consul takes 200 of one client address (limits.http_max_conns_per_client),
// and others on this host have 127.0.0.1, too.
const perSource = 100

// maxSources bounds them: 127.0.0.1 to 127.0.0.16 are room for 1,600 watches.
const maxSources = 16

// sources spreads connections to a Consul agent on 127.0.0.1 over several
// addresses of this host, so that a host with more upstreams than Consul takes
// connections of one address is served all the same.
type sources struct {
	mu   sync.Mutex // guards open
	open [maxSources]int
}

func newSources() *sources { return &sources{} }

func (s *sources) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	host, _, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host).To4(); err != nil || ip == nil || !ip.IsLoopback() {
		return d.DialContext(ctx, network, address)
	}
	at := s.take()
	if at > 0 { // the first is what the kernel takes anyway
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+at))}
	}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		s.give(at)
		return nil, err
	}
	return &sourced{Conn: c, give: sync.OnceFunc(func() { s.give(at) })}, nil
}

// take returns the first source with room, the last one if none has.
func (s *sources) take() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := 0
	for at < maxSources-1 && s.open[at] >= perSource {
		at++
	}
	s.open[at]++
	return at
}

func (s *sources) give(at int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[at]--
}

type sourced struct {
	net.Conn
	give func()
}

func (c *sourced) Close() error {
	c.give()
	return c.Conn.Close()
}

// query is what get asks for.
type query struct {
	path string
	more url.Values // parameters beside those of blocking queries
	// index and wait make it a blocking query.
	index      uint64
	wait       time.Duration
	datacenter string
	near       string
}

// get makes one stale read that the library has no complete type for, decodes
// the answer into out and returns its index.
func (c *Client) get(ctx context.Context, q query, out any) (uint64, error) {
	p := url.Values{"stale": {""}}
	for name, values := range q.more {
		p[name] = values
	}
	if q.index != 0 {
		p.Set("index", strconv.FormatUint(q.index, 10))
		p.Set("wait", strconv.FormatInt(max(q.wait.Milliseconds(), 1), 10)+"ms")
	}
	if q.datacenter != "" {
		p.Set("dc", q.datacenter)
	}
	if q.near != "" {
		p.Set("near", q.near)
	}
	// The transport replaces scheme and host.
	return c.do(ctx, http.MethodGet, "http://consul"+q.path+"?"+p.Encode(), nil, out)
}

// do makes one request by hand.
func (c *Client) do(ctx context.Context, method, target string, in io.Reader, out any) (uint64, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, in)
	if err != nil {
		return 0, err
	}
	return c.send(req, out)
}

func (c *Client) send(req *http.Request, out any) (uint64, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the target is no address that anybody knows
		}
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, statusError(resp)
	}
	if err := decode(resp.Body, out); err != nil {
		return 0, err
	}
	index, _ := strconv.ParseUint(cmp.Or(resp.Header.Get("X-Consul-Index"), "0"), 10, 64)
	return index, nil
}
