package agent

import (
	"maps"
	"sync"

	"meshd/internal/mesh"
)

// catalog collects what Consul's watches say, one service at a time, until the
// publishing goroutine takes a copy. The map starts empty; changed must be set.
type catalog struct {
	changed chan struct{} // capacity 1: something differs since take

	mu       sync.Mutex // guards services
	services map[mesh.ServiceKey]mesh.CatalogService
}

// put is called by a watch.
func (c *catalog) put(key mesh.ServiceKey, s mesh.CatalogService) {
	c.mu.Lock()
	if c.services == nil {
		c.services = make(map[mesh.ServiceKey]mesh.CatalogService)
	}
	c.services[key] = s
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// take returns what is known.
func (c *catalog) take() *mesh.Catalog {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &mesh.Catalog{Services: maps.Clone(c.services)}
}

// retain forgets what nobody wants any more. Wanted again it is unknown: an old
// answer could be hours old.
func (c *catalog) retain(wanted []mesh.ServiceKey) {
	keep := make(map[mesh.ServiceKey]bool, len(wanted))
	for _, k := range wanted {
		keep[k] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.services, func(k mesh.ServiceKey, _ mesh.CatalogService) bool { return !keep[k] })
}

// complete reports whether every wanted service was stated.
func (c *catalog) complete(wanted []mesh.ServiceKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range wanted {
		if _, ok := c.services[k]; !ok {
			return false
		}
	}
	return true
}

// watched returns the services that a registry must state: those of all
// upstreams without those that are written by hand.
func watched(spec *mesh.Spec) []mesh.ServiceKey {
	static := mesh.StaticCatalog(spec.Static).Services
	seen := make(map[mesh.ServiceKey]bool)
	var keys []mesh.ServiceKey
	for i := range spec.Upstreams {
		k := spec.Upstreams[i].Key()
		if _, ok := static[k]; !ok && !seen[k] {
			seen[k] = true
			keys = append(keys, k)
		}
	}
	return keys
}
