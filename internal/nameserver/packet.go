package nameserver

import (
	"encoding/binary"

	"github.com/miekg/dns"

	"meshd/internal/mesh"
)

const (
	headerSize = 12 // RFC 1035, section 4.1.1
	// plainSize is what a client without EDNS takes over UDP (RFC 1035, section 2.3.4).
	plainSize = 512
	// ednsSize fits every IPv6 path without fragments; the value of DNS flag day 2020.
	ednsSize = 1232
	// maxAdditional allows OPT and a signature; more records than that are noise.
	maxAdditional = 2
)

// Bits of the third and fourth octet of a header.
const (
	flagQR     = 1 << 7
	maskOpcode = 0xf << 3
	flagRD     = 1
	flagCD     = 1 << 4
)

// result says what became of a packet. Values below dropped are rcodes.
type result int

// dropped is beyond every rcode of RFC 6895 that fits a header and OPT (12 bits).
const dropped result = 1 << 12

// responder makes answers, one after another; it keeps its memory in between.
type responder struct {
	zone *zone
	q    dns.Msg
	out  []byte
}

// respond returns the answer to one packet, valid until the next call. limit
// is the transport's own bound on the answer's size; udp applies those of the
// protocol as well. A packet that deserves no answer gives [dropped] and nil.
func (r *responder) respond(p []byte, s *mesh.Snapshot, limit int, udp bool) (reply []byte, res result, truncated bool) {
	if len(p) < headerSize || p[2]&flagQR != 0 {
		// An answer to an answer could go round for ever.
		return nil, dropped, false
	}
	if p[2]&maskOpcode != dns.OpcodeQuery<<3 {
		return r.bare(p, dns.RcodeNotImplemented)
	}
	count := func(i int) uint16 { return binary.BigEndian.Uint16(p[4+2*i:]) }
	if count(0) != 1 || count(1) != 0 || count(2) != 0 || count(3) > maxAdditional {
		return r.bare(p, dns.RcodeFormatError)
	}
	r.q = dns.Msg{}
	// Unpack is content with a message that ends after its header.
	if err := r.q.Unpack(p); err != nil || len(r.q.Question) != 1 {
		return r.bare(p, dns.RcodeFormatError)
	}
	m := dns.Msg{Question: r.q.Question, Compress: true}
	m.Id, m.Response = r.q.Id, true
	m.RecursionDesired, m.CheckingDisabled = r.q.RecursionDesired, r.q.CheckingDisabled

	size := plainSize
	var opt *dns.OPT
	for _, rr := range r.q.Extra {
		o, ok := rr.(*dns.OPT)
		if !ok {
			continue
		}
		if opt != nil || o.Hdr.Name != "." { // RFC 6891, section 6.1.1
			return r.bare(p, dns.RcodeFormatError)
		}
		opt = &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		opt.SetUDPSize(ednsSize)
		opt.SetDo(o.Do()) // RFC 3225, section 3
		size = min(max(int(o.UDPSize()), plainSize), ednsSize)
		if o.Version() != 0 {
			m.Rcode = dns.RcodeBadVers
		}
	}
	if udp {
		limit = min(limit, size)
	}
	if m.Rcode == dns.RcodeSuccess {
		if m.Question[0].Qclass == dns.ClassINET {
			r.zone.answer(&m, s)
		} else {
			m.Rcode = dns.RcodeRefused
		}
	}
	if opt != nil {
		m.Extra = append(m.Extra, opt)
	}
	res = result(m.Rcode)
	out, err := m.PackBuffer(r.out[:cap(r.out)])
	if err != nil {
		return r.bare(p, dns.RcodeServerFailure)
	}
	if len(out) > limit {
		// What is left of it would not be complete: ask again over TCP.
		m.Truncated, truncated = true, true
		m.Answer, m.Ns, m.Extra = nil, nil, nil
		if opt != nil {
			m.Extra = append(m.Extra, opt)
		}
		if out, err = m.PackBuffer(r.out[:cap(r.out)]); err != nil {
			return r.bare(p, dns.RcodeServerFailure)
		}
	}
	r.keep(out)
	return out, res, truncated
}

// bare answers with a header only, for a packet whose question is not to be
// repeated.
func (r *responder) bare(p []byte, rcode int) ([]byte, result, bool) {
	h := append(r.out[:0], p[:headerSize]...)
	h[2] = flagQR | p[2]&(maskOpcode|flagRD)
	h[3] = p[3]&flagCD | byte(rcode)
	clear(h[4:])
	r.keep(h)
	return h, result(rcode), false
}

// keep makes b's memory the buffer of the next answer.
func (r *responder) keep(b []byte) {
	if cap(b) > cap(r.out) {
		r.out = b
	}
}
