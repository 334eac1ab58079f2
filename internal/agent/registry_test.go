package agent_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/admin"
	"meshd/internal/meshtest"
)

// problem finds what status says of a thing; "" is that it says nothing.
func (h *host) problem(what string) string {
	h.t.Helper()
	for _, p := range h.status().Problems {
		if strings.Contains(p.What, what) {
			return fmt.Sprintf("%s: %s: %s: %s", p.Severity, p.What, p.Why, p.Next)
		}
	}
	return ""
}

// metric waits until /metrics has the line.
func (h *host) metric(line string) {
	h.t.Helper()
	eventually(h.t, func() error {
		_, _, body, err := get(fmt.Sprintf("http://127.0.0.1:%d/metrics", h.http))
		if err == nil && !strings.Contains(body, "\n"+line+"\n") {
			name, _, _ := strings.Cut(line, "{")
			var have []string
			for l := range strings.Lines(body) {
				if strings.HasPrefix(l, name) {
					have = append(have, l)
				}
			}
			err = fmt.Errorf("metrics lack %s, have %q", line, have)
		}
		return err
	})
}

// Who may call follows Consul, and policy test says by which entry.
func TestIntentions(t *testing.T) {
	meshtest.Leaks(t)
	c := meshtest.NewFakeConsul(t)
	c.SetDefault(false)
	app := meshtest.HTTPEcho(t, "api")
	a, b := newHost(t, "host-a", ""), newHost(t, "host-b", "")
	b.start(b.withConsul(c, offer("api", app.Port()))) // no allow block: Consul alone decides
	a.start(a.withConsul(c, offer("web", 9)+call("api", "")))
	a.awaitReady()
	b.awaitReady()
	eventually(t, func() error {
		if u := a.upstream("api"); u.Healthy != 1 {
			return fmt.Errorf("upstream %+v", u)
		}
		return nil
	})
	url := a.url("api")
	expect := func(status int, outcome string, want admin.PolicyDecision) {
		t.Helper()
		eventually(t, func() error {
			got, header, _, err := get(url)
			if err != nil || got != status || header.Get("meshd-error") != outcome {
				return fmt.Errorf("status %d, meshd-error %q, %v; want %d %q", got, header.Get("meshd-error"), err, status, outcome)
			}
			return nil
		})
		r, err := b.agent.TestPolicy("web", "api")
		if err != nil || len(r.Instances) != 1 || r.Allowed != want.Allowed || r.From != "web" || r.To != "api" {
			t.Fatalf("policy test %+v, %v", r, err)
		}
		d := r.Instances[0]
		if d.ID != "api" || d.Allowed != want.Allowed || d.Reason != want.Reason || d.Intention == nil || *d.Intention != *want.Intention {
			t.Errorf("decision %+v by %+v, want %+v by %+v", d, d.Intention, want, want.Intention)
		}
		if age := time.Since(d.IntentionsUpdated); age < 0 || age > patience {
			t.Errorf("intentions were confirmed %s ago", age)
		}
	}
	expect(403, "denied", admin.PolicyDecision{Reason: "default_denies", Intention: &admin.Intention{Destination: "api", Action: "deny"}})
	if s := b.status().Services[0]; s.Intentions != admin.IntentionsKnown {
		t.Errorf("service %+v", s)
	}
	if p := b.problem(`service "api"`); p != "" {
		t.Errorf("a service whose callers Consul names is a problem: %s", p)
	}
	c.SetIntentions("api", &api.Intention{SourceName: "web", DestinationName: "api", Precedence: 9, Action: api.IntentionActionAllow})
	expect(200, "", admin.PolicyDecision{Allowed: true, Reason: "allowed",
		Intention: &admin.Intention{Source: "web", Destination: "api", Precedence: 9, Action: "allow"}})
	c.SetIntentions("api", &api.Intention{SourceName: "*", DestinationName: "api", Precedence: 8, Action: api.IntentionActionDeny})
	expect(403, "denied", admin.PolicyDecision{Reason: "intention_denies",
		Intention: &admin.Intention{Source: "*", Destination: "api", Precedence: 8, Action: "deny"}})

	if _, err := a.agent.TestPolicy("web", "api"); err == nil || !strings.Contains(err.Error(), "here are web") {
		t.Errorf("the calling host answers: %v", err)
	}
	if w := b.agent.Catalog().Watches; !slices.ContainsFunc(w, func(w admin.Watch) bool {
		return w.Kind == "intentions" && w.Name == "api" && slices.Equal(w.Serves, []string{"service api"}) && w.Queries > 0
	}) {
		t.Errorf("watches %+v", w)
	}
}

