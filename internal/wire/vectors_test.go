package wire

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"meshd/internal/mesh"
)

// message is a frame with its payload parsed; data of one frame is joined.
type message struct {
	Frame
	open      Open
	head      mesh.Head
	fields    []mesh.Field
	code      Code
	delivered bool
	n         uint32
	data      uint64
	ack       bool
}

// parse fills m from its payload.
func (m *message) parse() (err error) {
	switch m.Type {
	case TypeOpen:
		return ParseOpen(m.Payload, &m.open)
	case TypeHead, TypeInterim, TypeUpgradeAccepted:
		return ParseHead(m.Payload, &m.head)
	case TypeTrailers:
		m.fields, err = ParseTrailers(m.Payload, nil)
	case TypeReset:
		m.code, m.delivered, err = ParseReset(m.Payload)
	case TypeCredit:
		m.n, err = ParseCredit(m.Payload)
	case TypePing:
		m.data, m.ack, err = ParsePing(m.Payload)
	case TypeGoaway:
		m.code, err = ParseGoaway(m.Payload)
	}
	return err
}

// encode is the inverse of parse.
func (m *message) encode(dst []byte) ([]byte, bool) {
	ok := true
	switch m.Type {
	case TypeOpen:
		dst, ok = AppendOpen(dst, m.Stream, &m.open, m.End)
	case TypeHead:
		dst, ok = AppendHead(dst, m.Stream, &m.head, m.End)
	case TypeInterim:
		dst, ok = AppendInterim(dst, m.Stream, &m.head)
	case TypeUpgradeAccepted:
		dst, ok = AppendUpgradeAccepted(dst, m.Stream, &m.head)
	case TypeData:
		dst = AppendData(dst, m.Stream, m.Payload, m.End)
	case TypeTrailers:
		dst, ok = AppendTrailers(dst, m.Stream, m.fields)
	case TypeEnd:
		dst = AppendEnd(dst, m.Stream)
	case TypeReset:
		dst = AppendReset(dst, m.Stream, m.code, m.delivered)
	case TypeCredit:
		dst = AppendCredit(dst, m.Stream, m.n)
	case TypePing:
		dst = AppendPing(dst, m.data, m.ack)
	case TypeGoaway:
		dst = AppendGoaway(dst, m.code)
	}
	return dst, ok
}

// String is what the tests compare: everything that a receiver can see.
func (m *message) String() string {
	var sb strings.Builder
	fmt.Fprintf(&sb, "%s %08x", m.Type, m.Stream)
	fields := func(fs []mesh.Field) {
		for _, f := range fs {
			fmt.Fprintf(&sb, " | %d %s: %s", f.Known, f.Name, f.Value)
		}
	}
	switch m.Type {
	case TypeOpen:
		o := &m.open
		fmt.Fprintf(&sb, " %s attempt %d remaining %s endpoint %q unit %q upgrade %q", o.Kind, o.Attempt, o.Remaining, o.Endpoint, o.Unit, o.Upgrade)
		if o.Kind == KindHTTP {
			fmt.Fprintf(&sb, " %s %s %s %s", o.Method, o.Scheme, o.Authority, o.Path)
		}
		fields(o.Fields)
	case TypeHead, TypeInterim, TypeUpgradeAccepted:
		fmt.Fprintf(&sb, " %d", m.head.Status)
		fields(m.head.Fields)
	case TypeData:
		fmt.Fprintf(&sb, " %q", m.Payload)
	case TypeTrailers:
		fields(m.fields)
	case TypeReset:
		fmt.Fprintf(&sb, " %d %s delivered %t", m.code, m.code, m.delivered)
	case TypeCredit:
		fmt.Fprintf(&sb, " %d", m.n)
	case TypePing:
		fmt.Fprintf(&sb, " %016x answer %t", m.data, m.ack)
	case TypeGoaway:
		fmt.Fprintf(&sb, " %s", m.code)
	}
	if m.End {
		sb.WriteString(" end")
	}
	return sb.String()
}

// decode reads all frames in b, which it is given up to the octets in cuts, as
// a socket would. It stops at the first error and says of what it was.
func decode(b []byte, cuts ...int) (ms []*message, of string, err error) {
	var d Decoder
	at := 0
	midData := false // the last message is a data frame that is not whole yet
	for _, limit := range append(cuts, len(b)) {
		if limit < at {
			continue
		}
		for {
			left := d.left
			// A copy, as a reused read buffer would force on the data path:
			// nothing may point before it, and a write into it must not show.
			f, n, err := d.Next(bytes.Clone(b[at:limit]))
			if err != nil {
				return ms, "link", err
			}
			if n == 0 {
				break
			}
			at += n
			if f.Type == None {
				continue
			}
			if f.Type == TypeData && midData && left > 0 {
				m := ms[len(ms)-1]
				m.Payload = append(m.Payload, f.Payload...)
				m.End = f.End
			} else {
				ms = append(ms, &message{Frame: f})
			}
			midData = f.Type == TypeData && d.left > 0
		}
	}
	for _, m := range ms {
		if err := m.parse(); err != nil {
			return ms, "stream", err
		}
	}
	if at < len(b) || d.left > 0 {
		return ms, "link", errors.New("octets end inside a frame")
	}
	return ms, "", nil
}

