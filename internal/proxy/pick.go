package proxy

import "meshd/internal/balance"

// pickView shows the endpoints of one plan to the balancer. It lives in the
// worker so that handing it over as an interface allocates nothing.
type pickView struct {
	w    *worker
	x    *exchange
	now  int64
	skip *endpointState // lost a race for the probe
}

var _ balance.View = (*pickView)(nil)

func (v *pickView) Len() int { return len(v.x.plan.eps) }

func (v *pickView) Eligible(i int) bool {
	ep := &v.x.plan.eps[i]
	if !ep.Healthy || ep.st == v.skip {
		return false
	}
	for _, t := range v.x.tried[:v.x.tries] {
		if t == ep.st {
			return false
		}
	}
	return ep.st.breaker.Peek(v.x.plan.breaker, v.now)
}

func (v *pickView) Load(i int) uint32 { return v.w.endpoint(v.x.plan.eps[i].st).inFlight }

func (v *pickView) Weight(i int) int { return v.x.plan.eps[i].Endpoint.Weight }

// Heaviest spares the balancer a look at every weight.
func (v *pickView) Heaviest() int { return v.x.plan.heaviest }

func (v *pickView) pick() int {
	return balance.LeastRequest(v, &v.w.rng, v.x.plan.ChoiceCount)
}

// none names why nothing could be picked.
func (v *pickView) none() Outcome {
	if v.x.tries > 0 {
		return v.x.last
	}
	if v.x.plan.Healthy > 0 {
		return CircuitOpen
	}
	return NoEndpoints
}
