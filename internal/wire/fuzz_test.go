package wire

import (
	"bytes"
	"testing"
	"time"

	"meshd/internal/mesh"
)

// seeds adds all vectors of docs/wire.md, good and bad.
func seeds(f *testing.F, add func(raw []byte)) {
	for _, b := range blocks(f) {
		if len(b.info) > 4 && b.info[:4] == "hex " {
			add(octets(f, b.text))
		}
	}
	add(story())
}

// FuzzDecoder: any octets, cut anywhere, give the same frames or the same
// error; nothing outside of the rules is returned; what was understood is
// encoded to octets that are understood the same.
func FuzzDecoder(f *testing.F) {
	seeds(f, func(raw []byte) { f.Add(raw, uint16(len(raw)/2), uint16(len(raw))) })
	f.Fuzz(func(t *testing.T, raw []byte, cut1, cut2 uint16) {
		ms, of, err := decode(raw)
		a, b := int(cut1)%(len(raw)+1), int(cut2)%(len(raw)+1)
		cut, cutOf, cutErr := decode(raw, min(a, b), max(a, b))
		// An error of a stream is found after the last frame, one of the link
		// ends the reading, so the order of the two is that of decode.
		if of != cutOf || (err == nil) != (cutErr == nil) || err != nil && err.Error() != cutErr.Error() {
			t.Fatalf("cut at %d and %d: %s %v, whole: %s %v", a, b, cutOf, cutErr, of, err)
		}
		if err == nil && describe(cut) != describe(ms) {
			t.Fatalf("cut at %d and %d:\n got %s\nwant %s", a, b, describe(cut), describe(ms))
		}
		for _, m := range ms {
			if m.Type <= None || m.Type >= typeCount {
				t.Fatalf("frame of type %d returned", m.Type)
			}
			if link := m.Type == TypePing || m.Type == TypeGoaway; link != (m.Stream == 0) || Slot(m.Stream) >= MaxStreams {
				t.Fatalf("%s frame on stream %08x", m.Type, m.Stream)
			}
		}
		if err != nil {
			return
		}
		var again []byte
		for _, m := range ms {
			var ok bool
			if again, ok = m.encode(again); !ok {
				t.Fatalf("cannot be encoded again: %s", m)
			}
		}
		back, of, err := decode(again)
		if err != nil {
			t.Fatalf("encoded again: error of the %s: %v", of, err)
		}
		if got, want := describe(back), describe(ms); got != want {
			t.Fatalf("encoded again:\n got %s\nwant %s", got, want)
		}
	})
}

// FuzzParse: a payload that is taken holds nothing that could change the
// meaning of an HTTP/1.1 head that is written from it.
func FuzzParse(f *testing.F) {
	seeds(f, func(raw []byte) {
		if len(raw) >= HeaderLen {
			f.Add(raw[HeaderLen:])
		}
	})
	f.Fuzz(func(t *testing.T, p []byte) {
		var o Open
		if ParseOpen(p, &o) == nil {
			harmless(t, &o.Head)
			if o.Kind == KindHTTP {
				roundTrip(t, &o)
			}
		}
		var h mesh.Head
		if ParseHead(p, &h) == nil {
			harmless(t, &h)
		}
		fields, err := ParseTrailers(p, nil)
		if err == nil {
			harmless(t, &mesh.Head{Fields: fields})
			for _, f := range fields {
				if f.Known == mesh.ContentLength {
					t.Fatal("content-length taken as a trailer")
				}
			}
		}
	})
}

func harmless(t *testing.T, h *mesh.Head) {
	t.Helper()
	const never = "\r\n\x00"
	for _, b := range [][]byte{h.Method, h.Scheme, h.Authority, h.Path} {
		if bytes.ContainsAny(b, never+" ") {
			t.Fatalf("%q taken", b)
		}
	}
	lengths := 0
	for _, f := range h.Fields {
		if len(f.Name) == 0 || bytes.ContainsAny(f.Name, never+" \t:") || !bytes.Equal(f.Name, bytes.ToLower(f.Name)) {
			t.Fatalf("field name %q taken", f.Name)
		}
		if bytes.ContainsAny(f.Value, never) {
			t.Fatalf("field value %q taken", f.Value)
		}
		if f.Known != mesh.LookupKnown(f.Name) {
			t.Fatalf("field %s known as %d", f.Name, f.Known)
		}
		switch f.Known {
		case mesh.TransferEncoding, mesh.Connection, mesh.Host:
			t.Fatalf("field %s taken", f.Name)
		case mesh.ContentLength:
			if lengths++; lengths > 1 {
				t.Fatal("two lengths taken")
			}
		}
	}
}

func roundTrip(t *testing.T, o *Open) {
	t.Helper()
	const stream = 0x00010000
	raw, ok := AppendOpen(nil, stream, o, true)
	if !ok {
		t.Fatal("cannot be encoded again")
	}
	m := &message{Frame: Frame{Type: TypeOpen, Stream: stream, End: true}, open: *o}
	ms, _, err := decode(raw)
	if err != nil || describe(ms) != m.String() {
		t.Fatalf("%v\n got %s\nwant %s", err, describe(ms), m)
	}
}

// FuzzOpen: decode(encode(x)) is x, for every x that an HTTP codec can make.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("GET"), []byte("http"), []byte("web.mesh.internal"), []byte("/"), []byte("x-tenant"), []byte("blue"), []byte("web-1"), uint8(0), uint32(15000))
	f.Add([]byte("REPORT"), []byte("https"), []byte(""), []byte("/a?b"), []byte("content-length"), []byte("5"), []byte(""), uint8(255), uint32(0))
	f.Add([]byte("OPTIONS"), []byte("http"), []byte("[::1]:1"), []byte("*"), []byte("te"), []byte("trailers"), []byte("ä"), uint8(1), uint32(1<<32-1))
	f.Fuzz(func(t *testing.T, method, scheme, authority, path, name, value, endpoint []byte, attempt uint8, ms uint32) {
		o := &Open{
			Head: mesh.Head{
				Method: method, Scheme: scheme, Authority: authority, Path: path,
				Fields: []mesh.Field{
					{Name: name, Value: value, Known: mesh.LookupKnown(name)},
					known(mesh.UserAgent, "fuzz"),
				},
			},
			Kind: KindHTTP, Endpoint: endpoint, Attempt: attempt, Remaining: time.Duration(ms) * time.Millisecond,
		}
		raw, ok := AppendOpen(nil, 0x00010000, o, false)
		if !ok {
			if len(method)+len(scheme)+len(authority)+len(path)+len(name)+len(value)+len(endpoint) < MaxHead-64 {
				t.Fatal("called too long though it is not")
			}
			return
		}
		var got Open
		if ParseOpen(raw[HeaderLen:], &got) != nil {
			return // not what a codec makes
		}
		if len(o.Scheme) == 0 {
			o.Scheme = []byte("http")
		}
		a := (&message{Frame: Frame{Type: TypeOpen}, open: *o}).String()
		b := (&message{Frame: Frame{Type: TypeOpen}, open: got}).String()
		if a != b {
			t.Fatalf("sent %s\n got %s", a, b)
		}
	})
}
