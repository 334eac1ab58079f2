package nameserver

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"meshd/internal/mesh"
)

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	p, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func edns(name string, qtype, size uint16, do bool) *dns.Msg {
	return new(dns.Msg).SetQuestion(name, qtype).SetEdns0(size, do)
}

func TestEDNS(t *testing.T) {
	s := picture(t, "payments")
	m := ask(t, s, new(dns.Msg).SetQuestion("payments.mesh.internal.", dns.TypeA))
	if m.IsEdns0() != nil {
		t.Error("OPT in the answer to a query without one")
	}

	m = ask(t, s, edns("payments.mesh.internal.", dns.TypeA, 4096, true))
	opt := m.IsEdns0()
	if opt == nil || opt.UDPSize() != ednsSize || !opt.Do() || opt.Version() != 0 || len(opt.Option) != 0 {
		t.Errorf("OPT = %v, want size %d, DO, version 0", opt, ednsSize)
	}
	if len(m.Answer) != 1 {
		t.Errorf("got %s", brief(m))
	}

	q := edns("payments.mesh.internal.", dns.TypeA, 1232, false)
	q.IsEdns0().SetVersion(1)
	m = ask(t, s, q)
	if m.Rcode != dns.RcodeBadVers || len(m.Answer) != 0 || m.IsEdns0().Version() != 0 {
		t.Errorf("version 1: got %s, want BADVERS", brief(m))
	}

	q = edns("payments.mesh.internal.", dns.TypeA, 1232, false)
	q.Extra = append(q.Extra, q.Extra[0])
	if m = ask(t, s, q); m.Rcode != dns.RcodeFormatError {
		t.Errorf("two OPT: got %s, want FORMERR", brief(m))
	}

	q = edns("payments.mesh.internal.", dns.TypeA, 1232, false)
	q.Extra[0].Header().Name = "a."
	if m = ask(t, s, q); m.Rcode != dns.RcodeFormatError {
		t.Errorf("OPT with an owner: got %s, want FORMERR", brief(m))
	}
}

// The answer's size: 512 without EDNS, what the client says up to 1232 with
// it, no such bound over TCP.
func TestSizes(t *testing.T) {

	s := picture(t, "payments")
	z := testZone(t)
	q := new(dns.Msg).SetQuestion("payments.mesh.internal.", dns.TypeSRV)
	whole := len(respond(t, z, s, pack(t, q), maxQuery, false))
	for _, c := range []struct {
		name  string
		q     *dns.Msg
		limit int
		cut   bool
	}{
		{"fits", q, whole, false},
		{"one octet short", q, whole - 1, true},
		{"EDNS below 512 counts as 512", edns("payments.mesh.internal.", dns.TypeSRV, 20, false), maxQuery, false},
		{"short with EDNS", edns("payments.mesh.internal.", dns.TypeSRV, 1232, false), whole, true},
	} {
		p := respond(t, z, s, pack(t, c.q), c.limit, true)
		m := new(dns.Msg)
		if err := m.Unpack(p); err != nil {
			t.Fatal(err)
		}
		if m.Truncated != c.cut || (len(m.Answer) == 0) != c.cut || len(p) > c.limit {
			t.Errorf("%s: %d octets of %d, %s, truncated %v", c.name, len(p), c.limit, brief(m), m.Truncated)
		}
		if c.q.IsEdns0() != nil && m.IsEdns0() == nil {
			t.Errorf("%s: OPT lost", c.name)
		}
	}
}

func TestUDPSizes(t *testing.T) {
	label := strings.Repeat("x", 60)
	long := label + "." + label + "." + label // zone of 183 octets
	z, err := newZone(long, 0, testZone(t).addr)
	if err != nil {
		t.Fatal(err)
	}
	s := picture(t, label)
	name := "_" + label + "._tcp." + long + "."
	for _, c := range []struct {
		name string
		q    *dns.Msg
		udp  bool
		cut  bool
	}{
		{"no EDNS", new(dns.Msg).SetQuestion(name, dns.TypeSRV), true, true},
		{"no EDNS, TCP", new(dns.Msg).SetQuestion(name, dns.TypeSRV), false, false},
		{"EDNS 512", edns(name, dns.TypeSRV, 512, false), true, true},
		{"EDNS 0 counts as 512", edns(name, dns.TypeSRV, 0, false), true, true},
		{"EDNS 1232", edns(name, dns.TypeSRV, 1232, false), true, false},
		{"EDNS 65535", edns(name, dns.TypeSRV, 65535, false), true, false},
	} {
		p := respond(t, z, s, pack(t, c.q), dns.MaxMsgSize, c.udp)
		m := new(dns.Msg)
		if err := m.Unpack(p); err != nil {
			t.Fatal(err)
		}
		if m.Truncated != c.cut || (len(m.Answer) == 0) != c.cut {
			t.Errorf("%s: %d octets, truncated %v, want %v", c.name, len(p), m.Truncated, c.cut)
		}
	}
}

