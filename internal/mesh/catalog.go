package mesh

import (
	"net/netip"
	"time"
)

// Catalog is what exists, as far as this host has been told. It is a value:
// whoever learns something new makes a new one.
type Catalog struct {
	Services map[ServiceKey]CatalogService
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
