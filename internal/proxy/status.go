package proxy

import (
	"net/netip"

	"meshd/internal/breaker"
	"meshd/internal/mesh"
)

// UpstreamState is what only the data path knows of an upstream.
type UpstreamState struct {
	Name        string
	Connections int64 // open from applications
	Pending     int64 // exchanges that wait for a link
	Requests    int64 // exchanges in flight
	Endpoints   []EndpointState
}

// EndpointState is what only the data path knows of an endpoint.
type EndpointState struct {
	ID        string
	Address   netip.AddrPort
	Breaker   string // "closed", "open" or "half-open"
	InFlight  int
	Links     int
	LastError string // of the last failed dial, "" if none failed
	OpenedBy  string // what opened the breaker, "" while it is closed
}

// Upstreams returns the state of every upstream in force, in the order of the
// snapshot. It asks the loops, and must not be called from one.
func (p *Proxy) Upstreams() []UpstreamState {
	pic := p.picture.Load()
	if pic == nil {
		return nil
	}
	inFlight := make(map[*endpointState]int)
	links := make(map[*target]int)
	p.each(func(w *worker) {
		for _, e := range w.eps {
			if e != nil {
				inFlight[e.st] += int(e.inFlight)
			}
		}
		for _, s := range w.links {
			if s != nil {
				links[s.target] += len(s.links)
			}
		}
	})
	plans := make(map[*mesh.Outbound]*outPlan, len(pic.outbound))
	for _, plan := range pic.outbound {
		if plan != nil {
			plans[plan.Outbound] = plan
		}
	}
	var out []UpstreamState
	for _, o := range pic.snap.Outbound {
		plan := plans[o]
		if plan == nil {
			continue
		}
		u := UpstreamState{Name: o.Name, Connections: plan.st.usage.connections.Load(),
			Pending: plan.st.usage.pending.Load(), Requests: plan.st.usage.requests.Load()}
		for i := range plan.eps {
			ep := &plan.eps[i]
			e := EndpointState{ID: ep.ID, Address: ep.Address, Breaker: ep.st.breaker.State().String(),
				InFlight: inFlight[ep.st], Links: links[ep.target]}
			if why := ep.st.lastErr.Load(); why != nil {
				e.LastError = *why
			}
			if why := ep.st.openedBy.Load(); why != nil && e.Breaker != breaker.Closed.String() {
				e.OpenedBy = *why
			}
			u.Endpoints = append(u.Endpoints, e)
		}
		out = append(out, u)
	}
	return out
}

// ServiceState is what only the data path knows of an offered service: the
// links that peers opened to reach it.
type ServiceState struct {
	Name    string
	Links   int
	Streams int // in flight on these links
}

// Services returns the state of every offered service in force, each name
// once, in the order of the snapshot. It asks the loops, and must not be
// called from one.
func (p *Proxy) Services() []ServiceState {
	pic := p.picture.Load()
	if pic == nil {
		return nil
	}
	var out []ServiceState
	at := make(map[string]int)
	for _, in := range pic.snap.Inbound {
		if _, ok := at[in.Name]; !ok {
			at[in.Name] = len(out)
			out = append(out, ServiceState{Name: in.Name})
		}
	}
	p.each(func(w *worker) {
		for l := range w.allLinks {
			if i, ok := at[l.service]; ok && !l.opener {
				out[i].Links++
				out[i].Streams += l.count
			}
		}
	})
	return out
}

// InstanceState is how much one instance of an offered service is used.
type InstanceState struct {
	ID          string
	Connections int64 // open to the application, idle ones kept for later included
	Pending     int64 // of these still being made
	Requests    int64 // exchanges in flight
}

// Instances returns the state of every offered instance in force, in no order.
func (p *Proxy) Instances() []InstanceState {
	pic := p.picture.Load()
	if pic == nil {
		return nil
	}
	var out []InstanceState
	for _, in := range pic.inbound {
		if in != nil {
			u := &in.st.usage
			out = append(out, InstanceState{ID: in.ID, Connections: u.connections.Load(), Pending: u.pending.Load(), Requests: u.requests.Load()})
		}
	}
	return out
}

// LoopConnections returns how many connections with applications each loop has.
// It asks the loops, and must not be called from one.
func (p *Proxy) LoopConnections() []int {
	out := make([]int, len(p.workers))
	p.each(func(w *worker) { out[w.loop.Index()] = len(w.conns) })
	return out
}
