package wire

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"meshd/internal/mesh"
)

// story is a link's direction with one frame of everything.
func story() []byte {
	o := typicalOpen()
	b, _ := AppendOpen(nil, StreamID(1, 1), o, false)
	b = AppendData(b, StreamID(1, 1), []byte("body"), false)
	b = append(b, 0, 0, 3, 0x77, 0, 0, 0, 0, 0, 'a', 'b', 'c') // unknown
	b = AppendPing(b, 42, false)
	b, _ = AppendHead(b, StreamID(2, 9), &mesh.Head{Status: 200, Fields: o.Fields}, false)
	b = AppendData(b, StreamID(2, 9), []byte("more"), true)
	b, _ = AppendTrailers(b, StreamID(1, 1), []mesh.Field{other("x-sum", "1")})
	b = append(b, 0, 0, 0, 0x78, 0, 0, 0, 0, 0) // unknown and empty
	b = AppendReset(b, StreamID(3, 1), CodeRefused, false)
	b = AppendEnd(b, StreamID(4, 1))
	return AppendGoaway(b, CodeNone)
}

// A socket gives octets as it likes; what comes out must not depend on it.
func TestSplitsMakeNoDifference(t *testing.T) {
	b := story()
	ms, _, err := decode(b)
	if err != nil {
		t.Fatal(err)
	}
	want := describe(ms)
	for i := range len(b) {
		ms, of, err := decode(b, i)
		if got := describe(ms); err != nil || got != want {
			t.Fatalf("cut at %d: error of the %s: %v\n got %s\nwant %s", i, of, err, got, want)
		}
	}
	every := make([]int, len(b))
	for i := range every {
		every[i] = i
	}
	if ms, _, err := decode(b, every...); err != nil || describe(ms) != want {
		t.Fatalf("octet by octet: %v\n got %s\nwant %s", err, describe(ms), want)
	}
}

func TestNextAsksForMore(t *testing.T) {
	b, _ := AppendHead(nil, StreamID(0, 1), &mesh.Head{Status: 200, Fields: typicalOpen().Fields}, true)
	var d Decoder
	for i := range len(b) {
		if f, n, err := d.Next(b[:i]); f.Type != None || n != 0 || err != nil {
			t.Fatalf("%d octets of %d: %v, %d consumed, %v", i, len(b), f.Type, n, err)
		}
	}
	if f, n, err := d.Next(b); f.Type != TypeHead || n != len(b) || err != nil {
		t.Fatalf("whole frame: %v, %d consumed, %v", f.Type, n, err)
	}
}

// An unknown frame of 16 MiB must cost no memory.
func TestUnknownFrameIsSkippedInPieces(t *testing.T) {
	var d Decoder
	b := []byte{0xff, 0xff, 0xff, 0xee, 0, 0, 0, 0, 0}
	if f, n, err := d.Next(b); f.Type != None || n != len(b) || err != nil {
		t.Fatalf("header: %v, %d consumed, %v", f.Type, n, err)
	}
	chunk := make([]byte, 64<<10)
	for left := 1<<24 - 1; left > 0; {
		f, n, err := d.Next(chunk[:min(left, len(chunk))])
		if f.Type != None || n == 0 || err != nil {
			t.Fatalf("%d left: %v, %d consumed, %v", left, f.Type, n, err)
		}
		left -= n
	}
	f, _, err := d.Next(AppendPing(nil, 7, true))
	if err != nil || f.Type != TypePing {
		t.Fatalf("after it: %v, %v, want ping", f.Type, err)
	}
}

// Data waits for nobody: what has come is passed on, the end with the last octet.
func TestDataInPieces(t *testing.T) {
	b := AppendData(nil, StreamID(5, 2), []byte("abcdef"), true)
	var d Decoder
	f, n, err := d.Next(b[:HeaderLen+2])
	if err != nil || n != HeaderLen+2 || string(f.Payload) != "ab" || f.End || Slot(f.Stream) != 5 || Generation(f.Stream) != 2 {
		t.Fatalf("first piece %+v, %d consumed, %v", f, n, err)
	}
	if f, n, err = d.Next(nil); f.Type != None || n != 0 || err != nil {
		t.Fatalf("nothing gave %+v, %d consumed, %v", f, n, err)
	}
	f, n, err = d.Next(append(b[HeaderLen+2:], "next"...))
	if err != nil || n != 4 || string(f.Payload) != "cdef" || !f.End {
		t.Fatalf("last piece %+v, %d consumed, %v", f, n, err)
	}
}

