package consul

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
)

// sourceName is what CatalogService.Source says of everything from here.
const sourceName = "consul"

// maxWeight is where Consul's own proxy configuration cuts weights off; the
// sum over thousands of endpoints stays far from any overflow.
const maxWeight = 128

// health watches the endpoints of one service.
type health struct {
	c   *Client
	key mesh.ServiceKey

	last  mesh.CatalogService
	known bool // last was passed on
	seen  memory
	gone  vanished
}

func newHealth(c *Client, key mesh.ServiceKey) *health { return &health{c: c, key: key} }

func (h *health) source() source {
	return source{fetch: h.fetch, rules: endpointRules(h.key.Name), streams: true}
}

// remote reports whether the service is in another datacenter than the agent.
func (c *Client) remote(datacenter string) bool {
	return datacenter != "" && datacenter != c.o.Datacenter
}

// errFiltered stands for what Consul says in a header only.
var errFiltered = errors.New("the answer lacks what the token may not read")

func (h *health) fetch(ctx context.Context, q *api.QueryOptions) (answer, error) {
	remote := h.c.remote(h.key.Datacenter)
	if remote {
		q.Datacenter = h.key.Datacenter
	}
	var n notes
	q = q.WithContext(context.WithValue(ctx, notesKey{}, &n))
	// Critical instances are in the answer, too: who is critical, and why,
	// decides what is held.
	entries, meta, err := h.c.api.Health().Connect(h.key.Name, "", false, q)
	if err != nil {
		return answer{}, err
	}
	if entries == nil {
		return answer{}, distrust("the answer is null instead of a list")
	}
	now := time.Now()
	eps, port, skipped := endpoints(entries, h.key, remote)
	keepUnjudged(eps, unjudged(entries, h.key, remote), h.last.Endpoints)
	held, look := h.gone.hold(eps, lostNodes(entries, h.key, remote), h.last.Endpoints, now, h.c.o.Stale.ShrinkAfter)
	loss := len(eps) == 0 || h.known && loses(h.last.Endpoints, eps)
	if loss && n.streamed {
		return answer{again: true}, nil
	}
	if err := h.doubt(eps, loss, meta.LastIndex, &n, now); err != nil {
		return answer{}, err
	}
	for _, s := range skipped {
		h.c.o.Log.Warn("consul endpoint left out", "service", h.key.Name, "id", s.id, "why", s.why)
	}
	if len(eps) == 0 && h.known {
		port = h.last.Port // nobody stated another one
	}
	svc := mesh.CatalogService{Port: port, Endpoints: eps, Source: sourceName, Updated: now}
	changed := !h.known || !same(h.last, svc)
	h.last, h.known = svc, true
	h.seen.believed(meta.LastIndex)
	if changed && h.c.o.OnService != nil {
		// The receiver gets its own slice: what it does to it must not hide
		// the next change.
		svc.Endpoints = slices.Clone(svc.Endpoints)
		h.c.o.OnService(h.key, svc)
	}
	got := answer{index: meta.LastIndex, changed: changed, held: held, look: look}
	if n.filtered {
		got.lacking = endpointRules(h.key.Name)
	}
	return got, nil
}

// doubt says why an answer is not believed, or nil. A removal that Consul
// states is believed at once; one that follows from missing rights, or from a
// server which has lost its leader or its memory, is not.
func (h *health) doubt(eps []mesh.Endpoint, loss bool, index uint64, n *notes, now time.Time) error {
	if loss && n.filtered {
		return &deniedError{errFiltered}
	}
	if len(eps) == 0 {
		switch {
		case index <= 1:
			return distrust("an empty list with index %d is not believed", index)
		case n.leaderless:
			return distrust("an empty list from a server without a leader is not believed")
		}
	}
	if !h.known || !loss {
		return nil
	}
	return h.seen.doubt(index, n.leaderless, now, h.c.pace.settle)
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
			ID: instance(e.Service), Address: address, Service: identity(e.Service, key),
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

// identity is the service that the peer presents a certificate of. The service
// that was asked for has the name it was asked by; a prepared query does not
// say which one it finds.
func identity(s *api.AgentService, key mesh.ServiceKey) string {
	switch {
	case !key.Query:
		return key.Name
	case s.Proxy != nil && s.Proxy.DestinationServiceName != "":
		return s.Proxy.DestinationServiceName
	}
	return s.Service
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
