package nameserver

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"meshd/internal/mesh"
)

// hostLabels is where the zone's NS record points: two labels, so that it
// cannot collide with an upstream.
const hostLabels = "ns.dns"

// Times of the SOA record (RFC 1035, section 3.3.13), in seconds. Nobody
// transfers the zone, so they only have to be plausible to checkers.
const (
	soaRefresh = 3600
	soaRetry   = 600
	soaExpire  = 86400
)

// zone is what does not change between answers.
type zone struct {
	name   string // lower case, with the trailing dot
	labels int    // of name
	host   string // owner of the name server's own address
	addr   netip.Addr
	ttl    uint32 // seconds
}

func newZone(domain string, ttl time.Duration, addr netip.Addr) (*zone, error) {
	name := dns.CanonicalName(domain)
	host := hostLabels + "." + name
	labels, ok := dns.IsDomainName(name)
	if _, fits := dns.IsDomainName(host); !ok || !fits || labels == 0 {
		return nil, fmt.Errorf("%q is not a usable zone name", domain)
	}
	// RFC 2181, section 8: a TTL has 31 bits.
	seconds := min(max(ttl/time.Second, 0), 1<<31-1)
	return &zone{name: name, labels: labels, host: host, addr: addr, ttl: uint32(seconds)}, nil
}

// answer fills m, whose question section is set, for the question of class IN.
// A nil picture is one that is not there yet.
func (z *zone) answer(m *dns.Msg, s *mesh.Snapshot) {
	q := &m.Question[0]
	// By label, not by text: "a\.mesh.internal." is a name below "internal.".
	if !dns.IsSubDomain(z.name, q.Name) {
		z.reverse(m, s)
		return
	}
	m.Authoritative = true
	labels := dns.SplitDomainName(strings.ToLower(q.Name))
	labels = labels[:len(labels)-z.labels]
	switch {
	case len(labels) == 0:
		z.apex(m, s)
	case len(labels) == 2 && labels[0]+"."+labels[1] == hostLabels:
		z.own(m, s)
	case s == nil:
		m.Authoritative = false
		m.Rcode = dns.RcodeServerFailure // asked again later, unlike a denial
	case len(labels) == 1 && labels[0] == "_tcp":
		if len(s.Outbound) == 0 {
			m.Rcode = dns.RcodeNameError
		}
		z.deny(m, s)
	case len(labels) == 1:
		// "dns" exists because the name server's own name is below it, and a
		// datacenter because upstreams' names are (RFC 8020).
		z.upstream(m, s, s.Lookup(labels[0]), labels[0] == "dns" || datacenter(s, labels[0]))
	case len(labels) == 2 && labels[1] == "_tcp" && strings.HasPrefix(labels[0], "_"):
		z.service(m, s, labels[0][1:])
	case len(labels) == 2:
		z.upstream(m, s, s.LookupIn(labels[0], labels[1]), false)
	default:
		m.Rcode = dns.RcodeNameError
		z.deny(m, s)
	}
}

// upstream answers for NAME and NAME.DATACENTER, which o has, or nil; exists
// says that the name is there even if no upstream has it.
func (z *zone) upstream(m *dns.Msg, s *mesh.Snapshot, o *mesh.Outbound, exists bool) {
	q := &m.Question[0]
	switch {
	case o == nil && !exists:
		m.Rcode = dns.RcodeNameError
		z.deny(m, s)
	case o == nil:
		z.deny(m, s)
	case q.Qtype == dns.TypeA, q.Qtype == dns.TypeANY: // ANY: one record set is enough, RFC 8482, section 4.1
		m.Answer = append(m.Answer, z.address(q.Name, o.Address))
	case q.Qtype == dns.TypeSRV:
		m.Answer = append(m.Answer, z.srv(q.Name, q.Name, o.Port))
		m.Extra = append(m.Extra, z.address(q.Name, o.Address))
	case q.Qtype == dns.TypeTXT:
		for _, fact := range facts(o) {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: z.header(q.Name, dns.TypeTXT), Txt: []string{fact}})
		}
	default:
		// AAAA among them. NXDOMAIN here would make some resolvers give up
		// on the A record as well.
		z.deny(m, s)
	}
}

// facts are the TXT records of an upstream, KEY=VALUE each as in RFC 1464. One
// record with several strings would be tidier, but common resolver libraries
// join them without a mark. What is not known is left out.
func facts(o *mesh.Outbound) []string {
	f := []string{"protocol=" + o.Protocol.String(), "port=" + strconv.Itoa(int(o.Port))}
	if o.Source != "" {
		f = append(f, "source="+o.Source)
	}
	return f
}

// datacenter reports whether names of upstreams end in the label.
func datacenter(s *mesh.Snapshot, label string) bool {
	for _, o := range s.Outbound {
		if s.LookupIn(o.Name, label) != nil {
			return true
		}
	}
	return false
}

