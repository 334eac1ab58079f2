package consul

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
)

// One host offers web, another calls it; both through a real Consul. What is
// waited for is bounded as the operator would bound it.
func TestRealConsul(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.Consul(t)
	app := meshtest.HTTPEcho(t, "web")
	peer := meshtest.TCPEcho(t, "peer port") // something for the TCP check to find

	var there, here heard
	offers := there.options(s.Address)
	offers.Node = "host-b"
	reg := wantWeb(func(r *Registration) {
		r.Service.Port = app.Port()
		r.PeerAddress, r.PeerPort = "127.0.0.1", peer.Port()
	})
	second := reg
	second.Service.ID, second.Service.Port = "web-2", app.Port()+1
	b := run(t, offers, defaultPace, Wanted{Register: []Registration{reg, second}, Identities: []string{"web"}})
	a := run(t, here.options(s.Address), defaultPace, Wanted{
		Upstreams:  []mesh.ServiceKey{{Name: "web"}, {Name: "nobody"}},
		Identities: []string{"shop"},
	})

	eventually(t, "registered", func() bool {
		st := b.Status().Registrations
		return len(st) == 2 && st[0].State == Registered && st[1].State == Registered
	})
	entries, _, err := s.Client.Health().Connect("web", "", true, nil)
	if err != nil || len(entries) != 2 {
		t.Fatalf("Consul lists %d passing proxies of web, want 2 (%v)", len(entries), err)
	}
	for _, e := range entries {
		if p := e.Service; p.Service != "web-sidecar-proxy" || p.Port != int(peer.Port()) || len(e.Checks) != 3 || p.Meta["meshd-node"] != "host-b" ||
			!strings.HasPrefix(p.ID, "host-b-web-") || !strings.HasSuffix(p.ID, "-sidecar-proxy") {
			t.Errorf("Consul has %+v with %d checks", p, len(e.Checks))
		}
	}
	says := func(name, want string) func() bool {
		return func() bool { got, _ := here.endpoints(name); return got == want }
	}
	eventually(t, "both endpoints at the caller", says("web", "web web-2"))
	eventually(t, "emptiness of what nobody offers, from a real index", says("nobody", ""))

	// Certificates of Consul's own CA, with the form that peers look for.
	eventually(t, "leafs and roots", func() bool {
		here.mu.Lock()
		defer here.mu.Unlock()
		return len(here.leafs["shop"]) > 0 && len(here.roots) > 0
	})
	list, _, err := s.Client.Connect().CARoots(nil)
	if err != nil {
		t.Fatal(err)
	}
	here.mu.Lock()
	leaf, roots, domain := here.leafs["shop"][0], here.roots[0], here.domain
	here.mu.Unlock()
	checkLeaf(t, leaf, roots, "spiffe://"+list.TrustDomain+"/ns/default/dc/dc1/svc/shop")
	if domain != list.TrustDomain {
		t.Errorf("trust domain %q, Consul says %q", domain, list.TrustDomain)
	}

	// A stated removal is known within a second.
	removed := time.Now()
	b.Want(Wanted{Register: []Registration{reg}, Identities: []string{"web"}})
	within(t, 3*time.Second, "one endpoint left", says("web", "web"))
	t.Logf("a removal took %s from Want to the other host", time.Since(removed).Round(time.Millisecond))
	id := b.Status().Registrations[0].ProxyID
	if err := s.Client.Agent().ServiceDeregister(id); err != nil {
		t.Fatal(err)
	}
	removed = time.Now()
	within(t, time.Second, "no endpoint after a deregistration", says("web", ""))
	t.Logf("a deregistration took %s to the other host", time.Since(removed).Round(time.Millisecond))

	// What vanished comes back with the next poll.
	within(t, 2*defaultPace.poll, "registered again", says("web", "web"))

	// A check that turns critical is a stated removal too.
	peer.Close()
	within(t, 2*defaultPace.poll, "unhealthy when the peer port is closed", says("web", "web!"))

	if st := a.Status(); !st.Reachable || len(st.Watches) != 4 {
		t.Errorf("status %+v", st)
	}
	if err := b.Deregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	within(t, 3*time.Second, "gone at the caller", says("web", ""))
	local, err := s.Client.Agent().Services()
	if err != nil || len(local) != 0 {
		t.Errorf("left in Consul: %v (%v)", local, err)
	}
}

