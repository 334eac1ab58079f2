package consul

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
)

const webProxy = "host-a-web-8080-sidecar-proxy"

// passes waits for n more looks at the local agent.
func passes(t *testing.T, f *meshtest.FakeConsul, n int) {
	t.Helper()
	before := f.Requests("GET /v1/agent/checks")
	eventually(t, "more looks", func() bool { return f.Requests("GET /v1/agent/checks") >= before+n })
}

// What somebody else set on our entries stays, and is no reason to write.
func TestRegistrationKeepsWhatIsForeign(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	var h heard
	c := run(t, h.options(f.Address), hurry, Wanted{Register: []Registration{wantWeb(nil)}})
	eventually(t, "registered", func() bool { return c.Status().Registrations[0].State == Registered })
	svc, prx := *f.Registered()["web"], *f.Registered()[webProxy]
	svc.EnableTagOverride, svc.Tags = true, []string{"from", "elsewhere"}
	svc.Weights = &api.AgentWeights{Passing: 7, Warning: 3}
	svc.TaggedAddresses = map[string]api.ServiceAddress{"wan": {Address: "198.51.100.1", Port: 443}, "lan_ipv4": {Address: "10.9.9.9", Port: 1}}
	svc.Meta = map[string]string{"owner": "team-a"}
	for k, v := range f.Registered()["web"].Meta {
		svc.Meta[k] = v
	}
	config := *prx.Proxy
	config.Config = map[string]any{"local_connect_timeout_ms": 1000.0}
	config.Upstreams = []api.Upstream{{DestinationName: "db", LocalBindPort: 5432}}
	prx.Proxy = &config
	f.Register(&svc)
	f.Register(&prx)
	writes := f.Requests("PUT ")
	passes(t, f, 3)
	if n := f.Requests("PUT ") - writes; n != 0 {
		t.Errorf("%d writes over what somebody else set", n)
	}

	// A change of ours takes all of that along, and its own old key away.
	c.Want(Wanted{Register: []Registration{wantWeb(func(r *Registration) {
		r.Service.Meta, r.PeerPort = map[string]string{"zone": "b"}, 22000
	})}})
	eventually(t, "the change", func() bool {
		return f.Registered()["web"].Meta["zone"] == "b" && f.Registered()[webProxy].Port == 22000
	})
	got, proxy := f.Registered()["web"], f.Registered()[webProxy]
	if !got.EnableTagOverride || strings.Join(got.Tags, " ") != "from elsewhere" || got.Weights.Passing != 7 ||
		got.TaggedAddresses["wan"].Port != 443 || len(got.TaggedAddresses) != 1 || got.Meta["owner"] != "team-a" || got.Meta["version"] != "" {
		t.Errorf("service %+v, weights %+v", got, got.Weights)
	}
	if len(proxy.Proxy.Config) != 1 || len(proxy.Proxy.Upstreams) != 1 || proxy.Proxy.DestinationServiceName != "web" {
		t.Errorf("proxy %+v", proxy.Proxy)
	}
	writes = f.Requests("PUT ")
	passes(t, f, 3)
	if n := f.Requests("PUT ") - writes; n != 0 {
		t.Errorf("%d writes although all is as it was written", n)
	}
}

// A service in maintenance stays so: over a change, over an agent that lost
// everything, and over the end of meshd.
func TestMaintenanceIsHonoured(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	var h heard
	c := run(t, h.options(f.Address), hurry, Wanted{Register: []Registration{wantWeb(nil)}})
	eventually(t, "registered", func() bool { return c.Status().Registrations[0].State == Registered })
	f.SetMaintenance("web", "disk")
	passes(t, f, 2)
	c.Want(Wanted{Register: []Registration{wantWeb(func(r *Registration) { r.Service.Tags = []string{"v3"} })}})
	eventually(t, "the change", func() bool { return f.Registered()["web"].Tags[0] == "v3" })
	if f.Maintenance()["web"] != "disk" {
		t.Error("a change took the service out of maintenance")
	}
	passes(t, f, 2)
	f.ForgetAll()
	eventually(t, "registered again, and in maintenance", func() bool { return len(f.Registered()) == 2 && f.Maintenance()["web"] == "disk" })
	passes(t, f, 2)
	if err := c.Deregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.Registered(); len(got) != 1 || got["web"] == nil {
		t.Errorf("after the end: %v, want the service in maintenance and nothing else", got)
	}
	// The next meshd takes it over, still in maintenance, and the operator's
	// word ends it.
	var again heard
	d := run(t, again.options(f.Address), hurry, Wanted{Register: []Registration{wantWeb(nil)}})
	eventually(t, "taken over", func() bool { return d.Status().Registrations[0].State == Registered && len(f.Registered()) == 2 })
	if f.Maintenance()["web"] != "disk" {
		t.Error("the next meshd took the service out of maintenance")
	}
	f.SetMaintenance("web", "")
	passes(t, f, 2)
	f.ForgetAll()
	eventually(t, "registered again", func() bool { return len(f.Registered()) == 2 })
	if len(f.Maintenance()) != 0 {
		t.Error("back in maintenance although the operator ended it")
	}
}

