package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"meshd/internal/admin"
	"meshd/internal/meshtest"
)

// Consul is not there when the hosts boot: listeners and names are, requests
// are refused with a reason, and everything heals when it comes.
func TestConsulAppearsAfterTheAgents(t *testing.T) {
	consul := meshtest.ConsulWith(t, meshtest.ConsulOptions{Persistent: true})
	consul.Kill()
	app := meshtest.HTTPEcho(t, "api")
	b := newHost(t, "host-b", viaConsul(consul.Address))
	b.start(offer("api", app.Port(), "http", "", "web"))
	a := newHost(t, "host-a", viaConsul(consul.Address))
	began := time.Now()
	a.start(offer("web", 9, "http", "", "api") + call("api", "http", ""))

	a.eventually("the listener is up without Consul", func() error {
		s, err := admin.NewClient(a.socket()).Status(context.Background())
		if err != nil || len(s.Upstreams) == 0 {
			return fmt.Errorf("no picture, %v", err)
		}
		return refusal(fmt.Sprintf("http://%s:%d/", s.Upstreams[0].Address, s.Upstreams[0].Port), 503, "no_endpoints")
	})
	t.Logf("listeners were up %s after the start", time.Since(began).Round(time.Millisecond))
	u := a.upstream("api")
	if ips, err := a.resolver().LookupNetIP(context.Background(), "ip4", "api.mesh.internal."); err != nil || len(ips) != 1 || ips[0].Unmap() != netip.MustParseAddr(u.Address) {
		t.Errorf("api.mesh.internal is %v, %v; want %s", ips, err, u.Address)
	}
	status, _, waiting, err := get(fmt.Sprintf("http://127.0.0.1:%d/ready", a.http))
	if err != nil || status != 503 || !containsAll(waiting, []string{"catalog of upstream api", "certificate of service web", "trusted roots"}) {
		t.Errorf("/ready: %d, %q, %v", status, waiting, err)
	}
	code, stdout, _ := a.ctl("status")
	if code != 1 || !containsAll(stdout, []string{"not reachable", consul.Address}) {
		t.Errorf("status: exit %d\n%s", code, stdout)
	}

	consul.Restart()
	came := time.Now()
	a.eventually("requests go through", func() error {
		status, header, _, err := get(a.url("api")) // the port may become the natural one
		if err == nil && status != 200 {
			err = fmt.Errorf("%d, %s", status, header.Get("meshd-error"))
		}
		return err
	})
	t.Logf("healed %s after Consul was ready", time.Since(came).Round(time.Millisecond))
	a.awaitReady()
	// The failures of the last ten seconds are rightly shown for as long.
	a.eventually("a healthy status", func() error {
		if code, stdout, _ := a.ctl("status"); code != 0 {
			return fmt.Errorf("exit %d\n%s", code, stdout)
		}
		return nil
	})
}

// Consul is killed under load and comes back: no request notices, and the age
// of what the agents know is shown.
func TestConsulDiesWhileRunning(t *testing.T) {
	consul := meshtest.ConsulWith(t, meshtest.ConsulOptions{Persistent: true})
	app := meshtest.HTTPEcho(t, "api")
	b := newHost(t, "host-b", viaConsul(consul.Address))
	b.start(offer("api", app.Port(), "http", "", "web"))
	a := newHost(t, "host-a", viaConsul(consul.Address))
	a.start(offer("web", 9, "http", "", "api") + call("api", "http", ""))
	a.awaitReady()
	b.awaitReady()
	a.eventually("a first answer", func() error {
		status, header, _, err := get(a.url("api"))
		if err == nil && status != 200 {
			err = errors.New(header.Get("meshd-error"))
		}
		return err
	})

	l := startLoad(t, a.url("api"), 200)
	l.await(100)
	consul.Kill()
	died := time.Now()
	a.eventually("the age is shown", func() error {
		code, stdout, _ := a.ctl("status", "-o", "json")
		s := a.status()
		if s.Catalog.Reachable || s.Catalog.Age.Duration() < 2*time.Second || s.Upstreams[0].CatalogAge.Duration() < 2*time.Second {
			return fmt.Errorf("exit %d, catalog %+v", code, s.Catalog)
		}
		if s.Upstreams[0].Healthy != 1 || !strings.Contains(stdout, `"catalog_age_seconds"`) {
			return fmt.Errorf("upstream %+v", s.Upstreams[0])
		}
		return nil
	})
	_, stdout, _ := a.ctl("status")
	if !containsAll(stdout, []string{"CATALOG", "not reachable", "oldest answer"}) {
		t.Errorf("status: %s", stdout)
	}
	if age := a.metric("meshd_catalog_age_seconds", `upstream="api"`); age < 2 {
		t.Errorf("meshd_catalog_age_seconds %g", age)
	}
	if n := a.metric("meshd_consul_reachable"); n != 0 {
		t.Errorf("meshd_consul_reachable %g", n)
	}
	// A reload, a new link and a new connection need no Consul either.
	if code, _, stderr := a.ctl("reload"); code != 0 {
		t.Errorf("reload without Consul: exit %d, %s", code, stderr)
	}
	expectApp(t, a.url("api"), "api")
	t.Logf("without Consul for %s", time.Since(died).Round(time.Millisecond))

	restarted := time.Now()
	consul.Restart()
	back := time.Now()
	a.eventually("Consul is heard again", func() error {
		s := a.status()
		// Any answer since then counts: meshd may have heard Consul before this
		// test found it ready, and what does not change is not asked again soon.
		if !s.Catalog.Reachable || s.Upstreams[0].CatalogAge.Duration() > time.Since(restarted) || s.Upstreams[0].Healthy != 1 {
			return fmt.Errorf("catalog %+v, upstream %+v", s.Catalog, s.Upstreams[0])
		}
		return nil
	})
	t.Logf("heard again %s after Consul was ready", time.Since(back).Round(time.Millisecond))
	l.await(100)
	l.finish()
}

