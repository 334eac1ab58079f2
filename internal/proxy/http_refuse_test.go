package proxy

import (
	"fmt"
	"strings"
	"testing"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/telemetry"
)

// TestRefusedRequests sends what is no HTTP, or too much of it: each is
// answered, the connection ends, the application sees nothing of it, and it is
// counted.
func TestRefusedRequests(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	cases := []struct {
		name, request string
		status        int
	}{
		{"two lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400},
		{"the same length twice", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", 400},
		{"a list of lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\na", 400},
		{"a length with a sign", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na", 400},
		{"length and chunked", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"chunked and length", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400},
		{"an unknown coding", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
		{"chunked in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"bare LF in the request line", "GET / HTTP/1.1\nHost: x\r\n\r\n", 400},
		{"bare LF behind a field", "GET / HTTP/1.1\r\nHost: x\n\r\n", 400},
		{"bare LF only", "\n\n", 400},
		{"bare CR", "GET / HTTP/1.1\r\nA: b\rc\r\nHost: x\r\n\r\n", 400},
		{"NUL in a value", "GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", 400},
		{"NUL in the target", "GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"space before colon", "GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400},
		{"folded field", "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400},
		{"folded first field", "GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"two hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400},
		{"host with a path", "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400},
		{"field without colon", "GET / HTTP/1.1\r\nHost: x\r\nabc\r\n\r\n", 400},
		{"field without name", "GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", 400},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
		{"another version", "GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505},
		{"HTTP/0.9", "GET /\r\n\r\n", 400},
		{"two spaces", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"a fragment", "GET /#a HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"other scheme", "GET https://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"Connection takes away who calls", "GET / HTTP/1.1\r\nHost: x\r\nConnection: x-forwarded-for\r\n\r\n", 400},
		{"Connection takes away the length", "POST / HTTP/1.1\r\nHost: x\r\nConnection: content-length\r\nContent-Length: 1\r\n\r\na", 400},
		{"a head too large", "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", limits1.HeadBytes) + "\r\n\r\n", 431},
		{"too many fields", "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a: b\r\n", limits1.FieldCount) + "\r\n", 431},
		{"a target too long", "GET /" + strings.Repeat("a", limits1.TargetBytes) + " HTTP/1.1\r\nHost: x\r\n\r\n", 414},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, p.addr)
			send(t, conn, c.request)
			getsError(t, conn, fmt.Sprint(c.status, " bad_request and close"))
			if rest, cut := ending(t, "client", conn); len(rest) > 0 || cut {
				t.Fatalf("the connection goes on with %q, cut %v", rest, cut)
			}
			conn.Close()
			p.a.expect(telemetry.Outbound, fmt.Sprint("bad_request=", i+1))
			if len(app.conns) > 0 {
				t.Fatal("the application saw something of it")
			}
		})
	}
	p.b.expect(telemetry.Inbound, "")
	p.calm()
}

// TestRefusedBodies breaks the framing of a body that is on its way: the
// application has seen its head, and must not take it for a whole request.
func TestRefusedBodies(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	cases := []struct {
		name, body string
	}{
		{"no size", "\r\n\r\n"},
		{"no number", "x\r\nabc\r\n"},
		{"a negative size", "-1\r\n"},
		{"a size with 0x", "0x1\r\na\r\n"},
		{"a size beyond all bounds", "fffffffffffffffff\r\n"},
		{"more than the size", "1\r\nab\r\n"},
		{"bare LF behind the size", "1\na\r\n0\r\n\r\n"},
		{"bare LF behind the data", "1\r\na\n0\r\n\r\n"},
		{"a long extension", "1;" + strings.Repeat("a", 300) + "\r\n"},
		{"a length in the trailers", "0\r\nContent-Length: 3\r\n\r\n"},
		{"who calls in the trailers", "0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"},
		{"large trailers", "0\r\nA: " + strings.Repeat("a", 9<<10) + "\r\n\r\n"},
		{"a folded trailer", "0\r\nA: b\r\n c\r\n\r\n"},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, p.addr)
			send(t, conn, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
			a := app.accept(t)
			head(t, a)
			gets(t, "application", a, "3\r\nabc\r\n")
			send(t, conn, c.body)
			getsError(t, conn, "400 bad_request and close")
			if rest, cut := ending(t, "client", conn); len(rest) > 0 || cut {
				t.Fatalf("the connection goes on with %q, cut %v", rest, cut)
			}
			conn.Close()
			if rest, cut := ending(t, "application", a); !cut || strings.Contains(string(rest), "0\r\n\r\n") {
				t.Fatalf("the application got %q, cut %v", rest, cut)
			}
			p.a.expect(telemetry.Outbound, fmt.Sprint("bad_request=", i+1))
			p.b.expect(telemetry.Inbound, fmt.Sprint("client_closed=", i+1))
		})
	}
	p.calm()
}

// TestNobodyListens names the fault of the other host's application.
func TestNobodyListens(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	addr := mustAddr(app.Addr())
	app.Close()
	p := newPair(t, 1, mesh.HTTP, addr)
	conn := dial(t, p.addr)
	for i := range 3 {
		send(t, conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		getsError(t, conn, "503 local_connect_failed")
		p.a.expect(telemetry.Outbound, fmt.Sprint("local_connect_failed=", i+1))
		p.b.expect(telemetry.Inbound, fmt.Sprint("local_connect_failed=", i+1))
	}
	conn.Close()
	p.calm()
}

// TestLimitKeepsTheConnection refuses a request over the limit and goes on.
func TestLimitKeepsTheConnection(t *testing.T) {
	meshtest.Leaks(t)
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()), func(a, _ *mesh.Spec) { a.Upstreams[0].Limits.MaxConcurrentRequests = 1 })
	first, second := dial(t, p.addr), dial(t, p.addr)
	send(t, first, "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
	a := app.accept(t)
	for range 2 {
		send(t, second, "GET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
		getsError(t, second, "503 overflow")
	}
	head(t, a)
	send(t, a, "HTTP/1.1 204 OK\r\n\r\n")
	gets(t, "first", first, "HTTP/1.1 204 No Content\r\n\r\n")
	send(t, second, "GET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
	head(t, a)
	send(t, a, "HTTP/1.1 204 OK\r\n\r\n")
	gets(t, "second", second, "HTTP/1.1 204 No Content\r\n\r\n")
	p.a.expect(telemetry.Outbound, "ok=2 overflow=2")
	first.Close()
	second.Close()
	p.calm()
}
