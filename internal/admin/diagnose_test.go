package admin

import (
	"strings"
	"testing"
	"time"
)

// What a missing right hurts, which rule would give it, and the next command.
func TestDiagnoseOfAMissingRight(t *testing.T) {
	s := healthy()
	s.Catalog.Denied = []Denied{{Kind: "service", Name: "api", What: "endpoints of api", Hurt: `upstream "api"`, Rule: "service \"api\" { policy = \"read\" }\nnode_prefix \"\" { policy = \"read\" }", Token: "/etc/token", Error: "ACL not found"}}
	got := Diagnose(s)
	want := Problem{SeverityError, "Consul denies endpoints of api",
		`it hurts upstream "api"; needed: service "api" { policy = "read" }, node_prefix "" { policy = "read" }; asked with /etc/token; Consul says: ACL not found`, "meshctl consul policy"}
	if len(got) != 1 || got[0] != want {
		t.Errorf("found %+v, want %+v", got, want)
	}
}

// What opened a breaker, and what most failures were, is told with the problem.
func TestDiagnoseNamesOutcomes(t *testing.T) {
	s := healthy()
	u := &s.Upstreams[0]
	u.Endpoints[1].Breaker, u.Endpoints[1].Address, u.Endpoints[1].OpenedBy = "open", "10.4.0.19:21900", "local_connect_failed"
	u.RPS, u.FailedShare, u.FailedBy = 10, 0.2, "overflow"
	got := Diagnose(s)
	if len(got) != 2 || got[0].Why != "b at 10.4.0.19:21900: local_connect_failed" || got[1].Why != "mostly overflow" {
		t.Errorf("found %+v", got)
	}
}

func TestDiagnoseOfAnOpenBreakerSaysWhereToLook(t *testing.T) {
	for by, want := range map[string]string{
		"no_service":                         `does that host offer "inventory", and with protocol = "http" as here?`,
		"connect_failed: connection refused": "does meshd run there",
		"handshake_failed: expired":          "meshctl status here and there",
		"local_connect_failed":               "look at the application there",
		"status 503":                         "look at the application there",
	} {
		s := healthy()
		u := &s.Upstreams[0]
		u.Protocol, u.Healthy, u.Endpoints = "http", 1, u.Endpoints[:1]
		u.Endpoints[0].Breaker, u.Endpoints[0].OpenedBy = "open", by
		if got := Diagnose(s); len(got) != 1 || !strings.HasPrefix(got[0].Next, want) {
			t.Errorf("%s: found %+v", by, got)
		}
	}
}

func TestShort(t *testing.T) {
	for in, want := range map[time.Duration]string{24 * time.Hour: "24h", 5 * time.Minute: "5m", 90 * time.Second: "1m30s",
		10 * time.Minute: "10m", 3661 * time.Second: "1h1m1s", 20 * time.Hour: "20h", 30 * time.Second: "30s"} {
		if got := short(in); got != want {
			t.Errorf("%s is written %s, want %s", in, got, want)
		}
	}
}

// healthy is a status nobody has to look at.
func healthy() *Status {
	return &Status{
		Ready:    true,
		Identity: Identity{Provider: "consul", Roots: 1},
		Catalog:  Catalog{Source: "consul", Address: "127.0.0.1:8500", Reachable: true},
		Certificates: []Certificate{{
			Service: "web", NotAfter: time.Unix(3600*72, 0), NotBefore: time.Unix(0, 0), Remaining: Seconds(48 * time.Hour),
		}},
		Upstreams: []Upstream{{
			Name: "inventory", Destination: "inventory", Known: true, Healthy: 2, Source: "consul",
			Endpoints: []Endpoint{{ID: "a", Healthy: true, Breaker: "closed"}, {ID: "b", Healthy: true, Breaker: "closed"}},
			Binds:     []Bind{{Address: "127.77.1.2:8080", State: BindListening}},
		}},
		Services:  []Service{{Name: "web", ID: "web", Allow: []string{"shop"}}},
		Listeners: []Listener{{Name: "peer", Address: "[::]:21900"}},
		Loops:     []Loop{{Load: 0.5}},
	}
}

