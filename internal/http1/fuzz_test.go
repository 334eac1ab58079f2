package http1

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"meshd/internal/mesh"
)

// oracleBuffer lets net/http see a whole trailer section, which it wants
// within one buffer.
const oracleBuffer = 64 << 10

// seed adds the inputs of all stories.
func seed(f *testing.F, word string, add func(c storyCase)) {
	files, _ := filepath.Glob("testdata/cases/*.txt")
	for _, file := range files {
		for _, c := range readStory(f, file) {
			if strings.HasPrefix(c.what, word) && len(c.input) < 4<<10 {
				add(c)
			}
		}
	}
}

// message is what two readers must agree about.
type message struct {
	body     []byte
	done     bool
	trailers http.Header
	rest     []byte
}

func headerOf(fields []mesh.Field) http.Header {
	h := http.Header{}
	for _, f := range fields {
		h.Add(string(f.Name), string(f.Value))
	}
	return h
}

// readBody decodes a body that is followed by the end of the connection.
func readBody(d *Body, b []byte) (m message, err error) {
	for {
		data, n, err := d.Next(b)
		if err != nil {
			return m, err
		}
		m.body = append(m.body, data...)
		b = b[n:]
		if n == 0 {
			break
		}
	}
	if err := d.EOF(); err != nil {
		return m, err
	}
	m.done, m.rest, m.trailers = true, b, headerOf(d.Trailers(nil))
	return m, nil
}

// hopByHop is written down independently of the tables of the codec.
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Proxy-Authenticate",
	"Transfer-Encoding", "Upgrade", "Http2-Settings", "Host"}

