package consul

import (
	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
)

// After a restart a Consul agent calls every check that it makes itself critical
// until it has made it once, up to an interval later. That is no finding: to
// believe it would empty a service whenever the agent of its only host is
// upgraded. What was healthy stays so until the check has been made.

// unmade reports whether Consul has not made the check yet. Those of the kinds
// below always have an output once they were made; scripts may be silent, and
// for ttl checks silence is the finding.
func unmade(c *api.HealthCheck) bool {
	if c.Status != api.HealthCritical || c.Output != "" {
		return false
	}
	switch c.Type {
	case "tcp", "udp", "http", "grpc", "h2ping":
		return true
	}
	return false
}

// unjudged returns the endpoints, by key, that are critical only by checks that
// were not made yet.
func unjudged(entries []*api.ServiceEntry, key mesh.ServiceKey, remote bool) map[string]bool {
	found := make(map[string]bool)
	for _, e := range entries {
		if e == nil || e.Node == nil || e.Service == nil {
			continue
		}
		at, why := address(e, remote)
		if why != "" {
			continue
		}
		waits, other := false, false
		for _, c := range e.Checks {
			switch {
			case c == nil || c.Status == api.HealthPassing || c.Status == api.HealthWarning:
			case unmade(c):
				waits = true
			default:
				other = true
			}
		}
		if waits && !other {
			ep := mesh.Endpoint{ID: instance(e.Service), Address: at}
			found[ep.Key()] = true
		}
	}
	return found
}

// keepUnjudged makes those of unjudged healthy again that were so before.
func keepUnjudged(eps []mesh.Endpoint, unjudged map[string]bool, before []mesh.Endpoint) {
	if len(unjudged) == 0 {
		return
	}
	was := make(map[string]bool, len(before))
	for i := range before {
		was[before[i].Key()] = before[i].Healthy
	}
	for i := range eps {
		if k := eps[i].Key(); unjudged[k] && was[k] {
			eps[i].Healthy = true
		}
	}
}
