package consul

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
)

// node makes n endpoints on nodes of their own; those in lost are critical by
// gossip, those in sick by their own check.
func nodes(f *meshtest.FakeConsul, n int, lost, sick string) []*api.ServiceEntry {
	var all []*api.ServiceEntry
	for i := range n {
		id := fmt.Sprintf("web-%d", i)
		e := f.Entry("web", id, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 21900), 8080)
		gossip := &api.HealthCheck{CheckID: "serfHealth", Status: api.HealthPassing}
		if strings.Contains(lost, fmt.Sprint(i)) {
			gossip.Status = api.HealthCritical
		}
		if strings.Contains(sick, fmt.Sprint(i)) {
			e.Checks[0].Status = api.HealthCritical
		}
		e.Checks = append(e.Checks, gossip)
		all = append(all, e)
	}
	return all
}

// healthy returns the numbers of the healthy endpoints of the last word.
func (h *heard) healthy() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	said := h.services[mesh.ServiceKey{Name: "web"}]
	if len(said) == 0 {
		return "-"
	}
	var text string
	for _, e := range said[len(said)-1].Endpoints {
		if e.Healthy {
			text += strings.TrimPrefix(e.ID, "web-")
		}
	}
	return text
}

func TestHoldWhatGossipLost(t *testing.T) {
	type step struct {
		n          int
		lost, sick string
		want       string
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"60 % of ten at once", []step{{10, "", "", "0123456789"}, {10, "012345", "", "0123456789"}, {10, "", "", "0123456789"}}},
		{"one after the other", []step{{5, "", "", "01234"}, {5, "0", "", "1234"}, {5, "01", "", "234"}, {5, "012", "", "01234"}, {5, "0123", "", "01234"}}},
		{"half of ten is not over half", []step{{10, "", "", "0123456789"}, {10, "01234", "", "56789"}}},
		{"four are too few to tell", []step{{4, "", "", "0123"}, {4, "012", "", "3"}}},
		{"their own checks are believed", []step{{10, "", "", "0123456789"}, {10, "", "012345", "6789"}}},
		{"both gossip and own check", []step{{10, "", "", "0123456789"}, {10, "012345", "012345", "6789"}}},
		{"those whose own check fails later", []step{{10, "", "", "0123456789"}, {10, "0123456", "", "0123456789"}, {10, "0123456", "0", "123456789"}}},
		{"really gone", []step{{10, "", "", "0123456789"}, {10, "0123456789", "", "0123456789"}, {0, "", "", ""}}},
		{"sick before is not held", []step{{10, "", "012345", "6789"}, {10, "012345", "", "6789"}}},
		{"unknown before is not held", []step{{10, "012345", "", "6789"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			meshtest.Leaks(t)
			f := meshtest.NewFakeConsul(t)
			var h heard
			o := h.options(f.Address)
			o.Stale.ShrinkAfter = time.Minute
			f.SetService("web", nodes(f, c.steps[0].n, c.steps[0].lost, c.steps[0].sick)...)
			client := run(t, o, hurry, wantUpstream)
			for i, s := range c.steps {
				f.SetService("web", nodes(f, s.n, s.lost, s.sick)...)
				index := f.Index()
				eventually(t, fmt.Sprintf("step %d", i), func() bool { return h.healthy() == s.want && client.Status().Watches[0].Index >= index })
				for _, x := range client.Status().Watches {
					if held := len(s.want) + len(s.lost) - s.n; x.Kind == KindService && held > 0 && s.sick == "" && x.Held != held {
						t.Errorf("step %d: held %d, want %d", i, x.Held, held)
					}
				}
			}
		})
	}
}

// After shrink_after Consul is followed, although nothing new comes from it.
func TestHoldEnds(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	f.SetService("web", nodes(f, 10, "", "")...)
	var h heard
	o := h.options(f.Address)
	o.Stale.ShrinkAfter = 500 * time.Millisecond
	p := hurry
	p.wait = time.Hour
	run(t, o, p, wantUpstream)
	eventually(t, "all", func() bool { return h.healthy() == "0123456789" })
	f.SetService("web", nodes(f, 10, "0123456", "")...)
	lost := time.Now()
	eventually(t, "followed in the end", func() bool { return h.healthy() == "789" })
	if took := time.Since(lost); took < o.Stale.ShrinkAfter-50*time.Millisecond || took > 4*o.Stale.ShrinkAfter {
		t.Errorf("held for %s, want about %s", took, o.Stale.ShrinkAfter)
	}
	// The first answer could be any of them: what counts is that it was held.
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.services[mesh.ServiceKey{Name: "web"}]); n != 2 {
		t.Errorf("%d words, want the first and the last", n)
	}
}

// Real gossip: agents that vanish without a word. The servers' own view turns
// their serfHealth critical.
func TestRealSerfHealth(t *testing.T) {
	if testing.Short() {
		t.Skip("gossip needs half a minute")
	}
	meshtest.Leaks(t)
	s := meshtest.Consul(t)
	// Nodes of the catalog alone, whose serfHealth is written as a server would:
	// ten agents beside each other would say no more about this client.
	set := func(i int, status string) {
		t.Helper()
		node := fmt.Sprintf("node-%d", i)
		_, err := s.Client.Catalog().Register(&api.CatalogRegistration{
			Node: node, Address: fmt.Sprintf("127.0.1.%d", i+1),
			Service: &api.AgentService{Kind: api.ServiceKindConnectProxy, ID: fmt.Sprintf("web-%d-sidecar-proxy", i), Service: "web-sidecar-proxy", Port: 21900,
				Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "web", DestinationServiceID: fmt.Sprintf("web-%d", i)}},
			// Consul takes a check of a node that no agent has as external.
			Checks:   api.HealthChecks{{Node: node, CheckID: "serfHealth", Name: "Serf Health Status", Status: status}},
			NodeMeta: map[string]string{"external-node": "true"},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10 {
		set(i, api.HealthPassing)
	}
	var h heard
	o := h.options(s.Address)
	o.Stale.ShrinkAfter = 3 * time.Second
	run(t, o, defaultPace, wantUpstream)
	eventually(t, "ten", func() bool { return h.healthy() == "0123456789" })
	for i := range 6 {
		set(i, api.HealthCritical)
	}
	lost := time.Now()
	within(t, time.Second, "all ten held once over half are gone", func() bool { return h.healthy() == "0123456789" && time.Since(lost) > 500*time.Millisecond })
	within(t, 10*time.Second, "Consul followed", func() bool { return h.healthy() == "6789" })
	t.Logf("followed %s after the loss, shrink_after is %s", time.Since(lost).Round(time.Millisecond), o.Stale.ShrinkAfter)
}