// expect turns what net/http has read into what must go on. raw are all fields
// before net/http took some away.
func expect(h, raw http.Header, minor int) http.Header {
	h = h.Clone()
	for _, list := range raw["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.Trim(name, " \t"); !strings.EqualFold(name, "te") {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
	h["Te"] = slices.DeleteFunc(slices.Clone(h["Te"]), func(v string) bool { return !strings.EqualFold(v, "trailers") })
	if minor == 0 {
		h["Expect"] = slices.DeleteFunc(slices.Clone(h["Expect"]), func(v string) bool { return strings.EqualFold(v, "100-continue") })
	}
	if v := h["Content-Length"]; len(v) == 1 {
		if v[0] = strings.TrimLeft(v[0], "0"); v[0] == "" {
			v[0] = "0"
		}
	}
	if v := raw["Pragma"]; len(v) > 0 && v[0] == "no-cache" && raw["Cache-Control"] == nil {
		h.Del("Cache-Control") // net/http adds it
	}
	if _, chunked := raw["Transfer-Encoding"]; chunked && raw["Trailer"] != nil {
		h["Trailer"] = raw["Trailer"] // net/http takes it out; Connection may not name it
	}
	maps.DeleteFunc(h, func(_ string, v []string) bool { return len(v) == 0 })
	return h
}

func rawHeader(t *testing.T, head []byte) http.Header {
	r := textproto.NewReader(bufio.NewReader(bytes.NewReader(head)))
	if _, err := r.ReadLine(); err != nil {
		t.Fatal(err)
	}
	h, err := r.ReadMIMEHeader()
	if err != nil {
		t.Fatal(err)
	}
	return http.Header(h)
}

func sameHeader(t *testing.T, what string, got, want http.Header) {
	t.Helper()
	if !maps.EqualFunc(got, want, slices.Equal[[]string]) {
		t.Fatalf("%s: %q, net/http has %q", what, got, want)
	}
}

// sameBody compares a body that this codec has accepted.
func sameBody(t *testing.T, m message, body io.Reader, rest io.Reader, trailers *http.Header) {
	t.Helper()
	b, err := io.ReadAll(body)
	if err != nil {
		t.Fatalf("net/http refuses the body: %v", err)
	}
	if !bytes.Equal(b, m.body) {
		t.Fatalf("body %q, net/http has %q", m.body, b)
	}
	if b, _ = io.ReadAll(rest); !bytes.Equal(b, m.rest) {
		t.Fatalf("left over %q, net/http has %q", m.rest, b)
	}
	want := trailers.Clone()
	maps.DeleteFunc(want, func(_ string, v []string) bool { return v == nil }) // announced only
	sameHeader(t, "trailers", m.trailers, want)
}

// FuzzRequest: what this parser accepts, net/http accepts with the same
// meaning. (Not the other way round: net/http is more lenient.)
func FuzzRequest(f *testing.F) {
	seed(f, "request", func(c storyCase) { f.Add(c.input) })
	f.Fuzz(func(t *testing.T, in []byte) { checkRequest(t, in) })
}

// checkRequest tells whether the parser accepts what in begins with.
func checkRequest(t *testing.T, in []byte) bool {
	lim := DefaultLimits()
	var r Request
	_ = r.Parse(bytes.Clone(in), lim) // must not panic on what is no head

	end, _, err := ScanHead(in, 0, lim.HeadBytes)
	if err != nil || end == 0 {
		return false
	}
	if err := r.Parse(bytes.Clone(in[:end]), lim); err != nil {
		return false
	}
	rest := bufio.NewReaderSize(bytes.NewReader(in), oracleBuffer)
	want, err := http.ReadRequest(rest)
	if err != nil {
		t.Fatalf("net/http refuses: %v", err)
	}
	if string(r.Method) != want.Method || r.Minor != want.ProtoMinor || r.Close != want.Close {
		t.Fatalf("%s in 1.%d closes %v, net/http has %+v", r.Method, r.Minor, r.Close, want)
	}
	if !strings.EqualFold(string(r.Authority), want.Host) {
		t.Fatalf("authority %q, net/http has %q", r.Authority, want.Host)
	}
	if target := originForm(want); string(r.Path) != target {
		t.Fatalf("path %q, net/http has %q", r.Path, target)
	}
	if r.Length != want.ContentLength || r.Length == Chunked != (want.TransferEncoding != nil) {
		t.Fatalf("length %d, net/http has %d %q", r.Length, want.ContentLength, want.TransferEncoding)
	}
	sameHeader(t, "fields", headerOf(r.Fields), expect(want.Header, rawHeader(t, in[:end]), r.Minor))
	d := NewBody(r.Length, lim)
	if m, err := readBody(&d, bytes.Clone(in[end:])); err == nil {
		sameBody(t, m, want.Body, rest, &want.Trailer)
	}
	requestAgain(t, &r, lim)
	return true
}

// originForm cuts the path out of the target as it came.
func originForm(r *http.Request) string {
	target := r.RequestURI
	if r.Method == "CONNECT" {
		return ""
	}
	if strings.HasPrefix(target, "/") || target == "*" {
		return target
	}
	_, target, _ = strings.Cut(target, "//")
	i := strings.IndexAny(target, "/?")
	switch {
	case i < 0 && r.Method == "OPTIONS":
		return "*"
	case i < 0:
		return "/"
	case target[i] == '?':
		return "/" + target[i:]
	}
	return target[i:]
}

// requestAgain checks that what was understood is what is sent on.
func requestAgain(t *testing.T, r *Request, lim Limits) {
	framing := FramingNone
	if r.Length == Chunked {
		framing = FramingChunked
	}
	head := AppendRequestHead(nil, &r.Head, framing)
	lim.HeadBytes += 64 // "transfer-encoding" may be longer than it came
	var again Request
	if end, _, err := ScanHead(head, 0, lim.HeadBytes); end != len(head) || err != nil {
		t.Fatalf("%q does not end where it ends: %d %v", head, end, err)
	}
	if err := again.Parse(bytes.Clone(head), lim); err != nil {
		t.Fatalf("%q was written and is refused: %v", head, err)
	}
	if string(again.Method) != string(r.Method) || string(again.Path) != string(r.Path) ||
		string(again.Authority) != string(r.Authority) || again.Length != r.Length || again.Close {
		t.Fatalf("%+v was written and read as %+v", r, again)
	}
	sameHeader(t, "fields again", headerOf(again.Fields), headerOf(r.Fields))
	if _, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head))); err != nil {
		t.Fatalf("net/http refuses what was written: %v\n%q", err, head)
	}
}

// FuzzResponse is FuzzRequest for the other direction.
func FuzzResponse(f *testing.F) {
	seed(f, "response", func(c storyCase) { f.Add(strings.HasSuffix(c.what, "HEAD"), c.input) })
	f.Fuzz(func(t *testing.T, toHead bool, in []byte) { checkResponse(t, toHead, in) })
}

