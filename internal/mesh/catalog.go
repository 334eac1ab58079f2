package mesh

import (
	"net/netip"
	"time"
)

// Catalog is what exists, as far as this host has been told. It is a value:
// whoever learns something new makes a new one.
type Catalog struct {
	Services map[ServiceKey]CatalogService
	// Chains says how the registry wants an upstream's service to be reached.
	// A missing entry means that nothing was read yet, or that the registry has
	// no such notion.
	Chains map[ServiceKey]Chain
	// Intentions are the registry's permissions for the services of this host,
	// by service name. A missing entry is no information, which denies.
	Intentions map[string]Intentions
}

// Chain is what meshd takes from a Consul discovery chain.
type Chain struct {
	Protocol       Protocol
	ConnectTimeout time.Duration // 0: the chain says nothing
	RequestTimeout time.Duration // 0: the chain says nothing; negative: off
	// Refused names the node kind that meshd does not implement yet ("router",
	// "splitter", "redirect", …), "" when the chain can be obeyed.
	Refused string
	Updated time.Time
}

// Intentions are the permissions to call one service of this host (Consul,
// service intentions). Exactly one entry decides for a caller: the one with the
// highest precedence that matches.
type Intentions struct {
	// Default applies when no entry matches.
	Default Action
	// List in the order of evaluation: highest precedence first.
	List    []Intention
	Updated time.Time
}

// Action is what an intention says. The zero value denies.
type Action uint8

// The actions.
const (
	Deny Action = iota
	Allowed
)

// Intention is one permission.
type Intention struct {
	Source     string // service name, or "*"
	Precedence int
	Action     Action
	// HTTP is set when the intention decides by the request (L7 permissions),
	// which meshd does not implement yet: such a pair is refused.
	HTTP bool
}

// CatalogService is one service as the catalog states it.
type CatalogService struct {
	// Port is the natural port of the service: the application's own. 0 is unknown.
	Port uint16
	// Endpoints in stable order (by ID, then address).
	Endpoints []Endpoint
	// Source says who stated it: "consul" or "static".
	Source string
	// Updated is when the source last confirmed this answer; zero for static.
	Updated time.Time
}

// Endpoint is one address of a service with an id and an identity.
type Endpoint struct {
	ID         string         // the service instance behind the peer
	Address    netip.AddrPort // the peer's mTLS port
	Service    string         // the identity the peer must present
	Datacenter string         // of that identity; "" is not compared
	Weight     int            // 1 or more
	Healthy    bool           // as the catalog states it
	Meta       map[string]string
}

// Key identifies the endpoint of an upstream over catalog changes. A changed
// address makes another endpoint, since what failed at the old one says
// nothing about the new one.
func (e *Endpoint) Key() string {
	return e.ID + "@" + e.Address.String()
}

// StaticCatalog turns the hand-written services of a spec into a catalog. All
// endpoints are healthy: nobody checks them but the data path itself.
func StaticCatalog(services []StaticService) *Catalog {
	c := &Catalog{Services: make(map[ServiceKey]CatalogService, len(services))}
	for _, s := range services {
		eps := make([]Endpoint, 0, len(s.Endpoints))
		for _, e := range s.Endpoints {
			eps = append(eps, Endpoint{
				ID: e.ID, Address: e.Address, Service: s.Name,
				Weight: max(e.Weight, 1), Healthy: true, Meta: e.Meta,
			})
		}
		c.Services[ServiceKey{Name: s.Name}] = CatalogService{Port: s.Port, Endpoints: eps, Source: "static"}
	}
	return c
}
