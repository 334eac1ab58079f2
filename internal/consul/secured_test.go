package consul

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
)

// secured returns options for a Consul that wants TLS and a token from a file.
func secured(t *testing.T, h *heard, s *meshtest.SecuredServer, token string) Options {
	o := h.withChains(h.options(s.Address))
	o.TLS = TLS{CAFile: s.CAFile, CertFile: s.CertFile, KeyFile: s.KeyFile}
	o.TokenFile = meshtest.TokenFile(t, token)
	return o
}

// offer registers a service of somebody else, with its proxy.
func offer(t *testing.T, s *api.Client, service string, port int) {
	t.Helper()
	for _, reg := range []*api.AgentServiceRegistration{
		{Name: service, Port: port},
		{Kind: api.ServiceKindConnectProxy, ID: service + "-proxy", Name: service + "-sidecar-proxy", Port: port + 1,
			Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: service, DestinationServiceID: service, LocalServicePort: port}},
	} {
		if err := s.Agent().ServiceRegister(reg); err != nil {
			t.Fatal(err)
		}
	}
}

// everything is what a host may want.
func everything() Wanted {
	return Wanted{
		Upstreams:  []mesh.ServiceKey{{Name: "api"}},
		Identities: []string{"web"}, Intentions: []string{"web"},
		Register: []Registration{wantWeb(func(r *Registration) {
			r.PeerAddress = ""
			r.Service.Check = &mesh.Check{TCP: true, Interval: 10 * time.Second, Timeout: time.Second}
		})},
	}
}

// well is true when the client has all that it wants.
func well(c *Client) bool {
	st := c.Status()
	for _, w := range st.Watches {
		if w.Confirmed.IsZero() || w.Error != "" {
			return false
		}
	}
	for _, r := range st.Registrations {
		if r.State != Registered || r.Error != "" || r.Confirmed.IsZero() {
			return false
		}
	}
	return len(st.Denied) == 0 && len(st.Problems) == 0
}

// The printed policy is enough for everything, and no line of it is too much:
// without it something is refused, and Status names exactly that line.
func TestRealPolicyIsExact(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.SecuredConsul(t)
	offer(t, s.Client, "api", 8080)
	w := everything()
	text := Policy(w, "host-a")
	t.Logf("policy:\n%s", text)
	var h heard
	c := run(t, secured(t, &h, s, s.Token(text)), defaultPace, w)
	eventually(t, "everything with the whole policy", func() bool {
		got, _ := h.endpoints("api")
		return got == "api" && well(c)
	})
	st := c.Status()
	if len(st.Watches) != 5 || st.Failures != 0 {
		t.Errorf("status %+v", st)
	}
	if err := c.Deregister(t.Context()); err != nil {
		t.Fatal(err)
	}

	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(text), "\n"), func(l string) bool { return strings.HasPrefix(l, "#") })
	for i, line := range lines {
		t.Run(line, func(t *testing.T) {
			less := strings.Join(slices.Delete(slices.Clone(lines), i, i+1), "\n")
			var h heard
			c := run(t, secured(t, &h, s, s.Token(less)), defaultPace, w)
			eventually(t, "a denial that names the line", func() bool {
				return slices.ContainsFunc(c.Status().Denied, func(d Denied) bool { return d.Rule == line })
			})
			for _, d := range c.Status().Denied {
				if d.Rule != line || d.What == "" || d.Who == "" || d.Error == "" || d.Since.IsZero() || !strings.HasSuffix(d.Token, "token") {
					t.Errorf("denied %+v", d)
				}
			}
			if err := s.Client.Agent().ServiceDeregister("web"); err != nil && !strings.Contains(err.Error(), "Unknown") {
				t.Fatal(err)
			}
			c.Deregister(t.Context())
		})
	}
}

