package consul

import (
	"cmp"
	"context"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
)

// source is what CatalogService.Source says of everything from here.
const source = "consul"

// maxWeight is where Consul's own proxy configuration cuts weights off; the
// sum over thousands of endpoints stays far from any overflow.
const maxWeight = 128

// health watches the endpoints of one service.
type health struct {
	c   *Client
	key mesh.ServiceKey

	last  mesh.CatalogService
	known bool   // last was passed on
	index uint64 // of last
	// rewound is when the registry's index was first seen below index, zero
	// when it is not. Servers that were restored or restarted empty tell the
	// truth about themselves but not yet about the mesh.
	rewound time.Time
}

func newHealth(c *Client, key mesh.ServiceKey) *health { return &health{c: c, key: key} }

// remote reports whether the service is in another datacenter than the agent.
func (h *health) remote() bool {
	return h.key.Datacenter != "" && h.key.Datacenter != h.c.o.Datacenter
}

func (h *health) fetch(ctx context.Context, q *api.QueryOptions) (answer, error) {
	// Any server may answer: reads scale with servers then, and one that lags
	// shows by its index.
	q.AllowStale = true
	if h.remote() {
		q.Datacenter = h.key.Datacenter
	}
	var l leader
	q = q.WithContext(context.WithValue(ctx, leaderKey{}, &l))
	entries, meta, err := h.c.api.Health().Connect(h.key.Name, "", false, q)
	if err != nil {
		return answer{}, err
	}
	if entries == nil {
		return answer{}, distrust("the answer is null instead of a list")
	}
	now := time.Now()
	eps, port, skipped := endpoints(entries, h.key, h.remote())
	if err := h.doubt(eps, meta.LastIndex, l.lost, now); err != nil {
		return answer{}, err
	}
	for _, s := range skipped {
		h.c.o.Log.Warn("consul endpoint left out", "service", h.key.Name, "id", s.id, "why", s.why)
	}
	if len(eps) == 0 && h.known {
		port = h.last.Port // nobody stated another one
	}
	svc := mesh.CatalogService{Port: port, Endpoints: eps, Source: source, Updated: now}
	changed := !h.known || !same(h.last, svc)
	h.last, h.known, h.index, h.rewound = svc, true, meta.LastIndex, time.Time{}
	if changed && h.c.o.OnService != nil {
		// The receiver gets its own slice: what it does to it must not hide
		// the next change.
		svc.Endpoints = slices.Clone(svc.Endpoints)
		h.c.o.OnService(h.key, svc)
	}
	return answer{index: meta.LastIndex, changed: changed}, nil
}

// doubt says why an answer is not believed, or nil. A removal that Consul
// states is believed at once; one that follows from a server which has lost
// its leader or its memory is not.
func (h *health) doubt(eps []mesh.Endpoint, index uint64, lost bool, now time.Time) error {
	if len(eps) == 0 {
		switch {
		case index <= 1:
			return distrust("an empty list with index %d is not believed", index)
		case lost:
			return distrust("an empty list from a server without a leader is not believed")
		}
	}
	if !h.known || h.index == 0 {
		return nil
	}
	if !loses(h.last.Endpoints, eps) {
		return nil
	}
	if lost {
		return distrust("a removal stated by a server without a leader is not believed")
	}
	if index >= h.index {
		return nil
	}
	if h.rewound.IsZero() {
		h.rewound = now
	}
	if left := h.c.pace.settle - now.Sub(h.rewound); left > 0 {
		return distrust("the index went back from %d to %d: removals are held for %s more", h.index, index, left.Round(time.Second))
	}
	return nil
}

// loses reports whether an endpoint of old is missing or no longer healthy.
func loses(old, now []mesh.Endpoint) bool {
	have := make(map[string]bool, len(now))
	for i := range now {
		have[now[i].Key()] = now[i].Healthy
	}
	for i := range old {
		healthy, there := have[old[i].Key()]
		if !there || old[i].Healthy && !healthy {
			return true
		}
	}
	return false
}

// same compares what two answers state, not when.
func same(a, b mesh.CatalogService) bool {
	a.Updated, b.Updated = time.Time{}, time.Time{}
	return reflect.DeepEqual(a, b)
}

