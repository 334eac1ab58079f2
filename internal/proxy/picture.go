package proxy

import (
	"meshd/internal/breaker"
	"meshd/internal/mesh"
	"meshd/internal/policy"
	"meshd/internal/telemetry"
)

// picture is a mesh.Snapshot with the states resolved that it refers to. It is
// immutable; one atomic pointer to it is what publish stores.
type picture struct {
	snap     *mesh.Snapshot
	outbound []*outPlan            // by upstreamState.slot; nil where none
	inbound  []*inPlan             // by serviceState.slot; nil where none
	services map[string][]*inPlan  // by service name; read when a link opens
	targets  map[targetKey]*target // in force
}

// outPlan is an upstream in one picture.
type outPlan struct {
	*mesh.Outbound
	st       *upstreamState
	eps      []epPlan
	breaker  breaker.Policy
	heaviest int // weight, over all endpoints
}

// epPlan is an endpoint in one picture.
type epPlan struct {
	*mesh.Endpoint
	id     []byte // Endpoint.ID as it goes on the wire
	st     *endpointState
	target *target
}

// inPlan is a local service instance in one picture.
type inPlan struct {
	*mesh.Inbound
	st    *serviceState
	rules *policy.Rules
}

func (pic *picture) out(slot int) *outPlan {
	if pic == nil || slot >= len(pic.outbound) {
		return nil
	}
	return pic.outbound[slot]
}

func (pic *picture) in(slot int) *inPlan {
	if pic == nil || slot >= len(pic.inbound) {
		return nil
	}
	return pic.inbound[slot]
}

// registry keeps the long-lived states by key. The publishing goroutine owns it.
type registry struct {
	loops     int
	telemetry *telemetry.Registry

	upstreams map[string]*upstreamState
	services  map[string]*serviceState
	endpoints map[string]*endpointState // by upstream name and endpoint key
	targets   map[targetKey]*target

	upstreamSlots, serviceSlots, endpointSlots, targetSlots slots
}

func newRegistry(loops int, t *telemetry.Registry) *registry {
	return &registry{
		loops: loops, telemetry: t,
		upstreams: make(map[string]*upstreamState),
		services:  make(map[string]*serviceState),
		endpoints: make(map[string]*endpointState),
		targets:   make(map[targetKey]*target),
	}
}

// resolve makes the picture of a snapshot, creating the states it lacks. It
// forgets nothing: what vanished may still be in use until every loop has
// turned, see sweep.
func (r *registry) resolve(s *mesh.Snapshot) *picture {
	pic := &picture{snap: s, services: make(map[string][]*inPlan), targets: make(map[targetKey]*target)}
	for _, in := range s.Inbound {
		st := r.service(in)
		p := &inPlan{Inbound: in, st: st, rules: policy.Compile(in)}
		pic.inbound = place(pic.inbound, st.slot, p)
		pic.services[in.Name] = append(pic.services[in.Name], p)
	}
	for _, o := range s.Outbound {
		st := r.upstream(o)
		p := &outPlan{Outbound: o, st: st, eps: make([]epPlan, len(o.Endpoints)), breaker: breaker.Policy{
			ConsecutiveFailures: o.Breaker.ConsecutiveFailures, OpenFor: o.Breaker.OpenFor,
		}}
		for i := range o.Endpoints {
			e := &o.Endpoints[i]
			key := targetKey{caller: o.Caller, service: e.Service, datacenter: e.Datacenter, address: e.Address}
			t := r.target(key)
			pic.targets[key] = t
			p.heaviest = max(p.heaviest, e.Weight)
			p.eps[i] = epPlan{Endpoint: e, id: []byte(e.ID), st: r.endpoint(o.Name + "/" + e.Key()), target: t}
		}
		pic.outbound = place(pic.outbound, st.slot, p)
	}
	return pic
}

// place stores v at index i, growing s as needed.
func place[T any](s []T, i int, v T) []T {
	for i >= len(s) {
		var none T
		s = append(s, none)
	}
	s[i] = v
	return s
}

func (r *registry) shards(s *telemetry.Series) []*telemetry.Shard {
	sh := make([]*telemetry.Shard, r.loops)
	for i := range sh {
		sh[i] = s.Shard(i)
	}
	return sh
}

func (r *registry) upstream(o *mesh.Outbound) *upstreamState {
	key := o.Name + "/" + o.Protocol.String() // another protocol is another connection handler
	st := r.upstreams[key]
	if st == nil {
		series := r.telemetry.Series(telemetry.Outbound, o.Name, o.Protocol.String())
		st = &upstreamState{name: o.Name, slot: r.upstreamSlots.get(), series: series, shards: r.shards(series)}
		r.upstreams[key] = st
	}
	return st
}

func (r *registry) service(in *mesh.Inbound) *serviceState {
	key := in.ID + "/" + in.Protocol.String() + "/" + in.Target.String()
	st := r.services[key]
	if st == nil {
		series := r.telemetry.Series(telemetry.Inbound, in.Name, in.Protocol.String())
		st = &serviceState{id: in.ID, slot: r.serviceSlots.get(), series: series, shards: r.shards(series)}
		r.services[key] = st
	}
	return st
}

func (r *registry) endpoint(key string) *endpointState {
	st := r.endpoints[key]
	if st == nil {
		st = &endpointState{slot: r.endpointSlots.get()}
		r.endpoints[key] = st
	}
	return st
}

func (r *registry) target(key targetKey) *target {
	t := r.targets[key]
	if t == nil {
		t = &target{targetKey: key, slot: r.targetSlots.get()}
		r.targets[key] = t
	}
	return t
}

// sweep forgets what pic does not refer to, and gives its slots back: whoever
// still holds a forgotten state compares pointers before it believes a slot.
// It returns the targets whose links must close and reports which metric
// series are still in force.
func (r *registry) sweep(pic *picture) (gone []*target, keep func(telemetry.Direction, string) bool) {
	names := map[telemetry.Direction]map[string]bool{telemetry.Outbound: {}, telemetry.Inbound: {}}
	for k, st := range r.upstreams {
		if p := pic.out(st.slot); p == nil || p.st != st {
			delete(r.upstreams, k)
			r.upstreamSlots.put(st.slot)
		} else {
			names[telemetry.Outbound][p.Name] = true
		}
	}
	for k, st := range r.services {
		if p := pic.in(st.slot); p == nil || p.st != st {
			delete(r.services, k)
			r.serviceSlots.put(st.slot)
		} else {
			names[telemetry.Inbound][p.Name] = true
		}
	}
	used := make(map[*endpointState]bool, len(r.endpoints))
	for _, o := range pic.outbound {
		if o != nil {
			for i := range o.eps {
				used[o.eps[i].st] = true
			}
		}
	}
	for k, st := range r.endpoints {
		if !used[st] {
			delete(r.endpoints, k)
			r.endpointSlots.put(st.slot)
		}
	}
	for k, t := range r.targets {
		if pic.targets[k] != t {
			delete(r.targets, k)
			r.targetSlots.put(t.slot)
			gone = append(gone, t)
		}
	}
	return gone, func(d telemetry.Direction, name string) bool { return names[d][name] }
}

// tcp tells whether the service speaks no HTTP.
func (in *inPlan) tcp() bool { return in.Protocol == mesh.TCP }
