package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"meshd/internal/mesh"
)

// The types of this file are the format: package mesh may change, they may not
// without another version.

type payload struct {
	Saved       time.Time           `json:"saved"`
	Contact     time.Time           `json:"contact,omitzero"`
	Services    []serviceEntry      `json:"services"`
	Chains      []chainEntry        `json:"chains"`
	Permissions []permissionService `json:"permissions"`
	TrustDomain string              `json:"trust_domain"`
	Roots       [][]byte            `json:"roots"`
	Leafs       []leafEntry         `json:"leafs"`
}

// destination is a mesh.ServiceKey.
type destination struct {
	Name       string `json:"name"`
	Datacenter string `json:"datacenter,omitempty"`
	Query      bool   `json:"query,omitempty"`
}

type serviceEntry struct {
	destination
	Port      uint16          `json:"port,omitempty"`
	Updated   time.Time       `json:"updated"`
	Endpoints []endpointEntry `json:"endpoints"`
}

type endpointEntry struct {
	ID         string            `json:"id"`
	Address    netip.AddrPort    `json:"address"`
	Service    string            `json:"service"`
	Datacenter string            `json:"datacenter,omitempty"`
	Weight     int               `json:"weight"`
	Healthy    bool              `json:"healthy"`
	Meta       map[string]string `json:"meta,omitempty"`
}

type chainEntry struct {
	destination
	Protocol       string    `json:"protocol"`
	ConnectTimeout duration  `json:"connect_timeout,omitempty"`
	RequestTimeout duration  `json:"request_timeout,omitempty"`
	Refused        string    `json:"refused,omitempty"`
	Updated        time.Time `json:"updated"`
}

type permissionService struct {
	Service string            `json:"service"`
	Default string            `json:"default"`
	List    []permissionEntry `json:"list"`
	Updated time.Time         `json:"updated"`
}

type permissionEntry struct {
	Source     string `json:"source"`
	Precedence int    `json:"precedence"`
	Action     string `json:"action"`
	HTTP       bool   `json:"http,omitempty"`
}

type leafEntry struct {
	Service string   `json:"service"`
	Chain   [][]byte `json:"chain"`
	Key     []byte   `json:"sealed_key,omitempty"` // see seal
}

// duration is written as time.Duration prints it.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = duration(v)
	return err
}

// The words for a mesh.Action.
const (
	wordAllow = "allow"
	wordDeny  = "deny"
)

// maxWeight bounds weights, so that no sum of them can overflow.
const maxWeight = 1 << 16

func toPayload(s State, key []byte) (*payload, error) {
	p := &payload{
		Saved: wall(s.Saved), Contact: wall(s.Contact), TrustDomain: s.TrustDomain, Roots: s.Roots,
		Services: []serviceEntry{}, Chains: []chainEntry{}, Permissions: []permissionService{}, Leafs: []leafEntry{},
	}
	c := s.Catalog
	if c == nil {
		c = &mesh.Catalog{}
	}
	for k, f := range c.Services {
		e := serviceEntry{destination: destination(k), Port: f.Port, Updated: wall(f.Updated), Endpoints: make([]endpointEntry, len(f.Endpoints))}
		for i, ep := range f.Endpoints {
			e.Endpoints[i] = endpointEntry(ep)
		}
		p.Services = append(p.Services, e)
	}
	for k, f := range c.Chains {
		p.Chains = append(p.Chains, chainEntry{
			destination: destination(k), Protocol: f.Protocol.String(), ConnectTimeout: duration(f.ConnectTimeout),
			RequestTimeout: duration(f.RequestTimeout), Refused: f.Refused, Updated: wall(f.Updated),
		})
	}
	for name, f := range c.Intentions {
		e := permissionService{Service: name, Default: word(f.Default), Updated: wall(f.Updated), List: make([]permissionEntry, len(f.List))}
		for i, in := range f.List {
			e.List[i] = permissionEntry{in.Source, in.Precedence, word(in.Action), in.HTTP}
		}
		p.Permissions = append(p.Permissions, e)
	}
	for _, l := range s.Leafs {
		e := leafEntry{Service: l.Service, Chain: l.Chain}
		if key != nil && l.Key != nil {
			var err error
			if e.Key, err = seal(key, l.Service, l.Key); err != nil {
				return nil, err
			}
		}
		p.Leafs = append(p.Leafs, e)
	}
	// Maps have no order; equal states shall read alike.
	slices.SortFunc(p.Services, func(a, b serviceEntry) int { return compare(a.destination, b.destination) })
	slices.SortFunc(p.Chains, func(a, b chainEntry) int { return compare(a.destination, b.destination) })
	slices.SortFunc(p.Permissions, func(a, b permissionService) int { return cmp.Compare(a.Service, b.Service) })
	slices.SortFunc(p.Leafs, func(a, b leafEntry) int { return cmp.Compare(a.Service, b.Service) })
	_, err := p.state(nil) // what could not be read must not replace what can
	return p, err
}

