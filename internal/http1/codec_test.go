package http1

import (
	"bytes"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"meshd/internal/mesh"
)

func TestToken(t *testing.T) {
	for c := range 256 {
		want := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' ||
			c < 0x80 && strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) && c != 0
		if got := Token([]byte{'a', byte(c)}); got != want {
			t.Errorf("Token(a%q) = %v", rune(c), got)
		}
	}
	if Token(nil) {
		t.Error("the empty token is valid")
	}
}

func TestValue(t *testing.T) {
	for c := range 256 {
		want := c >= 0x20 && c != 0x7f || c == '\t'
		// At each place of a word of eight octets and behind it.
		for at := 1; at < 20; at++ {
			v := bytes.Repeat([]byte{'\xff'}, 21)
			v[at] = byte(c)
			if got := Value(v); got != want {
				t.Errorf("Value with %#x at %d = %v", c, at, got)
			}
		}
	}
	for v, want := range map[string]bool{"": true, "a": true, " a": false, "a\t": false, " ": false} {
		if Value([]byte(v)) != want {
			t.Errorf("Value(%q) is not %v", v, want)
		}
	}
}

// The lowest hit must be exact whatever stands behind it.
func TestControl(t *testing.T) {
	for first := range 256 {
		for second := range 256 {
			b := []byte{'a', 'b', byte(first), byte(second), 0, 0x7f, 'c', 'd', 'e'}
			want := 0
			for want < len(b) && b[want] >= 0x20 && b[want] != 0x7f {
				want++
			}
			if got := control(b, 0); got != want {
				t.Fatalf("control(%q) = %d, want %d", b, got, want)
			}
		}
	}
}

func TestHost(t *testing.T) {
	for host, want := range map[string]bool{
		"": true, "a": true, "a.b-c_d~": true, "a:": true, "a:0": true, "a:65535": true, "127.0.0.1:80": true,
		"[::]": true, "[::1]:80": true, "xn--bcher-kva.example": true,
		":80": false, "a:65536": false, "a:b": false, "a:1:2": false, "a b": false, "a/": false, "a?": false,
		"a#": false, "a@b": false, "a%41": false, "a\\b": false, "\"a\"": false, "b\xc3\xbccher": false,
		"[": false, "[]": false, "[::1": false, "::1": false, "[::1]a": false, "[::1]:a": false, "a[::1]": false,
		"[127.0.0.1]": false, "[v1.a]": false, "[fe80::1%eth0]": false, "a:1 ": false, "a,b": true,
	} {
		if got := validHost([]byte(host)); got != want {
			t.Errorf("validHost(%q) = %v", host, got)
		}
	}
}

func TestIPv6(t *testing.T) {
	for _, s := range []string{
		"::", "::1", "1::", "1::8", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8:9",
		"1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8::", "::1:2:3:4:5:6:7:8", "1::2::3", ":::", ":1", "1:", ":", "1:::2",
		"12345::", "g::", "fe80::a:B:c", "::ffff:1.2.3.4", "1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:7:1.2.3.4",
		"1:2:3:4:5:1.2.3.4", "::1.2.3", "::1.2.3.4.5", "::1.2.3.256", "::1.2.3.04", "1.2.3.4", "::1.2.3.4:1",
		"::1..2.3", "1:2:3:4:5:6::1.2.3.4", "1:2:3:4:5::1.2.3.4", "1:2:3:4:5:6:7::1.2.3.4", "::0001.2.3.4", "",
	} {
		a, err := netip.ParseAddr(s)
		if got, want := validIPv6([]byte(s)), err == nil && a.Is6(); got != want {
			t.Errorf("validIPv6(%q) = %v, netip says %v", s, got, want)
		}
	}
}

func FuzzIPv6(f *testing.F) {
	f.Add("1:2::3:4.5.6.7")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := netip.ParseAddr(s)
		if got, want := validIPv6([]byte(s)), err == nil && a.Is6() && a.Zone() == ""; got != want {
			t.Errorf("validIPv6(%q) = %v, netip says %v", s, got, want)
		}
	})
}

