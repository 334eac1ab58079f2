package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/admin"
	"meshd/internal/meshtest"
)

// Three secured Consul servers, and the one that leads is killed again and
// again.
func TestLeaderKilledAgainAndAgain(t *testing.T) {
	const every, away = 10 * time.Second, 4 * time.Second
	c := meshtest.SecuredConsulCluster(t, 3)
	r := &registry{c.Agent, t}
	one, two := meshtest.HTTPEcho(t, "one"), meshtest.HTTPEcho(t, "two")
	r.intend("web", "api", api.IntentionActionAllow)
	bodyB := instances("api", one, two)
	b, _ := r.host("host-b", r.Address, "", bodyB)
	b.start(bodyB)
	bodyA := offer("web", 9, "http", "") + call("api", "http", "")
	a, _ := r.host("host-a", r.Address, "", bodyA)
	a.start(bodyA)
	a.awaitReady()
	b.awaitReady()
	a.awaitHealthy("api", time.Now(), "one", "two")
	a.awaitServed("api")

	lasts := atLeast(30*time.Second, 2*time.Minute)
	l := startLoad(t, a.url("api"), faultRPS)
	l.await(faultRPS / 2)
	kills := 0
	for began := time.Now(); time.Since(began) < lasts; kills++ {
		next := time.Now().Add(every)
		killed := c.KillLeader()
		lastUntil(time.Now().Add(away))
		killed.Launch()
		lastUntil(next)
	}
	c.Leader()
	ended := time.Now()
	id := fmt.Sprintf("host-b-api-%d-sidecar-proxy", two.Port())
	a.eventually("the instance rests", func() error { return c.Agent.Client.Agent().EnableServiceMaintenance(id, "story") })
	took := a.awaitHealthy("api", ended, "one")
	l.await(100)
	l.finish()
	for _, h := range []*host{a, b} {
		for _, w := range h.status().Catalog.Watches {
			if per := float64(w.Queries) / lasts.Seconds(); per > 1 {
				t.Errorf("%s: %s %s asked %.2f times a second", h.name, w.Kind, w.Name, per)
			}
		}
	}
	t.Logf("leader killed %d times in %s; a change right after there was one again was in force %s later",
		kills, lasts, took.Round(time.Millisecond))
}

// Consul is gone, and every agent is restarted without it: they serve from
// disk, say so, and follow Consul again when it is back.
func TestRestartWithoutConsul(t *testing.T) {
	// Three times what a watch waits for at most, 60 s + 1/16 + 5 s, which is
	// the longest timer that matters here.
	gone := atLeast(8*time.Second, 210*time.Second)
	r := secured(t, meshtest.ConsulOptions{Persistent: true})
	one, two := meshtest.HTTPEcho(t, "one"), meshtest.HTTPEcho(t, "two")
	r.intend("web", "api", api.IntentionActionAllow)
	bodyB := instances("api", one, two)
	b, _ := r.host("host-b", r.Address, "", bodyB)
	b.start(bodyB)
	bodyA := offer("web", 9, "http", "") + call("api", "http", "")
	a, _ := r.host("host-a", r.Address, "", bodyA)
	a.start(bodyA)
	a.awaitReady()
	b.awaitReady()
	a.awaitHealthy("api", time.Now(), "one", "two")
	a.awaitServed("api")
	for _, h := range []*host{a, b} {
		h.eventually("everything is on disk", func() error {
			s := h.status()
			if len(s.Problems) > 0 || s.Catalog.Stored.Before(s.Published) {
				return fmt.Errorf("stored %s, published %s, problems %v", s.Catalog.Stored, s.Published, s.Problems)
			}
			return nil
		})
	}

	before := startLoad(t, a.url("api"), faultRPS)
	before.await(faultRPS / 2)
	r.Kill()
	died := time.Now()
	lastUntil(died.Add(gone / 2))
	before.finish()

	url := a.url("api")
	for _, h := range []*host{b, a} { // the one that is called first
		h.stop()
	}
	startsServing := func(h *host, body string, ready func() error) time.Duration {
		began := time.Now()
		h.launch(body)
		h.eventually("serves from disk", ready)
		return time.Since(began)
	}
	tookB := startsServing(b, bodyB, func() error {
		p, err := admin.NewClient(b.socket()).TestPolicy(context.Background(), "web", "api")
		if err == nil && !p.Allowed {
			err = errors.New("nobody is let in")
		}
		return err
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	tookA := startsServing(a, bodyA, func() error {
		res, err := client.Get(url) // the same address and port as before
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode != 200 {
			return fmt.Errorf("%d, %s", res.StatusCode, res.Header.Get("meshd-error"))
		}
		return nil
	})
	limit := 2 * time.Second
	if raceEnabled {
		limit *= 2 // start-up is what the race detector slows down most
	}
	if tookA > limit || tookB > limit {
		t.Errorf("served %s and %s after the start", tookA, tookB)
	}
	s := a.status()
	if u := s.Upstreams[0]; u.Source != "snapshot" || u.StaleSince.IsZero() || u.Healthy != 2 || s.Catalog.StaleSince.IsZero() || s.Catalog.Reachable {
		t.Errorf("not marked: upstream %+v, catalog %+v", u, s.Catalog)
	}
	if _, stdout, _ := a.ctl("status"); !containsAll(stdout, []string{"(stale)", "not reachable", "stale since"}) {
		t.Errorf("status:\n%s", stdout)
	}
	after := startLoad(t, a.url("api"), faultRPS)
	lastUntil(died.Add(gone))
	after.await(faultRPS / 2)
	away := time.Since(died)

	r.Restart()
	back := time.Now()
	a.eventually("Consul is heard again", func() error {
		s := a.status()
		if u := s.Upstreams[0]; u.Source != "consul" || !u.StaleSince.IsZero() || u.Healthy != 2 || !s.Catalog.Reachable {
			return fmt.Errorf("upstream %+v, catalog %+v", u, s.Catalog)
		}
		return nil
	})
	heard := time.Since(back)
	changed := time.Now()
	r.resting(b, "api", two, true)
	took := a.awaitHealthy("api", changed, "one")
	after.await(faultRPS / 2)
	after.finish()
	if heard > healed {
		t.Errorf("Consul was heard %s after it was ready", heard)
	}
	t.Logf("Consul gone for %s; from the start to the first answer from disk: called side %s, calling side %s; Consul heard again %s after it was ready, a change then in force after %s",
		away.Round(100*time.Millisecond), tookB.Round(time.Millisecond), tookA.Round(time.Millisecond), heard.Round(time.Millisecond), took.Round(time.Millisecond))
}
