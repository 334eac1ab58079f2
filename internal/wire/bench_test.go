package wire

import (
	"testing"
	"time"

	"meshd/internal/mesh"
)

func known(k mesh.Known, value string) mesh.Field {
	return mesh.Field{Name: k.Bytes(), Value: []byte(value), Known: k}
}

func other(name, value string) mesh.Field {
	return mesh.Field{Name: []byte(name), Value: []byte(value)}
}

// typicalOpen is a request as a browser or an HTTP library makes it, with the
// two fields that an agent adds.
func typicalOpen() *Open {
	return &Open{
		Head: mesh.Head{
			Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("payments.mesh.internal"),
			Path: []byte("/v1/accounts/4711/transactions?limit=50"),
			Fields: []mesh.Field{
				known(mesh.UserAgent, "Go-http-client/1.1"),
				known(mesh.Accept, "application/json"),
				known(mesh.AcceptEncoding, "gzip"),
				known(mesh.Authorization, "Bearer abcdefghijklmnopqrstuvwxyz0123456789"),
				known(mesh.Traceparent, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
				known(mesh.XRequestID, "7f9c0a52-2d4e-4b7d-9d7f-5d4f0e6f1a2b"),
				known(mesh.XForwardedFor, "127.0.0.1"),
				other("x-tenant", "blue"),
			},
		},
		Kind: KindHTTP, Endpoint: []byte("payments-1"), Remaining: 15 * time.Second,
	}
}

func BenchmarkAppendOpen(b *testing.B) {
	o := typicalOpen()
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = AppendOpen(buf[:0], 0x10001, o, true)
	}
}

func BenchmarkParseOpen(b *testing.B) {
	buf, _ := AppendOpen(nil, 0x10001, typicalOpen(), true)
	var d Decoder
	var o Open
	b.ReportAllocs()
	for b.Loop() {
		f, _, _ := d.Next(buf)
		if ParseOpen(f.Payload, &o) != nil {
			b.Fatal("malformed")
		}
	}
}

func BenchmarkDecodeSmallFrames(b *testing.B) {
	var buf []byte
	for range 64 {
		buf = AppendData(buf, 0x10001, []byte("Hello world!"), true)
		buf = AppendCredit(buf, 0x10001, 12)
	}
	var d Decoder
	b.ReportAllocs()
	for b.Loop() {
		for rest := buf; len(rest) > 0; {
			_, n, _ := d.Next(rest)
			rest = rest[n:]
		}
	}
}

// The hot path must not allocate: a benchmark would only show it to who looks.
func TestNoAllocations(t *testing.T) {
	o := typicalOpen()
	resp := &mesh.Head{Status: 200, Fields: o.Fields}
	buf := make([]byte, 0, 8192)
	body := make([]byte, 1000)
	var d Decoder
	var got Open
	var head mesh.Head
	var trailers []mesh.Field
	run := func() {
		buf, _ = AppendOpen(buf[:0], 0x10001, o, false)
		buf, _ = AppendHead(buf, 0x10001, resp, false)
		buf = AppendData(buf, 0x10001, body, false)
		buf, _ = AppendTrailers(buf, 0x10001, o.Fields)
		buf = AppendReset(buf, 0x10001, CodeCancelled, true)
		buf = AppendCredit(buf, 0x10001, 7)
		buf = AppendPing(buf, 1, false)
		buf = AppendGoaway(buf, CodeDraining)
		for rest := buf; len(rest) > 0; {
			f, n, err := d.Next(rest)
			if n == 0 || err != nil {
				t.Fatal("frame missing", err)
			}
			rest = rest[n:]
			switch f.Type {
			case TypeOpen:
				err = ParseOpen(f.Payload, &got)
			case TypeHead:
				err = ParseHead(f.Payload, &head)
			case TypeTrailers:
				trailers, err = ParseTrailers(f.Payload, trailers[:0])
			case TypeReset:
				_, _, err = ParseReset(f.Payload)
			case TypeCredit:
				_, err = ParseCredit(f.Payload)
			case TypePing:
				_, _, err = ParsePing(f.Payload)
			case TypeGoaway:
				_, err = ParseGoaway(f.Payload)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations per exchange, want none", n)
	}
}