// state checks everything and returns it.
func (p *payload) state(key []byte) (State, error) {
	s := State{
		Saved: wall(p.Saved), Contact: wall(p.Contact), TrustDomain: p.TrustDomain,
		Catalog: &mesh.Catalog{
			Services:   make(map[mesh.ServiceKey]mesh.CatalogService, len(p.Services)),
			Chains:     make(map[mesh.ServiceKey]mesh.Chain, len(p.Chains)),
			Intentions: make(map[string]mesh.Intentions, len(p.Permissions)),
		},
	}
	for i := range p.Services {
		if err := p.Services[i].add(s.Catalog); err != nil {
			return State{}, fmt.Errorf("service %q: %w", p.Services[i].Name, err)
		}
	}
	for i := range p.Chains {
		if err := p.Chains[i].add(s.Catalog); err != nil {
			return State{}, fmt.Errorf("chain %q: %w", p.Chains[i].Name, err)
		}
	}
	for i := range p.Permissions {
		if err := p.Permissions[i].add(s.Catalog); err != nil {
			return State{}, fmt.Errorf("permissions of %q: %w", p.Permissions[i].Service, err)
		}
	}
	if slices.ContainsFunc(p.Roots, isEmpty) {
		return State{}, errors.New("a root is empty")
	}
	s.Roots = p.Roots
	seen := make(map[string]bool, len(p.Leafs))
	for _, e := range p.Leafs {
		if e.Service == "" || seen[e.Service] {
			return State{}, fmt.Errorf("leaf of %q: named twice or not at all", e.Service)
		}
		seen[e.Service] = true
		if len(e.Chain) == 0 || slices.ContainsFunc(e.Chain, isEmpty) {
			return State{}, fmt.Errorf("leaf of %q: a certificate is empty", e.Service)
		}
		s.Leafs = append(s.Leafs, Leaf{Service: e.Service, Chain: e.Chain, Key: unseal(key, e.Service, e.Key)})
	}
	return s, nil
}

var (
	errTwice   = errors.New("named twice or not at all")
	errUndated = errors.New("it has no time, so it would never be too old")
)

func (e *serviceEntry) add(c *mesh.Catalog) error {
	k := mesh.ServiceKey(e.destination)
	if _, twice := c.Services[k]; twice || k.Name == "" {
		return errTwice
	}
	if e.Updated.IsZero() {
		return errUndated
	}
	f := mesh.CatalogService{Port: e.Port, Source: Source, Updated: wall(e.Updated), Endpoints: make([]mesh.Endpoint, len(e.Endpoints))}
	for i, ep := range e.Endpoints {
		switch {
		case ep.Service == "":
			return fmt.Errorf("endpoint %q has no identity", ep.ID)
		case !ep.Address.IsValid() || ep.Address.Port() == 0 || ep.Address.Addr().IsUnspecified():
			return fmt.Errorf("endpoint %q: %q is no address to connect to", ep.ID, ep.Address)
		case ep.Weight < 1 || ep.Weight > maxWeight:
			return fmt.Errorf("endpoint %q: weight %d", ep.ID, ep.Weight)
		}
		f.Endpoints[i] = mesh.Endpoint(ep)
	}
	c.Services[k] = f
	return nil
}

func (e *chainEntry) add(c *mesh.Catalog) error {
	k := mesh.ServiceKey(e.destination)
	if _, twice := c.Chains[k]; twice || k.Name == "" {
		return errTwice
	}
	protocol, ok := mesh.ParseProtocol(e.Protocol)
	if !ok {
		return fmt.Errorf("protocol %q", e.Protocol)
	}
	if e.ConnectTimeout < 0 {
		return fmt.Errorf("connect timeout %s", time.Duration(e.ConnectTimeout))
	}
	c.Chains[k] = mesh.Chain{
		Protocol: protocol, ConnectTimeout: time.Duration(e.ConnectTimeout),
		RequestTimeout: time.Duration(e.RequestTimeout), Refused: e.Refused, Updated: wall(e.Updated),
	}
	return nil
}

func (e *permissionService) add(c *mesh.Catalog) error {
	if _, twice := c.Intentions[e.Service]; twice || e.Service == "" {
		return errTwice
	}
	if e.Updated.IsZero() {
		return errUndated
	}
	f := mesh.Intentions{Updated: wall(e.Updated), List: make([]mesh.Intention, len(e.List))}
	var err error
	if f.Default, err = action(e.Default); err != nil {
		return err
	}
	for i, in := range e.List {
		if in.Source == "" {
			return errors.New("a permission has no source")
		}
		do, err := action(in.Action)
		if err != nil {
			return err
		}
		f.List[i] = mesh.Intention{Source: in.Source, Precedence: in.Precedence, Action: do, HTTP: in.HTTP}
	}
	c.Intentions[e.Service] = f
	return nil
}

// word gives anything that is not allowed as denied.
func word(a mesh.Action) string {
	if a == mesh.Allowed {
		return wordAllow
	}
	return wordDeny
}

func action(s string) (mesh.Action, error) {
	switch s {
	case wordAllow:
		return mesh.Allowed, nil
	case wordDeny:
		return mesh.Deny, nil
	}
	return mesh.Deny, fmt.Errorf("action %q", s)
}

// wall drops what a time has beyond the wall clock's.
func wall(t time.Time) time.Time { return t.UTC().Round(0) }

func isEmpty(der []byte) bool { return len(der) == 0 }

func compare(a, b destination) int {
	q := func(d destination) int {
		if d.Query {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Datacenter, b.Datacenter), q(a)-q(b))
}
