package agent

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"meshd/internal/admin"
	"meshd/internal/consul"
	"meshd/internal/mesh"
	"meshd/internal/policy"
)

// Catalog reports where facts come from, for `meshctl catalog`.
func (a *Agent) Catalog() admin.Catalog {
	v := a.view.Load()
	if v == nil {
		return admin.Catalog{}
	}
	var c consul.Status
	if a.consul != nil {
		c = a.consul.Status()
	}
	return a.catalogStatus(v, &c, time.Now())
}

// Explain tells where the values of an upstream in force come from.
func (a *Agent) Explain(upstream string) (admin.Explanation, error) {
	var o *mesh.Outbound
	s := a.Snapshot()
	if s != nil {
		o = s.Lookup(upstream)
	}
	if o == nil {
		var names []string
		if s != nil {
			for _, o := range s.Outbound {
				names = append(names, o.Name)
			}
		}
		return admin.Explanation{}, &admin.NotFoundError{
			Message: fmt.Sprintf("there is no upstream %q here; there %s", upstream, listed(names, "is none", "are "))}
	}
	return explain(o, a.statedPort(s, o)), nil
}

// listed joins names for a sentence.
func listed(names []string, none, some string) string {
	if len(names) == 0 {
		return none
	}
	return some + strings.Join(names, ", ")
}

// statedPort is the natural port of an upstream, 0 if nobody stated one.
func (a *Agent) statedPort(s *mesh.Snapshot, o *mesh.Outbound) uint16 {
	if fact, ok := mesh.StaticCatalog(s.Spec.Static).Services[o.Key()]; ok {
		return fact.Port
	}
	return a.catalog.take().Services[o.Key()].Port
}

// explain lists the attributes of an upstream in the order of
// docs/configuration.md. stated is its natural port.
func explain(o *mesh.Outbound, stated uint16) admin.Explanation {
	e := admin.Explanation{Upstream: o.Name, Defined: o.Pos.String(), Refused: o.Refused}
	put := func(attribute, value string, unwritten admin.Origin) {
		v := admin.Value{Attribute: attribute, Value: value, Origin: unwritten}
		if p, ok := o.Origins[attribute]; ok {
			v.Where = p.Pos.String()
			switch p.Kind {
			case "upstream":
				v.Origin = admin.OriginUpstream
			case "defaults":
				v.Origin = admin.OriginDefaults
			default: // stated by the registry; it has no file
				v.Origin = admin.OriginConsul
				v.Where = cmp.Or(v.Where, p.Kind+"/"+o.Destination)
			}
		}
		e.Values = append(e.Values, v)
	}
	builtIn := func(attribute, value string) { put(attribute, value, admin.OriginBuiltIn) }
	number := func(attribute string, n int) { builtIn(attribute, strconv.Itoa(n)) }
	span := func(attribute string, d time.Duration) { builtIn(attribute, duration(d)) }

	builtIn("destination_name", o.Destination)
	kind := "service"
	if o.Query {
		kind = "prepared_query"
	}
	builtIn("destination_type", kind)
	if o.Datacenter != "" {
		builtIn("datacenter", o.Datacenter)
	}
	put("from", o.Caller, admin.OriginBuiltIn)
	builtIn("protocol", o.Protocol.String())
	put("address", o.Address.String(), admin.OriginAssigned)
	if o.LocalBindPort != 0 {
		builtIn("local_bind_address", o.LocalBindAddress.String())
		number("local_bind_port", int(o.LocalBindPort))
	} else {
		put("port", strconv.Itoa(int(o.Port)), portOrigin(o, stated))
	}
	if o.SocketPath != "" {
		builtIn("local_bind_socket_path", o.SocketPath)
		builtIn("local_bind_socket_mode", fmt.Sprintf("%04o", o.SocketMode))
	}
	span("connect_timeout", o.ConnectTimeout)
	if o.Protocol != mesh.TCP {
		span("request_timeout", o.RequestTimeout)
	}
	span("idle_timeout", o.IdleTimeout)
	number("circuit_breaker.consecutive_failures", o.Breaker.ConsecutiveFailures)
	span("circuit_breaker.open_for", o.Breaker.OpenFor)
	builtIn("load_balancer.policy", "least_request")
	number("load_balancer.least_request.choice_count", o.ChoiceCount)
	number("limits.max_connections", o.Limits.MaxConnections)
	number("limits.max_pending_requests", o.Limits.MaxPendingRequests)
	number("limits.max_concurrent_requests", o.Limits.MaxConcurrentRequests)
	return e
}

// portOrigin is where the port on the upstream's own address was stated.
func portOrigin(o *mesh.Outbound, stated uint16) admin.Origin {
	switch {
	case o.Port != stated:
		return admin.OriginAssigned
	case o.Source == "static":
		return admin.OriginStatic
	}
	return admin.OriginConsul
}

// duration writes d as HCL would have it: "1.5s", "1h", "off".
func duration(d time.Duration) string {
	if d == 0 {
		return "off"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// TestPolicy tells whether one service may call another that is offered here.
func (a *Agent) TestPolicy(from, to string) (admin.PolicyTest, error) {
	t := admin.PolicyTest{From: from, To: to, Allowed: true}
	s := a.Snapshot()
	if s == nil {
		return admin.PolicyTest{}, &admin.NotFoundError{Message: "there is no picture yet"}
	}
	for _, in := range s.Offered(to) {
		d := policy.Compile(in).Decide(from)
		t.Allowed = t.Allowed && d.Allowed
		t.Instances = append(t.Instances, decision(in, d))
	}
	if len(t.Instances) == 0 {
		return admin.PolicyTest{}, &admin.NotFoundError{Message: fmt.Sprintf(
			"service %q is not offered by this host, and the called side decides: ask where it is offered; here %s",
			to, listed(s.Spec.ServiceNames(), "is no service", "are "))}
	}
	return t, nil
}

func decision(in *mesh.Inbound, d policy.Decision) admin.PolicyDecision {
	out := admin.PolicyDecision{ID: in.ID, Allowed: d.Allowed, Reason: d.Reason, Line: d.Line.String()}
	if in.Intentions != nil {
		out.IntentionsUpdated = in.Intentions.Updated
	}
	switch {
	case d.Intention != nil:
		out.Intention = &admin.Intention{
			Source: d.Intention.Source, Destination: in.Name, Precedence: d.Intention.Precedence,
			Action: action(d.Intention.Action), HTTP: d.Intention.HTTP,
		}
	case d.Default:
		out.Intention = &admin.Intention{Destination: in.Name, Action: action(in.Intentions.Default)}
	}
	return out
}

// action is the word that Consul has for it.
func action(a mesh.Action) string {
	if a == mesh.Allowed {
		return "allow"
	}
	return "deny"
}
