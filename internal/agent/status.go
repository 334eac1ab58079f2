package agent

import (
	"fmt"
	"os"
	"time"

	"meshd/internal/admin"
	"meshd/internal/consul"
	"meshd/internal/mesh"
	"meshd/internal/proxy"
	"meshd/internal/telemetry"
)

// Version tells which build this is.
func (a *Agent) Version() admin.Version { return a.version }

// Ready reports whether the agent can do its work, and else what is missing: a
// picture, certificates and roots, what Consul says of each upstream, ports.
func (a *Agent) Ready() (bool, []string) {
	if a.draining.Load() {
		return false, []string{"nothing: it is draining"}
	}
	v := a.view.Load()
	if v == nil {
		return false, []string{"the first picture"}
	}
	var waiting []string
	if len(a.identity.Roots().Roots) == 0 {
		waiting = append(waiting, "trusted roots")
	}
	for _, s := range a.missing(v) {
		waiting = append(waiting, "certificate of service "+s)
	}
	for _, o := range v.snap.Outbound {
		if !o.Known {
			waiting = append(waiting, "catalog of upstream "+o.Name)
		}
	}
	for _, in := range v.snap.Inbound {
		if in.NeedIntentions && in.Intentions == nil {
			waiting = append(waiting, "intentions of service "+in.Name)
		}
	}
	for _, l := range v.listeners {
		if l.Err != nil {
			waiting = append(waiting, fmt.Sprintf("listener %s of upstream %s", l.Where(), l.Upstream))
		}
	}
	if _, err := a.DNS(); err != nil {
		waiting = append(waiting, "dns listener "+a.boot.DNS.Address.String())
	}
	return len(waiting) == 0, waiting
}

// missing returns the services that need a certificate and have none.
func (a *Agent) missing(v *view) (services []string) {
	for _, s := range v.snap.Spec.Identities() {
		if _, ok := a.identity.Leaf(s); !ok {
			services = append(services, s)
		}
	}
	return services
}

// Status gathers the facts for the admin socket.
func (a *Agent) Status() admin.Status {
	now := time.Now()
	s := admin.Status{
		Node: a.boot.Agent.NodeName, PID: os.Getpid(), Version: a.version,
		Started: a.started, Uptime: admin.Seconds(now.Sub(a.started)), Draining: a.draining.Load(),
	}
	s.Ready, s.Waiting = a.Ready()
	s.Listeners = a.listeners()
	s.Loops = a.loops()
	var c consul.Status
	if a.consul != nil {
		c = a.consul.Status()
	}
	s.Certificates = a.certificates(now)
	v := a.view.Load()
	if v == nil {
		return s
	}
	s.Problems = append(v.problems(), a.stored.problems()...)
	s.Generation, s.Published, s.LastReload = v.snap.Generation, v.published, v.reload
	s.Upstreams = a.upstreams(v, &c, now)
	s.Services = a.services(v, &c, now)
	s.Identity = a.identityStatus(v, &c)
	s.Catalog = a.catalogStatus(v, &c, now)
	return s
}

// problems are those that only the agent knows of; admin finds the others in
// the facts.
func (v *view) problems() (list []admin.Problem) {
	if v.unsaved != nil {
		list = append(list, admin.Problem{
			Severity: admin.SeverityWarning, What: "addresses of upstreams cannot be stored and may change at a restart",
			Why: v.unsaved.Error(), Next: "is agent { data_dir } there and writable?",
		})
	}
	if n := len(v.restart); n > 0 {
		list = append(list, admin.Problem{
			Severity: admin.SeverityWarning, What: fmt.Sprintf("%d changed settings wait for a restart", n),
			Why: v.restart[0].String(), Next: "systemctl restart meshd",
		})
	}
	return list
}

func (a *Agent) listeners() []admin.Listener {
	list := []admin.Listener{{Name: "peer", Address: a.proxy.PeerAddr().String()}}
	dns := admin.Listener{Name: "dns", Address: a.boot.DNS.Address.String()}
	if s, err := a.DNS(); s != nil {
		dns.Address = s.Addr().String()
	} else if err != nil {
		dns.Error = err.Error()
	}
	return append(append(list, dns), a.admin.Listeners()...)
}

func (a *Agent) loops() []admin.Loop {
	loads, connections := a.proxy.Loads(), a.proxy.LoopConnections()
	list := make([]admin.Loop, len(loads))
	for i, l := range loads {
		list[i] = admin.Loop{Index: i, Load: l, Connections: connections[i]}
	}
	return list
}