func describe(ms []*message) string {
	var lines []string
	for _, m := range ms {
		lines = append(lines, m.String())
	}
	return strings.Join(lines, "\n")
}

// vectors are the messages of the vectors in docs/wire.md by name.
var vectors = map[string]struct {
	want string
	take bool // a receiver takes it, no sender makes it
}{
	"open-get":         {want: `open 00010000 http attempt 0 remaining 15s endpoint "web-1" unit "" upgrade "" GET http web.mesh.internal / | 8 accept: */* | 0 x-tenant: blue end`},
	"open-report":      {want: `open 00021fff http attempt 1 remaining 0s endpoint "files-2" unit "backup.service" upgrade "" REPORT https files /a | 1 content-length: 5`},
	"open-upgrade":     {want: `open 00010000 http attempt 0 remaining 0s endpoint "" unit "" upgrade "websocket" GET http chat /ws`},
	"open-tcp":         {want: `open 00030007 tcp attempt 0 remaining 0s endpoint "db-1" unit "" upgrade ""`},
	"head":             {want: `head 00010000 200 | 2 content-type: text/plain | 1 content-length: 12`},
	"head-end":         {want: `head 00010000 503 | 58 meshd-error: local_connect_failed end`},
	"interim":          {want: `interim 00010000 100`},
	"upgrade-accepted": {want: `upgrade_accepted 00010000 101 | 34 upgrade: websocket`},
	"data":             {want: "data 00010000 \"Hello \"\ndata 00010000 \"world!\" end"},
	"end":              {want: `end 00010000 end`},
	"data-end":         {want: `data 00010000 "" end`},
	"trailers":         {want: `trailers 00010000 | 52 grpc-status: 0 | 0 x-checksum: 9f end`},
	"reset-refused":    {want: `reset 00010000 2 refused delivered false`},
	"reset-delivered":  {want: `reset 00010000 11 local_reset delivered true`},
	"credit":           {want: `credit 00010000 65536`},
	"ping":             {want: `ping 00000000 0123456789abcdef answer false`},
	"pong":             {want: `ping 00000000 0123456789abcdef answer true`},
	"goaway":           {want: `goaway 00000000 draining`},

	"unknown-type":      {take: true, want: `ping 00000000 0000000000000000 answer false`},
	"unknown-flags":     {take: true, want: `credit 00010000 1`},
	"longer-control":    {take: true, want: `goaway 00000000 draining`},
	"unknown-option":    {take: true, want: `open 00010000 tcp attempt 0 remaining 0s endpoint "db-1" unit "" upgrade ""`},
	"unknown-code":      {take: true, want: `reset 00010000 200 unknown delivered false`},
	"spelled-out-index": {take: true, want: `head 00010000 204 | 6 server: x end`},
}

func TestVectors(t *testing.T) {
	seen := map[string]bool{}
	refused := map[string]bool{}
	for _, b := range blocks(t) {
		info, ok := strings.CutPrefix(b.info, "hex ")
		if !ok {
			continue
		}
		if reason, ok := strings.CutPrefix(info, "refused "); ok {
			refused[reason] = true
			t.Run("refused", func(t *testing.T) { refuse(t, octets(t, b.text), reason) })
			continue
		}
		seen[info] = true
		t.Run(info, func(t *testing.T) {
			v, ok := vectors[info]
			if !ok {
				t.Fatal("vector has no entry in this test")
			}
			raw := octets(t, b.text)
			ms, of, err := decode(raw)
			if err != nil {
				t.Fatalf("error of the %s: %v", of, err)
			}
			if got := describe(ms); got != v.want {
				t.Errorf("decoded\n got %s\nwant %s", got, v.want)
			}
			if v.take {
				return
			}
			// A buffer that was used before: no octet may be left to chance.
			again := bytes.Repeat([]byte{0xff}, 2*len(raw))[:0]
			for _, m := range ms {
				if again, ok = m.encode(again); !ok {
					t.Fatal("encoder calls it too long")
				}
			}
			if !bytes.Equal(again, raw) {
				t.Errorf("encoded\n got %x\nwant %x", again, raw)
			}
		})
	}
	for name := range vectors {
		if !seen[name] {
			t.Errorf("vector %s is not in docs/wire.md", name)
		}
	}
	for _, e := range []error{
		errType, errLong, errShort, errStream, errEmptyData, errStatusType, errTruncated, errKind, errOption,
		errTrailing, errMethod, errScheme, errAuthority, errPath, errIndex, errName, errValue,
		errConnection, errLength, errTrailer, errCredit,
	} {
		reason := e.(*Error).Reason
		if !refused["link: "+reason] && !refused["stream: "+reason] {
			t.Errorf("docs/wire.md has no vector that is refused as %q", reason)
		}
	}
}

func refuse(t *testing.T, raw []byte, want string) {
	t.Helper()
	_, of, err := decode(raw)
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%x: error %v, want %s", raw, err, want)
	}
	if got := of + ": " + e.Reason; got != want || e.Code != CodeProtocolError {
		t.Errorf("%x: refused as %s (%s), want %s (protocol_error)", raw, got, e.Code, want)
	}
}
