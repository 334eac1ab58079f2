package http1

import (
	"bytes"
	"testing"

	"meshd/internal/mesh"
)

// A request as a Go or Python service sends it with tracing, and its answer.
const (
	typicalRequest = "GET /api/v1/orders/4711?expand=items&limit=20 HTTP/1.1\r\n" +
		"Host: orders.mesh.internal:8080\r\n" +
		"User-Agent: python-requests/2.32.3\r\n" +
		"Accept-Encoding: gzip, deflate\r\n" +
		"Accept: application/json\r\n" +
		"Connection: keep-alive\r\n" +
		"Authorization: Bearer 2YotnFZFEjr1zCsicMWpAA2YotnFZFEjr1zCsicMWpAA\r\n" +
		"X-Request-Id: 0b7f4a2e-4f53-4a52-9bb2-5b1d51c4f1a0\r\n" +
		"Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n" +
		"\r\n"
	typicalResponse = "HTTP/1.1 200 OK\r\n" +
		"Date: Fri, 20 Nov 2026 10:00:00 GMT\r\n" +
		"Server: gunicorn\r\n" +
		"Content-Type: application/json; charset=utf-8\r\n" +
		"Content-Length: 512\r\n" +
		"Cache-Control: no-store\r\n" +
		"Vary: Accept-Encoding\r\n" +
		"X-Request-Id: 0b7f4a2e-4f53-4a52-9bb2-5b1d51c4f1a0\r\n" +
		"Connection: keep-alive\r\n" +
		"\r\n"
)

func BenchmarkScanHead(b *testing.B) {
	buf := []byte(typicalRequest)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if end, _, err := ScanHead(buf, 0, 32<<10); end != len(buf) || err != nil {
			b.Fatal(end, err)
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	buf := make([]byte, len(typicalRequest))
	lim := DefaultLimits()
	var r Request
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		copy(buf, typicalRequest)
		if err := r.Parse(buf, lim); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkResponse(b *testing.B) {
	buf := make([]byte, len(typicalResponse))
	lim := DefaultLimits()
	var r Response
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		copy(buf, typicalResponse)
		if err := r.Parse(buf, nil, lim); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendRequestHead(b *testing.B) {
	var r Request
	if err := r.Parse([]byte(typicalRequest), DefaultLimits()); err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendRequestHead(dst[:0], &r.Head, FramingNone)
	}
	b.SetBytes(int64(len(dst)))
}

func BenchmarkAppendResponseHead(b *testing.B) {
	var r Response
	if err := r.Parse([]byte(typicalResponse), nil, DefaultLimits()); err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendResponseHead(dst[:0], &r.Head, FramingNone, false, 1)
	}
	b.SetBytes(int64(len(dst)))
}

func BenchmarkBodyChunked(b *testing.B) {
	var src []byte
	for range 16 {
		src = AppendChunk(src, bytes.Repeat([]byte("x"), 4096))
	}
	src = AppendLastChunk(src, nil)
	lim := DefaultLimits()
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	for b.Loop() {
		d := NewBody(Chunked, lim)
		for p := src; !d.Done(); {
			_, n, err := d.Next(p)
			if err != nil || n == 0 {
				b.Fatal(n, err)
			}
			p = p[n:]
		}
	}
}

func BenchmarkAppendChunk(b *testing.B) {
	p := bytes.Repeat([]byte("x"), 4096)
	dst := make([]byte, 0, 8192)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendChunk(dst[:0], p)
	}
}

func BenchmarkTrailers(b *testing.B) {
	src := []byte("0\r\ngrpc-status: 0\r\ngrpc-message: ok\r\n\r\n")
	lim := DefaultLimits()
	fields := make([]mesh.Field, 0, 8)
	b.ReportAllocs()
	for b.Loop() {
		d := NewBody(Chunked, lim)
		if _, n, err := d.Next(src); n != len(src) || err != nil {
			b.Fatal(n, err)
		}
		fields = d.Trailers(fields[:0])
	}
}
