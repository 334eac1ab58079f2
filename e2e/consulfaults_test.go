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

// watched are the paths that watches ask; each is one watch of a host, since
// the hosts of the story want one service of a kind and name.
var watched = []string{"/v1/health/connect/", "/v1/discovery-chain/", "/v1/agent/connect/ca/", "/v1/connect/intentions/match"}

const (
	faultRate  = 1.0             // queries per second and watch during a fault
	faultBurst = 4               // that a watch may make at once, on top in a story of seconds
	healed     = 5 * time.Second // from the end of a fault until a change is in force
	faultRPS   = 500
)

// Consul fails in every way it has, one after the other, and then is well
// again: no request notices, no watch storms, and what changes meanwhile and
// right after is in force within seconds, without a restart.
func TestConsulFailsInEveryWay(t *testing.T) {
	r := secured(t, meshtest.ConsulOptions{})
	front := r.FaultProxy(t)
	apps := []*meshtest.App{meshtest.HTTPEcho(t, "one"), meshtest.HTTPEcho(t, "three"), meshtest.HTTPEcho(t, "two")}
	three, two := apps[1], apps[2]
	other := meshtest.HTTPEcho(t, "other")
	r.intend("web", "api", api.IntentionActionAllow)
	r.intend("web", "other", api.IntentionActionAllow)
	bodyB := instances("api", apps...) + instances("other", other)
	b, tokenB := r.host("host-b", front.Address, "", bodyB)
	b.start(bodyB)
	bodyA := offer("web", 9, "http", "") + call("api", "http", "") + call("other", "http", "")
	a, tokenA := r.host("host-a", front.Address, "", bodyA)
	a.start(bodyA)
	names := map[string]string{tokenA: "host-a", tokenB: "host-b"}
	a.awaitReady()
	b.awaitReady()
	a.awaitHealthy("api", time.Now(), "one", "three", "two")
	a.awaitServed("api")
	pids := []int{a.pid, b.pid}

	lasts := atLeast(6*time.Second, time.Minute)
	l := startLoad(t, a.url("api"), faultRPS)
	l.await(faultRPS / 2)
	var table strings.Builder
	for _, f := range []struct {
		name  string
		fault meshtest.ProxyFault
	}{
		{"accepts and never answers", meshtest.ProxyFault{Fault: meshtest.Fault{Hang: true}}},
		{"drops, accepts, never answers", meshtest.ProxyFault{Fault: meshtest.Fault{Hang: true}, Drop: true}},
		{"500 No cluster leader", meshtest.ProxyFault{Fault: meshtest.Fault{Status: 500, Body: meshtest.Text("No cluster leader")}}},
		{"403 for one service", meshtest.ProxyFault{Prefix: "/v1/health/connect/api", Fault: meshtest.Fault{Status: 403, Body: meshtest.Text("Permission denied")}}},
		{"empty body", meshtest.ProxyFault{Fault: meshtest.Fault{Body: meshtest.Text("")}}},
		{"[] with index 0", meshtest.ProxyFault{Fault: meshtest.Fault{Body: meshtest.Text("[]"), Index: meshtest.Number(0)}}},
		{"index back by 1,000, for good", meshtest.ProxyFault{Sink: 1000}},
		{"index back by 1,000 with every answer", meshtest.ProxyFault{Sink: 1000, Often: true}},
		{"slow by 20 s", meshtest.ProxyFault{Fault: meshtest.Fault{Delay: 20 * time.Second}, Drop: true}},
		{"resets every connection", meshtest.ProxyFault{Fault: meshtest.Fault{Reset: true}}},
	} {
		t.Run(f.name, func(t *testing.T) {
			a, b := a.in(t), b.in(t)
			failed, sent := l.failures(), l.count()
			front.Break(f.fault)
			began := time.Now()
			lastUntil(began.Add(lasts / 2))
			// Something changes while nobody can hear of it, where that is so.
			r.resting(b, "api", two, true)
			r.resting(b, "api", three, true)
			r.intend("web", "other", api.IntentionActionDeny)
			lastUntil(began.Add(lasts))
			if f.fault.Status == 403 {
				d := a.status().Catalog.Denied
				if len(d) != 1 || d[0].Name != "api" || !strings.Contains(d[0].Hurt, "api") {
					t.Errorf("what it hurts is not said: %+v", d)
				}
			}
			counts := front.Mend()
			ended := time.Now()
			r.resting(b, "api", three, false)
			r.intend("web", "other", api.IntentionActionAllow)
			r.intend("mobile", "other", api.IntentionActionAllow)
			took := a.awaitHealthy("api", ended, "one", "three")
			took = max(took, b.awaitAllowed("mobile", "other", ended, true))
			if took > healed {
				t.Errorf("what changed right after the end was in force %s later", took)
			}
			worst, who, all := 0.0, "", 0
			for asked, n := range counts {
				all += n
				rate := float64(n) / ended.Sub(began).Seconds()
				if !slices.ContainsFunc(watched, func(p string) bool { return strings.HasPrefix(asked.Path, p) }) {
					continue
				}
				if rate > worst {
					worst, who = rate, strings.TrimSpace(names[asked.Token]+" "+asked.Path+" "+asked.Name)
				}
				allowance := faultRate * ended.Sub(began).Seconds()
				if !long() {
					allowance += faultBurst
				}
				if float64(n) > allowance {
					t.Errorf("%s asked %s %s %d times in %s", names[asked.Token], asked.Path, asked.Name, n, ended.Sub(began))
				}
			}
			// As before, for the next one.
			r.resting(b, "api", two, false)
			r.intend("mobile", "other", "")
			a.awaitHealthy("api", ended, "one", "three", "two")
			b.awaitAllowed("mobile", "other", ended, false)
			b.awaitAllowed("web", "other", ended, true)
			a.awaitCalm()
			b.awaitCalm()
			if n := l.failures() - failed; n > 0 {
				t.Errorf("%d requests failed", n)
			}
			fmt.Fprintf(&table, "%-38s %5.1f s, %5d requests, %d failed, busiest watch %.2f queries/s (%s), %d queries in all, changes in force after %s\n",
				f.name, ended.Sub(began).Seconds(), l.count()-sent, l.failures()-failed, worst, who, all, took.Round(time.Millisecond))
		})
	}
	l.finish()
	if !a.running() || !b.running() || !slices.Equal(pids, []int{a.pid, b.pid}) {
		t.Error("an agent was restarted")
	}
	t.Logf("faults of Consul:\n%s", table.String())
}
