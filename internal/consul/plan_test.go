package consul

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
)

func wantWeb(change func(*Registration)) Registration {
	r := Registration{
		Service: mesh.Service{Name: "web", ID: "web", Port: 8080, Address: netip.MustParseAddr("127.0.0.1"),
			Tags: []string{"v2"}, Meta: map[string]string{"version": "2"}},
		PeerAddress: "10.0.0.1", PeerPort: 21900,
	}
	if change != nil {
		change(&r)
	}
	return r
}

// taken makes what the agent would list after these registrations.
func taken(regs ...*api.AgentServiceRegistration) registered {
	m := registered{services: make(map[string]*api.AgentService), checks: make(map[string]*api.AgentCheck)}
	for _, r := range regs {
		m.services[r.ID] = &api.AgentService{Kind: r.Kind, ID: r.ID, Service: r.Name, Port: r.Port, Address: r.Address, Tags: r.Tags, Meta: r.Meta, Proxy: r.Proxy}
		for _, c := range r.Checks {
			m.checks[c.CheckID] = &api.AgentCheck{CheckID: c.CheckID, ServiceID: r.ID, Notes: c.Notes}
		}
	}
	return m
}

func ids(p registrationPlan) (register []string) {
	for _, e := range p.entries {
		for _, r := range e.register {
			register = append(register, r.ID)
		}
	}
	return register
}

func TestPlan(t *testing.T) {
	const proxyID = "host-a-web-8080-sidecar-proxy"
	web := wantWeb(nil)
	mine := []*api.AgentServiceRegistration{service(&web, me, "web"), proxy(&web, me, proxyID, "web", false)}
	foreign := &api.AgentServiceRegistration{ID: "app-7", Name: "web", Port: 8080}
	second := wantWeb(func(r *Registration) { r.Service.Port = 9090; r.Service.ID = "web-b" })
	others := []*api.AgentServiceRegistration{service(&second, other, "web-b"), proxy(&second, other, "host-b-web-9090-sidecar-proxy", "web-b", false)}
	for _, c := range []struct {
		name       string
		has        []*api.AgentServiceRegistration
		want       []Registration
		register   string
		deregister string
		state      RegistrationState
		id         string
	}{
		{name: "nothing there", want: []Registration{web}, register: "web " + proxyID, state: Registered, id: "web"},
		{name: "all there", has: mine, want: []Registration{web}, state: Registered, id: "web"},
		{name: "proxy vanished", has: mine[:1], want: []Registration{web}, register: proxyID, state: Registered, id: "web"},
		{name: "service vanished", has: mine[1:], want: []Registration{web}, register: "web", state: Registered, id: "web"},
		{name: "no longer wanted", has: mine, deregister: proxyID + " web"},
		{name: "never another node's", has: append(slices.Clone(mine), others...), deregister: proxyID + " web"},
		{name: "never somebody else's", has: []*api.AgentServiceRegistration{foreign}},
		{name: "somebody registered the service", has: []*api.AgentServiceRegistration{foreign}, want: []Registration{web},
			register: proxyID, state: Adopted, id: "app-7"},
		{name: "somebody registered it beside ours", has: append(slices.Clone(mine), foreign), want: []Registration{web},
			register: proxyID, deregister: "web", state: Adopted, id: "app-7"},
		{name: "same name, other port, is another instance", has: []*api.AgentServiceRegistration{{ID: "x", Name: "web", Port: 1}},
			want: []Registration{web}, register: "web " + proxyID, state: Registered, id: "web"},
		{name: "another meshd's instance is not adopted", has: others, want: []Registration{wantWeb(func(r *Registration) { r.Service.Port = 9090 })},
			register: "web host-a-web-9090-sidecar-proxy", state: Registered, id: "web"},
		{name: "id taken by somebody", has: []*api.AgentServiceRegistration{{ID: "web", Name: "shop", Port: 1}}, want: []Registration{web}, state: Failed, id: "web"},
		{name: "proxy id taken by somebody", has: []*api.AgentServiceRegistration{{ID: proxyID, Name: "shop", Port: 1}}, want: []Registration{web}, state: Failed, id: "web"},
		{name: "port moved", has: mine, want: []Registration{wantWeb(func(r *Registration) { r.PeerPort = 22000 })},
			register: "web " + proxyID, state: Registered, id: "web"},
		{name: "tags changed", has: mine, want: []Registration{wantWeb(func(r *Registration) { r.Service.Tags = nil })},
			register: "web " + proxyID, state: Registered, id: "web"},
		{name: "application port changed", has: mine, want: []Registration{wantWeb(func(r *Registration) { r.Service.Port = 8081 })},
			register: "web host-a-web-8081-sidecar-proxy", deregister: proxyID, state: Registered, id: "web"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := plan(taken(c.has...), c.want, me)
			if got := strings.Join(ids(p), " "); got != c.register {
				t.Errorf("registers %q, want %q", got, c.register)
			}
			if got := strings.Join(p.deregister, " "); got != c.deregister {
				t.Errorf("deregisters %q, want %q", got, c.deregister)
			}
			if len(c.want) == 0 {
				return
			}
			if s := p.entries[0].status; s.State != c.state || s.ID != c.id || (s.Error != "") != (c.state == Failed) {
				t.Errorf("status %+v, want %s of %s", s, c.state, c.id)
			}
		})
	}
}

func TestPlanSameNameAndPortTwice(t *testing.T) {
	a := wantWeb(nil)
	b := wantWeb(func(r *Registration) { r.Service.ID = "web-b"; r.Service.Address = netip.MustParseAddr("127.0.0.2") })
	p := plan(registered{}, []Registration{a, b}, me)
	if p.entries[0].status.State != Registered || p.entries[1].status.State != Failed || len(p.entries[1].register) != 0 {
		t.Errorf("%+v", p.statuses())
	}
}

func TestRegistrationForms(t *testing.T) {
	w := wantWeb(func(r *Registration) { r.PeerAddress = "" })
	svc, prx := service(&w, me, "web"), proxy(&w, me, "p", "app-7", true)
	if svc.Address != "" || svc.Check != nil || svc.Meta["version"] != "2" || !(owner{node: "host-a"}).owns(taken(svc).services["web"]) || other.owns(taken(svc).services["web"]) {
		t.Errorf("service %+v", svc)
	}
	if w.Service.Meta[metaMark] != "" {
		t.Error("the mark was written into the configuration's own map")
	}
	if prx.Kind != api.ServiceKindConnectProxy || prx.Name != "web-sidecar-proxy" || prx.Proxy.DestinationServiceID != "app-7" ||
		prx.Proxy.DestinationServiceName != "web" || prx.Proxy.LocalServicePort != 8080 || prx.Proxy.LocalServiceAddress != "127.0.0.1" {
		t.Errorf("proxy %+v %+v", prx, prx.Proxy)
	}
	// Whoever dials must name the instance by the id this host knows.
	if got := instance(taken(prx).services[prx.ID]); got != "web" {
		t.Errorf("others take the instance for %q, want web", got)
	}
	if prx.Checks[0].TCP != "127.0.0.1:21900" || prx.Checks[1].AliasService != "app-7" {
		t.Errorf("checks %+v %+v", prx.Checks[0], prx.Checks[1])
	}
	lan := wantWeb(func(r *Registration) { r.Service.Address = netip.MustParseAddr("10.0.0.5") })
	if a := service(&lan, me, "web").Address; a != "10.0.0.5" {
		t.Errorf("address %q of a service that does not listen on loopback", a)
	}
}
