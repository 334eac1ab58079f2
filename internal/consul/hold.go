package consul

import (
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
)

const (
	// serfCheck is the check that Consul's gossip makes on every node.
	serfCheck = "serfHealth"
	// holdFrom is how many endpoints a service needs for a loss of them to look
	// like one of the gossip instead of the nodes.
	holdFrom = 5
)

// vanished remembers when the nodes of endpoints went, by the gossip alone.
// Gossip that breaks takes many nodes at once that still serve; a rack that
// fails takes few of a service, or is noticed by the data path.
type vanished struct {
	since map[string]time.Time // by endpoint key
}

// hold makes those of lost healthy again that shall be held: over half of at
// least holdFrom endpoints that were healthy, each for at most after. They come
// one by one, since gossip notices them so, and what counts is how many are
// gone at the same time. It returns how many are held and when the first of
// them no longer is.
func (v *vanished) hold(eps []mesh.Endpoint, lost map[string]bool, before []mesh.Endpoint, now time.Time, after time.Duration) (held int, look time.Duration) {
	was := make(map[string]bool, len(before))
	for i := range before {
		was[before[i].Key()] = before[i].Healthy
	}
	since := make(map[string]time.Time)
	healthy, fresh := 0, 0
	for i := range eps {
		switch key := eps[i].Key(); {
		case eps[i].Healthy:
			healthy++
		case !lost[key]:
		case !v.since[key].IsZero():
			since[key] = v.since[key]
		case was[key]:
			since[key] = now
		}
	}
	v.since = since // what came back or is really gone is forgotten
	for _, at := range since {
		if now.Sub(at) < after {
			fresh++
		}
	}
	if all := healthy + fresh; all < holdFrom || 2*fresh <= all {
		return 0, 0
	}
	for i := range eps {
		at, ok := since[eps[i].Key()]
		left := after - now.Sub(at)
		if !ok || left <= 0 {
			continue
		}
		eps[i].Healthy = true
		held++
		if look == 0 || left < look {
			look = left
		}
	}
	return held, look
}

// lostNodes returns the endpoints, by key, whose only critical check is that of
// the gossip on their node.
func lostNodes(entries []*api.ServiceEntry, key mesh.ServiceKey, remote bool) map[string]bool {
	lost := make(map[string]bool)
	for _, e := range entries {
		if e == nil || e.Node == nil || e.Service == nil {
			continue
		}
		at, why := address(e, remote)
		if why != "" {
			continue
		}
		gossip, other := false, false
		for _, c := range e.Checks {
			switch {
			case c == nil || c.Status == api.HealthPassing || c.Status == api.HealthWarning:
			case c.CheckID == serfCheck && c.ServiceID == "":
				gossip = true
			default:
				other = true
			}
		}
		if gossip && !other {
			ep := mesh.Endpoint{ID: instance(e.Service), Address: at}
			lost[ep.Key()] = true
		}
	}
	return lost
}