// What Consul's configuration entries say of an upstream, and that one which
// cannot be obeyed is refused with its reason.
func TestDiscoveryChain(t *testing.T) {
	meshtest.Leaks(t)
	c := meshtest.NewFakeConsul(t)
	c.SetChain("api", c.DefaultChain("api", "http"))
	at := meshtest.FreeAddr(t)
	c.SetService("api", c.Entry("api", "api-1", at, at.Port()))
	a := newHost(t, "host-a", "")
	defer c.Break("/v1/discovery-chain/", meshtest.Fault{Delay: 200 * time.Millisecond, Times: 1})()
	a.start(a.withConsul(c, offer("web", 9)+"upstream \"api\" {}\n"))
	a.awaitReady()
	if g := a.status().Generation; g != 1 {
		t.Errorf("the first picture was made without the chain, now it is number %d", g)
	}
	e, err := a.agent.Explain("API")
	if err != nil || !slices.Contains(e.Values, admin.Value{Attribute: "protocol", Value: "http", Origin: admin.OriginConsul, Where: "discovery-chain/api"}) ||
		!slices.Contains(e.Values, admin.Value{Attribute: "port", Value: fmt.Sprint(at.Port()), Origin: admin.OriginConsul}) {
		t.Errorf("explained %+v, %v", e, err)
	}
	if _, err := a.agent.Explain("apo"); err == nil || !strings.Contains(err.Error(), "there are api") {
		t.Errorf("an upstream that is not there: %v", err)
	}

	split := c.DefaultChain("api", "http")
	split.Chain.StartNode = "splitter:api"
	split.Chain.Nodes["splitter:api"] = &api.DiscoveryGraphNode{Type: api.DiscoveryGraphNodeTypeSplitter, Name: "api"}
	c.SetChain("api", split)
	eventually(t, func() error {
		if u := a.upstream("api"); !strings.Contains(u.Refused, "splitter") {
			return fmt.Errorf("upstream %+v", u)
		}
		return nil
	})
	if p := a.problem(`upstream "api"`); !strings.Contains(p, "Consul has a splitter") || !strings.Contains(p, "meshctl config explain api") {
		t.Errorf("problem %q", p)
	}
	a.metric(`meshd_upstream_refused{upstream="api"} 1`)
	if status, header, _, err := get(a.url("api")); err != nil || status != 503 {
		t.Errorf("refused upstream: %d, meshd-error %q, %v", status, header.Get("meshd-error"), err)
	}
	c.SetChain("api", nil)
	a.metric(`meshd_upstream_refused{upstream="api"} 0`)
}

// A right that is missing is named with what it hurts, and once.
func TestMissingRight(t *testing.T) {
	meshtest.Leaks(t)
	c := meshtest.NewFakeConsul(t)
	mend := c.Break("/v1/health/connect/api", meshtest.Fault{Status: 403, Body: meshtest.Text("Permission denied: token lacks permission 'service:read'")})
	defer mend()
	a := newHost(t, "host-a", "")
	a.start(a.withConsul(c, offer("web", 9)+call("api", "")+call("again", `destination_name = "api"`)))
	eventually(t, func() error {
		if len(a.agent.Catalog().Denied) == 0 {
			return fmt.Errorf("nothing is denied: %+v", a.agent.Catalog())
		}
		return nil
	})
	p := a.problem("Consul denies")
	for _, want := range []string{"error: ", "upstream", "api", `service "api" { policy = "read" }`, "meshctl consul policy"} {
		if !strings.Contains(p, want) {
			t.Errorf("problem %q lacks %q", p, want)
		}
	}
	if p := a.problem("watch of service"); p != "" {
		t.Errorf("told twice: %s", p)
	}
	a.metric("meshd_consul_denied 1")
	a.metric(`meshd_consul_watches{kind="service",state="failing"} 1`)
	a.metric(`meshd_consul_registrations{state="registered"} 1`)
	a.metric("meshd_consul_registration_writes_total 2") // the service and its proxy
	i := slices.IndexFunc(a.agent.Catalog().Watches, func(w admin.Watch) bool { return w.Kind == "service" })
	if w := a.agent.Catalog().Watches[i]; w.Error == "" || w.Errors == 0 || !slices.Equal(w.Serves, []string{"upstream again", "upstream api"}) {
		t.Errorf("watch %+v", w)
	}
	mend()
	a.metric("meshd_consul_denied 0")
	a.metric(`meshd_consul_watches{kind="service",state="failing"} 0`)
	a.awaitReady()
	if p := a.problem("Consul denies"); p != "" {
		t.Errorf("still told: %s", p)
	}
}

// Consul away: since when, how old what is in use is, and until when it is used.
func TestConsulAwayIsTold(t *testing.T) {
	meshtest.Leaks(t)
	c := meshtest.NewFakeConsul(t)
	a := newHost(t, "host-a", "")
	a.start(a.withConsul(c, offer("web", 9)+call("api", "")))
	a.awaitReady()
	if s := a.agent.Catalog(); !s.Reachable || !s.UnreachableSince.IsZero() || !s.StaleSince.IsZero() ||
		s.WarnAfter.Duration() != 5*time.Minute || s.DropAfter.Duration() != 24*time.Hour {
		t.Errorf("catalog %+v", s)
	}
	before := time.Now()
	c.Down()
	eventually(t, func() error {
		if s := a.agent.Catalog(); s.Reachable {
			return fmt.Errorf("catalog %+v", s)
		}
		return nil
	})
	if at := a.agent.Catalog().UnreachableSince; at.IsZero() || at.After(before.Add(time.Second)) || before.Sub(at) > patience {
		t.Errorf("unreachable since %s, Consul went at %s", at, before)
	}
	if p := a.problem("cannot be reached since"); !strings.HasPrefix(p, "warning: ") || !strings.Contains(p, "confirmed") || !strings.Contains(p, "dropped after 24h") {
		t.Errorf("problem %q", p)
	}
	a.metric("meshd_consul_reachable 0")
}
