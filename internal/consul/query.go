package consul

import (
	"context"
	"net/url"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
)

// querySource polls the endpoints that a prepared query finds. Consul's servers
// leave out critical instances and fail over to other datacenters themselves.
type querySource struct {
	c   *Client
	key mesh.ServiceKey

	last  mesh.CatalogService
	known bool
	// empty is true after one answer without endpoints: the next one is
	// believed. An answer of a query has no index to judge it by.
	empty bool
}

func (s *querySource) source() source {
	return source{fetch: s.fetch, rules: queryRules(), polled: true}
}

func (s *querySource) fetch(ctx context.Context, _ *api.QueryOptions) (answer, error) {
	var n notes
	var out struct {
		Service    string
		Nodes      []*api.ServiceEntry
		Datacenter string
		Failovers  int
	}
	q := query{path: "/v1/query/" + url.PathEscape(s.key.Name) + "/execute", more: url.Values{"connect": {"true"}}, near: "_agent"}
	if s.c.remote(s.key.Datacenter) {
		q.datacenter = s.key.Datacenter
	}
	_, err := s.c.get(context.WithValue(ctx, notesKey{}, &n), q, &out)
	if err != nil {
		return answer{}, err
	}
	if out.Service == "" {
		return answer{}, distrust("the answer names no service")
	}
	now := time.Now()
	remote := s.c.remote(s.key.Datacenter) || out.Failovers > 0 && s.c.remote(out.Datacenter)
	eps, port, skipped := endpoints(out.Nodes, s.key, remote)
	switch loss := len(eps) == 0 || s.known && loses(s.last.Endpoints, eps); {
	case loss && n.filtered:
		return answer{}, &deniedError{errFiltered}
	case loss && n.leaderless:
		return answer{}, distrust("a removal stated by a server without a leader is not believed")
	case len(eps) == 0 && !s.empty:
		s.empty = true
		return answer{again: true}, nil
	}
	s.empty = false
	for _, o := range skipped {
		s.c.o.Log.Warn("consul endpoint left out", "query", s.key.Name, "id", o.id, "why", o.why)
	}
	if len(eps) == 0 && s.known {
		port = s.last.Port
	}
	svc := mesh.CatalogService{Port: port, Endpoints: eps, Source: sourceName, Updated: now}
	changed := !s.known || !same(s.last, svc)
	s.last, s.known = svc, true
	if changed && s.c.o.OnService != nil {
		svc.Endpoints = slices.Clone(svc.Endpoints)
		s.c.o.OnService(s.key, svc)
	}
	got := answer{changed: changed}
	if n.filtered {
		got.lacking = queryRules()
	}
	return got, nil
}
