package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"meshd/internal/meshtest"
)

// trio is host-b's configuration with three instances of world, those whose
// number is in without left out.
func trio(apps []*meshtest.App, without ...int) string {
	body := ""
	for i, app := range apps {
		if !slices.Contains(without, i) {
			body += offer("world", app.Port(), "http", fmt.Sprintf("  id = %q", app.Name), "hello")
		}
	}
	return body
}

// Two agents and a real Consul: hello calls one of three instances of world by
// its name and by a port on 127.0.0.1; an instance leaves under load.
func TestThreeInstancesThroughConsul(t *testing.T) {
	consul := meshtest.Consul(t)
	hello := meshtest.HTTPEcho(t, "hello")
	apps := []*meshtest.App{meshtest.HTTPEcho(t, "w1"), meshtest.HTTPEcho(t, "w2"), meshtest.HTTPEcho(t, "w3")}
	b := newHost(t, "host-b", viaConsul(consul.Address))
	b.start(trio(apps))
	a := newHost(t, "host-a", viaConsul(consul.Address))
	local := meshtest.FreePort(t)
	body := offer("hello", hello.Port(), "http", "", "world") +
		call("world", "http", "") +
		call("world-here", "http", fmt.Sprintf("destination_name = \"world\"\n local_bind_port = %d", local))
	a.start(body)
	a.awaitReady()
	b.awaitReady()
	a.eventually("three instances", func() error {
		if u := a.upstream("world"); u.Healthy != 3 || u.Source != "consul" {
			return fmt.Errorf("%d healthy from %q", u.Healthy, u.Source)
		}
		return nil
	})

	t.Run("the name leads there", func(t *testing.T) {
		a := a.in(t)
		ctx := context.Background()
		ips, err := a.resolver().LookupNetIP(ctx, "ip4", "world.mesh.internal.")
		if err != nil || len(ips) != 1 {
			t.Fatalf("A: %v, %v", ips, err)
		}
		_, srv, err := a.resolver().LookupSRV(ctx, "", "", "world.mesh.internal.")
		if err != nil || len(srv) != 1 || srv[0].Target != "world.mesh.internal." {
			t.Fatalf("SRV: %v, %v", srv, err)
		}
		url := fmt.Sprintf("http://%s/", netip.AddrPortFrom(ips[0].Unmap(), srv[0].Port))
		if u := a.upstream("world"); url != a.url("world") || !ips[0].Is4() && !ips[0].Is4In6() {
			t.Errorf("DNS says %s, status %s:%d", url, u.Address, u.Port)
		}
		seen := map[string]bool{}
		for range 60 {
			status, header, _, err := get(url)
			if err != nil || status != 200 {
				t.Fatalf("%d, %v", status, err)
			}
			seen[header.Get("Echo-Name")] = true
		}
		if len(seen) != 3 {
			t.Errorf("answered by %v, want all three", seen)
		}
	})
	t.Run("local_bind_port leads there", func(t *testing.T) {
		status, header, _, err := get(fmt.Sprintf("http://127.0.0.1:%d/", local))
		if err != nil || status != 200 || !strings.HasPrefix(header.Get("Echo-Name"), "w") {
			t.Errorf("%d, %v, %v", status, header, err)
		}
	})
	t.Run("Consul lists the proxies", func(t *testing.T) {
		entries, _, err := consul.Client.Health().Connect("world", "", true, nil)
		if err != nil || len(entries) != 3 {
			t.Fatalf("%d proxies of world, %v", len(entries), err)
		}
		for i, e := range entries {
			want := fmt.Sprintf("host-b-world-%d-sidecar-proxy", e.Service.Proxy.LocalServicePort)
			if e.Service.Port != int(b.peer) || e.Service.ID != want || e.Service.Meta["meshd"] != "1" {
				t.Errorf("proxy %d: %+v", i, e.Service)
			}
		}
	})
	t.Run("certificates are of Consul's CA", func(t *testing.T) {
		checkIssuer(t, consul, a.in(t), b.in(t))
	})

	l := startLoad(t, a.url("world"), 200)
	l.await(100)
	t.Run("an instance leaves Consul", func(t *testing.T) {
		a := a.in(t)
		// As its operator would, who keeps it running until nobody calls.
		w1 := fmt.Sprintf("host-b-world-%d-sidecar-proxy", apps[0].Port())
		gone := time.Now()
		if err := consul.Client.Agent().EnableServiceMaintenance(w1, "leaves"); err != nil {
			t.Fatal(err)
		}
		measureLeft(t, a, l, "w1", gone, "maintenance in Consul")
		if err := consul.Client.Agent().DisableServiceMaintenance(w1); err != nil {
			t.Fatal(err)
		}
		a.eventually("w1 is back", func() error {
			if l.lastTo("w1").After(gone.Add(time.Second)) {
				return nil
			}
			return fmt.Errorf("not called")
		})
		gone = time.Now()
		if err := consul.Client.Agent().ServiceDeregister(w1); err != nil {
			t.Fatal(err)
		}
		// host-b still wants it and registers it again, at its next look.
		measureLeft(t, a, l, "w1", gone, "deregistered in Consul")
	})
	t.Run("an instance leaves its host", func(t *testing.T) {
		a, b := a.in(t), b.in(t)
		b.write(trio(apps, 1))
		gone := time.Now()
		if code, _, errs := b.ctl("reload"); code != 0 {
			t.Fatalf("exit %d: %s", code, errs)
		}
		measureLeft(t, a, l, "w2", gone, "removed from host-b's configuration")
		served := apps[1].Served.Load()
		l.await(100)
		if n := apps[1].Served.Load(); n != served {
			t.Errorf("%d requests to it afterwards", n-served)
		}
	})
	l.finish()

	b.stop()
	local3, err := consul.Client.Agent().Services()
	if err != nil {
		t.Fatal(err)
	}
	for id, s := range local3 {
		if s.Meta["meshd-node"] == "host-b" {
			t.Errorf("SIGTERM left %s in Consul", id)
		}
	}
	a.eventually("the last instance is gone", func() error { return refusal(a.url("world"), 503, "no_endpoints") })
	a.stop()
	if left, err := consul.Client.Agent().Services(); err != nil || len(left) != 0 {
		t.Errorf("left in Consul: %v, %v", left, err)
	}
}

