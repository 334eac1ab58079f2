package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/meshtest"
)

// The token is revoked under load: nothing changes for those who call, the
// status names what is missing and what that hurts, and a new token in the file
// heals everything without a restart.
func TestTokenRevokedAndReplaced(t *testing.T) {
	r := secured(t, meshtest.ConsulOptions{})
	one, two := meshtest.HTTPEcho(t, "one"), meshtest.HTTPEcho(t, "two")
	r.intend("web", "api", api.IntentionActionAllow)
	bodyB := instances("api", one, two)
	b, tokenB := r.host("host-b", r.Address, "", bodyB)
	b.start(bodyB)
	bodyA := offer("web", 9, "http", "") + call("api", "http", "")
	a, tokenA := r.host("host-a", r.Address, "", bodyA)
	a.start(bodyA)
	a.awaitReady()
	b.awaitReady()
	a.awaitHealthy("api", time.Now(), "one", "two")
	a.awaitServed("api")
	l := startLoad(t, a.url("api"), faultRPS)
	l.await(faultRPS / 2)

	// What takes its place is made before: it is the agents that are timed.
	_, nextA := r.host("host-a", r.Address, "", bodyA)
	_, nextB := r.host("host-b", r.Address, "", bodyB)
	r.Revoke(tokenA)
	r.Revoke(tokenB)
	revoked := time.Now()
	for _, c := range []struct {
		h    *host
		want []string // of what it hurts and the rules that are missing
	}{
		{a, []string{"upstream", "api", "service web", `service "api" { policy = "read" }`, `service "web" { policy = "write" }`}},
		{b, []string{"service api", `service "api" { policy = "write" }`}},
	} {
		c.h.eventually("the status names what is missing", func() error {
			var said strings.Builder
			for _, d := range c.h.status().Catalog.Denied {
				fmt.Fprintf(&said, "%s hurts %s, needs %s of %s\n", d.What, d.Hurt, d.Rule, d.Token)
			}
			_, text, _ := c.h.ctl("status")
			if !containsAll(said.String(), append(c.want, c.h.tokenFile())) || !strings.Contains(text, "denies") && !strings.Contains(text, "token") {
				return fmt.Errorf("it says:\n%s\n%s", said.String(), text)
			}
			return nil
		})
	}
	named := time.Since(revoked)

	// While nobody may ask, things change.
	r.resting(b, "api", two, true)
	lastUntil(time.Now().Add(atLeast(3*time.Second, 30*time.Second)))
	pids := fmt.Sprint(a.pid, b.pid)
	a.setToken(nextA)
	b.setToken(nextB)
	replaced := time.Now()
	a.awaitHealthy("api", replaced, "one")
	a.awaitCalm()
	b.awaitCalm()
	took := time.Since(replaced)
	r.intend("mobile", "api", api.IntentionActionAllow)
	b.awaitAllowed("mobile", "api", time.Now(), true)
	if took > healed {
		t.Errorf("healed %s after the replacement", took)
	}
	if !a.running() || !b.running() || fmt.Sprint(a.pid, b.pid) != pids {
		t.Error("an agent was restarted")
	}
	l.await(100)
	l.finish()
	t.Logf("token revoked: named %s later; healed %s after the file was replaced", named.Round(time.Millisecond), took.Round(time.Millisecond))
}