func TestReasonsAreThoseOfNetHTTP(t *testing.T) {
	renamed := map[int]string{413: "Content Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}
	for status := 100; status < 600; status++ {
		want := http.StatusText(status)
		if r, ok := renamed[status]; ok { // RFC 9110 gave them new phrases
			want = r
		}
		if status == 418 {
			want = "" // unused
		}
		line := "HTTP/1.1 " + strconv.Itoa(status) + " " + want + "\r\n"
		if got := string(appendStatusLine(nil, status)); got != line {
			t.Errorf("%q, want %q", got, line)
		}
	}
	if got := string(appendStatusLine(nil, 0)); got != "HTTP/1.1 500 Internal Server Error\r\n" {
		t.Errorf("status 0 is sent as %q", got)
	}
}

func fields(pairs ...string) []mesh.Field {
	var list []mesh.Field
	for i := 0; i < len(pairs); i += 2 {
		name := []byte(pairs[i])
		list = append(list, mesh.Field{Name: name, Value: []byte(pairs[i+1]), Known: mesh.LookupKnown(name)})
	}
	return list
}

func TestAppendRequestHead(t *testing.T) {
	for _, c := range []struct {
		name    string
		path    string
		fields  []mesh.Field
		framing Framing
		want    string
	}{
		{"plain", "/a", fields("x", "1", "accept", "*/*"), FramingNone, "x: 1\r\naccept: */*\r\n"},
		{"length", "/a", fields("content-length", "3"), FramingNone, "content-length: 3\r\n"},
		{"chunked", "/a", fields("x", "1"), FramingChunked, "x: 1\r\ntransfer-encoding: chunked\r\n"},
		{"zero", "/a", nil, FramingZero, "content-length: 0\r\n"},
		{"never two framings", "/a", fields("content-length", "3"), FramingChunked, "transfer-encoding: chunked\r\n"},
		{"never two lengths", "/a", fields("content-length", "3"), FramingZero, "content-length: 0\r\n"},
		{"no end by closing", "/a", fields("content-length", "3"), FramingClose, "content-length: 3\r\n"},
		{"upgrade", "/a", fields("upgrade", "websocket"), FramingNone, "upgrade: websocket\r\nconnection: upgrade\r\n"},
		{"both options", "/a", fields("te", "trailers", "upgrade", "x"), FramingNone, "te: trailers\r\nupgrade: x\r\nconnection: upgrade, te\r\n"},
		{"smuggled by a peer", "/a", fields("host", "b", "transfer-encoding", "chunked", "connection", "x", "keep-alive", "1",
			"proxy-connection", "x", "http2-settings", "x", "y", "1"), FramingNone, "y: 1\r\n"},
	} {
		h := mesh.Head{Method: []byte("GET"), Authority: []byte("a:1"), Path: []byte(c.path), Fields: c.fields}
		want := "GET /a HTTP/1.1\r\nhost: a:1\r\n" + c.want + "\r\n"
		if got := string(AppendRequestHead(nil, &h, c.framing)); got != want {
			t.Errorf("%s:\n%q, want\n%q", c.name, got, want)
		}
	}
	h := mesh.Head{Method: []byte("CONNECT"), Authority: []byte("a:1")}
	if got, want := string(AppendRequestHead(nil, &h, FramingNone)), "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAppendResponseHead(t *testing.T) {
	for _, c := range []struct {
		name    string
		status  int
		fields  []mesh.Field
		framing Framing
		close   bool
		minor   int
		want    string
	}{
		{"plain", 200, fields("x", "1"), FramingZero, false, 1, "x: 1\r\ncontent-length: 0\r\n"},
		{"close", 200, fields("content-length", "1"), FramingNone, true, 1, "content-length: 1\r\nconnection: close\r\n"},
		{"until close", 200, nil, FramingClose, false, 1, "connection: close\r\n"},
		{"old client stays", 200, nil, FramingZero, false, 0, "connection: keep-alive\r\ncontent-length: 0\r\n"},
		{"old client goes", 200, nil, FramingZero, true, 0, "connection: close\r\ncontent-length: 0\r\n"},
		{"chunked", 200, fields("content-length", "1"), FramingChunked, false, 1, "transfer-encoding: chunked\r\n"},
		{"switching", 101, fields("upgrade", "x"), FramingNone, false, 1, "upgrade: x\r\nconnection: upgrade\r\n"},
		{"demanded", 426, fields("upgrade", "x"), FramingZero, true, 1, "upgrade: x\r\nconnection: upgrade, close\r\ncontent-length: 0\r\n"},
		{"te means nothing here", 200, fields("te", "trailers"), FramingNone, false, 1, "te: trailers\r\n"},
		{"nothing behind 204", 204, fields("content-length", "5"), FramingChunked, false, 1, ""},
		{"nothing behind 1xx", 103, fields("content-length", "5", "link", "x"), FramingZero, false, 0, "link: x\r\n"},
		{"smuggled by a peer", 200, fields("transfer-encoding", "chunked", "content-length", "1"), FramingNone, false, 1, "content-length: 1\r\n"},
	} {
		h := mesh.Head{Status: c.status, Fields: c.fields}
		want := statusLines[c.status-100] + c.want + "\r\n"
		if got := string(AppendResponseHead(nil, &h, c.framing, c.close, c.minor)); got != want {
			t.Errorf("%s:\n%q, want\n%q", c.name, got, want)
		}
	}
}

func TestAppendChunks(t *testing.T) {
	b := AppendChunk(nil, []byte("hello"))
	b = AppendChunk(b, nil) // must not end the body
	b = AppendChunk(b, bytes.Repeat([]byte("x"), 26))
	b = AppendLastChunk(b, fields("x-sum", "1", "content-length", "5", "x-forwarded-for", "me", "grpc-status", "0"))
	want := "5\r\nhello\r\n1a\r\n" + strings.Repeat("x", 26) + "\r\n0\r\nx-sum: 1\r\ngrpc-status: 0\r\n\r\n"
	if string(b) != want {
		t.Errorf("%q, want %q", b, want)
	}
}

func TestContentLength(t *testing.T) {
	for _, c := range []struct {
		fields []mesh.Field
		n      int64
		ok     bool
	}{
		{nil, 0, false},
		{fields("content-length", "12"), 12, true},
		{fields("x", "1", "content-length", "0"), 0, true},
		{fields("content-length", "12", "content-length", "12"), 0, false},
		{fields("content-length", "x", "content-length", "12"), 0, false},
		{fields("content-length", ""), 0, false},
	} {
		if n, ok := ContentLength(&mesh.Head{Fields: c.fields}); n != c.n || ok != c.ok {
			t.Errorf("%s: %d %v", c.fields, n, ok)
		}
	}
}

// Parse is given whatever the caller takes for a head.
func TestParseOfWhatIsNotAHead(t *testing.T) {
	for text, want := range map[string]error{
		"":                           ErrIncomplete,
		"\r\n":                       ErrIncomplete,
		"GET / HTTP/1.1\r\n":         ErrIncomplete,
		"\r\n\r\n":                   ErrMethod,
		"GET / HTTP/1.1\r\n\r\n\r\n": ErrExcess,
		"GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n": ErrExcess,
	} {
		var r Request
		if err := r.Parse([]byte(text), DefaultLimits()); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", text, err, want)
		}
	}
	lim := DefaultLimits()
	lim.HeadBytes = 10
	var r Request
	if err := r.Parse([]byte("GET / HTTP/1.0\r\n\r\n"), lim); err != error(ErrHeadTooLarge) {
		t.Error(err)
	}
}

