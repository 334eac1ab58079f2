package agent

import (
	"maps"
	"slices"
	"sync"

	"meshd/internal/mesh"
)

// catalog collects what Consul's watches say, one service at a time, until the
// publishing goroutine takes a copy. The map starts empty; changed must be set.
type catalog struct {
	changed chan struct{} // capacity 1: something differs since take

	mu         sync.Mutex // guards the maps
	services   map[mesh.ServiceKey]mesh.CatalogService
	chains     map[mesh.ServiceKey]mesh.Chain
	intentions map[string]mesh.Intentions // by local service
}

// put is called by a watch, as are the two that follow.
func (c *catalog) put(key mesh.ServiceKey, s mesh.CatalogService) {
	c.learn(func() {
		if c.services == nil {
			c.services = make(map[mesh.ServiceKey]mesh.CatalogService)
		}
		c.services[key] = s
	})
}

func (c *catalog) putChain(key mesh.ServiceKey, chain mesh.Chain) {
	c.learn(func() {
		if c.chains == nil {
			c.chains = make(map[mesh.ServiceKey]mesh.Chain)
		}
		c.chains[key] = chain
	})
}

func (c *catalog) putIntentions(service string, in mesh.Intentions) {
	c.learn(func() {
		if c.intentions == nil {
			c.intentions = make(map[string]mesh.Intentions)
		}
		c.intentions[service] = in
	})
}

func (c *catalog) learn(change func()) {
	c.mu.Lock()
	change()
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// take returns what is known; the maps are the caller's.
func (c *catalog) take() *mesh.Catalog {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &mesh.Catalog{Services: maps.Clone(c.services), Chains: maps.Clone(c.chains), Intentions: maps.Clone(c.intentions)}
}

// retain forgets what nobody wants any more. Wanted again it is unknown: an old
// answer could be hours old.
func (c *catalog) retain(wanted []mesh.ServiceKey, offered []string) {
	keep := make(map[mesh.ServiceKey]bool, len(wanted))
	for _, k := range wanted {
		keep[k] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.services, func(k mesh.ServiceKey, _ mesh.CatalogService) bool { return !keep[k] })
	maps.DeleteFunc(c.chains, func(k mesh.ServiceKey, _ mesh.Chain) bool { return !keep[k] })
	maps.DeleteFunc(c.intentions, func(service string, _ mesh.Intentions) bool { return !slices.Contains(offered, service) })
}

// has reports whether something is known of every wanted service.
func (c *catalog) has(wanted []mesh.ServiceKey) bool {
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
