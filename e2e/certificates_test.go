package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"meshd/internal/meshtest"
)

// badLeafs are certificates that a peer must not get through with.
func badLeafs(t *testing.T, ca *meshtest.CA, service string) []badLeaf {
	other := meshtest.NewCA(t, "99999999-2222-3333-4444-555555555555.consul", ca.Datacenter)
	foreign := func(c *x509.Certificate) { c.URIs[0].Host = other.TrustDomain }
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	twice := func(c *x509.Certificate) {
		second := *c.URIs[0]
		second.Path += "-too"
		c.URIs = append(c.URIs, &second)
	}
	return []badLeaf{
		{"another trust domain", []string{"unknown_authority", "wrong_trust_domain"}, ca.Leaf(t, service, foreign)},
		{"an unknown authority", []string{"unknown_authority", "wrong_trust_domain"}, other.Leaf(t, service, nil)},
		{"expired", []string{"expired"}, ca.Leaf(t, service, expired)},
		{"two URI SANs", []string{"uri_san_count"}, ca.Leaf(t, service, twice)},
		{"no URI SAN", []string{"uri_san_count"}, ca.Leaf(t, service, func(c *x509.Certificate) { c.URIs = []*url.URL{} })},
	}
}

type badLeaf struct {
	name    string
	reasons []string // any of them
	leaf    tls.Certificate
}

// A peer with a wrong certificate stands beside a good one: it is refused in
// the handshake, counted and logged, and the good one answers.
func TestPeersWithWrongCertificatesAreRefused(t *testing.T) {
	consul := meshtest.NewFakeConsul(t)
	app := meshtest.HTTPEcho(t, "api")
	b := newHost(t, "host-b", viaConsul(consul.Address))
	b.start(offer("api", app.Port(), "http", "", "web"))
	a := newHost(t, "host-a", viaConsul(consul.Address))
	a.start(offer("web", 9, "http", "", "api") + call("api", "http", ""))
	a.awaitReady()
	b.awaitReady()
	expectApp(t, a.url("api"), "api")

	all := append(badLeafs(t, consul.CA(), "api"),
		badLeaf{"another service", []string{"wrong_service"}, consul.CA().Leaf(t, "db", nil)})
	for i, bad := range all {
		t.Run("called: "+bad.name, func(t *testing.T) {
			a := a.in(t)
			before := handshakes(a, bad.reasons)
			peer := tlsPeer(t, bad.leaf)
			id := fmt.Sprintf("bad-%d", i)
			consul.SetService("api", consul.Entry("api", id, peer, 0))
			defer consul.SetService("api")
			a.eventually("both endpoints", func() error {
				if n := len(a.upstream("api").Endpoints); n != 2 {
					return fmt.Errorf("%d endpoints", n)
				}
				return nil
			})
			a.eventually("refused once", func() error {
				expectApp(t, a.url("api"), "api") // every time
				if handshakes(a, bad.reasons) == before {
					return fmt.Errorf("no handshake counted as %v", bad.reasons)
				}
				return nil
			})
			logged(t, a, bad.reasons, peer.String())
		})
	}

	callers := append(badLeafs(t, consul.CA(), "web"), badLeaf{"none", []string{"no_certificate"}, tls.Certificate{}})
	for _, bad := range callers {
		t.Run("calling: "+bad.name, func(t *testing.T) {
			b := b.in(t)
			before := handshakes(b, bad.reasons)
			from, err := dialPeer(b, consul.CA(), bad.leaf)
			if err == nil {
				t.Error("the handshake went through")
			}
			b.eventually("counted", func() error {
				if handshakes(b, bad.reasons) != before+1 {
					return fmt.Errorf("no handshake counted as %v", bad.reasons)
				}
				return nil
			})
			logged(t, b, bad.reasons, from)
		})
	}
	if _, err := dialPeer(b, consul.CA(), consul.CA().Leaf(t, "web", nil)); err != nil {
		t.Errorf("a good certificate is refused: %v", err)
	}
}

// Who is not in an allow block is answered 403, and the application never
// hears of it.
func TestCallerThatIsNotAllowedIsDenied(t *testing.T) {
	app := meshtest.HTTPEcho(t, "api")
	ca := devCA(t)
	b := newHost(t, "host-b", ca)
	b.start(offer("api", app.Port(), "http", "", "web"))
	a := newHost(t, "host-a", ca)
	a.start(offer("intruder", 9, "http", "", "api") + call("api", "http", "") + static(at("api", b.peer)))
	a.awaitReady()
	if err := refusal(a.url("api"), 403, "denied"); err != nil {
		t.Error(err)
	}
	if n := app.Served.Load(); n != 0 {
		t.Errorf("the application saw %d requests", n)
	}
	b.eventually("counted", func() error {
		if n := b.metric("meshd_requests_total", `direction="inbound"`, `outcome="denied"`); n != 1 {
			return fmt.Errorf("%g denied", n)
		}
		return nil
	})
}

func handshakes(h *host, reasons []string) (sum float64) {
	for _, r := range reasons {
		sum += h.metric("meshd_handshakes_total", fmt.Sprintf("result=%q", r))
	}
	return sum
}

// logged wants a line that names the peer and one of the reasons.
func logged(t *testing.T, h *host, reasons []string, address string) {
	t.Helper()
	h.eventually("the log names it", func() error {
		for line := range strings.Lines(h.stderr.String()) {
			for _, r := range reasons {
				if strings.Contains(line, address) && strings.Contains(line, r) {
					return nil
				}
			}
		}
		return fmt.Errorf("no line with %s and any of %v", address, reasons)
	})
}

// tlsPeer listens as an agent would, with that certificate.
func tlsPeer(t *testing.T, leaf tls.Certificate) netip.AddrPort {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{leaf}, ClientAuth: tls.RequireAnyClientCert,
		MinVersion: tls.VersionTLS13, NextProtos: []string{"meshd/1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}) // closed by the goroutine below; the cleanup waits
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(patience))
			_ = c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// dialPeer links to the host's peer port with that certificate and waits for
// the greeting.
func dialPeer(h *host, ca *meshtest.CA, leaf tls.Certificate) (from string, err error) {
	raw, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", h.peer))
	if err != nil {
		return "", err
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(patience))
	c := tls.Client(raw, &tls.Config{
		ServerName: "api.default." + ca.Datacenter + ".internal." + ca.TrustDomain, NextProtos: []string{"meshd/1"},
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // what is tested is the other side
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &leaf, nil },
	})
	if err := c.Handshake(); err != nil {
		return raw.LocalAddr().String(), err
	}
	_, err = c.Read(make([]byte, 1)) // TLS 1.3 refuses a client after its handshake
	return raw.LocalAddr().String(), err
}