// A body that is done does not touch the next message, and one that failed
// stays so.
func TestBodyAtItsEnds(t *testing.T) {
	var zero Body
	if _, n, err := zero.Next([]byte("GET")); n != 0 || err != nil || !zero.Done() || zero.EOF() != nil {
		t.Error("the zero value is not a body that is done")
	}
	d := NewBody(3, DefaultLimits())
	data, n, err := d.Next([]byte("abcGET"))
	if string(data) != "abc" || n != 3 || err != nil || !d.Done() {
		t.Errorf("%q %d %v", data, n, err)
	}
	if cap(data) != 3 {
		t.Error("appending to the payload would write into the next message")
	}
	d = NewBody(UntilClose, DefaultLimits())
	if data, _, _ := d.Next([]byte("abc")); string(data) != "abc" || d.Done() {
		t.Error("a body until the end of the connection ended early")
	}
	if err := d.EOF(); err != nil || !d.Done() {
		t.Error(err)
	}
	d = NewBody(Chunked, DefaultLimits())
	// The payload is given out before the error behind it.
	data, n, err = d.Next([]byte("3\r\nabcX"))
	if string(data) != "abc" || err != nil {
		t.Errorf("%q %d %v", data, n, err)
	}
	for range 2 {
		if _, n, err := d.Next([]byte("\r\n")); n != 0 || err != error(ErrChunkEnd) || d.Done() {
			t.Error(n, err)
		}
	}
	if err := d.EOF(); err != error(ErrChunkEnd) {
		t.Error(err)
	}
	// The end comes together with the last payload, so that it can be passed on
	// in one frame.
	d = NewBody(Chunked, DefaultLimits())
	if data, _, err = d.Next([]byte("3\r\nabc\r\n0\r\n\r\n")); string(data) != "abc" || err != nil || !d.Done() {
		t.Errorf("%q %v done %v", data, err, d.Done())
	}
}

