package nameserver

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"meshd/internal/mesh"
)

// picture has the upstreams payments (127.77.0.10, port 8080), dns-cache and
// whatever else is named, without a catalog.
func picture(t testing.TB, names ...string) *mesh.Snapshot {
	t.Helper()
	spec := &mesh.Spec{Identity: "web", Domain: "mesh.internal", Loopback: netip.MustParsePrefix("127.77.0.0/16")}
	had := map[string]netip.Addr{}
	for i, n := range names {
		spec.Upstreams = append(spec.Upstreams, mesh.Upstream{
			Name: n, Destination: n, LocalBindAddress: netip.MustParseAddr("127.0.0.1"), LocalBindPort: uint16(8080 + i),
		})
		had[n] = netip.AddrFrom4([4]byte{127, 77, 0, byte(10 + i)})
	}
	s, err := mesh.Compile(mesh.CompileInput{Generation: 7, Spec: spec, Assigned: mesh.Assignments{Addresses: had}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testZone(t testing.TB) *zone {
	t.Helper()
	z, err := newZone("Mesh.Internal", 5*time.Second, netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// ask goes through the packet core, as a resolver's query does.
func ask(t testing.TB, s *mesh.Snapshot, q *dns.Msg) *dns.Msg {
	t.Helper()
	p, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	r := responder{zone: testZone(t)}
	reply, _, _ := r.respond(p, s, maxQuery, true)
	if reply == nil {
		t.Fatal("no answer")
	}
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil {
		t.Fatal(err)
	}
	return m
}

// brief is a message in a form that fits a table.
func brief(m *dns.Msg) string {
	var b strings.Builder
	b.WriteString(dns.RcodeToString[m.Rcode])
	if m.Authoritative {
		b.WriteString(" aa")
	}
	section := func(name string, rrs []dns.RR) {
		for _, rr := range rrs {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			fmt.Fprintf(&b, " | %s %s", name, strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	section("an", m.Answer)
	section("ns", m.Ns)
	section("ar", m.Extra)
	return b.String()
}

func TestAnswer(t *testing.T) {
	const (
		soa    = "mesh.internal. 5 IN SOA ns.dns.mesh.internal. hostmaster.mesh.internal. 7 3600 600 86400 5"
		nodata = "NOERROR aa | ns " + soa
		absent = "NXDOMAIN aa | ns " + soa
	)
	s := picture(t, "payments", "inventory")
	for _, c := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"payments.mesh.internal.", dns.TypeA, "NOERROR aa | an payments.mesh.internal. 5 IN A 127.77.0.10"},
		{"inventory.mesh.internal.", dns.TypeA, "NOERROR aa | an inventory.mesh.internal. 5 IN A 127.77.0.11"},
		{"pAyMeNtS.MESH.internal.", dns.TypeA, "NOERROR aa | an pAyMeNtS.MESH.internal. 5 IN A 127.77.0.10"},
		{"payments.mesh.internal.", dns.TypeAAAA, nodata},
		{"payments.mesh.internal.", dns.TypeMX, nodata},
		{"payments.mesh.internal.", dns.TypeHTTPS, nodata},
		{"payments.mesh.internal.", dns.TypeANY, "NOERROR aa | an payments.mesh.internal. 5 IN A 127.77.0.10"},
		{"payments.mesh.internal.", dns.TypeSRV, "NOERROR aa | an payments.mesh.internal. 5 IN SRV 0 1 8080 payments.mesh.internal. | ar payments.mesh.internal. 5 IN A 127.77.0.10"},
		{"payments.mesh.internal.", dns.TypeTXT, `NOERROR aa | an payments.mesh.internal. 5 IN TXT "protocol=tcp" | an payments.mesh.internal. 5 IN TXT "port=8080"`},
		{"payments.mesh.internal.", dns.TypePTR, nodata},
		{"_payments._tcp.mesh.internal.", dns.TypeTXT, nodata},
		{"_payments._tcp.mesh.internal.", dns.TypeSRV, "NOERROR aa | an _payments._tcp.mesh.internal. 5 IN SRV 0 1 8080 payments.mesh.internal. | ar payments.mesh.internal. 5 IN A 127.77.0.10"},
		{"_Inventory._TCP.mesh.internal.", dns.TypeSRV, "NOERROR aa | an _Inventory._TCP.mesh.internal. 5 IN SRV 0 1 8081 inventory.mesh.internal. | ar inventory.mesh.internal. 5 IN A 127.77.0.11"},
		{"_payments._tcp.mesh.internal.", dns.TypeA, nodata},
		{"_payments._udp.mesh.internal.", dns.TypeSRV, absent},
		{"_shop._tcp.mesh.internal.", dns.TypeSRV, absent},
		{"payments._tcp.mesh.internal.", dns.TypeSRV, absent},
		{"__payments._tcp.mesh.internal.", dns.TypeSRV, absent},

		// Names that exist only because something below them does.
		{"_tcp.mesh.internal.", dns.TypeSRV, nodata},
		{"dns.mesh.internal.", dns.TypeA, nodata},

		{"shop.mesh.internal.", dns.TypeA, absent},
		{"shop.mesh.internal.", dns.TypeAAAA, absent},
		{"a.payments.mesh.internal.", dns.TypeA, absent},
		{"*.mesh.internal.", dns.TypeA, absent},
		{`pay\.ments.mesh.internal.`, dns.TypeA, absent},
		{`payments\000.mesh.internal.`, dns.TypeA, absent},
		{"127.77.0.10.mesh.internal.", dns.TypeA, absent},

		{"mesh.internal.", dns.TypeSOA, "NOERROR aa | an " + soa},
		{"mesh.internal.", dns.TypeANY, "NOERROR aa | an " + soa},
		{"mesh.internal.", dns.TypeNS, "NOERROR aa | an mesh.internal. 5 IN NS ns.dns.mesh.internal. | ar ns.dns.mesh.internal. 5 IN A 127.0.0.1"},
		{"mesh.internal.", dns.TypeA, nodata},
		{"mesh.internal.", dns.TypeAXFR, nodata},
		{"ns.dns.mesh.internal.", dns.TypeA, "NOERROR aa | an ns.dns.mesh.internal. 5 IN A 127.0.0.1"},
		{"ns.dns.mesh.internal.", dns.TypeAAAA, nodata},

		{"internal.", dns.TypeA, "REFUSED"},
		{".", dns.TypeNS, "REFUSED"},
		{"example.com.", dns.TypeA, "REFUSED"},
		{"payments.mesh.internal.example.com.", dns.TypeA, "REFUSED"},
		{"xmesh.internal.", dns.TypeA, "REFUSED"},
		{`payments\.mesh.internal.`, dns.TypeA, "REFUSED"}, // one label "payments.mesh"

		{"10.0.77.127.in-addr.arpa.", dns.TypePTR, "NOERROR aa | an 10.0.77.127.in-addr.arpa. 5 IN PTR payments.mesh.internal."},
		{"11.0.77.127.IN-ADDR.Arpa.", dns.TypePTR, "NOERROR aa | an 11.0.77.127.IN-ADDR.Arpa. 5 IN PTR inventory.mesh.internal."},
		{"10.0.77.127.in-addr.arpa.", dns.TypeANY, "NOERROR aa | an 10.0.77.127.in-addr.arpa. 5 IN PTR payments.mesh.internal."},
		{"10.0.77.127.in-addr.arpa.", dns.TypeA, "NOERROR aa | ns 10.0.77.127.in-addr.arpa." + strings.TrimPrefix(soa, "mesh.internal.")},
		{"10.0.77.127.in-addr.arpa.", dns.TypeSOA, "NOERROR aa | an 10.0.77.127.in-addr.arpa." + strings.TrimPrefix(soa, "mesh.internal.")},
		{"10.0.77.127.in-addr.arpa.", dns.TypeNS, "NOERROR aa | an 10.0.77.127.in-addr.arpa. 5 IN NS ns.dns.mesh.internal. | ar ns.dns.mesh.internal. 5 IN A 127.0.0.1"},
		{"12.0.77.127.in-addr.arpa.", dns.TypePTR, "REFUSED"}, // of no upstream
		{"1.0.0.127.in-addr.arpa.", dns.TypePTR, "REFUSED"},
		{"0.77.127.in-addr.arpa.", dns.TypePTR, "REFUSED"},
		{"1.10.0.77.127.in-addr.arpa.", dns.TypePTR, "REFUSED"},
		{"010.0.77.127.in-addr.arpa.", dns.TypePTR, "REFUSED"},
		{`10\.0.77.127.in-addr.arpa.`, dns.TypePTR, "REFUSED"},
		{"10.0.77.127.ip6.arpa.", dns.TypePTR, "REFUSED"},
		{"10.0.77.127.", dns.TypePTR, "REFUSED"},
		{"8.8.8.8.in-addr.arpa.", dns.TypePTR, "REFUSED"},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa.", dns.TypePTR, "REFUSED"},
	} {
		t.Run(c.name+" "+dns.TypeToString[c.qtype], func(t *testing.T) {
			q := new(dns.Msg).SetQuestion(c.name, c.qtype)
			m := ask(t, s, q)
			if got := brief(m); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if diff := cmp.Diff(q.Question, m.Question); diff != "" {
				t.Errorf("question not as asked: %s", diff)
			}
			if m.Id != q.Id || !m.Response || m.RecursionAvailable || !m.RecursionDesired || m.Truncated || m.AuthenticatedData {
				t.Errorf("header %v", m.MsgHdr)
			}
		})
	}
}

// An upstream's datacenter is a name of the zone, with the upstream below it.
func TestDatacenters(t *testing.T) {
	const (
		soa    = "mesh.internal. 5 IN SOA ns.dns.mesh.internal. hostmaster.mesh.internal. 7 3600 600 86400 5"
		nodata = "NOERROR aa | ns " + soa
		absent = "NXDOMAIN aa | ns " + soa
	)
	upstream := func(name, datacenter string, p mesh.Protocol) mesh.Upstream {
		return mesh.Upstream{Name: name, Destination: name, Datacenter: datacenter, Protocol: p}
	}
	compile := func(local string) *mesh.Snapshot {
		s, err := mesh.Compile(mesh.CompileInput{Generation: 7, Spec: &mesh.Spec{
			Identity: "web", Domain: "mesh.internal", Datacenter: local, Loopback: netip.MustParsePrefix("127.77.0.0/16"),
			Upstreams: []mesh.Upstream{upstream("payments", "", mesh.HTTP), upstream("ledger", "far", mesh.TCP), upstream("near", "far", mesh.TCP)},
		}, Catalog: &mesh.Catalog{Services: map[mesh.ServiceKey]mesh.CatalogService{
			{Name: "payments"}: {Port: 8080, Source: "consul"}, {Name: "ledger", Datacenter: "far"}: {Port: 9000, Source: "snapshot"},
		}}, Assigned: mesh.Assignments{Addresses: map[string]netip.Addr{
			"payments": netip.MustParseAddr("127.77.0.10"), "ledger": netip.MustParseAddr("127.77.0.11"), "near": netip.MustParseAddr("127.77.0.12"),
		}}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	near, unknown := compile("near"), compile("")
	for _, c := range []struct {
		s     *mesh.Snapshot
		name  string
		qtype uint16
		want  string
	}{
		{near, "payments.near.mesh.internal.", dns.TypeA, "NOERROR aa | an payments.near.mesh.internal. 5 IN A 127.77.0.10"},
		{near, "Payments.NEAR.mesh.internal.", dns.TypeANY, "NOERROR aa | an Payments.NEAR.mesh.internal. 5 IN A 127.77.0.10"},
		{near, "payments.near.mesh.internal.", dns.TypeAAAA, nodata},
		{near, "payments.near.mesh.internal.", dns.TypeSRV, "NOERROR aa | an payments.near.mesh.internal. 5 IN SRV 0 1 8080 payments.near.mesh.internal. | ar payments.near.mesh.internal. 5 IN A 127.77.0.10"},
		{near, "payments.near.mesh.internal.", dns.TypeTXT, `NOERROR aa | an payments.near.mesh.internal. 5 IN TXT "protocol=http" | an payments.near.mesh.internal. 5 IN TXT "port=8080" | an payments.near.mesh.internal. 5 IN TXT "source=consul"`},
		{near, "ledger.far.mesh.internal.", dns.TypeTXT, `NOERROR aa | an ledger.far.mesh.internal. 5 IN TXT "protocol=tcp" | an ledger.far.mesh.internal. 5 IN TXT "port=9000" | an ledger.far.mesh.internal. 5 IN TXT "source=snapshot"`},
		{near, "ledger.mesh.internal.", dns.TypeA, "NOERROR aa | an ledger.mesh.internal. 5 IN A 127.77.0.11"},
		{near, "payments.far.mesh.internal.", dns.TypeA, absent},
		{near, "ledger.near.mesh.internal.", dns.TypeA, absent},
		{near, "shop.near.mesh.internal.", dns.TypeA, absent},
		{near, "payments.elsewhere.mesh.internal.", dns.TypeA, absent},
		{near, "a.payments.near.mesh.internal.", dns.TypeA, absent},
		{near, "_payments._tcp.near.mesh.internal.", dns.TypeSRV, absent},

		// A datacenter's own name, also when an upstream is called the same.
		{near, "far.mesh.internal.", dns.TypeA, nodata},
		{near, "FAR.mesh.internal.", dns.TypeTXT, nodata},
		{near, "near.mesh.internal.", dns.TypeA, "NOERROR aa | an near.mesh.internal. 5 IN A 127.77.0.12"},
		{near, "near.far.mesh.internal.", dns.TypeA, "NOERROR aa | an near.far.mesh.internal. 5 IN A 127.77.0.12"},
		{near, "elsewhere.mesh.internal.", dns.TypeA, absent},

		// Where the local one has no name, nothing is in it.
		{unknown, "payments.near.mesh.internal.", dns.TypeA, absent},
		{unknown, "ledger.far.mesh.internal.", dns.TypeA, "NOERROR aa | an ledger.far.mesh.internal. 5 IN A 127.77.0.11"},
		{unknown, "far.mesh.internal.", dns.TypeA, nodata},
	} {
		if got := brief(ask(t, c.s, new(dns.Msg).SetQuestion(c.name, c.qtype))); got != c.want {
			t.Errorf("%s %s\ngot  %s\nwant %s", c.name, dns.TypeToString[c.qtype], got, c.want)
		}
	}
}

// An upstream may be called "dns", beside the name server's own name below it.
func TestUpstreamCalledDNS(t *testing.T) {
	s := picture(t, "dns")
	m := ask(t, s, new(dns.Msg).SetQuestion("dns.mesh.internal.", dns.TypeA))
	if got, want := brief(m), "NOERROR aa | an dns.mesh.internal. 5 IN A 127.77.0.10"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Nothing is denied before there is a picture: a denial would be remembered.
func TestNoPictureYet(t *testing.T) {
	for name, want := range map[string]string{
		"payments.mesh.internal.":       "SERVFAIL",
		"_payments._tcp.mesh.internal.": "SERVFAIL",
		"dns.mesh.internal.":            "SERVFAIL",
		"a.b.mesh.internal.":            "SERVFAIL",
		"mesh.internal.":                "NOERROR aa | ns mesh.internal. 5 IN SOA ns.dns.mesh.internal. hostmaster.mesh.internal. 0 3600 600 86400 5",
		"example.com.":                  "REFUSED",
		"10.0.77.127.in-addr.arpa.":     "SERVFAIL",
		"10.0.77.10.in-addr.arpa.":      "REFUSED",
	} {
		if got := brief(ask(t, nil, new(dns.Msg).SetQuestion(name, dns.TypeA))); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestEmptyPictureHasNoServiceNames(t *testing.T) {
	m := ask(t, picture(t), new(dns.Msg).SetQuestion("_tcp.mesh.internal.", dns.TypeSRV))
	if m.Rcode != dns.RcodeNameError {
		t.Errorf("got %s, want NXDOMAIN", brief(m))
	}
}

func TestNewZone(t *testing.T) {
	for _, domain := range []string{"", ".", "a..b", strings.Repeat("a", 64) + ".internal", strings.Repeat("abcdefgh.", 28) + "ab"} {
		if _, err := newZone(domain, time.Second, netip.MustParseAddr("127.0.0.1")); err == nil {
			t.Errorf("newZone(%q) succeeded", domain)
		}
	}
	z, err := newZone("mesh", -time.Second, netip.MustParseAddr("::1"))
	if err != nil || z.ttl != 0 || z.name != "mesh." {
		t.Errorf("newZone = %+v, %v", z, err)
	}
	if got := z.address(z.host, z.addr).String(); !strings.Contains(got, "AAAA\t::1") {
		t.Errorf("own address is %s", got)
	}
}