// omission is an instance that cannot become an endpoint.
type omission struct{ id, why string }

// endpoints turns Consul's answer into ours: in stable order, with the natural
// port that all instances agree on (0 if they do not).
func endpoints(entries []*api.ServiceEntry, key mesh.ServiceKey, remote bool) (eps []mesh.Endpoint, port uint16, skipped []omission) {
	eps = make([]mesh.Endpoint, 0, len(entries))
	agreed := true
	for _, e := range entries {
		if e == nil || e.Node == nil || e.Service == nil {
			skipped = append(skipped, omission{"?", "node or service is missing"})
			continue
		}
		address, why := address(e, remote)
		if why != "" {
			skipped = append(skipped, omission{e.Service.ID, why})
			continue
		}
		weight, healthy := standing(e)
		eps = append(eps, mesh.Endpoint{
			ID: instance(e.Service), Address: address, Service: key.Name,
			Datacenter: cmp.Or(e.Node.Datacenter, key.Datacenter),
			Weight:     weight, Healthy: healthy, Meta: e.Service.Meta,
		})
		if p := natural(e.Service); p != 0 {
			agreed = agreed && (port == 0 || port == p)
			port = p
		}
	}
	if !agreed {
		port = 0
	}
	slices.SortFunc(eps, func(a, b mesh.Endpoint) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), a.Address.Compare(b.Address))
	})
	// One address twice under one id is one endpoint.
	eps = slices.CompactFunc(eps, func(a, b mesh.Endpoint) bool { return a.ID == b.ID && a.Address == b.Address })
	return eps, port, skipped
}

// instance is the id under which the receiving side knows the instance.
func instance(s *api.AgentService) string {
	if s.Meta[metaMark] == markValue && s.Meta[metaInstance] != "" {
		return s.Meta[metaInstance]
	}
	if s.Kind == api.ServiceKindConnectProxy && s.Proxy != nil && s.Proxy.DestinationServiceID != "" {
		return s.Proxy.DestinationServiceID
	}
	return s.ID
}

// natural is the application's own port, 0 if it is not stated.
func natural(s *api.AgentService) uint16 {
	p := s.Port // an application that speaks mTLS itself
	if s.Kind != api.ServiceKindTypical {
		p = 0
		if s.Proxy != nil {
			p = s.Proxy.LocalServicePort
		}
	}
	if p < 1 || p > 65535 {
		return 0
	}
	return uint16(p)
}

// address is where the peer of an instance listens. In another datacenter only
// the wan addresses can be reached.
func address(e *api.ServiceEntry, remote bool) (netip.AddrPort, string) {
	host, port := e.Service.Address, e.Service.Port
	if remote {
		if wan, ok := e.Service.TaggedAddresses["wan"]; ok && wan.Address != "" {
			host = wan.Address
			if wan.Port != 0 {
				port = wan.Port
			}
		}
		host = cmp.Or(host, e.Node.TaggedAddresses["wan"])
	}
	host = cmp.Or(host, e.Node.Address)
	a, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return netip.AddrPort{}, "address " + host + " is a name, only IP addresses are supported"
	case a.IsUnspecified():
		return netip.AddrPort{}, "address " + host + " is no place to connect to"
	case port < 1 || port > 65535:
		return netip.AddrPort{}, "it has no port"
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(port)), ""
}

// standing gives weight and health by the checks of node and service, as
// Consul's own proxies take them: critical is out, warning has its own weight,
// and a weight below 1 is out.
func standing(e *api.ServiceEntry) (weight int, healthy bool) {
	healthy = true
	weight = e.Service.Weights.Passing
	for _, c := range e.Checks {
		switch c.Status {
		case api.HealthPassing:
		case api.HealthWarning:
			weight = e.Service.Weights.Warning
		default: // critical, maintenance, and words we do not know
			healthy = false
		}
	}
	if e.Service.Weights == (api.AgentWeights{}) {
		weight = 1 // a registry that states no weights at all
	}
	if weight < 1 {
		healthy = false
	}
	return min(max(weight, 1), maxWeight), healthy
}
