package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// FirstAssignedPort is where ports given by meshd begin: above Consul's own
// range for sidecars (21000 to 21255), below the ephemeral ports of Linux.
const FirstAssignedPort = 21300

// lastAssignedPort ends the range; 32768 is where Linux begins to hand out
// ephemeral ports.
const lastAssignedPort = 32767

// maxKept bounds the ports of before that one upstream goes on listening on:
// instances on different ports make the natural one change with those that are
// left, and more than a few such ports are a mistake elsewhere.
const maxKept = 4

// CompileInput is everything Compile looks at.
type CompileInput struct {
	Generation uint64
	Spec       *Spec
	Catalog    *Catalog // nil is empty
	// Assigned are the addresses and ports of the picture before, or those
	// read from disk at the start.
	Assigned Assignments
	// Now and DropAfter bound the age of what a registry stated: older facts
	// are as if it had never been stated. DropAfter 0 turns that off.
	Now       time.Time
	DropAfter time.Duration
	// Wildcard holds the ports on which some process of this host listens on
	// every address. Binding one of them on a loopback address would fail.
	Wildcard map[uint16]bool
}

// Compile makes the picture of spec and catalog. It is pure: the same input
// gives the same picture. It fails only for what no picture can express; an
// upstream without endpoints is a picture, not an error.
func Compile(in CompileInput) (*Snapshot, error) {
	spec := in.Spec
	s := &Snapshot{
		Generation: in.Generation,
		Spec:       spec,
		Outbound:   make([]*Outbound, 0, len(spec.Upstreams)),
		Inbound:    make([]*Inbound, 0, len(spec.Services)),
		Assigned: Assignments{
			Addresses: make(map[string]netip.Addr, len(spec.Upstreams)),
			Ports:     make(map[string]uint16, len(spec.Upstreams)),
			Ceded:     make(map[string]uint16),
			Kept:      make(map[string][]uint16),
		},
		names:     make(map[string]*Outbound, len(spec.Upstreams)),
		addresses: make(map[netip.Addr]*Outbound, len(spec.Upstreams)),
	}
	local := make(map[uint16]bool, len(spec.Services))
	for i := range spec.Services {
		svc := &spec.Services[i]
		local[svc.Port] = true
		inb := &Inbound{Service: *svc, Target: netip.AddrPortFrom(svc.Address, svc.Port), NeedIntentions: spec.Intentions}
		if in.Catalog != nil {
			if facts, ok := in.Catalog.Intentions[svc.Name]; ok && !in.stale(facts.Updated) {
				inb.Intentions = &facts
			}
		}
		s.Inbound = append(s.Inbound, inb)
	}
	static := StaticCatalog(spec.Static)

	var errs []error
	backing := make([]Outbound, len(spec.Upstreams))
	for i := range spec.Upstreams {
		u := &spec.Upstreams[i]
		o := &backing[i]
		o.Upstream = *u
		caller, err := spec.Caller(u)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", cmp.Or(u.Pos.String(), "configuration"), err))
			continue
		}
		o.Caller = caller
		fact, known := static.Services[u.Key()]
		if !known && in.Catalog != nil {
			fact, known = in.Catalog.Services[u.Key()]
			if chain, ok := in.Catalog.Chains[u.Key()]; ok {
				o.obey(chain)
			}
			switch {
			case known && in.stale(fact.Updated):
				o.Refused = RefusedStale
				fact.Endpoints = nil
			case o.Refused != "":
				fact.Endpoints = nil
			}
		}
		o.Known, o.Endpoints, o.Source, o.Updated = known, fact.Endpoints, fact.Source, fact.Updated
		for j := range o.Endpoints {
			if o.Endpoints[j].Healthy {
				o.Healthy++
			}
		}
		s.Outbound = append(s.Outbound, o)
		o.Port = fact.Port // the natural one, until assignPorts decides
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	slices.SortFunc(s.Outbound, func(a, b *Outbound) int { return strings.Compare(a.Name, b.Name) })
	if err := assignAddresses(s, in.Assigned.Addresses); err != nil {
		return nil, err
	}
	if err := assignPorts(s, in, local); err != nil {
		return nil, err
	}
	for _, o := range s.Outbound {
		s.names[strings.ToLower(o.Name)] = o
		s.addresses[o.Address] = o
		o.Binds = append(o.Binds, netip.AddrPortFrom(o.Address, o.Port))
		if o.LocalBindPort != 0 {
			o.Binds = append(o.Binds, netip.AddrPortFrom(o.LocalBindAddress, o.LocalBindPort))
		}
		for _, p := range s.Assigned.Kept[o.Name] {
			o.Binds = append(o.Binds, netip.AddrPortFrom(o.Address, p))
		}
	}
	return s, nil
}

// RefusedStale is Outbound.Refused when the catalog is older than allowed.
const RefusedStale = "the catalog is older than stale { drop_after }"

// IdleTimeoutHTTP is the built-in idle_timeout of everything but TCP. It is
// here because the registry may say so late that an upstream speaks HTTP.
const IdleTimeoutHTTP = 5 * time.Minute

// stale tells whether a fact is too old to be used. Facts without a time were
// written by hand and do not age.
func (in *CompileInput) stale(updated time.Time) bool {
	return in.DropAfter > 0 && !updated.IsZero() && in.Now.Sub(updated) > in.DropAfter
}