// A token that is revoked takes nothing away; one that is put in its place
// heals everything within seconds.
func TestRealTokenRevokedAndReplaced(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.SecuredConsul(t)
	offer(t, s.Client, "api", 8080)
	w := everything()
	rules := Policy(w, "host-a")
	token := s.Token(rules)
	var h heard
	o := secured(t, &h, s, token)
	c := run(t, o, defaultPace, w)
	eventually(t, "everything", func() bool { got, _ := h.endpoints("api"); return got == "api" && well(c) })
	_, calls := h.endpoints("api")

	s.Revoke(token)
	revoked := time.Now()
	within(t, 30*time.Second, "every purpose named as denied", func() bool {
		has := make(map[Kind]bool)
		for _, d := range c.Status().Denied {
			has[d.Kind] = true
		}
		return has[KindService] && has[KindChain] && has[KindIntentions] && has[KindRegistration]
	})
	t.Logf("all that a revoked token hurts was named after %s", time.Since(revoked).Round(time.Millisecond))
	if got, n := h.endpoints("api"); got != "api" || n != calls {
		t.Errorf("told %q in %d calls, %d before: missing rights were taken for a removal", got, n, calls)
	}

	meshtest.ReplaceFile(t, o.TokenFile, s.Token(rules))
	replaced := time.Now()
	within(t, 5*time.Second, "healed by the new token", func() bool { return well(c) })
	t.Logf("healed %s after the token was replaced", time.Since(replaced).Round(time.Millisecond))

	// A right that goes and comes back, while the token stays.
	policy, token := s.Policy(rules)
	meshtest.ReplaceFile(t, o.TokenFile, token)
	eventually(t, "the third token", func() bool { return well(c) && c.via.token.value() == token })
	s.SetRules(policy, strings.ReplaceAll(rules, anyNode.String(), ""))
	within(t, 90*time.Second, "node rights are named", func() bool {
		return slices.ContainsFunc(c.Status().Denied, func(d Denied) bool { return d.Rule == anyNode.String() && d.Kind == KindService })
	})
	if got, n := h.endpoints("api"); got != "api" || n != calls {
		t.Errorf("told %q in %d calls, %d before: an answer without rights was taken for a removal", got, n, calls)
	}
	s.SetRules(policy, rules)
	granted := time.Now()
	within(t, 10*time.Second, "healed by the right", func() bool { return well(c) })
	t.Logf("healed %s after the right was given back", time.Since(granted).Round(time.Millisecond))
}

// Each service can have a token of its own; the agent's then needs no right for
// it.
func TestRealTokenPerPurpose(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.SecuredConsul(t)
	offer(t, s.Client, "api", 8080)
	w := everything()
	path := meshtest.TokenFile(t, "later")
	w.Register[0].Service.TokenFile = path
	text := Policy(w, "host-a")
	parts := strings.Split(text, "# for the token")
	if len(parts) != 3 || !strings.Contains(parts[2], path) || strings.Contains(parts[1], "write") || strings.Contains(parts[2], "read") {
		t.Fatalf("policy:\n%s", text)
	}
	comment := func(part string) string { return "#" + part }
	meshtest.ReplaceFile(t, path, s.Token(comment(parts[2])))
	var h heard
	c := run(t, secured(t, &h, s, s.Token(comment(parts[1]))), defaultPace, w)
	eventually(t, "everything with two tokens", func() bool { got, _ := h.endpoints("api"); return got == "api" && well(c) })
	writes := c.Status().Writes
	poke(c.reg.wake)
	before := c.Status().Registrations[0].Confirmed
	eventually(t, "another pass", func() bool { return c.Status().Registrations[0].Confirmed.After(before) })
	if n := c.Status().Writes; n != writes {
		t.Errorf("%d writes although nothing changed: the service's own token has to list it", n-writes)
	}
	c.Want(Wanted{})
	eventually(t, "deregistered with the token of before", func() bool {
		local, err := s.Client.Agent().Services()
		return err == nil && len(local) == 2
	})
}