func respond(t testing.TB, z *zone, s *mesh.Snapshot, p []byte, limit int, udp bool) []byte {
	t.Helper()
	r := responder{zone: z}
	reply, _, _ := r.respond(p, s, limit, udp)
	return reply
}

// hostile are packets that are no proper query, with what becomes of each.
func hostile(t testing.TB) map[string]struct {
	packet []byte
	want   result
} {
	type c = struct {
		packet []byte
		want   result
	}
	good := pack(t, new(dns.Msg).SetQuestion("payments.mesh.internal.", dns.TypeA))
	with := func(f func(p []byte) []byte) []byte { return f(bytes.Clone(good)) }
	counts := func(i int, n uint16) []byte {
		return with(func(p []byte) []byte { binary.BigEndian.PutUint16(p[4+2*i:], n); return p })
	}
	flags := func(b byte) []byte { return with(func(p []byte) []byte { p[2] = b; return p }) }
	header := []byte{1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	return map[string]c{
		"empty":                      {nil, dropped},
		"header cut":                 {good[:11], dropped},
		"a response":                 {flags(flagQR), dropped},
		"a response with opcode":     {flags(flagQR | 5<<3), dropped},
		"status":                     {flags(2 << 3), dns.RcodeNotImplemented},
		"notify":                     {flags(4 << 3), dns.RcodeNotImplemented},
		"update":                     {flags(5 << 3), dns.RcodeNotImplemented},
		"opcode 15":                  {flags(15 << 3), dns.RcodeNotImplemented},
		"no question":                {counts(0, 0), dns.RcodeFormatError},
		"two questions":              {counts(0, 2), dns.RcodeFormatError},
		"65535 questions":            {counts(0, 65535), dns.RcodeFormatError},
		"an answer":                  {counts(1, 1), dns.RcodeFormatError},
		"an authority":               {counts(2, 1), dns.RcodeFormatError},
		"65535 additional":           {counts(3, 65535), dns.RcodeFormatError},
		"header only":                {good[:12], dns.RcodeFormatError},
		"question cut":               {good[:len(good)-1], dns.RcodeFormatError},
		"name points to itself":      {append(bytes.Clone(header), 0xc0, 12, 0, 1, 0, 1), dns.RcodeFormatError},
		"names point at each other":  {append(bytes.Clone(header), 0xc0, 14, 0xc0, 12, 0, 1, 0, 1), dns.RcodeFormatError},
		"name points outside":        {append(bytes.Clone(header), 0xff, 0xff, 0, 1, 0, 1), dns.RcodeFormatError},
		"label of a reserved kind":   {append(bytes.Clone(header), 0x80, 1, 0, 0, 1, 0, 1), dns.RcodeFormatError},
		"label longer than the rest": {append(bytes.Clone(header), 63, 'a', 0, 0, 1, 0, 1), dns.RcodeFormatError},
		"name of 300 octets": {append(append(bytes.Clone(header),
			append(bytes.Repeat(append([]byte{59}, bytes.Repeat([]byte{'a'}, 59)...), 5), 0)...), 0, 1, 0, 1), dns.RcodeFormatError},
		"class CH":        {with(func(p []byte) []byte { p[len(p)-1] = dns.ClassCHAOS; return p }), dns.RcodeRefused},
		"class ANY":       {with(func(p []byte) []byte { p[len(p)-1] = dns.ClassANY; return p }), dns.RcodeRefused},
		"additional cut":  {counts(3, 1), dns.RcodeSuccess}, // nothing of it is there: the question still is
		"OPT with no end": {append(counts(3, 1), 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 9, 0), dns.RcodeFormatError},
		"4096 zeros":      {make([]byte, 4096), dns.RcodeFormatError},
		"4096 ones":       {bytes.Repeat([]byte{0xff}, 4096), dropped},
	}
}

func TestHostilePackets(t *testing.T) {
	s := picture(t, "payments")
	for name, c := range hostile(t) {
		t.Run(name, func(t *testing.T) {
			r := responder{zone: testZone(t)}
			reply, res, _ := r.respond(c.packet, s, maxQuery, true)
			if res != c.want {
				t.Errorf("result %d, want %d", res, c.want)
			}
			checkReply(t, c.packet, reply, maxQuery)
		})
	}
}

// maxFacts is how many TXT records an upstream has: protocol, port, source.
const maxFacts = 3

// checkReply holds for every packet and every answer.
func checkReply(t testing.TB, p, reply []byte, limit int) {
	t.Helper()
	if reply == nil {
		if len(p) >= headerSize && p[2]&flagQR == 0 {
			t.Error("a query got no answer")
		}
		return
	}
	if len(p) < headerSize || p[2]&flagQR != 0 {
		t.Error("answered what is no query")
		return
	}
	if len(reply) > limit {
		t.Errorf("answer of %d octets, limit %d", len(reply), limit)
	}
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil {
		t.Errorf("answer cannot be read: %v", err)
		return
	}
	if !m.Response || m.RecursionAvailable || m.Id != binary.BigEndian.Uint16(p) {
		t.Errorf("header %+v", m.MsgHdr)
	}
	answers := 1
	if len(m.Question) == 1 && m.Question[0].Qtype == dns.TypeTXT {
		answers = maxFacts
	}
	if len(m.Answer) > answers || len(m.Ns) > 1 || len(m.Extra) > 2 {
		t.Errorf("too many records: %s", brief(m))
	}
}

func FuzzRespond(f *testing.F) {
	for _, c := range hostile(f) {
		f.Add(c.packet)
	}
	for _, name := range []string{"payments.mesh.internal.", "_payments._tcp.mesh.internal.", "mesh.internal.", "shop.mesh.internal.", "payments.dc1.mesh.internal.", "1.2.77.127.in-addr.arpa.", "example.com."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeSOA, dns.TypeNS, dns.TypeANY, dns.TypeTXT, dns.TypePTR} {
			f.Add(pack(f, new(dns.Msg).SetQuestion(name, qtype)))
			f.Add(pack(f, edns(name, qtype, 1232, true)))
		}
	}
	s := picture(f, "payments", "inventory")
	r := responder{zone: testZone(f)}
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, limit := range []int{plainSize, dns.MaxMsgSize} {
			reply, _, _ := r.respond(p, s, limit, limit == plainSize)
			checkReply(t, p, reply, limit)
		}
		// One responder answers everybody: what was before must not show.
		fresh := responder{zone: r.zone}
		a, resA, cutA := fresh.respond(p, s, maxQuery, true)
		b, resB, cutB := r.respond(p, s, maxQuery, true)
		if !bytes.Equal(a, b) || resA != resB || cutA != cutB {
			t.Errorf("answers differ: %x, %x", a, b)
		}
		if reply, _, _ := fresh.respond(p, nil, maxQuery, true); reply != nil {
			checkReply(t, p, reply, maxQuery)
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	s := picture(b, "payments", "inventory")
	z := testZone(b)
	for _, c := range []struct {
		name string
		q    *dns.Msg
	}{
		{"A", edns("payments.mesh.internal.", dns.TypeA, 1232, false)},
		{"SRV", edns("payments.mesh.internal.", dns.TypeSRV, 1232, false)},
		{"AAAA", edns("payments.mesh.internal.", dns.TypeAAAA, 1232, false)},
		{"refused", edns("example.com.", dns.TypeA, 1232, false)},
	} {
		p := pack(b, c.q)
		b.Run(c.name, func(b *testing.B) {
			r := responder{zone: z}
			b.ReportAllocs()
			for b.Loop() {
				r.respond(p, s, maxQuery, true)
			}
		})
	}
}
