package proxy

import (
	"bytes"
	"testing"

	"meshd/internal/http1"
	"meshd/internal/mesh"
	"meshd/internal/wire"
)

// sameHead compares what two codecs made of one head.
func sameHead(t *testing.T, a, b *mesh.Head) {
	t.Helper()
	if !bytes.Equal(a.Method, b.Method) || !bytes.Equal(a.Path, b.Path) || !bytes.Equal(a.Authority, b.Authority) ||
		!bytes.Equal(a.Scheme, b.Scheme) || a.Status != b.Status || len(a.Fields) != len(b.Fields) {
		t.Fatalf("%+v became %+v", a, b)
	}
	for i := range a.Fields {
		x, y := &a.Fields[i], &b.Fields[i]
		if !bytes.Equal(x.Name, y.Name) || !bytes.Equal(x.Value, y.Value) || x.Known != y.Known {
			t.Fatalf("field %d: %q: %q became %q: %q", i, x.Name, x.Value, y.Name, y.Value)
		}
	}
}

// overWire sends one frame through the codec of the link.
func overWire(t *testing.T, out []byte, ok bool) wire.Frame {
	t.Helper()
	if !ok {
		t.Fatal("the link has no room for a head that HTTP/1 accepts")
	}
	var d wire.Decoder
	f, n, err := d.Next(out)
	if err != nil || n != len(out) {
		t.Fatalf("the link does not take its own frame: %d of %d, %v", n, len(out), err)
	}
	return f
}

// wide are limits for a head to which we have added something.
func wide() http1.Limits {
	l := http1.DefaultLimits()
	l.HeadBytes, l.FieldCount = 2*l.HeadBytes, 2*l.FieldCount
	return l
}

// FuzzRequestHead: every request that the codec of HTTP/1 accepts is accepted
// by the link too, means the same there, and is a request of the same meaning
// again at its other end.
func FuzzRequestHead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: world\r\n\r\n",
		"POST /a?b=%zz&\"{}\" HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 0010\r\nX_y: \xff\t1\r\n\r\n",
		"GET http://a.b HTTP/1.1\r\nHost: a.b\r\nTE: Trailers\r\nConnection: te, x-a\r\nX-A: 1\r\n\r\n",
		"OPTIONS * HTTP/1.0\r\n\r\n",
		"OPTIONS http://a HTTP/1.1\r\nHost: A\r\n\r\n",
		"GET http://a?x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTrailer: x\r\nTransfer-Encoding: chunked\r\n\r\n",
		"!#$%&'*+-.^_`|~ /\xff HTTP/1.1\r\nHost:\r\n!#$%&'*+-.^_`|~:\r\nUpgrade: h2c\r\nHTTP2-Settings: a\r\nConnection: upgrade\r\n\r\n",
		"GET /  HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\nProxy-Authenticate: a\r\nx-forwarded_for: 1\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		head := bytes.Clone(in)
		end, _, err := http1.ScanHead(head, 0, limits1.HeadBytes)
		if err != nil || end == 0 {
			return
		}
		var r http1.Request
		if r.Parse(head[:end], limits1) != nil || string(r.Method) == "CONNECT" {
			return
		}
		o := wire.Open{Head: r.Head, Kind: wire.KindHTTP}
		out, ok := wire.AppendOpen(nil, wire.StreamID(0, 1), &o, r.Length == 0)
		frame := overWire(t, out, ok)
		var back wire.Open
		if err := wire.ParseOpen(frame.Payload, &back); err != nil {
			t.Fatalf("%q: the link refuses it: %v", in, err)
		}
		sameHead(t, &r.Head, &back.Head)
		if !validTarget(back.Path) {
			t.Fatalf("%q: the target %q is refused at the other end", in, back.Path)
		}

		var w worker
		w.trusted(&link{xff: []byte("1.2.3.4"), xfcc: []byte("By=a;URI=b")}, &back.Head)
		framing := http1.FramingNone
		if r.Length < 0 {
			framing = http1.FramingChunked
		}
		again := http1.AppendRequestHead(nil, &back.Head, framing)
		var last http1.Request
		end, _, err = http1.ScanHead(again, 0, wide().HeadBytes)
		if err != nil || end != len(again) {
			t.Fatalf("%q became %q: %d %v", in, again, end, err)
		}
		if err := last.Parse(again, wide()); err != nil {
			t.Fatalf("%q became %q: %v", in, again, err)
		}
		sameHead(t, &back.Head, &last.Head)
		if last.Length != r.Length {
			t.Fatalf("%q has a body of %d, %q one of %d", in, r.Length, again, last.Length)
		}
		for i := range last.Fields {
			f := &last.Fields[i]
			if i < len(last.Fields)-3 && (claims(f.Name) || f.Known == mesh.XForwardedFor || f.Known == mesh.XForwardedClientCert) {
				t.Fatalf("%q: %q is believed", in, f.Name)
			}
		}
	})
}

// FuzzResponseHead is the same for the way back.
func FuzzResponseHead(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\n",
		"HTTP/1.0 404\r\nConnection: x-a\r\nx-a: 1\r\nMeshd-Error: a\r\n\r\n",
		"HTTP/1.1 304 \r\nContent-Length: 5\r\nUpgrade: a\r\n\r\n",
		"HTTP/1.1 426 Upgrade\r\nUpgrade: a\r\nConnection: upgrade\r\nTE: trailers\r\n\r\n",
		"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n",
		"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, ofHead bool) {
		head := bytes.Clone(in)
		end, _, err := http1.ScanHead(head, 0, limits1.HeadBytes)
		if err != nil || end == 0 {
			return
		}
		var method []byte
		if ofHead {
			method = methodHead
		}
		var r http1.Response
		if r.Parse(head[:end], method, limits1) != nil || r.Status == 101 {
			return
		}
		stripMesh(&r.Head)
		var out []byte
		var ok bool
		if r.Status < 200 {
			out, ok = wire.AppendInterim(nil, wire.StreamID(0, 1), &r.Head)
		} else {
			out, ok = wire.AppendHead(nil, wire.StreamID(0, 1), &r.Head, r.Length == 0)
		}
		frame := overWire(t, out, ok)
		var back mesh.Head
		if err := wire.ParseHead(frame.Payload, &back); err != nil {
			t.Fatalf("%q: the link refuses it: %v", in, err)
		}
		sameHead(t, &r.Head, &back)
		if back.Get(mesh.MeshdError) != nil {
			t.Fatal("meshd-error is believed")
		}

		framing := http1.FramingNone
		if r.Length == http1.Chunked || r.Length == http1.UntilClose {
			framing = http1.FramingChunked
		}
		again := http1.AppendResponseHead(nil, &back, framing, false, 1)
		var last http1.Response
		if err := last.Parse(again, method, wide()); err != nil {
			t.Fatalf("%q became %q: %v", in, again, err)
		}
		if last.Status != r.Status || last.Length != r.Length && r.Length != http1.UntilClose {
			t.Fatalf("%q (%d) became %q (%d)", in, r.Length, again, last.Length)
		}
	})
}