// TLS: a wrong CA, no client certificate, a name that does not fit; and files
// that are mended while meshd runs.
func TestRealTLS(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.SecuredConsul(t)
	stranger := meshtest.NewCA(t, "td", "dc1")
	wrongCA := t.TempDir() + "/ca.pem"
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(wrongCA, stranger.RootPEM())
	for _, c := range []struct {
		name   string
		change func(*TLS)
		says   string // of any error or problem
	}{
		{"wrong CA", func(f *TLS) { f.CAFile = wrongCA }, "unknown authority"},
		{"no client certificate", func(f *TLS) { f.CertFile, f.KeyFile = "", "" }, "certificate required"},
		{"another name", func(f *TLS) { f.ServerName = "consul.example" }, "not consul.example"},
		{"missing file", func(f *TLS) { f.CAFile = "/nonexistent/ca.pem" }, "/nonexistent/ca.pem"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h heard
			o := secured(t, &h, s, meshtest.ManagementToken)
			c.change(&o.TLS)
			client := run(t, o, defaultPace, Wanted{Identities: []string{"web"}})
			eventually(t, "the reason", func() bool {
				st := client.Status()
				text := strings.Join(st.Problems, " ")
				for _, w := range st.Watches {
					text += w.Error
				}
				return strings.Contains(text, c.says) && !st.Reachable
			})
		})
	}

	ca, err := os.ReadFile(s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	var h heard
	o := secured(t, &h, s, meshtest.ManagementToken)
	o.TLS.CAFile = wrongCA
	o.TLS.ServerName = "localhost"
	client := run(t, o, defaultPace, Wanted{Identities: []string{"web"}})
	eventually(t, "trouble", func() bool { return client.Status().Failures > 0 })
	meshtest.ReplaceFile(t, wrongCA, string(ca))
	within(t, 5*time.Second, "healed by the right CA", func() bool { return well(client) })
	meshtest.ReplaceFile(t, wrongCA, "half a file")
	eventually(t, "the bad file is named", func() bool { return len(client.Status().Problems) == 1 })
	if !client.Status().Reachable {
		t.Error("a bad file took away what worked")
	}
}

// What is in an intention is heard as Consul evaluates it, with its default.
func TestRealIntentions(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.SecuredConsul(t)
	var h heard
	run(t, secured(t, &h, s, meshtest.ManagementToken), defaultPace, Wanted{Intentions: []string{"web"}})
	says := func(want string) func() bool { return func() bool { return h.intentions("web") == want } }
	eventually(t, "nothing, by default deny", says("deny:"))
	entries := s.Client.ConfigEntries()
	set := func(name string, sources ...*api.SourceIntention) time.Time {
		t.Helper()
		if _, _, err := entries.Set(&api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: name, Sources: sources}, nil); err != nil {
			t.Fatal(err)
		}
		return time.Now()
	}
	allow, deny := api.IntentionActionAllow, api.IntentionActionDeny
	at := set("web", &api.SourceIntention{Name: "shop", Action: allow}, &api.SourceIntention{Name: "*", Action: deny})
	within(t, time.Second, "an exact one", says("deny: shop+9 *-8"))
	t.Logf("an intention took %s", time.Since(at).Round(time.Millisecond))
	set("*", &api.SourceIntention{Name: "*", Action: allow}, &api.SourceIntention{Name: "cron", Action: deny})
	within(t, time.Second, "wildcards in order", says("deny: shop+9 *-8 cron-6 *+5"))
	if _, _, err := entries.Set(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "web", Protocol: "http"}, nil); err != nil {
		t.Fatal(err)
	}
	set("web", &api.SourceIntention{Name: "shop", Permissions: []*api.IntentionPermission{{Action: allow, HTTP: &api.IntentionHTTPPermission{PathPrefix: "/"}}}})
	within(t, time.Second, "one that decides by the request", says("deny: shop?9 cron-6 *+5"))
	if _, err := entries.Delete(api.ServiceIntentions, "web", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := entries.Delete(api.ServiceIntentions, "*", nil); err != nil {
		t.Fatal(err)
	}
	within(t, time.Second, "none again", says("deny:"))
}

// A default that differs from that of the ACLs is found by asking.
func TestRealDefaultIntentionPolicy(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.SecuredConsulWith(t, meshtest.ConsulOptions{HCL: `default_intention_policy = "allow"`})
	var h heard
	run(t, secured(t, &h, s, meshtest.ManagementToken), defaultPace, Wanted{Intentions: []string{"web"}})
	eventually(t, "allow, whatever the ACLs do", func() bool { return h.intentions("web") == "allow:" })
}

