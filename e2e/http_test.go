package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"meshd/internal/meshtest"
)

// Malformed requests get their status and the end of the connection; nothing
// of them reaches the application, and each is counted.
func TestMalformedHTTPIsNotForwarded(t *testing.T) {
	a, _, _, app := pair(t, "")
	const head = "POST / HTTP/1.1\r\nHost: api\r\n"
	for _, c := range []struct {
		name, request string
		status        int
	}{
		{"two lengths", head + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400},
		{"length and chunked", head + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"bare LF", "GET / HTTP/1.1\nHost: api\n\n", 400},
		{"NUL", head + "X: a\x00b\r\n\r\n", 400},
		{"space before colon", head + "X : a\r\n\r\n", 400},
		{"obs-fold", head + "X: a\r\n b\r\n\r\n", 400},
		{"no Host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"bad chunk size", head + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400},
		{"huge field", "GET / HTTP/1.1\r\nHost: api\r\nX: " + strings.Repeat("x", 40<<10) + "\r\n\r\n", 431},
		{"200 fields", "GET / HTTP/1.1\r\nHost: api\r\n" + strings.Repeat("X: y\r\n", 200) + "\r\n", 431},
		{"no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400},
	} {
		t.Run(c.name, func(t *testing.T) { malformed(t, a.in(t), app, c.request, c.status) })
	}
	expectApp(t, a.url("api"), "api") // and goes on serving
}

func malformed(t *testing.T, a *host, app *meshtest.App, request string, status int) {
	before := app.Served.Load()
	counted := a.metric("meshd_requests_total", `direction="outbound"`, `outcome="bad_request"`)
	c, err := net.Dial("tcp", a.address("api"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	go io.WriteString(c, request) // ends with c; meshd may not read all of it
	in := bufio.NewReader(c)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, res.Body)
	if res.StatusCode != status || !res.Close || res.Header.Get("meshd-error") != "bad_request" {
		t.Errorf("status %d, meshd-error %q, close %v; want %d", res.StatusCode, res.Header.Get("meshd-error"), res.Close, status)
	}
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Errorf("after the answer: %q, %v; want the end", rest, err)
	}
	if n := app.Served.Load(); n != before {
		t.Errorf("the application saw %d requests", n-before)
	}
	a.eventually("counted", func() error {
		if n := a.metric("meshd_requests_total", `direction="outbound"`, `outcome="bad_request"`); n != counted+1 {
			return fmt.Errorf("%g counted, want %g", n, counted+1)
		}
		return nil
	})
}