func TestAppendDataSplits(t *testing.T) {
	for _, c := range []struct {
		size int
		end  bool
		want []int
	}{
		{0, false, nil},
		{0, true, []int{0}},
		{1, false, []int{1}},
		{MaxData, true, []int{MaxData}},
		{MaxData + 1, true, []int{MaxData, 1}},
		{3 * MaxData, false, []int{MaxData, MaxData, MaxData}},
	} {
		p := bytes.Repeat([]byte("x"), c.size)
		ms, of, err := decode(AppendData(nil, StreamID(1, 1), p, c.end))
		if err != nil {
			t.Fatalf("%d octets: error of the %s: %v", c.size, of, err)
		}
		var got []int
		for i, m := range ms {
			got = append(got, len(m.Payload))
			if last := i == len(ms)-1; m.End != (last && c.end) {
				t.Errorf("%d octets: end of frame %d is %t", c.size, i, m.End)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%d octets became frames of %v, want %v", c.size, got, c.want)
		}
	}
}

// sized is a head whose payload has n octets.
func sized(n int) *mesh.Head {
	const around = statusLen + 1 + 2
	return &mesh.Head{Status: 200, Fields: []mesh.Field{known(mesh.Server, strings.Repeat("s", n-around))}}
}

// openOf is an open whose payload has n octets.
func openOf(n int) *Open {
	const around = openFixed + 1 + 1 + 2 + 2
	return &Open{Kind: KindHTTP, Head: mesh.Head{Method: []byte("GET"), Path: bytes.Repeat([]byte("/"), n-around)}}
}

func TestHeadsOverTheLimit(t *testing.T) {
	before := []byte("before")
	if b, ok := AppendHead(before, 0x10000, sized(MaxHead), true); !ok {
		t.Error("a head of MaxHead octets is refused")
	} else if _, of, err := decode(b[len(before):]); err != nil {
		t.Errorf("a head of MaxHead octets: error of the %s: %v", of, err)
	}
	if b, ok := AppendOpen(nil, 0x10000, openOf(MaxHead), true); !ok {
		t.Error("an open of MaxHead octets is refused")
	} else if _, of, err := decode(b); err != nil {
		t.Errorf("an open of MaxHead octets: error of the %s: %v", of, err)
	}
	long := sized(MaxHead + 1)
	many := make([]mesh.Field, MaxFields+1)
	for i := range many {
		many[i] = other("a", "b")
	}
	get := typicalOpen()
	for name, f := range map[string]func() ([]byte, bool){
		"head":             func() ([]byte, bool) { return AppendHead(before, 0x10000, long, true) },
		"interim":          func() ([]byte, bool) { return AppendInterim(before, 0x10000, long) },
		"upgrade accepted": func() ([]byte, bool) { return AppendUpgradeAccepted(before, 0x10000, long) },
		"trailers":         func() ([]byte, bool) { return AppendTrailers(before, 0x10000, sized(MaxHead+3).Fields) },
		"many trailers":    func() ([]byte, bool) { return AppendTrailers(before, 0x10000, many) },
		"many fields":      func() ([]byte, bool) { return AppendHead(before, 0x10000, &mesh.Head{Fields: many}, true) },
		"open with a long field": func() ([]byte, bool) {
			o := *get
			o.Fields = long.Fields
			return AppendOpen(before, 0x10000, &o, true)
		},
		"open with a long path": func() ([]byte, bool) { return AppendOpen(before, 0x10000, openOf(MaxHead+1), true) },
		"open with a long option": func() ([]byte, bool) {
			return AppendOpen(before, 0x10000, &Open{Kind: KindTCP, Endpoint: bytes.Repeat([]byte("e"), MaxHead)}, true)
		},
		"open with many fields": func() ([]byte, bool) {
			o := *get
			o.Fields = many
			return AppendOpen(before, 0x10000, &o, true)
		},
	} {
		if b, ok := f(); ok || string(b) != "before" {
			t.Errorf("%s: ok %t with %d octets, want false with dst as it was", name, ok, len(b))
		}
	}
	if b, ok := AppendHead(nil, 0x10000, &mesh.Head{Status: 200, Fields: many[:MaxFields]}, true); !ok {
		t.Error("MaxFields fields are refused")
	} else if _, of, err := decode(b); err != nil {
		t.Errorf("MaxFields fields: error of the %s: %v", of, err)
	}
}

func TestTooManyFieldsFromAPeer(t *testing.T) {
	p := []byte{0, 200}
	for range MaxFields + 1 {
		p = append(p, byte(mesh.Server), 0, 0)
	}
	var h mesh.Head
	if err := ParseHead(p, &h); !errors.Is(err, errFields) {
		t.Errorf("%d fields: %v, want %v", MaxFields+1, err, errFields)
	}
}

func TestRemainingNeverBecomesNoDeadline(t *testing.T) {
	for _, c := range []struct{ in, want time.Duration }{
		{0, 0},
		{-time.Second, time.Millisecond},
		{1, time.Millisecond},
		{time.Millisecond, time.Millisecond},
		{time.Millisecond + 1, 2 * time.Millisecond},
		{15 * time.Second, 15 * time.Second},
		{maxRemaining, maxRemaining},
		{1<<63 - 1, maxRemaining},
	} {
		b, _ := AppendOpen(nil, 0x10000, &Open{Kind: KindTCP, Remaining: c.in}, false)
		var o Open
		if err := ParseOpen(b[HeaderLen:], &o); err != nil || o.Remaining != c.want {
			t.Errorf("remaining %s arrived as %s, %v; want %s", c.in, o.Remaining, err, c.want)
		}
	}
}

// A tcp stream has no request, whatever its head still held.
func TestOpenTCPLeavesTheHeadOut(t *testing.T) {
	o := typicalOpen()
	o.Kind = KindTCP
	b, _ := AppendOpen(nil, 0x10000, o, false)
	got := *typicalOpen()
	if err := ParseOpen(b[HeaderLen:], &got); err != nil {
		t.Fatal(err)
	}
	if got.Method != nil || got.Path != nil || len(got.Fields) != 0 || string(got.Endpoint) != "payments-1" {
		t.Errorf("parsed %+v, want an empty head and the endpoint", got)
	}
}

// An application's trailers must not break the stream, and none of those that a
// receiver would believe too much may pass.
func TestTrailersLeaveOut(t *testing.T) {
	var fields []mesh.Field
	for k := mesh.OtherField + 1; k <= lastStatic; k++ {
		fields = append(fields, known(k, "1"))
	}
	b, ok := AppendTrailers(nil, 0x10000, fields)
	if !ok {
		t.Fatal("too long")
	}
	got, err := ParseTrailers(b[HeaderLen:], nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range got {
		if rules[f.Known]&(ruleConnection|ruleNoTrailer) != 0 {
			t.Errorf("trailer %s passed", f.Name)
		}
	}
	if len(got) == 0 || len(got) == len(fields) {
		t.Errorf("%d of %d trailers passed", len(got), len(fields))
	}
}

// What is spelled out must be judged like its index.
func TestSpelledOutNamesKeepTheRules(t *testing.T) {
	for k := mesh.OtherField + 1; k <= lastStatic; k++ {
		value := "1"
		short := append([]byte{0, 200, byte(k)}, 0, 1, value[0])
		long := append([]byte{0, 200, literal, 0, byte(len(k.String()))}, k.String()...)
		long = append(long, 0, 1, value[0])
		var a, b mesh.Head
		errA, errB := ParseHead(short, &a), ParseHead(long, &b)
		if errA != errB {
			t.Errorf("%s: index gives %v, spelled out %v", k, errA, errB)
		}
		if errA == nil && (a.Fields[0].Known != k || b.Fields[0].Known != k) {
			t.Errorf("%s: known as %d and %d, want %d", k, a.Fields[0].Known, b.Fields[0].Known, k)
		}
	}
}

func TestFieldRules(t *testing.T) {
	for _, c := range []struct {
		status int
		field  mesh.Field
		want   error
	}{
		{200, known(mesh.TE, "trailers"), nil},
		{200, known(mesh.TE, "Trailers"), nil},
		{200, known(mesh.TE, "trailers, gzip"), errConnection},
		{101, known(mesh.Upgrade, "websocket"), nil},
		{200, known(mesh.Upgrade, "websocket"), errConnection},
		{200, known(mesh.ContentLength, "0"), nil},
		{200, known(mesh.ContentLength, "9223372036854775807"), nil},
		{200, known(mesh.ContentLength, "9223372036854775808"), errLength},
		{200, known(mesh.ContentLength, "00000000000000000001"), errLength},
		{200, known(mesh.ContentLength, ""), errLength},
		{200, known(mesh.ContentLength, "1 "), errLength},
		{200, known(mesh.ContentLength, "-1"), errLength},
		{200, known(mesh.SetCookie, "a\tb \x80\xff"), nil},
		{200, known(mesh.SetCookie, "a=b; secure\x00"), errValue},
		{200, known(mesh.SetCookie, ""), nil},
		{200, other("", "x"), errName},
		{200, other("a b", "x"), errName},
		{200, other("a:", "x"), errName},
		{200, other("A", "x"), errName},
		{99, known(mesh.Server, "x"), errStatus},
		{600, known(mesh.Server, "x"), errStatus},
	} {
		b, _ := AppendHead(nil, 0x10000, &mesh.Head{Status: c.status, Fields: []mesh.Field{c.field}}, false)
		var h mesh.Head
		if err := ParseHead(b[HeaderLen:], &h); err != c.want {
			t.Errorf("status %d, %s: %q: error %v, want %v", c.status, c.field.Name, c.field.Value, err, c.want)
		}
	}
}

func TestRequestRules(t *testing.T) {
	for _, c := range []struct {
		method, scheme, authority, path string
		want                            error
	}{
		{"GET", "http", "", "/", nil},
		{"GET", "", "a", "/\xc3\xa4?%20", nil},
		{"OPTIONS", "http", "a", "*", nil},
		{"GET", "http", "[::1]:80", "/", nil},
		{"get", "coap+tcp", "a", "/", nil},
		{"", "http", "a", "/", errMethod},
		{"GET\r", "http", "a", "/", errMethod},
		{"GET", "ht tp", "a", "/", errScheme},
		{"GET", "http", "a b", "/", errAuthority},
		{"GET", "http", "a\r\nx:y", "/", errAuthority},
		{"GET", "http", "user@a", "/", errAuthority},
		{"GET", "http", "a", "", errPath},
		{"GET", "http", "a", "a:80", errPath},
		{"GET", "http", "a", "/\x00", errPath},
		{"GET", "http", "a", "/with a space", errPath},
		{"GET", "http", "a", "/12345678\x7f", errPath},
		{"OPTIONS", "http", "a", "**", errPath},
	} {
		b, _ := AppendOpen(nil, 0x10000, &Open{Kind: KindHTTP, Head: mesh.Head{
			Method: []byte(c.method), Scheme: []byte(c.scheme), Authority: []byte(c.authority), Path: []byte(c.path),
		}}, true)
		var o Open
		if err := ParseOpen(b[HeaderLen:], &o); err != c.want {
			t.Errorf("%q %q %q %q: error %v, want %v", c.method, c.scheme, c.authority, c.path, err, c.want)
		}
	}
}

// Eight octets at a time must judge as one by one does, for every octet at
// every place.
func TestPlainAgreesWithTheClasses(t *testing.T) {
	for size := range 28 {
		b := bytes.Repeat([]byte("a"), size)
		for at := range size {
			for o := range 256 {
				b[at] = byte(o)
				if got, want := validValue(b), all(b, classValue); got != want {
					t.Fatalf("octet %#x at %d of %d: value %t, want %t", o, at, size, got, want)
				}
				if got, want := plain(b, 0x21), all(b, classPath); got != want {
					t.Fatalf("octet %#x at %d of %d: path %t, want %t", o, at, size, got, want)
				}
			}
			b[at] = 'a'
		}
	}
}

// Who appends to a view must get a copy, not write into what follows it.
func TestViewsEndWhereTheyEnd(t *testing.T) {
	raw := story()
	ms, _, err := decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	views := 0
	see := func(b []byte) {
		views++
		if cap(b) != len(b) {
			t.Errorf("view %q has room for %d more octets", b, cap(b)-len(b))
		}
	}
	for _, m := range ms {
		see(m.Payload)
		see(m.open.Path)
		see(m.open.Authority)
		see(m.open.Endpoint)
		for _, f := range append(m.open.Fields, m.head.Fields...) {
			see(f.Value)
		}
	}
	if views < 20 {
		t.Errorf("only %d views seen", views)
	}
}

func TestStreamNumbers(t *testing.T) {
	for _, c := range []struct {
		slot       int
		generation uint16
		want       uint32
	}{{0, 1, 0x00010000}, {MaxStreams - 1, 0xffff, 0xffff1fff}} {
		id := StreamID(c.slot, c.generation)
		if id != c.want || Slot(id) != c.slot || Generation(id) != c.generation {
			t.Errorf("StreamID(%d, %d) = %08x, back %d, %d; want %08x", c.slot, c.generation, id, Slot(id), Generation(id), c.want)
		}
	}
}