// obey takes from the registry's chain what the configuration leaves open.
func (o *Outbound) obey(c Chain) {
	if c.Refused != "" {
		o.Refused = "Consul has a " + c.Refused + " for it, which is not supported yet"
	}
	origins := maps.Clone(o.Origins)
	if origins == nil {
		origins = make(map[string]Provenance)
	}
	take := func(attribute string) bool {
		if _, written := o.Origins[attribute]; written {
			return false
		}
		origins[attribute] = Provenance{Kind: "discovery-chain"}
		return true
	}
	if take("protocol") {
		if _, written := o.Origins["idle_timeout"]; !written && o.Protocol == TCP && c.Protocol != TCP {
			o.IdleTimeout = IdleTimeoutHTTP
		}
		o.Protocol = c.Protocol
	}
	if o.Protocol > HTTP && o.Refused == "" {
		o.Refused = "Consul says that it speaks " + o.Protocol.String() + ", which is not supported yet"
	}
	if c.ConnectTimeout > 0 && take("connect_timeout") {
		o.ConnectTimeout = c.ConnectTimeout
	}
	if c.RequestTimeout != 0 && o.Protocol != TCP && take("request_timeout") {
		o.RequestTimeout = max(c.RequestTimeout, 0)
	}
	o.Origins = origins
}

// assignAddresses keeps what an upstream had and gives the others an address
// that follows from their name, so that two hosts mostly agree and a lost
// state directory mostly changes nothing.
func assignAddresses(s *Snapshot, had map[string]netip.Addr) error {
	r := s.Spec.Loopback
	taken := make(map[netip.Addr]bool, len(s.Outbound))
	for _, o := range s.Outbound {
		if a, ok := had[o.Name]; ok && r.Contains(a) && !taken[a] {
			o.Address = a
			taken[a] = true
		}
	}
	size := uint32(1) << (32 - r.Bits())
	if size < 4 || uint32(len(s.Outbound)) > size-3 {
		return fmt.Errorf("loopback range %s has room for %d upstreams, %d are configured", r, max(int(size)-3, 0), len(s.Outbound))
	}
	base := r.Masked().Addr().As4()
	start := uint32(base[0])<<24 | uint32(base[1])<<16 | uint32(base[2])<<8 | uint32(base[3])
	for _, o := range s.Outbound {
		for n := nameHash(o.Name); !o.Address.IsValid(); n++ {
			// The first address, the last and the one before it stay free:
			// network, broadcast, and one for a name server of the range.
			v := start + 1 + n%(size-3)
			a := netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
			if !taken[a] {
				o.Address = a
				taken[a] = true
			}
		}
		s.Assigned.Addresses[o.Name] = o.Address
	}
	return nil
}

// assignPorts decides the port on the upstream's own address: local_bind_port
// if given; else the natural port, unless a local service or a wildcard
// listener of this host could collide with it, because then either our bind
// or the application's would fail (see Assignments.Ceded for when that ends);
// else one of our own range. An upstream whose natural port becomes known later,
// or changes with the endpoints that are left, moves there and keeps listening
// on the port it was known by.
func assignPorts(s *Snapshot, in CompileInput, local map[uint16]bool) error {
	taken := make(map[uint16]bool)
	for _, o := range s.Outbound {
		// The range is kept free of duplicates although addresses differ:
		// then a port alone tells an operator which upstream is meant.
		for _, p := range slices.Concat(in.Assigned.Kept[o.Name], []uint16{in.Assigned.Ports[o.Name]}) {
			if p >= FirstAssignedPort && p <= lastAssignedPort {
				taken[p] = true
			}
		}
	}
	for _, o := range s.Outbound {
		natural, had := o.Port, in.Assigned.Ports[o.Name]
		if natural == 0 && had < FirstAssignedPort {
			// The catalog is silent, or its endpoints are gone or disagree for
			// now: stay where applications know us.
			natural = had
		}
		usable := func(p uint16) bool { return p != 0 && !local[p] && !in.Wildcard[p] }
		ceded := in.Assigned.Ceded[o.Name]
		if natural != 0 && ceded != natural {
			ceded = 0 // the service moved to another port
		}
		if natural != 0 && natural != had && in.Wildcard[natural] {
			ceded = natural
		}
		if ceded != 0 && o.LocalBindPort == 0 {
			s.Assigned.Ceded[o.Name] = ceded
		}
		switch {
		case o.LocalBindPort != 0:
			o.Port = o.LocalBindPort
			continue // written down in the configuration, so not in Assigned
		case natural != 0 && !local[natural] && natural != ceded:
			o.Port = natural
		case had >= FirstAssignedPort && usable(had):
			o.Port = had
		default:
			p := FirstAssignedPort + nameHash(o.Name)%(lastAssignedPort-FirstAssignedPort+1)
			for n := 0; taken[uint16(p)] || local[uint16(p)] || in.Wildcard[uint16(p)]; n++ {
				if n > lastAssignedPort-FirstAssignedPort {
					return fmt.Errorf("no free port between %d and %d for upstream %q", FirstAssignedPort, lastAssignedPort, o.Name)
				}
				if p++; p > lastAssignedPort {
					p = FirstAssignedPort
				}
			}
			o.Port = uint16(p)
			taken[o.Port] = true
		}
		s.Assigned.Ports[o.Name] = o.Port
		// Only a start can find one of these in use: we held them until then.
		var kept []uint16
		for _, p := range slices.Concat([]uint16{had}, in.Assigned.Kept[o.Name]) {
			if p != o.Port && usable(p) && len(kept) < maxKept && !slices.Contains(kept, p) {
				kept = append(kept, p)
			}
		}
		if len(kept) > 0 {
			s.Assigned.Kept[o.Name] = kept
		}
	}
	return nil
}

func nameHash(name string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name))
	return h.Sum32()
}