// The promise of the package: nothing is allocated on the way of a message.
func TestNoAllocations(t *testing.T) {
	lim := DefaultLimits()
	var req Request
	var res Response
	in := make([]byte, 0, 4096)
	out := make([]byte, 0, 4096)
	post := strings.Replace(typicalRequest, "Connection: keep-alive", "Transfer-Encoding: chunked", 1)
	host6 := strings.Replace(typicalRequest, "orders.mesh.internal", "[fd00::1:2]", 1)
	named := strings.Replace(typicalRequest, "keep-alive", "x-request-id", 1)
	bad := strings.Replace(typicalRequest, "Accept:", "Accept :", 1)
	chunks := AppendLastChunk(AppendChunk(nil, []byte("hello")), fields("grpc-status", "0"))
	trailers := make([]mesh.Field, 0, 4)
	// A refused head gives no memory back, so a first good one has to grow it.
	req.Fields, res.Fields = make([]mesh.Field, 0, lim.FieldCount), make([]mesh.Field, 0, lim.FieldCount)
	for name, f := range map[string]func(){
		"request":           func() { in = append(in[:0], typicalRequest...); _ = req.Parse(in, lim) },
		"chunked request":   func() { in = append(in[:0], post...); _ = req.Parse(in, lim) },
		"IPv6 host":         func() { in = append(in[:0], host6...); _ = req.Parse(in, lim) },
		"named field":       func() { in = append(in[:0], named...); _ = req.Parse(in, lim) },
		"refused request":   func() { in = append(in[:0], bad...); _ = req.Parse(in, lim) },
		"response":          func() { in = append(in[:0], typicalResponse...); _ = res.Parse(in, nil, lim) },
		"scan":              func() { in = append(in[:0], typicalRequest...); _, _, _ = ScanHead(in, 0, lim.HeadBytes) },
		"request head out":  func() { out = AppendRequestHead(out[:0], &req.Head, FramingChunked) },
		"response head out": func() { out = AppendResponseHead(out[:0], &res.Head, FramingZero, true, 0) },
		"chunks out":        func() { out = AppendLastChunk(AppendChunk(out[:0], in), res.Fields) },
		"chunks in one piece": func() {
			d := NewBody(Chunked, lim)
			if _, _, err := d.Next(chunks); err != nil || !d.Done() {
				t.Error(err)
			}
			trailers = d.Trailers(trailers[:0])
		},
	} {
		f() // lets Fields grow
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