func TestDiagnose(t *testing.T) {
	up := func(s *Status) *Upstream { return &s.Upstreams[0] }
	for name, c := range map[string]struct {
		break_ func(s *Status)
		want   string // SEVERITY WHAT, | between several, "" for nothing
	}{
		"healthy":           {func(*Status) {}, ""},
		"not ready":         {func(s *Status) { s.Ready = false }, "error the agent is not ready"},
		"draining":          {func(s *Status) { s.Ready, s.Draining = false, true }, "warning the agent is draining"},
		"bad reload":        {func(s *Status) { s.LastReload = &Reload{Error: "x"} }, "warning the last reload failed"},
		"peer port":         {func(s *Status) { s.Listeners[0].Error = "in use" }, "error listener peer on [::]:21900"},
		"metrics port":      {func(s *Status) { s.Listeners[0] = Listener{Name: "http", Error: "in use"} }, "warning listener http"},
		"no roots":          {func(s *Status) { s.Identity.Roots = 0 }, "error there are no trusted roots"},
		"no leaf":           {func(s *Status) { s.Identity.Missing = []string{"web"} }, `error service "web" has no certificate`},
		"no renewal":        {func(s *Status) { s.Identity.Error = "403" }, "warning certificates cannot be renewed"},
		"expired":           {func(s *Status) { s.Certificates[0].Remaining = -1 }, `error the certificate of "web" has expired`},
		"late":              {func(s *Status) { s.Certificates[0].Remaining = Seconds(time.Hour) }, `warning the certificate of "web" was not renewed`},
		"consul away":       {func(s *Status) { s.Catalog.Reachable = false }, "warning Consul at 127.0.0.1:8500 cannot be reached"},
		"static needs none": {func(s *Status) { s.Catalog = Catalog{Source: "static"} }, ""},
		"consul away since": {func(s *Status) {
			s.Catalog.Reachable, s.Catalog.UnreachableSince, s.Catalog.StaleSince = false, time.Unix(3600, 0), time.Unix(60, 0)
		}, "warning Consul at 127.0.0.1:8500 cannot be reached since 1970-01-01"},
		"consul never there": {func(s *Status) {
			s.Ready, s.Catalog.Reachable, s.Identity.Roots, s.Identity.Error = false, false, 0, "refused"
			s.Services[0].Error = "refused"
		}, "error Consul at 127.0.0.1:8500 cannot be reached|error the agent is not ready|error there are no trusted roots"},
		"nothing renewed while consul is away": {func(s *Status) { s.Catalog.Reachable, s.Identity.Error = false, "refused" },
			"warning Consul at 127.0.0.1:8500 cannot be reached"},
		"stale": {func(s *Status) { s.Catalog.StaleSince = time.Unix(3600, 0) }, "warning what Consul says is stale since 1970-01-01"},
		"denied": {func(s *Status) {
			s.Catalog.Denied = []Denied{{Kind: "service", Name: "x", What: "endpoints of x", Hurt: "upstream x", Rule: "r"}}
			s.Catalog.Watches = []Watch{{Kind: "service", Name: "x", Error: "403"}}
		}, "error Consul denies endpoints of x"},
		"everything denied": {func(s *Status) {
			s.Catalog.Denied = []Denied{{Kind: "service", Name: "x", What: "endpoints of x"}}
			s.Catalog.Reachable = false
		}, "error Consul denies endpoints of x|warning Consul at 127.0.0.1:8500 says nothing that helps"},
		"leaf denied": {func(s *Status) {
			s.Catalog.Denied = []Denied{{Kind: "leaf", Name: "web", What: "the certificate of web"}}
			s.Identity.Error = "403"
		}, "error Consul denies the certificate of web"},
		"registration denied": {func(s *Status) {
			s.Catalog.Denied = []Denied{{Kind: "registration", Name: "web", What: "the registration of web"}}
			s.Services[0].Error = "403"
		}, "error Consul denies the registration of web"},
		"token file":   {func(s *Status) { s.Catalog.Unusable = []string{"x is empty"} }, "warning a file that the consul block names"},
		"refused":      {func(s *Status) { up(s).Refused, up(s).Healthy = "Consul has a splitter for it", 0 }, `error upstream "inventory" is refused`},
		"intentions":   {func(s *Status) { s.Services[0].Allow, s.Services[0].Intentions = nil, IntentionsKnown }, ""},
		"no intention": {func(s *Status) { s.Services[0].Intentions = IntentionsUnknown }, `error service "web" lets nobody in`},
		"watch":        {func(s *Status) { s.Catalog.Watches = []Watch{{Kind: "service", Name: "x", Error: "403"}} }, "warning watch of service x"},
		"port taken": {func(s *Status) { up(s).Binds[0] = Bind{Address: "127.77.1.2:8080", State: BindFailed, Error: "in use"} },
			`error upstream "inventory" does not listen on 127.77.1.2:8080`},
		"unknown":       {func(s *Status) { up(s).Known = false }, `error upstream "inventory" waits for the catalog`},
		"empty":         {func(s *Status) { up(s).Endpoints, up(s).Healthy = nil, 0 }, `error upstream "inventory" has no endpoint`},
		"all unhealthy": {func(s *Status) { up(s).Healthy = 0 }, `error upstream "inventory" has no healthy endpoint`},
		"one breaker":   {func(s *Status) { up(s).Endpoints[0].Breaker = "open" }, `warning upstream "inventory" has 1 of 2 breakers open`},
		"all breakers": {func(s *Status) { up(s).Endpoints[0].Breaker, up(s).Endpoints[1].Breaker = "open", "open" },
			`error upstream "inventory" has no usable endpoint`},
		"the healthy one is broken": {func(s *Status) {
			up(s).Endpoints[0].Breaker, up(s).Endpoints[1].Healthy, up(s).Healthy = "open", false, 1
		},
			`error upstream "inventory" has no usable endpoint`},
		"failing":       {func(s *Status) { up(s).RPS, up(s).FailedShare = 10, 0.2 }, `warning upstream "inventory" fails 20% of its requests`},
		"failing badly": {func(s *Status) { up(s).RPS, up(s).FailedShare = 10, 0.6 }, `error upstream "inventory" fails 60%`},
		"one failed":    {func(s *Status) { up(s).RPS, up(s).FailedShare = 0.1, 1 }, ""},
		"registration":  {func(s *Status) { s.Services[0].Error = "403" }, `warning service "web" is not registered`},
		"allows nobody": {func(s *Status) { s.Services[0].Allow = nil }, `warning service "web" allows nobody`},
		"busy":          {func(s *Status) { s.Loops[0].Load = 0.99 }, "warning loop 0 uses 99% of a core"},
	} {
		t.Run(name, func(t *testing.T) {
			s := healthy()
			c.break_(s)
			got := Diagnose(s)
			if c.want == "" {
				if len(got) != 0 {
					t.Errorf("found %+v in a status that is fine", got)
				}
				return
			}
			want := strings.Split(c.want, "|")
			for i := range max(len(got), len(want)) {
				if i >= len(got) || i >= len(want) || !strings.HasPrefix(string(got[i].Severity)+" "+got[i].What, want[i]) {
					t.Fatalf("found %+v, want only %q", got, want)
				}
			}
		})
	}
}

func TestSecondsInJSON(t *testing.T) {
	for in, want := range map[string]time.Duration{"1.5": 1500 * time.Millisecond, "0": 0, "-2": -2 * time.Second, "0.000001": time.Microsecond} {
		var s Seconds
		if err := s.UnmarshalJSON([]byte(in)); err != nil || s.Duration() != want {
			t.Errorf("%s = %s, %v; want %s", in, s.Duration(), err, want)
		}
	}
	var s Seconds
	if err := s.UnmarshalJSON([]byte("1e300")); err == nil {
		t.Error("1e300 seconds fit into a duration")
	}
}
