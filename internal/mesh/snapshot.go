package mesh

import (
	"cmp"
	"net/netip"
	"strings"
	"time"
)

// Snapshot is the picture in force: everything the data path and the name
// server decide by. It is immutable; readers load it once and keep what they
// took from it for the length of one decision.
type Snapshot struct {
	Generation uint64 // counts published pictures, from 1
	Spec       *Spec
	Outbound   []*Outbound // by name
	Inbound    []*Inbound  // in the order of the configuration
	// Assigned is what the next Compile needs to keep addresses and ports
	// where they are. The agent stores it on disk.
	Assigned Assignments

	names     map[string]*Outbound
	addresses map[netip.Addr]*Outbound
}

// Assignments are the addresses and ports given to upstreams, by upstream name.
// It is what must survive a restart.
type Assignments struct {
	Addresses map[string]netip.Addr `json:"addresses"`
	Ports     map[string]uint16     `json:"ports"`
	// Ceded are natural ports that an upstream leaves to a process of this host
	// which listened there on every address when the upstream wanted it. They
	// stay ceded after that process has ended: it may be about to start again,
	// and would find its port taken.
	Ceded map[string]uint16 `json:"ceded,omitempty"`
	// Kept are the ports that upstreams had before they moved to their natural
	// ones, the last one first. They go on listening there: applications may
	// have been told.
	Kept map[string][]uint16 `json:"kept,omitempty"`
}

// Outbound is an upstream in force.
type Outbound struct {
	Upstream
	Caller  string     // whose leaf links to it present
	Address netip.Addr // the upstream's own loopback address
	Port    uint16     // on Address
	// Binds lists every address the upstream listens on.
	Binds []netip.AddrPort
	// Known is false until a catalog has stated the service at all.
	Known bool
	// Endpoints in catalog order, the unhealthy ones included.
	Endpoints []Endpoint
	// Healthy counts the endpoints with Healthy set.
	Healthy int
	// Refused says why nothing is forwarded although the upstream is
	// configured, "" when it is in order.
	Refused string
	Source  string    // of the endpoints: "consul", "snapshot", "static" or ""
	Updated time.Time // see CatalogService.Updated
}

// Inbound is a service in force.
type Inbound struct {
	Service
	Target netip.AddrPort // where the application listens
	// NeedIntentions is Spec.Intentions; Intentions is what the registry says,
	// nil when it has said nothing: then nobody may call.
	NeedIntentions bool
	Intentions     *Intentions
}

// Lookup returns the outbound that the DNS label names, without regard to
// case, or nil.
func (s *Snapshot) Lookup(label string) *Outbound {
	if o := s.names[label]; o != nil {
		return o
	}
	return s.names[strings.ToLower(label)]
}

// LookupIn is Lookup for NAME.DATACENTER: the outbound of that name whose
// datacenter is the one named, or nil.
func (s *Snapshot) LookupIn(label, datacenter string) *Outbound {
	o := s.Lookup(label)
	if o == nil || !strings.EqualFold(cmp.Or(o.Datacenter, s.Spec.Datacenter), datacenter) {
		return nil
	}
	return o
}

// ByAddress returns the outbound that owns the loopback address, or nil.
func (s *Snapshot) ByAddress(a netip.Addr) *Outbound { return s.addresses[a] }

// Offered returns the inbound instances of a service name.
func (s *Snapshot) Offered(name string) []*Inbound {
	var in []*Inbound
	for _, i := range s.Inbound {
		if i.Name == name {
			in = append(in, i)
		}
	}
	return in
}

// Identities returns the service names this host needs a leaf for: what it
// offers and what it calls as, without repetition.
func (s *Spec) Identities() []string {
	names := s.ServiceNames()
	seen := make(map[string]bool, len(names)+1)
	for _, n := range names {
		seen[n] = true
	}
	for i := range s.Upstreams {
		if n, err := s.Caller(&s.Upstreams[i]); err == nil && !seen[n] {
			seen[n] = true
			names = append(names, n)
		}
	}
	return names
}
