package agent_test

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/internal/meshtest"
)

func (h *host) withConsul(c *meshtest.FakeConsul, body string) string {
	h.ca = ""
	return fmt.Sprintf("consul { address = %q }\n", c.Address) + body
}

// The whole life with a registry: away at the start, there, gone, changed.
func TestConsul(t *testing.T) {
	meshtest.Leaks(t)
	c := meshtest.NewFakeConsul(t)
	c.Down()
	app := meshtest.HTTPEcho(t, "api")
	a, b := newHost(t, "host-a", ""), newHost(t, "host-b", "")
	a.start(a.withConsul(c, offer("web", 9, "nobody")+call("api", "")))
	b.start(b.withConsul(c, offer("api", app.Port(), "web")))

	// Without Consul the listener is there, and says what is missing.
	eventually(t, func() error {
		if a.agent.Snapshot() == nil {
			return errors.New("no picture without Consul")
		}
		return nil
	})
	status, header, _, err := get(a.url("api"))
	if err != nil || status != 503 || header.Get("meshd-error") != "no_endpoints" {
		t.Errorf("without Consul: %d, meshd-error %q, %v", status, header.Get("meshd-error"), err)
	}
	ok, waiting := a.agent.Ready()
	if want := []string{"trusted roots", "certificate of service web", "catalog of upstream api", "intentions of service web"}; ok || !slices.Equal(waiting, want) {
		t.Errorf("waits for %q, want %q", waiting, want)
	}
	if s := a.status(); s.Catalog.Reachable || s.Catalog.Error == "" || s.Upstreams[0].Known {
		t.Errorf("catalog %+v", s.Catalog)
	}

	c.Up()
	a.awaitReady()
	b.awaitReady()
	eventually(t, func() error {
		if u := a.upstream("api"); u.Healthy != 1 {
			return fmt.Errorf("upstream %+v", u)
		}
		return nil
	})
	expectEcho(t, a.url("api"), "api")
	u := a.upstream("api")
	if u.Source != "consul" || u.Endpoints[0].Address != fmt.Sprintf("127.0.0.1:%d", b.peer) {
		t.Errorf("upstream %+v", u)
	}
	s := b.status()
	if s.Services[0].Registered != "consul" || s.Catalog.Source != "consul" || !s.Catalog.Reachable || len(s.Catalog.Watches) == 0 {
		t.Errorf("services %+v, catalog %+v", s.Services, s.Catalog)
	}
	if id := s.Identity; id.Provider != "consul" || id.Roots != 1 || id.TrustDomain != c.CA().TrustDomain || len(id.Missing) != 0 {
		t.Errorf("identity %+v", id)
	}

	// A removal that Consul states is believed at once.
	proxyID := ""
	for id := range c.Registered() {
		if strings.HasPrefix(id, "host-b-api-") {
			proxyID = id
		}
	}
	if proxyID == "" {
		t.Fatalf("host-b has no proxy among %d registrations", len(c.Registered()))
	}
	c.SetCheck(proxyID, "critical")
	eventually(t, func() error {
		if status, header, _, err := get(a.url("api")); err != nil || header.Get("meshd-error") != "no_endpoints" {
			return fmt.Errorf("after the check turned critical: %d, %v", status, err)
		}
		return nil
	})
	c.SetCheck(proxyID, "passing")
	eventually(t, func() error {
		if status, _, _, err := get(a.url("api")); err != nil || status != 200 {
			return fmt.Errorf("after the check passed again: %d, %v", status, err)
		}
		return nil
	})

	// A reload brings a service that nobody watched; its natural port is used at
	// once, since Consul answers before the picture is made.
	other := meshtest.FreeAddr(t)
	c.SetService("other", c.Entry("other", "other-1", other, other.Port()))
	mend := c.Break("/v1/health/connect/other", meshtest.Fault{Delay: 200 * time.Millisecond})
	defer mend()
	a.write(a.withConsul(c, offer("web", 9, "nobody")+call("api", "")+call("other", "")))
	r := a.reload()
	if !r.Applied || len(r.Changes) != 1 {
		t.Fatalf("result %+v", r)
	}
	if o := a.agent.Snapshot().Lookup("other"); !o.Known {
		t.Error("the reload answered before Consul had")
	}
	if u := a.upstream("other"); !u.Known || u.Port != other.Port() {
		t.Errorf("upstream %+v, want natural port %d", u, other.Port())
	}

	// Consul dies: nothing changes but what is said about it.
	c.Down()
	eventually(t, func() error {
		if a.status().Catalog.Reachable {
			return errors.New("status does not see that Consul is away")
		}
		return nil
	})
	expectEcho(t, a.url("api"), "api")
	c.Up()

	// The end takes back what was registered, and nothing else.
	b.stop()
	for id := range c.Registered() {
		if strings.HasPrefix(id, "host-b") || id == "api" {
			t.Errorf("%s is still registered", id)
		}
	}
	if len(c.Registered()) == 0 {
		t.Error("what host-a registered is gone, too")
	}
}

// The natural port is left to a process that listens on every address.
func TestWildcardListenerKeepsItsPort(t *testing.T) {
	meshtest.Leaks(t)
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().(*net.TCPAddr).AddrPort().Port()
	free := meshtest.FreePort(t)
	a := newHost(t, "host-a", t.TempDir()+"/ca")
	a.start(offer("web", 9, "nobody") + call("clash", "") + call("fine", "") + known(at("clash", taken, 1), at("fine", free, 1)))
	a.awaitReady()
	if u := a.upstream("clash"); u.Port == taken || u.Port < 21300 {
		t.Errorf("port %d of the upstream whose natural port %d is taken", u.Port, taken)
	}
	if u := a.upstream("fine"); u.Port != free {
		t.Errorf("port %d, want the natural one, %d", u.Port, free)
	}
}
