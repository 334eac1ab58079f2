package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// maxAnswerBytes bounds what the client reads: a status of a thousand
// upstreams with twenty endpoints each is about 4 MiB.
const maxAnswerBytes = 64 << 20

// DefaultSocket is where a packaged agent listens.
const DefaultSocket = "/run/meshd/meshd.sock"

// Client talks to one agent over its socket. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// UnreachableError means that no agent answered on the socket; whether one
// runs is another question.
type UnreachableError struct {
	Socket string
	Err    error
}

// Error names the socket and the cause.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("cannot reach meshd at %s: %v", e.Socket, e.Err)
}

// Unwrap returns the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }

// RefusedError is an answer of the agent that says no.
type RefusedError struct {
	Code    int // HTTP status
	Message string
}

// Error returns the agent's words.
func (e *RefusedError) Error() string { return e.Message }

// NewClient returns a client for the agent at the socket. It does no I/O.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{
		Transport:     &http.Transport{DialContext: dial, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the admin socket does not redirect") },
	}}
}

// Status returns the agent's status, problems included.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	_, err := c.do(ctx, http.MethodGet, pathStatus, &s)
	return s, err
}

// Reload makes the agent read its configuration again and waits for the
// result. A bad configuration is a result with Applied == false, not an error.
func (c *Client) Reload(ctx context.Context) (ReloadResult, error) {
	var r ReloadResult
	_, err := c.do(ctx, http.MethodPost, pathReload, &r, http.StatusUnprocessableEntity)
	return r, err
}

// Catalog returns where the agent's facts come from, with every watch.
func (c *Client) Catalog(ctx context.Context) (Catalog, error) {
	var k Catalog
	_, err := c.do(ctx, http.MethodGet, pathCatalog, &k)
	return k, err
}

// Explain returns what is in force for an upstream and where it was written. A
// name that the agent does not have is a *RefusedError with code 404.
func (c *Client) Explain(ctx context.Context, upstream string) (Explanation, error) {
	var e Explanation
	_, err := c.do(ctx, http.MethodGet, pathExplain+"?"+url.Values{"upstream": {upstream}}.Encode(), &e)
	return e, err
}

// TestPolicy asks whether service from may call service to, which the agent's
// host must offer; if it does not, the error is a *RefusedError with code 404.
func (c *Client) TestPolicy(ctx context.Context, from, to string) (PolicyTest, error) {
	var t PolicyTest
	_, err := c.do(ctx, http.MethodGet, pathPolicy+"?"+url.Values{"from": {from}, "to": {to}}.Encode(), &t)
	return t, err
}

// Version returns what the agent says it is.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	_, err := c.do(ctx, http.MethodGet, pathVersion, &v)
	return v, err
}

// Ready reports whether the agent is ready and what it waits for.
func (c *Client) Ready(ctx context.Context) (bool, []string, error) {
	var r readiness
	_, err := c.do(ctx, http.MethodGet, pathReady, &r, http.StatusServiceUnavailable)
	return r.Ready, r.Waiting, err
}

// do asks and decodes into v what comes with 200 or one of the codes in also.
func (c *Client) do(ctx context.Context, method, path string, v any, also ...int) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, nil)
	if err != nil {
		return 0, fmt.Errorf("ask %s: %w", path, err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		// http.Client wraps in method and URL, which mean nothing here.
		if u := errors.Unwrap(err); u != nil {
			err = u
		}
		return 0, &UnreachableError{Socket: c.socket, Err: err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes))
	if err != nil {
		return res.StatusCode, &UnreachableError{Socket: c.socket, Err: err}
	}
	ok := res.StatusCode == http.StatusOK
	for _, code := range also {
		ok = ok || res.StatusCode == code
	}
	if ok {
		var f failure
		// 503 of /ready and of a failed reload share a code with failure.
		if json.Unmarshal(body, &f) != nil || f.Error == "" || res.StatusCode == http.StatusOK {
			if err := json.Unmarshal(body, v); err != nil {
				return res.StatusCode, fmt.Errorf("answer of meshd at %s: %w", c.socket, err)
			}
			return res.StatusCode, nil
		}
		return res.StatusCode, &RefusedError{Code: res.StatusCode, Message: f.Error}
	}
	var f failure
	if json.Unmarshal(body, &f) != nil || f.Error == "" {
		f.Error = fmt.Sprintf("meshd at %s answered %s: %.200s", c.socket, res.Status, strings.TrimSpace(string(body)))
	}
	return res.StatusCode, &RefusedError{Code: res.StatusCode, Message: f.Error}
}