// measureLeft wants that from a second after gone on no request is sent to app.
// It returns when a request has been answered after that second.
func measureLeft(t *testing.T, a *host, l *load, app string, gone time.Time, how string) {
	t.Helper()
	for time.Since(gone) < 1500*time.Millisecond {
		time.Sleep(20 * time.Millisecond) // the measured time itself
	}
	last := l.lastTo(app).Sub(gone)
	if last > time.Second {
		t.Errorf("%s: the last new request reached %s %s later", how, app, last)
	}
	t.Logf("%s: the last new request to it was sent %s later", how, max(last, 0).Round(time.Millisecond))
}

// checkIssuer compares what the agents present with what Consul says.
func checkIssuer(t *testing.T, consul *meshtest.ConsulServer, hosts ...*host) {
	t.Helper()
	list, _, err := consul.Client.Connect().CARoots(nil)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, r := range list.Roots {
		if block, _ := pem.Decode([]byte(r.RootCertPEM)); block == nil || !pool.AppendCertsFromPEM([]byte(r.RootCertPEM)) {
			t.Fatalf("root %q", r.RootCertPEM)
		}
	}
	for _, h := range hosts {
		s := h.status()
		if s.Identity.Provider != "consul" || s.Identity.TrustDomain != list.TrustDomain || len(s.Certificates) == 0 {
			t.Errorf("%s: identity %+v, certificates %v", h.name, s.Identity, s.Certificates)
		}
		for _, c := range s.Certificates {
			// Off the wire: what a peer sees.
			leaf, issuer := presented(t, h, c.Service, list.TrustDomain, pool)
			want := fmt.Sprintf("spiffe://%s/ns/default/dc/%s/svc/%s", list.TrustDomain, consul.Datacenter, c.Service)
			if leaf.URIs[0].String() != want || c.SPIFFE != want {
				t.Errorf("%s: %s presents %v, status says %s", h.name, c.Service, leaf.URIs, c.SPIFFE)
			}
			t.Logf("%s: %s is issued by %q", h.name, want, issuer)
		}
	}
}

// presented makes a handshake with the host's peer port, without a certificate
// of our own, and verifies what it presents against the roots.
func presented(t *testing.T, h *host, service, domain string, roots *x509.CertPool) (leaf *x509.Certificate, issuer string) {
	t.Helper()
	config := &tls.Config{
		ServerName: fmt.Sprintf("%s.default.dc1.internal.%s", service, domain), NextProtos: []string{"meshd/1"}, MinVersion: tls.VersionTLS13,
		InsecureSkipVerify: true, // SPIFFE certificates have no DNS name; the chain is verified below
		VerifyConnection: func(cs tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, c := range cs.PeerCertificates[1:] {
				between.AddCert(c)
			}
			chains, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
			if err == nil {
				leaf, issuer = cs.PeerCertificates[0], chains[0][len(chains[0])-1].Subject.CommonName
			}
			return err
		},
	}
	raw, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(h.peer))))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, config)
	if err := c.Handshake(); err != nil || leaf == nil {
		t.Fatalf("%s presents for %s: %v", h.name, service, err)
	}
	return leaf, issuer
}
