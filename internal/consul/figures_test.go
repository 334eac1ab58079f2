package consul

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
)

// figuresFault is how long each fault of TestFigures lasts.
const figuresFault = 12 * time.Second

// The figures that an operator is promised, at the real pace: during a fault at
// most a query a second and watch on average, 5 s after its end all is known
// again, and in between nothing is lost. Each fault hits the whole of Consul,
// and the health of services alone. All of them last at the same time.
func TestFigures(t *testing.T) {
	if testing.Short() {
		t.Skip("the faults last a while")
	}
	meshtest.Leaks(t)
	type fault struct {
		name   string
		fault  meshtest.Fault
		prefix string

		f      *meshtest.FakeConsul
		h      *heard
		client *Client
		mend   func()
		before map[string]int
		healed time.Duration
	}
	var all []*fault
	for _, prefix := range []string{"/v1/", "/v1/health/"} {
		for _, c := range []fault{
			{name: "hang", fault: meshtest.Fault{Hang: true}},
			{name: "swallowed for good", fault: meshtest.Fault{Delay: time.Hour}},
			{name: "500", fault: meshtest.Fault{Status: 500, Body: meshtest.Text("No cluster leader")}},
			{name: "403", fault: meshtest.Fault{Status: 403, Body: meshtest.Text("Permission denied")}},
			{name: "429", fault: meshtest.Fault{Status: 429}},
			{name: "empty body", fault: meshtest.Fault{Body: meshtest.Text("")}},
			{name: "[] with index 0", fault: meshtest.Fault{Body: meshtest.Text("[]"), Index: meshtest.Number(0)}},
			{name: "index back by 1,000", fault: meshtest.Fault{Index: meshtest.Number(4000)}},
			{name: "slow by 20 s", fault: meshtest.Fault{Delay: 20 * time.Second}},
			{name: "resets", fault: meshtest.Fault{Reset: true}},
			{name: "cut short", fault: meshtest.Fault{Cut: 20}},
		} {
			if prefix != "/v1/" && (c.fault.Hang || c.fault.Delay > 0) {
				continue // what is swallowed there alone looks like what is held
			}
			c.prefix = prefix
			all = append(all, &c)
		}
	}
	all = append(all, &fault{name: "gone", prefix: "whole"})
	keys := []string{"GET /v1/health/", "GET /v1/discovery-chain/", "GET /v1/connect/intentions/match", "GET /v1/agent/connect/ca/leaf/", "GET /v1/agent/connect/ca/roots"}
	for _, c := range all {
		c.f, c.h = meshtest.NewFakeConsul(t), &heard{}
		c.f.Rewind(5000)
		c.f.SetService("web", web(c.f, 2)...)
		c.client = run(t, c.h.withChains(c.h.options(c.f.Address)), defaultPace, Wanted{
			Upstreams: wantUpstream.Upstreams, Identities: []string{"shop"}, Intentions: []string{"shop"},
		})
	}
	for _, c := range all {
		eventually(t, "all of it before "+c.name, func() bool { return well(c.client) })
	}
	for _, c := range all {
		c.before = make(map[string]int)
		for _, k := range keys {
			c.before[k] = c.f.Requests(k)
		}
		if c.name == "gone" {
			c.f.Down()
			c.mend = c.f.Up
		} else {
			c.mend = c.f.Break(c.prefix, c.fault)
		}
		c.f.SetService("other") // lets what waits run into it
	}
	start := time.Now()
	<-time.After(figuresFault / 2)
	for _, c := range all {
		c.f.SetService("web", web(c.f, 3)...)
	}
	<-time.After(figuresFault / 2)
	for _, c := range all {
		name := fmt.Sprintf("%s on %s", c.name, c.prefix)
		lasted := time.Since(start).Seconds()
		for _, k := range keys {
			// What is held at its end counts as one of before.
			if n := c.f.Requests(k) - c.before[k]; float64(n) > lasted+1 {
				t.Errorf("%s: %d of %s in %.0f s, want at most one a second", name, n, k, lasted)
			}
		}
		if got, n := c.h.endpoints("web"); (got != "web-1 web-2" || n != 1) && c.name != "index back by 1,000" {
			t.Errorf("%s: told %q in %d calls", name, got, n)
		}
	}
	for _, c := range all {
		c.mend()
	}
	mended := time.Now()
	var wg sync.WaitGroup // of what polls for the healing
	for _, c := range all {
		wg.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for time.Since(mended) < 15*time.Second {
				if got, _ := c.h.endpoints("web"); got == "web-1 web-2 web-3" && well(c.client) {
					break
				}
				<-tick.C
			}
			c.healed = time.Since(mended)
		})
	}
	wg.Wait()
	for _, c := range all {
		t.Logf("%-20s on %-12s healed after %s", c.name, c.prefix, c.healed.Round(10*time.Millisecond))
		if c.healed > 5*time.Second {
			t.Errorf("%s on %s healed after %s", c.name, c.prefix, c.healed)
		}
	}
}

// A change is passed on within 100 ms of Consul's answer, while many come.
func TestRealChangeIsQuick(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.Consul(t)
	var h heard
	run(t, h.options(s.Address), defaultPace, Wanted{Upstreams: []mesh.ServiceKey{{Name: "api"}}})
	eventually(t, "emptiness", func() bool { got, n := h.endpoints("api"); return got == "" && n == 1 })
	var worst time.Duration
	for i := range 20 {
		offer(t, s.Client, "api", 8080)
		at := time.Now()
		eventually(t, "there", func() bool { got, _ := h.endpoints("api"); return got == "api" })
		worst = max(worst, time.Since(at))
		if err := s.Client.Agent().ServiceDeregister("api-proxy"); err != nil {
			t.Fatal(err)
		}
		at = time.Now()
		within(t, time.Second, fmt.Sprintf("removal %d", i), func() bool { got, _ := h.endpoints("api"); return got == "" })
		worst = max(worst, time.Since(at))
	}
	t.Logf("40 changes one after the other, the slowest heard %s after Consul had it", worst.Round(time.Millisecond))
}
