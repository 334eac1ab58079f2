package http1

import (
	"math/rand/v2"
	"testing"
)

// Fragments that messages are made of. Blind mutation seldom builds a message
// that both readers accept; words that matter, in any order, do it all the time
// and still break every rule.
var (
	genMethods  = []string{"GET", "POST", "OPTIONS", "CONNECT", "HEAD", "get", "P-T", "", "G T"}
	genTargets  = []string{"/", "/a/b?c=d", "/%20", "/%zz", "/?%zz", "/a?b?c", "*", "a:80", "[::1]:80", "http://a/", "http://a", "http://a?q", "HTTP://A/x", "http://b/", "https://a/", "//a/b", "/\xc3\xa4", "/#", "/a:b", "/{}|\\^`\"<>", "/;=@!$&'()*+,"}
	genVersions = []string{"HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "HTTP/1.1 "}
	genStatuses = []string{"200 OK", "200", "200 ", "204 No Content", "304 x", "100 Continue", "101 x", "404 Not\tFound", "99 x", "600 x", "500 \xff"}
	genNames    = []string{"Host", "host", "Content-Length", "content-length", "Transfer-Encoding", "Connection", "CONNECTION", "TE", "Te", "Trailer", "Upgrade", "Expect", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "HTTP2-Settings", "X-A", "x-a", "X-B", "Pragma", "Cache-Control", "Cookie", "x_forwarded_for", "X-A ", " X-A", "X\x00A", ""}
	genValues   = []string{"a", "A", "a:80", "b", "", " ", "\ta\t", "5", "05", "0", "5, 5", "+5", "9223372036854775807", "9223372036854775808", "chunked", "Chunked", "chunked ", "gzip, chunked", "identity", "close", "keep-alive", "Keep-Alive, x-a", "close, X-B", "upgrade", "te", "trailers", "Trailers", "trailer", "x-a", "x-a,,x-b", "host", "cache-control", "expect", "100-continue", "100-Continue", "websocket", "h2c", "no-cache", "X-Sum", "\xff", "a\tb", "a\x00", "a\rb"}
	genColons   = []string{": ", ": ", ": ", ":", ":\t", " :"}
	genEnds     = []string{"\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\n "}
	genBodies   = []string{"", "hello", "hello and more", "5\r\nhello\r\n0\r\n\r\n", "5;x=\"y;z\"\r\nhello\r\n0\r\n\r\nGET", "05\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\nx-sum: 2 \r\n\r\nmore", "0\r\nContent-Length: 1\r\n\r\n", "0\r\n\r\n", "5 \r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0;a\r\nPragma: no-cache\r\n\r\n", "000000000000005\r\nhello\r\n0\r\n\r\n", "0000000000000005\r\nhello\r\n0\r\n\r\n", "5;\t\r\nhello\r\n0\r\n\r\n", "0\r\nX:\r\n\r\n"}
)

func generate(r *rand.Rand, first string) []byte {
	pick := func(from []string) string { return from[r.IntN(len(from))] }
	b := []byte(first)
	b = append(b, pick(genEnds)...)
	if r.IntN(4) > 0 {
		b = append(b, "Host: a\r\n"...)
	}
	if r.IntN(3) == 0 {
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	for range r.IntN(5) {
		b = append(append(append(append(b, pick(genNames)...), pick(genColons)...), pick(genValues)...), pick(genEnds)...)
	}
	return append(append(b, "\r\n"...), pick(genBodies)...)
}

func TestGenerated(t *testing.T) {
	const messages = 40_000
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(from []string) string { return from[r.IntN(len(from))] }
	requests, responses := 0, 0
	var in []byte
	defer func() {
		if t.Failed() {
			t.Logf("%q", in)
		}
	}()
	for range messages {
		in = generate(r, pick(genMethods)+" "+pick(genTargets)+" "+pick(genVersions))
		if checkRequest(t, in) {
			requests++
		}
		in = generate(r, pick(genVersions)+" "+pick(genStatuses))
		if checkResponse(t, r.IntN(4) == 0, in) {
			responses++
		}
	}
	t.Logf("%d requests and %d responses of %d were accepted", requests, responses, messages)
	if requests < messages/50 || responses < messages/50 {
		t.Error("too few are accepted for the comparison to mean something")
	}
}