// Checks are ours by their definition: a lost one comes back, a changed one is
// written, one that is no longer wanted goes, and others' stay.
func TestApplicationChecks(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	check := func(change func(*mesh.Check)) Wanted {
		return Wanted{Register: []Registration{wantWeb(func(r *Registration) {
			c := &mesh.Check{HTTP: "/healthz", Interval: 5 * time.Second, Timeout: time.Second}
			change(c)
			r.Service.Check = c
		})}}
	}
	var h heard
	c := run(t, h.options(f.Address), hurry, check(func(*mesh.Check) {}))
	app := func() *api.AgentServiceCheck {
		if reg := f.Registered()["web"]; reg != nil && len(reg.Checks) == 1 {
			return reg.Checks[0]
		}
		return &api.AgentServiceCheck{}
	}
	eventually(t, "an HTTP check", func() bool {
		return app().HTTP == "http://127.0.0.1:8080/healthz" && app().Interval == "5s" && app().Timeout == "1s"
	})
	if app().Status != "" {
		t.Errorf("the application starts as %q, nobody has seen it yet", app().Status)
	}
	// The agent loses everything while the application is well: it is not
	// taken out of use for a check that is yet to be made.
	passes(t, f, 2)
	f.ForgetAll()
	eventually(t, "passing as before", func() bool { return app().Status == api.HealthPassing })
	c.Want(check(func(c *mesh.Check) { c.Interval = time.Minute }))
	eventually(t, "another interval", func() bool { return app().Interval == "1m0s" })
	c.Want(check(func(c *mesh.Check) { c.HTTP, c.TCP = "", true }))
	eventually(t, "a TCP check", func() bool { return app().TCP == "127.0.0.1:8080" })
	c.Want(check(func(c *mesh.Check) { c.HTTP, c.GRPC = "", "-" }))
	eventually(t, "gRPC, the whole server", func() bool { return app().GRPC == "127.0.0.1:8080" })
	c.Want(check(func(c *mesh.Check) { c.HTTP, c.GRPC = "", "pkg.Web" }))
	eventually(t, "gRPC, one service", func() bool { return app().GRPC == "127.0.0.1:8080/pkg.Web" })
	c.Want(Wanted{Register: []Registration{wantWeb(nil)}})
	eventually(t, "no check", func() bool { return f.Requests("PUT /v1/agent/check/deregister/meshd:web:app") == 1 })

	// A service that somebody else registered has its check on our proxy.
	f.Register(&api.AgentServiceRegistration{ID: "db-1", Name: "db", Port: 5432})
	c.Want(Wanted{Register: []Registration{wantWeb(func(r *Registration) {
		r.Service.Name, r.Service.ID, r.Service.Port, r.Service.Check = "db", "db", 5432, &mesh.Check{TCP: true, Interval: time.Second, Timeout: time.Second}
	})}})
	eventually(t, "three checks", func() bool {
		reg := f.Registered()["host-a-db-5432-sidecar-proxy"]
		return reg != nil && len(reg.Checks) == 3 && reg.Checks[2].TCP == "127.0.0.1:5432"
	})
	if len(f.Registered()["db-1"].Checks) != 0 {
		t.Error("somebody else's service was written")
	}
}