// What configuration entries say about reaching a service.
func TestRealChains(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.Consul(t)
	var h heard
	run(t, h.withChains(h.options(s.Address)), defaultPace, Wanted{Upstreams: []mesh.ServiceKey{{Name: "api"}, {Name: "api", Datacenter: "dc2"}}})
	says := func(want mesh.Chain) func() bool {
		return func() bool { return h.chain(mesh.ServiceKey{Name: "api"}) == want }
	}
	set := func(e api.ConfigEntry) {
		t.Helper()
		if _, _, err := s.Client.ConfigEntries().Set(e, nil); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the default", says(mesh.Chain{}))
	eventually(t, "that of another datacenter", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		_, ok := h.chains[mesh.ServiceKey{Name: "api", Datacenter: "dc2"}]
		return ok && h.chains[mesh.ServiceKey{Name: "api", Datacenter: "dc2"}].Refused == ""
	})
	for _, name := range []string{"api", "other"} {
		set(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: name, Protocol: "http"})
	}
	within(t, time.Second, "a protocol", says(mesh.Chain{Protocol: mesh.HTTP}))
	set(&api.ServiceResolverConfigEntry{Kind: api.ServiceResolver, Name: "api", ConnectTimeout: 3 * time.Second, RequestTimeout: 7 * time.Second})
	within(t, time.Second, "timeouts", says(mesh.Chain{Protocol: mesh.HTTP, ConnectTimeout: 3 * time.Second, RequestTimeout: 7 * time.Second}))
	refused := func() string { return h.chain(mesh.ServiceKey{Name: "api"}).Refused }
	for _, c := range []struct {
		want  string
		entry api.ConfigEntry
	}{
		{"redirect", &api.ServiceResolverConfigEntry{Kind: api.ServiceResolver, Name: "api", Redirect: &api.ServiceResolverRedirect{Service: "other"}}},
		{"subset", &api.ServiceResolverConfigEntry{Kind: api.ServiceResolver, Name: "api", DefaultSubset: "v2", Subsets: map[string]api.ServiceResolverSubset{"v2": {Filter: "Service.Meta.version == 2"}}}},
		{"", &api.ServiceResolverConfigEntry{Kind: api.ServiceResolver, Name: "api"}},
		{"splitter", &api.ServiceSplitterConfigEntry{Kind: api.ServiceSplitter, Name: "api", Splits: []api.ServiceSplit{{Weight: 50}, {Weight: 50, Service: "other"}}}},
		{"router", &api.ServiceRouterConfigEntry{Kind: api.ServiceRouter, Name: "api", Routes: []api.ServiceRoute{{
			Match:       &api.ServiceRouteMatch{HTTP: &api.ServiceRouteHTTPMatch{PathPrefix: "/x"}},
			Destination: &api.ServiceRouteDestination{Service: "other"}}}}},
	} {
		set(c.entry)
		within(t, time.Second, "refused for "+c.want, func() bool { return refused() == c.want })
	}
}

// A prepared query finds endpoints under another name than its own.
func TestRealPreparedQuery(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.SecuredConsul(t)
	offer(t, s.Client, "api", 8080)
	if _, _, err := s.Client.PreparedQuery().Create(&api.PreparedQueryDefinition{Name: "nearest", Service: api.ServiceQuery{Service: "api"}}, nil); err != nil {
		t.Fatal(err)
	}
	w := Wanted{Upstreams: []mesh.ServiceKey{{Name: "nearest", Query: true}}}
	text := Policy(w, "host-a")
	p := defaultPace
	p.query = 100 * time.Millisecond
	var h heard
	c := run(t, secured(t, &h, s, s.Token(text)), p, w)
	key := mesh.ServiceKey{Name: "nearest", Query: true}
	last := func() (svc mesh.CatalogService) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if said := h.services[key]; len(said) > 0 {
			svc = said[len(said)-1]
		}
		return svc
	}
	eventually(t, "the endpoint", func() bool { return len(last().Endpoints) == 1 })
	if e := last().Endpoints[0]; e.Service != "api" || e.Datacenter != "dc1" || e.ID != "api" || e.Address.Port() != 8081 {
		t.Errorf("endpoint %+v", e)
	}
	if len(c.Status().Watches) != 1 || !well(c) {
		t.Errorf("status %+v", c.Status())
	}
	if err := s.Client.Agent().ServiceDeregister("api-proxy"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "none", func() bool { return !last().Updated.IsZero() && len(last().Endpoints) == 0 })
	for _, lacking := range strings.Split(strings.TrimSpace(text), "\n")[1:] {
		offer(t, s.Client, "api", 8080)
		var h heard
		o := secured(t, &h, s, s.Token(strings.ReplaceAll(text, lacking, "")))
		c := run(t, o, p, w)
		eventually(t, "denied without "+lacking, func() bool {
			d := c.Status().Denied
			return len(d) == 1 && d[0].Kind == KindQuery && d[0].Rule == lacking
		})
	}
}