func (a *Agent) certificates(now time.Time) (list []admin.Certificate) {
	for _, l := range a.identity.Leafs() {
		list = append(list, admin.Certificate{
			Service: l.Service, SPIFFE: l.SPIFFE, Issuer: l.Issuer, NotBefore: l.NotBefore, NotAfter: l.NotAfter,
			Remaining: admin.Seconds(l.NotAfter.Sub(now)),
		})
	}
	return list
}

func (a *Agent) upstreams(v *view, c *consul.Status, now time.Time) []admin.Upstream {
	live := make(map[string]*proxy.UpstreamState)
	states := a.proxy.Upstreams()
	for i := range states {
		live[states[i].Name] = &states[i]
	}
	errs := make(map[string]error, len(v.listeners))
	for _, l := range v.listeners {
		errs[l.Where()] = l.Err
	}
	list := make([]admin.Upstream, 0, len(v.snap.Outbound))
	for _, o := range v.snap.Outbound {
		u := admin.Upstream{
			Name: o.Name, Destination: o.Destination, Datacenter: o.Datacenter, Protocol: o.Protocol.String(),
			Host: o.Name + "." + v.snap.Spec.Domain, Address: o.Address.String(), Port: o.Port, Caller: o.Caller,
			Known: o.Known, Healthy: o.Healthy, Source: o.Source, Refused: o.Refused, Defined: o.Pos.String(),
		}
		if at, ok := confirmed(c, o); ok {
			u.CatalogAge = admin.Seconds(max(now.Sub(at), 0))
			if stale(at, o.Source, v.cfg.Consul.Stale.WarnAfter, now) {
				u.StaleSince = at
			}
		}
		for _, b := range o.Binds {
			u.Binds = append(u.Binds, bind(b.String(), errs))
		}
		if o.SocketPath != "" {
			u.Binds = append(u.Binds, bind(o.SocketPath, errs))
		}
		u.Rates = a.rates.of(rateKey{telemetry.Outbound, o.Name, o.Protocol}, a.telemetry)
		st := live[o.Name]
		if st != nil {
			u.InFlight = st.Requests
		}
		u.Endpoints = endpoints(o, st)
		list = append(list, u)
	}
	return list
}

// bind says how the listener at an address or path is.
func bind(where string, errs map[string]error) admin.Bind {
	if err := errs[where]; err != nil {
		return admin.Bind{Address: where, State: admin.BindFailed, Error: err.Error()}
	}
	return admin.Bind{Address: where, State: admin.BindListening}
}

// endpoints joins what the catalog states with what the data path knows.
func endpoints(o *mesh.Outbound, st *proxy.UpstreamState) []admin.Endpoint {
	list := make([]admin.Endpoint, len(o.Endpoints))
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		list[i] = admin.Endpoint{ID: e.ID, Address: e.Address.String(), Weight: e.Weight, Healthy: e.Healthy}
		if st == nil {
			continue
		}
		for _, d := range st.Endpoints {
			if d.ID == e.ID && d.Address == e.Address {
				list[i].Breaker, list[i].OpenedBy = d.Breaker, d.OpenedBy
				list[i].InFlight, list[i].Links = int64(d.InFlight), d.Links
				break
			}
		}
	}
	return list
}

func (a *Agent) services(v *view, c *consul.Status, now time.Time) []admin.Service {
	requests := make(map[string]int64)
	for _, i := range a.proxy.Instances() {
		requests[i.ID] = i.Requests
	}
	list := make([]admin.Service, 0, len(v.snap.Inbound))
	for _, in := range v.snap.Inbound {
		s := admin.Service{
			Name: in.Name, ID: in.ID, Address: in.Target.String(), Port: in.Port, Protocol: in.Protocol.String(),
			Defined: in.Pos.String(),
		}
		for _, al := range in.Allow {
			s.Allow = append(s.Allow, al.Caller)
		}
		s.Rates = a.rates.of(rateKey{telemetry.Inbound, in.Name, in.Protocol}, a.telemetry)
		s.InFlight = requests[in.ID]
		if in.NeedIntentions {
			s.Intentions = admin.IntentionsUnknown
			if in.Intentions != nil {
				s.Intentions = admin.IntentionsKnown
				s.IntentionsAge = admin.Seconds(max(now.Sub(confirmedIntentions(c, in)), 0))
			}
		}
		if a.consul != nil {
			s.Registered, s.Error = registration(c, &in.Service)
		}
		list = append(list, s)
	}
	return list
}