// One of two hosts leaves, as for an upgrade: SIGTERM under load, and no
// request fails.
func TestHostLeavesUnderLoad(t *testing.T) {
	consul := meshtest.Consul(t)
	one, two := meshtest.HTTPEcho(t, "one"), meshtest.HTTPEcho(t, "two")
	b := newHost(t, "host-b", viaConsul(consul.Address))
	b.start(offer("api", one.Port(), "http", `  id = "one"`, "web"))
	c := newHost(t, "host-c", viaConsul(consul.Address))
	c.start(offer("api", two.Port(), "http", `  id = "two"`, "web"))
	a := newHost(t, "host-a", viaConsul(consul.Address))
	a.start(offer("web", 9, "http", "", "api") + call("api", "http", ""))
	b.awaitReady()
	c.awaitReady()
	a.eventually("both endpoints", func() error {
		if u := a.upstream("api"); u.Healthy != 2 {
			return fmt.Errorf("%d healthy", u.Healthy)
		}
		return nil
	})
	l := startLoad(t, a.url("api"), 300)
	l.await(150)
	left := time.Now()
	b.stop()
	took := time.Since(left)
	l.await(300)
	if last := l.lastTo("one").Sub(left); last > time.Second {
		t.Errorf("the host that left got a request %s later", last)
	}
	t.Logf("host-b drained and ended in %s", took.Round(time.Millisecond))

	// Its service moves: the block is gone from host-c before Consul has told host-a.
	b.start(offer("api", one.Port(), "http", `  id = "one"`, "web"))
	a.eventually("both endpoints again", func() error {
		if u := a.upstream("api"); u.Healthy != 2 {
			return fmt.Errorf("%d healthy", u.Healthy)
		}
		return nil
	})
	l.await(150)
	c.write(offer("other", two.Port(), "http", "", "web"))
	if code, _, stderr := c.ctl("reload"); code != 0 {
		t.Errorf("exit %d: %s", code, stderr)
	}
	l.await(300)
	l.finish()
}

// The catalog goes on stating an endpoint whose host has dropped the service:
// the host says so before anything is delivered, and the other one is asked.
func TestServiceDroppedThatTheCatalogStillStates(t *testing.T) {
	one, two := meshtest.HTTPEcho(t, "one"), meshtest.HTTPEcho(t, "two")
	ca := devCA(t)
	b, c, a := newHost(t, "host-b", ca), newHost(t, "host-c", ca), newHost(t, "host-a", ca)
	b.start(offer("api", one.Port(), "http", "", "web"))
	c.start(offer("api", two.Port(), "http", "", "web"))
	a.start(offer("web", 9, "http", "", "api") + call("api", "http", "circuit_breaker { open_for = \"200ms\" }") +
		fmt.Sprintf("catalog \"static\" {\n  service \"api\" {\n    endpoint \"one\" { address = \"127.0.0.1:%d\" }\n"+
			"    endpoint \"two\" { address = \"127.0.0.1:%d\" }\n  }\n}\n", b.peer, c.peer))
	a.awaitReady()
	l := startLoad(t, a.url("api"), 200)
	a.eventually("both answer", func() error {
		if l.lastTo("one").IsZero() || l.lastTo("two").IsZero() {
			return errors.New("one is silent")
		}
		return nil
	})
	c.write(offer("other", two.Port(), "http", "", "web"))
	if code, _, stderr := c.ctl("reload"); code != 0 {
		t.Errorf("exit %d: %s", code, stderr)
	}
	l.await(200)
	l.finish()
	tries, requests := a.metric("meshd_attempts_total", `direction="outbound"`), a.metric("meshd_requests_total", `direction="outbound"`)
	if tries <= requests {
		t.Errorf("%g attempts for %g requests: nothing was tried again", tries, requests)
	}
	t.Logf("%g requests took %g attempts", requests, tries)
}
