package agent

import (
	"strings"

	"meshd/internal/consul"
	"meshd/internal/mesh"
	"meshd/internal/telemetry"
)

// gauges tells what is the case at a scrape.
func (a *Agent) gauges() telemetry.Gauges {
	g := telemetry.Gauges{Version: a.version.Version, ReloadOK: true, ReloadTime: a.started}
	for i, l := range a.proxy.Loads() {
		g.Loops = append(g.Loops, telemetry.LoopGauge{Index: i, Load: l})
	}
	for _, l := range a.identity.Leafs() {
		g.Certificates = append(g.Certificates, telemetry.CertificateGauge{Service: l.Service, NotAfter: l.NotAfter})
	}
	counts := a.proxy.Counts()
	g.Handshakes, g.HandshakesInFlight = counts.Handshakes, counts.Handshaking
	if dns, _ := a.DNS(); dns != nil {
		g.DNSResponses = make(map[string]uint64)
		for code, n := range dns.Counts().ByRcode {
			g.DNSResponses[strings.ToUpper(code)] = n // as the protocol's registry writes them
		}
	}
	var c consul.Status
	if a.consul != nil {
		c = a.consul.Status()
		g.Consul = a.consulGauge(&c)
		g.StoredTime, _ = a.storedState()
	}
	v := a.view.Load()
	if v == nil {
		return g
	}
	g.Generation, g.ReloadTime = v.snap.Generation, v.loaded
	g.ReloadOK = v.reload == nil || v.reload.Success
	for _, l := range v.listeners {
		if l.Err != nil {
			g.ListenersFailed++
		} else {
			g.Listeners++
		}
	}
	outbound := make(map[string]*mesh.Outbound, len(v.snap.Outbound))
	for _, o := range v.snap.Outbound {
		outbound[o.Name] = o
	}
	for _, st := range a.proxy.Upstreams() {
		o := outbound[st.Name]
		if o == nil {
			continue // a newer picture than v
		}
		u := telemetry.UpstreamGauge{Name: o.Name, Healthy: o.Healthy, Total: len(o.Endpoints), Refused: o.Refused != ""}
		if at, ok := confirmed(&c, o); ok {
			u.CatalogUpdated = at
		}
		l := telemetry.LinkGauge{Direction: telemetry.Outbound, Name: o.Name}
		for _, e := range st.Endpoints {
			switch e.Breaker {
			case "open":
				u.BreakersOpen++
			case "half-open":
				u.BreakersHalfOpen++
			}
			l.Links += e.Links
			l.Streams += e.InFlight
		}
		g.Upstreams = append(g.Upstreams, u)
		g.Links = append(g.Links, l)
	}
	for _, st := range a.proxy.Services() {
		g.Links = append(g.Links, telemetry.LinkGauge{
			Direction: telemetry.Inbound, Name: st.Name, Links: st.Links, Streams: st.Streams,
		})
	}
	return g
}

// consulGauge sums up the registry's side.
func (a *Agent) consulGauge(c *consul.Status) telemetry.ConsulGauge {
	g := telemetry.ConsulGauge{
		Used: true, Reachable: c.Reachable, Kinds: a.queries.add(c), Writes: c.Writes, Denied: len(c.Denied),
		// Every word, so that none appears out of nothing.
		Registrations: map[string]int{
			string(consul.Waiting): 0, string(consul.Registered): 0, string(consul.Adopted): 0, string(consul.Failed): 0,
		},
	}
	for i := range c.Registrations {
		g.Registrations[string(c.Registrations[i].State)]++
	}
	for i := range c.Watches {
		g.Held += c.Watches[i].Held
	}
	return g
}
