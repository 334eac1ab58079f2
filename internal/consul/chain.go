package consul

import (
	"context"
	"encoding/json"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
)

// chainSource watches how the registry wants one service to be reached.
type chainSource struct {
	c   *Client
	key mesh.ServiceKey

	last  mesh.Chain
	known bool
	seen  memory
}

func (s *chainSource) source() source {
	return source{fetch: s.fetch, rules: endpointRules(s.key.Name)[:1]}
}

// compiled is as much of a compiled chain as meshd looks at. The library's own
// type does not have the request timeout.
type compiled struct {
	ServiceName, Datacenter string
	Default                 bool
	Protocol, StartNode     string
	Nodes                   map[string]*struct {
		Type     string
		Resolver *struct {
			Default        bool
			ConnectTimeout text
			RequestTimeout text
			Target         string
		}
	}
	Targets map[string]*struct {
		Service, ServiceSubset, Datacenter, Peer string
		Namespace, Partition                     string
		MeshGateway                              struct{ Mode string }
		External                                 bool
	}
}

// text is a duration that Consul writes as "5s" in one field and as a number of
// nanoseconds in the next.
type text time.Duration

func (t *text) UnmarshalJSON(b []byte) error {
	var n int64
	if json.Unmarshal(b, &n) == nil {
		*t = text(n)
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil || s == "" {
		return err
	}
	d, err := time.ParseDuration(s)
	*t = text(d)
	return err
}

func (s *chainSource) fetch(ctx context.Context, q *api.QueryOptions) (answer, error) {
	more := url.Values{}
	if s.key.Datacenter != "" {
		// The entries of the agent's own datacenter are asked about it.
		more.Set("compile-dc", s.key.Datacenter)
	}
	var n notes
	var out struct{ Chain *compiled }
	index, err := s.c.get(context.WithValue(ctx, notesKey{}, &n), query{
		path: "/v1/discovery-chain/" + url.PathEscape(s.key.Name), more: more, index: q.WaitIndex, wait: q.WaitTime,
	}, &out)
	if err != nil {
		return answer{}, err
	}
	if out.Chain == nil {
		return answer{}, distrust("the answer holds no chain")
	}
	chain, err := obeyable(out.Chain, s.key)
	if err != nil {
		return answer{}, err
	}
	now := time.Now()
	chain.Updated = s.last.Updated
	changed := !s.known || chain != s.last
	if changed && s.known {
		if err := s.seen.doubt(index, n.leaderless, now, s.c.pace.settle); err != nil {
			return answer{}, err
		}
	}
	chain.Updated = now
	s.last, s.known = chain, true
	s.seen.believed(index)
	if changed && s.c.o.OnChain != nil {
		s.c.o.OnChain(s.key, chain)
	}
	return answer{index: index, changed: changed}, nil
}

// obeyable takes from a compiled chain what meshd can do, and names what it
// cannot. Failover targets are not needed as long as the first has endpoints,
// and load balancing changes no result: both are left out without a word.
func obeyable(c *compiled, key mesh.ServiceKey) (mesh.Chain, error) {
	var m mesh.Chain
	start := c.Nodes[c.StartNode]
	if start == nil {
		return m, distrust("the chain has no node %q to start with", c.StartNode)
	}
	var ok bool
	if m.Protocol, ok = mesh.ParseProtocol(strings.ToLower(c.Protocol)); !ok {
		m.Refused = "protocol " + c.Protocol
		return m, nil
	}
	if start.Type != api.DiscoveryGraphNodeTypeResolver {
		m.Refused = start.Type
		return m, nil
	}
	r := start.Resolver
	if r == nil {
		return m, distrust("the resolver of the chain is missing")
	}
	target := c.Targets[r.Target]
	if target == nil {
		return m, distrust("the chain has no target %q", r.Target)
	}
	switch {
	case target.External:
		m.Refused = "external service"
	case target.Service != key.Name || target.Peer != "" ||
		target.Datacenter != c.Datacenter || key.Datacenter != "" && target.Datacenter != key.Datacenter:
		m.Refused = "redirect"
	case target.ServiceSubset != "":
		m.Refused = "subset"
	case target.MeshGateway.Mode == string(api.MeshGatewayModeLocal) || target.MeshGateway.Mode == string(api.MeshGatewayModeRemote):
		// Only what crosses datacenters takes that way.
		if key.Datacenter != "" && key.Datacenter != c.Datacenter {
			m.Refused = "mesh gateway"
		}
	}
	if !r.Default {
		m.ConnectTimeout, m.RequestTimeout = time.Duration(r.ConnectTimeout), time.Duration(r.RequestTimeout)
	}
	return m, nil
}