// reverse answers for an address of an upstream, in the form of RFC 1035,
// section 3.5. The name of each is a zone of its own: those of other addresses
// are somebody else's, and refused like everything outside.
func (z *zone) reverse(m *dns.Msg, s *mesh.Snapshot) {
	q := &m.Question[0]
	at, ok := loopbackOf(q.Name)
	switch {
	case !ok:
		m.Rcode = dns.RcodeRefused
		return
	case s == nil:
		m.Rcode = dns.RcodeServerFailure // asked again later
		return
	}
	o := s.ByAddress(at)
	if o == nil {
		m.Rcode = dns.RcodeRefused
		return
	}
	m.Authoritative = true
	switch q.Qtype {
	case dns.TypePTR, dns.TypeANY:
		m.Answer = append(m.Answer, &dns.PTR{Hdr: z.header(q.Name, dns.TypePTR), Ptr: o.Name + "." + z.name})
	case dns.TypeSOA:
		m.Answer = append(m.Answer, z.soa(q.Name, s))
	case dns.TypeNS:
		m.Answer = append(m.Answer, &dns.NS{Hdr: z.header(q.Name, dns.TypeNS), Ns: z.host})
		m.Extra = append(m.Extra, z.address(z.host, z.addr))
	default:
		m.Ns = append(m.Ns, z.soa(q.Name, s))
	}
}

// loopbackOf is the address that a reverse name stands for, if it is a
// loopback address of IPv4: upstreams have no others.
func loopbackOf(name string) (netip.Addr, bool) {
	labels := dns.SplitDomainName(name)
	if len(labels) != 6 || !strings.EqualFold(labels[4], "in-addr") || !strings.EqualFold(labels[5], "arpa") {
		return netip.Addr{}, false
	}
	at, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
	return at, err == nil && at.Is4() && at.IsLoopback()
}

// service answers for _NAME._tcp (RFC 2782).
func (z *zone) service(m *dns.Msg, s *mesh.Snapshot, label string) {
	q := &m.Question[0]
	o := s.Lookup(label)
	if o == nil {
		m.Rcode = dns.RcodeNameError
		z.deny(m, s)
		return
	}
	if q.Qtype != dns.TypeSRV && q.Qtype != dns.TypeANY {
		z.deny(m, s)
		return
	}
	target := label + "." + z.name
	m.Answer = append(m.Answer, z.srv(q.Name, target, o.Port))
	m.Extra = append(m.Extra, z.address(target, o.Address))
}

// apex answers for the zone's own name.
func (z *zone) apex(m *dns.Msg, s *mesh.Snapshot) {
	q := &m.Question[0]
	switch q.Qtype {
	case dns.TypeSOA, dns.TypeANY:
		m.Answer = append(m.Answer, z.soa(q.Name, s))
	case dns.TypeNS:
		m.Answer = append(m.Answer, &dns.NS{Hdr: z.header(q.Name, dns.TypeNS), Ns: z.host})
		m.Extra = append(m.Extra, z.address(z.host, z.addr))
	default:
		z.deny(m, s)
	}
}

// own answers for the name server's own name.
func (z *zone) own(m *dns.Msg, s *mesh.Snapshot) {
	q := &m.Question[0]
	rr := z.address(q.Name, z.addr)
	if q.Qtype != rr.Header().Rrtype && q.Qtype != dns.TypeANY {
		z.deny(m, s)
		return
	}
	m.Answer = append(m.Answer, rr)
}

// deny adds what a resolver needs to remember a denial (RFC 2308, section 3).
func (z *zone) deny(m *dns.Msg, s *mesh.Snapshot) {
	m.Ns = append(m.Ns, z.soa(z.name, s))
}

func (z *zone) header(owner string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: z.ttl}
}

func (z *zone) address(owner string, a netip.Addr) dns.RR {
	if a = a.Unmap(); a.Is4() {
		return &dns.A{Hdr: z.header(owner, dns.TypeA), A: net.IP(a.AsSlice())}
	}
	return &dns.AAAA{Hdr: z.header(owner, dns.TypeAAAA), AAAA: net.IP(a.AsSlice())}
}

func (z *zone) srv(owner, target string, port uint16) dns.RR {
	return &dns.SRV{Hdr: z.header(owner, dns.TypeSRV), Port: port, Weight: 1, Target: target}
}

func (z *zone) soa(owner string, s *mesh.Snapshot) dns.RR {
	var serial uint32
	if s != nil {
		serial = uint32(s.Generation)
	}
	return &dns.SOA{
		Hdr: z.header(owner, dns.TypeSOA), Ns: z.host, Mbox: "hostmaster." + z.name, Serial: serial,
		Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: z.ttl,
	}
}