// Two meshd on one Consul agent, with two node names and with one.
func TestTwoOnOneAgent(t *testing.T) {
	for _, nodes := range [][2]string{{"host-a", "host-b"}, {"host-a", "host-a"}} {
		t.Run(strings.Join(nodes[:], " and "), func(t *testing.T) {
			meshtest.Leaks(t)
			f := meshtest.NewFakeConsul(t)
			peers := [2]*meshtest.App{meshtest.TCPEcho(t, "first"), meshtest.TCPEcho(t, "second")}
			var clients [2]*Client
			for i, node := range nodes {
				var h heard
				o := h.options(f.Address)
				o.Node = node
				clients[i] = run(t, o, hurry, Wanted{Register: []Registration{wantWeb(func(r *Registration) {
					r.PeerAddress, r.PeerPort = "127.0.0.1", peers[i].Port()
				})}})
				eventually(t, "registered", func() bool { return clients[i].Status().Registrations[0].State == Registered })
			}
			eventually(t, "four entries", func() bool { return len(f.Registered()) == 4 })
			writes := f.Requests("PUT ")
			passes(t, f, 6)
			if n := f.Requests("PUT ") - writes; n != 0 {
				t.Errorf("%d writes: the two fight", n)
			}
			// Peers know both instances by the id that their hosts know.
			entries := f.Registered()
			for i, c := range clients {
				st := c.Status().Registrations[0]
				p := entries[st.ProxyID]
				if p == nil || p.Port != int(peers[i].Port()) || instance(taken(p).services[p.ID]) != "web" || p.Proxy.DestinationServiceID != st.ID {
					t.Errorf("client %d: %+v, proxy %+v", i, st, p)
				}
			}
			if err := clients[0].Deregister(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := f.Registered(); len(got) != 2 {
				t.Errorf("after the first left: %d entries, want the other's two", len(got))
			}
		})
	}
}

// What a meshd left that was killed, and has another peer port now, is ours as
// soon as nobody listens there.
func TestLeftByTheDead(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	dead := wantWeb(func(r *Registration) { r.PeerAddress, r.PeerPort = "127.0.0.1", meshtest.FreePort(t) })
	gone := ownerOf("host-a", []Registration{dead})
	f.Register(service(&dead, gone, "web"))
	f.Register(proxy(&dead, gone, webProxy, "web", false))
	var h heard
	c := run(t, h.options(f.Address), hurry, Wanted{Register: []Registration{wantWeb(nil)}})
	eventually(t, "taken over", func() bool {
		got := f.Registered()
		return len(got) == 2 && got[webProxy].Port == 21900 && c.Status().Registrations[0].ID == "web"
	})
}

// The real thing: maintenance, an application that fails its check, and an
// agent that loses all.
func TestRealRegistration(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.Consul(t)
	app := meshtest.HTTPEcho(t, "web")
	peer := meshtest.TCPEcho(t, "peer")
	w := Wanted{
		Upstreams: []mesh.ServiceKey{{Name: "web"}},
		Register: []Registration{wantWeb(func(r *Registration) {
			r.Service.Address, r.Service.Port = netip.MustParseAddr("127.0.0.1"), app.Port()
			r.Service.Check = &mesh.Check{HTTP: "/", Interval: time.Second, Timeout: time.Second}
			r.PeerAddress, r.PeerPort = "127.0.0.1", peer.Port()
		})},
	}
	p := defaultPace
	p.poll = 500 * time.Millisecond
	var h heard
	c := run(t, h.options(s.Address), p, w)
	says := func(want string) func() bool {
		return func() bool { got, _ := h.endpoints("web"); return got == want }
	}
	eventually(t, "in use once its check has passed", says("web"))
	agent := s.Client.Agent()
	if err := agent.EnableServiceMaintenance("web", "disk"); err != nil {
		t.Fatal(err)
	}
	asked := time.Now()
	within(t, time.Second, "the proxy follows into maintenance", says("web!"))
	t.Logf("out of use %s after the word", time.Since(asked).Round(time.Millisecond))
	w.Register[0].Service.Tags = []string{"v3"}
	c.Want(w)
	eventually(t, "a change is written", func() bool {
		svc, _, err := agent.Service("web", nil)
		return err == nil && len(svc.Tags) == 1 && svc.Tags[0] == "v3"
	})
	if checks, err := agent.Checks(); err != nil || checks["_service_maintenance:web"] == nil {
		t.Errorf("a change took it out of maintenance (%v)", err)
	}
	asked = time.Now()
	if err := agent.DisableServiceMaintenance("web"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "in use again", says("web"))
	settled := func() bool { return c.Status().Registrations[0].Confirmed.After(asked) && well(c) }
	eventually(t, "the pass is over", settled)
	writes := c.Status().Writes
	confirmed := c.Status().Registrations[0].Confirmed
	eventually(t, "two more passes", func() bool { return c.Status().Registrations[0].Confirmed.Sub(confirmed) > 800*time.Millisecond })
	if n := c.Status().Writes - writes; n != 0 {
		t.Errorf("%d writes although nothing changed", n)
	}
	app.Close()
	within(t, 5*time.Second, "out of use when the application is gone", says("web!"))

	confirmed = c.Status().Registrations[0].Confirmed
	eventually(t, "a look at that", func() bool { return c.Status().Registrations[0].Confirmed.Sub(confirmed) > 800*time.Millisecond })

	// An agent that comes back with nothing, and the CA, and the index.
	_, calls := h.endpoints("web")
	s.Restart()
	within(t, 20*time.Second, "registered again", func() bool {
		local, err := agent.Services()
		return err == nil && len(local) == 2 && well(c)
	})
	checks, err := agent.Checks()
	if err != nil || len(checks) != 3 {
		t.Errorf("checks %v (%v)", checks, err)
	}
	if got, n := h.endpoints("web"); got != "web!" || n > calls+1 {
		t.Errorf("endpoints %q after %d calls", got, n-calls)
	}
}