// More upstreams than Consul takes connections of one address.
func TestRealMoreWatchesThanConnections(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.Consul(t)
	var h heard
	var w Wanted
	for i := range 150 {
		w.Upstreams = append(w.Upstreams, mesh.ServiceKey{Name: "s" + string(rune('a'+i/26)) + string(rune('a'+i%26))})
	}
	offer(t, s.Client, "saa", 8080)
	start := time.Now()
	c := run(t, h.withChains(h.options(s.Address)), defaultPace, w)
	within(t, 60*time.Second, "300 watches", func() bool { return well(c) })
	t.Logf("300 watches well after %s", time.Since(start).Round(time.Millisecond))
	// Held by now, all of them; and each of them hears of a change.
	meant := []string{"sab", "sfq", "sft"}
	for _, name := range meant {
		offer(t, s.Client, name, 9000)
	}
	within(t, 2*time.Second, "changes", func() bool {
		for _, name := range meant {
			if got, _ := h.endpoints(name); got != name {
				return false
			}
		}
		return true
	})
	for _, w := range c.Status().Watches {
		if w.Errors != 0 {
			t.Errorf("%+v", w)
		}
	}
}

// Three servers, the leader killed every few seconds: nothing is lost, and
// changes made meanwhile are heard.
func TestRealLeaderKills(t *testing.T) {
	if testing.Short() {
		t.Skip("elections take a while")
	}
	meshtest.Leaks(t)
	cluster := meshtest.ConsulCluster(t, 3)
	var h heard
	peer := meshtest.TCPEcho(t, "peer")
	c := run(t, h.withChains(h.options(cluster.Agent.Address)), defaultPace, Wanted{
		Upstreams: []mesh.ServiceKey{{Name: "web"}, {Name: "api"}}, Identities: []string{"web"}, Intentions: []string{"web"},
		Register: []Registration{wantWeb(func(r *Registration) { r.PeerAddress, r.PeerPort = "127.0.0.1", peer.Port() })},
	})
	eventually(t, "all of it", func() bool { got, _ := h.endpoints("web"); return got == "web" && well(c) })
	_, calls := h.endpoints("web")
	before := c.Status()
	start := time.Now()
	for i := range 3 {
		s := cluster.KillLeader()
		cluster.Leader()
		offer(t, cluster.Agent.Client, "api", 8080+i)
		offered := time.Now()
		within(t, 5*time.Second, "a change after an election", func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			said := h.services[mesh.ServiceKey{Name: "api"}]
			return len(said) > 0 && len(said[len(said)-1].Endpoints) == 1 && said[len(said)-1].Port == uint16(8080+i)
		})
		t.Logf("election %d: a change heard %s after it was made", i, time.Since(offered).Round(time.Millisecond))
		s.Restart()
	}
	within(t, 10*time.Second, "well", func() bool { return well(c) })
	if got, n := h.endpoints("web"); got != "web" || n != calls {
		t.Errorf("endpoints of web %q after %d calls, %d before", got, n, calls)
	}
	lasted := time.Since(start).Seconds()
	for _, w := range c.Status().Watches {
		if w.Name == "api" {
			continue // what changes is asked about more often
		}
		was := before.Watches[slices.IndexFunc(before.Watches, func(b WatchStatus) bool { return b.Kind == w.Kind && b.Name == w.Name })]
		if n := float64(w.Queries - was.Queries); n > lasted {
			t.Errorf("%s %s: %.0f queries in %.0f s", w.Kind, w.Name, n, lasted)
		}
	}
}