func checkLeaf(t *testing.T, leaf tls.Certificate, roots []*x509.Certificate, uri string) {
	t.Helper()
	pool, more := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	for _, der := range leaf.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		more.AddCert(c)
	}
	_, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: more, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		t.Errorf("the leaf does not belong to the roots: %v", err)
	}
	if u := leaf.Leaf.URIs; len(u) != 1 || u[0].String() != uri {
		t.Errorf("leaf for %v, want %s", u, uri)
	}
}

// Consul replaces its CA while we watch: first a second root, then a leaf of
// the new one.
func TestRealConsulReplacesItsCA(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.Consul(t)
	var h heard
	run(t, h.options(s.Address), defaultPace, Wanted{Identities: []string{"shop"}})
	state := func() (leafs, roots, trusted int) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.roots) > 0 {
			trusted = len(h.roots[len(h.roots)-1])
		}
		return len(h.leafs["shop"]), len(h.roots), trusted
	}
	eventually(t, "the first leaf and root", func() bool { l, r, _ := state(); return l == 1 && r == 1 })
	before, _, err := s.Client.Connect().CAGetConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	// A new private key makes a new root.
	config := &api.CAConfig{Provider: before.Provider, Config: map[string]any{"PrivateKeyType": "ec", "PrivateKeyBits": 384, "LeafCertTTL": "72h"}}
	if _, err := s.Client.Connect().CASetConfig(config, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "two roots trusted", func() bool { _, _, trusted := state(); return trusted >= 2 })
	// Consul spreads new leafs over half a minute, so as not to swamp its CA.
	within(t, 60*time.Second, "a leaf of the new root", func() bool { l, _, _ := state(); return l >= 2 })
}

// A development server comes back with nothing: another CA, a smaller index,
// an empty catalog. The other hosts register again; nobody sees emptiness.
func TestRealConsulComesBackEmpty(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.Consul(t)
	// What gives the loss away is an index that went back. A Consul that has
	// lived for a moment only has none that the next could not overtake.
	for i := range 300 {
		if _, err := s.Client.KV().Put(&api.KVPair{Key: "age", Value: []byte{byte(i)}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	peer := meshtest.TCPEcho(t, "peer port")
	var h heard
	reg := wantWeb(func(r *Registration) { r.PeerAddress, r.PeerPort = "127.0.0.1", peer.Port() })
	c := run(t, h.options(s.Address), defaultPace, Wanted{
		Upstreams: []mesh.ServiceKey{{Name: "web"}}, Identities: []string{"web"}, Register: []Registration{reg},
	})
	eventually(t, "the endpoint", func() bool { got, _ := h.endpoints("web"); return got == "web" })
	eventually(t, "the first roots", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.roots) == 1 })
	s.Kill()
	eventually(t, "unreachable", func() bool { return !c.Status().Reachable })
	_, calls := h.endpoints("web")
	s.Restart()
	up := time.Now()
	eventually(t, "the new roots", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.roots) == 2 })
	t.Logf("new roots %s after Consul was back", time.Since(up).Round(time.Millisecond))
	within(t, 2*defaultPace.poll, "registered again and watched", func() bool {
		st := c.Status()
		local, err := s.Client.Agent().Services()
		return err == nil && len(local) == 2 && st.Reachable && st.Watches[1].Error == "" && st.Watches[1].Failures == 0
	})
	if got, n := h.endpoints("web"); got != "web" || n != calls {
		t.Errorf("endpoints %q after %d calls, %d before: emptiness of a restarted Consul was believed", got, n, calls)
	}
}
