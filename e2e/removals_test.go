package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/meshtest"
)

// Everything that offers a service is deregistered under load: whoever calls
// is told within a second.
func TestAllInstancesDeregistered(t *testing.T) {
	r := secured(t, meshtest.ConsulOptions{})
	front := r.FaultProxy(t)
	one, two := meshtest.HTTPEcho(t, "one"), meshtest.HTTPEcho(t, "two")
	r.intend("web", "api", api.IntentionActionAllow)
	bodyB := instances("api", one, two)
	b, _ := r.host("host-b", front.Address, "", bodyB)
	b.start(bodyB)
	bodyA := offer("web", 9, "http", "") + call("api", "http", "")
	a, _ := r.host("host-a", r.Address, "", bodyA)
	a.start(bodyA)
	a.awaitReady()
	b.awaitReady()
	a.awaitHealthy("api", time.Now(), "one", "two")
	a.awaitServed("api")

	l := startLoad(t, a.url("api"), faultRPS)
	l.await(faultRPS / 2)
	// host-b wants them registered, and would within ten seconds.
	front.Break(meshtest.ProxyFault{Prefix: "/v1/agent/service/register", Fault: meshtest.Fault{Status: 500}})
	gone := time.Now()
	for _, app := range []*meshtest.App{one, two} {
		for _, id := range []string{fmt.Sprintf("host-b-api-%d-sidecar-proxy", app.Port()), app.Name} {
			if err := r.Client.Agent().ServiceDeregister(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	took := time.Duration(0)
	a.eventually("nobody is left", func() error {
		err := refusal(a.url("api"), 503, "no_endpoints")
		took = time.Since(gone)
		return err
	})
	lastUntil(gone.Add(1500 * time.Millisecond))
	last := max(l.lastTo("one").Sub(gone), l.lastTo("two").Sub(gone))
	if last > time.Second {
		t.Errorf("the last request was answered by one of them %s later", last)
	}
	l.mu.Lock()
	for _, f := range l.failed {
		if !strings.Contains(f, `503, meshd-error "no_endpoints"`) {
			t.Errorf("failed in another way: %s", f)
		}
	}
	l.failed = nil // they had to
	l.mu.Unlock()
	front.Mend()
	back := time.Now()
	again := a.awaitHealthy("api", back, "one", "two")
	a.awaitServed("api")
	t.Logf("all deregistered: refused with no_endpoints after %s, the last new request was answered %s later; registered again %s after that was possible",
		took.Round(time.Millisecond), max(last, 0).Round(time.Millisecond), again.Round(time.Millisecond))
}

// Gossip breaks: the nodes of six out of ten instances are critical at once,
// and still answer. They are called on, until shrink_after.
func TestNodesVanishTogether(t *testing.T) {
	const all, lost = 10, 6
	shrink := atLeast(6*time.Second, 30*time.Second)
	// Consul's servers remove nodes that gossip never knew, a minute after they
	// are elected: this story is over by then.
	r := secured(t, meshtest.ConsulOptions{})
	front := r.FaultProxy(t)
	r.intend("web", "api", api.IntentionActionAllow)
	var apps []*meshtest.App
	var names []string
	for i := range all {
		names = append(names, fmt.Sprintf("i%d", i))
		apps = append(apps, meshtest.HTTPEcho(t, names[i]))
	}
	// One host has them all, and does not say so: the catalog states them on
	// nodes of their own instead.
	front.Break(meshtest.ProxyFault{Prefix: "/v1/agent/service/register", Fault: meshtest.Fault{Status: 500}})
	bodyB := instances("api", apps...)
	b, _ := r.host("host-b", front.Address, "", bodyB)
	b.start(bodyB)
	bodyA := offer("web", 9, "http", "") + call("api", "http", "")
	a, _ := r.host("host-a", r.Address, fmt.Sprintf("  stale { shrink_after = %q }", shrink), bodyA)
	a.start(bodyA)

	gossip := func(i int, status string) *api.TxnOp {
		return &api.TxnOp{Check: &api.CheckTxnOp{Verb: api.CheckSet, Check: api.HealthCheck{
			Node: "node-" + names[i], CheckID: "serfHealth", Name: "Serf Health Status", Status: status}}}
	}
	apply := func(ops api.TxnOps) {
		if ok, res, _, err := r.Client.Txn().Txn(ops, nil); err != nil || !ok {
			t.Fatal(err, res)
		}
	}
	var ops api.TxnOps
	for i, app := range apps {
		node := "node-" + names[i]
		ops = append(ops,
			&api.TxnOp{Node: &api.NodeTxnOp{Verb: api.NodeSet, Node: api.Node{Node: node, Address: "127.0.0.1"}}},
			&api.TxnOp{Service: &api.ServiceTxnOp{Verb: api.ServiceSet, Node: node, Service: api.AgentService{
				Kind: api.ServiceKindConnectProxy, ID: names[i] + "-sidecar-proxy", Service: "api-sidecar-proxy", Address: "127.0.0.1", Port: int(b.peer),
				Weights: api.AgentWeights{Passing: 1, Warning: 1},
				Proxy:   &api.AgentServiceConnectProxyConfig{DestinationServiceName: "api", DestinationServiceID: names[i], LocalServicePort: int(app.Port())},
			}}}, gossip(i, api.HealthPassing))
	}
	apply(ops)
	b.awaitAllowed("web", "api", time.Now(), true)
	a.awaitReady()
	a.awaitHealthy("api", time.Now(), names...)
	a.awaitServed("api")
	l := startLoad(t, a.url("api"), faultRPS)
	l.await(faultRPS)

	ops = nil
	for i := range lost {
		ops = append(ops, gossip(i, api.HealthCritical))
	}
	apply(ops)
	broke := time.Now()
	held := func() (n int) {
		for _, w := range a.status().Catalog.Watches {
			n += w.Held
		}
		return n
	}
	a.eventually("six are held", func() error {
		if n := held(); n != lost {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	heard := time.Since(broke)
	lastUntil(broke.Add(shrink * 3 / 4))
	if got := a.healthy("api"); !slices.Equal(got, names) {
		t.Errorf("%s later only %v are called", time.Since(broke), got)
	}
	for _, n := range names {
		if last := l.lastTo(n); last.Before(broke.Add(shrink / 2)) {
			t.Errorf("%s was called last %s after", n, last.Sub(broke))
		}
	}
	took := a.awaitHealthy("api", broke, names[lost:]...)
	followed := time.Now()
	if took < shrink || took > shrink+2*time.Second {
		t.Errorf("Consul was followed after %s, want %s", took, shrink)
	}
	l.await(faultRPS)
	for _, n := range names[:lost] {
		if last := l.lastTo(n); last.After(followed.Add(time.Second)) {
			t.Errorf("%s was still called %s after", n, last.Sub(followed))
		}
	}
	l.finish()
	t.Logf("%d of %d serfHealth-critical: held %s later, all were called until %s (shrink_after %s), then %d",
		lost, all, heard.Round(time.Millisecond), took.Round(time.Millisecond), shrink, all-lost)
}