// checkResponse tells whether the parser accepts what in begins with.
func checkResponse(t *testing.T, toHead bool, in []byte) bool {
	lim := DefaultLimits()
	method := "GET"
	if toHead {
		method = "HEAD"
	}
	var r Response
	_ = r.Parse(bytes.Clone(in), []byte(method), lim)

	end, _, err := ScanHead(in, 0, lim.HeadBytes)
	if err != nil || end == 0 {
		return false
	}
	if err := r.Parse(bytes.Clone(in[:end]), []byte(method), lim); err != nil {
		return false
	}
	rest := bufio.NewReaderSize(bytes.NewReader(in), oracleBuffer)
	want, err := http.ReadResponse(rest, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("net/http refuses: %v", err)
	}
	if r.Status != want.StatusCode || r.Minor != want.ProtoMinor {
		t.Fatalf("%d in 1.%d, net/http has %+v", r.Status, r.Minor, want)
	}
	bodyless := toHead || r.Status < 200 || r.Status == 204 || r.Status == 304
	switch {
	case bodyless:
		if r.Length != 0 {
			t.Fatalf("length %d of a response without body", r.Length)
		}
	case r.Length == UntilClose:
		if want.ContentLength != -1 || want.TransferEncoding != nil {
			t.Fatalf("length until close, net/http has %d %q", want.ContentLength, want.TransferEncoding)
		}
	case r.Length != want.ContentLength || r.Length == Chunked != (want.TransferEncoding != nil):
		t.Fatalf("length %d, net/http has %d %q", r.Length, want.ContentLength, want.TransferEncoding)
	}
	// net/http lets a response to HEAD without length close; it has no body.
	if r.Close != want.Close && !toHead {
		t.Fatalf("closes %v, net/http has %v", r.Close, want.Close)
	}
	fields := expect(want.Header, rawHeader(t, in[:end]), r.Minor)
	if r.Status < 200 || r.Status == 204 {
		fields.Del("Content-Length")
	}
	sameHeader(t, "fields", headerOf(r.Fields), fields)
	d := NewBody(r.Length, lim)
	if m, err := readBody(&d, bytes.Clone(in[end:])); err == nil {
		sameBody(t, m, want.Body, rest, &want.Trailer)
	}
	responseAgain(t, &r, method, lim)
	return true
}

func responseAgain(t *testing.T, r *Response, method string, lim Limits) {
	framing := FramingNone
	switch r.Length {
	case Chunked:
		framing = FramingChunked
	case UntilClose:
		framing = FramingClose
	}
	head := AppendResponseHead(nil, &r.Head, framing, r.Close, 1)
	lim.HeadBytes += 128 // the reason and the framing may be longer than they came
	var again Response
	if err := again.Parse(bytes.Clone(head), []byte(method), lim); err != nil {
		t.Fatalf("%q was written and is refused: %v", head, err)
	}
	if again.Status != r.Status || again.Length != r.Length || again.Close != r.Close {
		t.Fatalf("%+v was written and read as %+v", r, again)
	}
	sameHeader(t, "fields again", headerOf(again.Fields), headerOf(r.Fields))
}

// FuzzBody: however the bytes are cut, the same payload, trailers and verdict
// come out; and what is encoded is decoded.
func FuzzBody(f *testing.F) {
	seed(f, "", func(c storyCase) {
		if _, body, ok := bytes.Cut(c.input, []byte("\r\n\r\n")); ok {
			f.Add(int64(Chunked), uint16(7), body)
		}
	})
	f.Add(int64(5), uint16(2), []byte("hello and more"))
	f.Add(int64(UntilClose), uint16(2), []byte("hello and more"))
	f.Fuzz(func(t *testing.T, length int64, cut uint16, in []byte) {
		lim := DefaultLimits()
		lim.TrailerBytes = 64 // so that the fuzzer reaches it
		in = slices.Clip(in)
		whole := NewBody(length, lim)
		want, wantErr := readBody(&whole, bytes.Clone(in))
		at := int(cut) % (len(in) + 1)
		for _, pieces := range [][][]byte{{in[:at], in[at:]}, bytewise(in)} {
			d := NewBody(length, lim)
			var got message
			var err error
			for i, p := range pieces {
				p = bytes.Clone(p)
				var n int
				var data []byte
				for err == nil {
					data, n, err = d.Next(p)
					got.body = append(got.body, data...)
					if p = p[n:]; n == 0 {
						break
					}
				}
				if err != nil {
					break
				}
				if d.Done() {
					got.rest = append(p, bytes.Join(pieces[i+1:], nil)...)
					got.trailers = headerOf(d.Trailers(nil))
					break
				}
				if len(p) > 0 {
					t.Fatalf("%q was not taken by a body that goes on", p)
				}
			}
			if err == nil && !d.Done() {
				err = d.EOF()
			}
			if err != wantErr || !bytes.Equal(got.body, want.body) {
				t.Fatalf("cut: %q %v, whole: %q %v", got.body, err, want.body, wantErr)
			}
			if err == nil && d.Done() {
				if !bytes.Equal(got.rest, want.rest) {
					t.Fatalf("cut leaves %q, whole leaves %q", got.rest, want.rest)
				}
				if len(got.trailers)+len(want.trailers) > 0 {
					sameHeader(t, "trailers", got.trailers, want.trailers)
				}
			}
		}
		encoded := AppendLastChunk(AppendChunk(AppendChunk(nil, in[:at]), in[at:]), nil)
		d := NewBody(Chunked, lim)
		if m, err := readBody(&d, encoded); err != nil || !bytes.Equal(m.body, in) || len(m.rest) > 0 {
			t.Fatalf("%q was encoded and decoded as %q, %v", in, m.body, err)
		}
	})
}
