package proxy

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/internal/identity"
	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/telemetry"
	"meshd/internal/wire"
)

// TestWordsOfTheDocs compares the outcomes and the results of handshakes with
// the lists in docs/metrics.md, in their order.
func TestWordsOfTheDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	section := func(title string) string {
		_, s, _ := strings.Cut(string(b), "\n## "+title+"\n")
		s, _, _ = strings.Cut(s, "\n## ")
		return s
	}
	var outcomes []string
	for line := range strings.Lines(section("Outcomes")) {
		if word, ok := strings.CutPrefix(line, "| `"); ok {
			word, _, _ = strings.Cut(word, "`")
			outcomes = append(outcomes, word)
		}
	}
	if got, want := strings.Join(outcomes, " "), strings.Join(OutcomeNames, " "); got != want {
		t.Errorf("docs/metrics.md has the outcomes\n%s\nthe code has\n%s", got, want)
	}
	var results []string
	for i, word := range strings.Split(section("Results of handshakes"), "`") {
		if i%2 == 1 {
			results = append(results, word)
		}
	}
	want := []string{"ok", "unreachable", crowded}
	for _, r := range identity.Reasons() {
		want = append(want, string(r))
	}
	if got, want := strings.Join(results, " "), strings.Join(want, " "); got != want {
		t.Errorf("docs/metrics.md has the results\n%s\nthe code has\n%s", got, want)
	}
	for _, w := range Blameless {
		if !strings.Contains(" "+strings.Join(OutcomeNames, " ")+" ", " "+w+" ") {
			t.Errorf("%q is no outcome", w)
		}
	}
}

// certified is a pair whose certificates the test has made, so that it can make
// wrong ones too.
func certified(t *testing.T, ca *meshtest.CA, app netip.AddrPort, protocol mesh.Protocol, opts ...pairOption) *pair {
	t.Helper()
	p := newPair(t, 1, protocol, app, opts...)
	for h, service := range map[*host]string{p.a: "web", p.b: "world"} {
		h.store.SetRoots(ca.TrustDomain, []*x509.Certificate{ca.Root})
		if err := h.store.SetLeaf(service, ca.Leaf(t, service, nil)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// wrongLeafs is the table of certificates that nobody may believe.
func wrongLeafs(t *testing.T, ca *meshtest.CA, service string) map[identity.Reason]*tls.Certificate {
	uri := func(domain, service string) *url.URL {
		return &url.URL{Scheme: "spiffe", Host: domain, Path: "/ns/default/dc/" + ca.Datacenter + "/svc/" + service}
	}
	leaf := func(ca *meshtest.CA, change func(*x509.Certificate)) *tls.Certificate {
		c := ca.Leaf(t, service, change)
		return &c
	}
	return map[identity.Reason]*tls.Certificate{
		identity.WrongTrustDomain: leaf(ca, func(c *x509.Certificate) { c.URIs = []*url.URL{uri("other.test", service)} }),
		identity.UnknownAuthority: leaf(meshtest.NewCA(t, ca.TrustDomain, ca.Datacenter), nil),
		identity.Expired:          leaf(ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
		identity.URISANCount: leaf(ca, func(c *x509.Certificate) {
			c.URIs = []*url.URL{uri(ca.TrustDomain, service), uri(ca.TrustDomain, "web")}
		}),
		identity.URISANForm:    leaf(ca, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "https", Host: "world"}} }),
		identity.NoCertificate: nil,
	}
}

// TestPeerPresentsWrongCertificate: the dialling side refuses, says so, and asks
// the other endpoint when there is one.
func TestPeerPresentsWrongCertificate(t *testing.T) {
	ca := meshtest.NewCA(t, "1234.test", "dc1")
	app := meshtest.HTTPEcho(t, "world")
	wrong := wrongLeafs(t, ca, "world")
	delete(wrong, identity.NoCertificate) // TLS has no server without one
	other := ca.Leaf(t, "shop", nil)
	wrong[identity.WrongService] = &other
	for reason, cert := range wrong {
		t.Run(string(reason), func(t *testing.T) {
			peer := newRawPeer(t)
			go func() { // ends with the listener
				for {
					c, err := peer.Accept()
					if err != nil {
						return
					}
					srv := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequestClientCert, NextProtos: []string{wire.ALPN}})
					srv.Handshake()
					srv.Write(wire.AppendPing(nil, 0, false))
					io.Copy(io.Discard, srv)
					srv.Close()
				}
			}()
			p := certified(t, ca, app.Addr, mesh.HTTP, endpointAt(peer.Addr()))
			c := dial(t, p.addr)
			send(t, c, "GET / HTTP/1.1\r\nhost: world\r\n\r\n")
			getsError(t, c, "503 handshake_failed")
			p.a.counts(telemetry.Outbound, mesh.HTTP, "handshake_failed=1")
			if h := p.a.Counts().Handshakes; h[string(reason)] != 1 {
				t.Errorf("handshakes %v", h)
			}
			if p.a.logs.count("cannot link to peer", "outcome=handshake_failed", string(reason)) != 1 {
				t.Error("the log does not say so")
			}
			p.a.spec.Static[0].Endpoints = append(p.a.spec.Static[0].Endpoints, mesh.StaticEndpoint{ID: "world", Address: p.b.PeerAddr(), Weight: 1})
			p.a.put()
			for range 5 {
				if code, body, _ := get(t, "http://"+p.addr+"/"); code != 200 {
					t.Fatalf("%d %s", code, body)
				}
			}
		})
	}
}

// TestPeerRefusesOurCertificate: the accepting side refuses. With TLS 1.3 the
// dialling side has finished by then and must not send a request into it.
func TestPeerRefusesOurCertificate(t *testing.T) {
	ca := meshtest.NewCA(t, "1234.test", "dc1")
	app := meshtest.HTTPEcho(t, "world")
	p := certified(t, ca, app.Addr, mesh.HTTP)
	for reason, cert := range wrongLeafs(t, ca, "web") {
		t.Run(string(reason), func(t *testing.T) {
			before := p.b.Counts().Handshakes[string(reason)]
			cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{wire.ALPN},
				ServerName: identity.Name{TrustDomain: ca.TrustDomain, Datacenter: ca.Datacenter, Service: "world"}.SNI()}
			if cert != nil {
				cfg.Certificates = []tls.Certificate{*cert}
			}
			c, err := tls.Dial("tcp", p.b.PeerAddr().String(), cfg)
			if err == nil {
				c.SetReadDeadline(time.Now().Add(patience))
				_, err = c.Read(make([]byte, 1))
				c.Close()
			}
			if identity.ReasonOf(err) != identity.RefusedByPeer {
				t.Errorf("got %v, want an alert", err)
			}
			if !eventually(func() bool { return p.b.Counts().Handshakes[string(reason)] == before+1 }) {
				t.Errorf("handshakes %v", p.b.Counts().Handshakes)
			}
			if p.b.logs.count("refused a peer", "reason="+string(reason)) == 0 {
				t.Error("the log does not say so")
			}
		})
	}
	t.Run("seen from the caller", func(t *testing.T) {
		stranger := meshtest.NewCA(t, "1234.test", "dc1")
		p.a.store.SetLeaf("web", stranger.Leaf(t, "web", nil))
		c := dial(t, p.addr)
		send(t, c, "GET / HTTP/1.1\r\nhost: world\r\n\r\n")
		getsError(t, c, "503 handshake_failed")
		if h := p.a.Counts().Handshakes; h["refused_by_peer"] != 1 {
			t.Errorf("handshakes %v", h)
		}
		// A new leaf is used at once.
		p.a.store.SetLeaf("web", ca.Leaf(t, "web", nil))
		send(t, c, "GET / HTTP/1.1\r\nhost: world\r\n\r\n")
		gets(t, "client", c, "HTTP/1.1 200 ")
	})
	if app.Served.Load() != 1 {
		t.Errorf("the application saw %d requests", app.Served.Load())
	}
	t.Run("asks for a service that is not here", func(t *testing.T) {
		cfg, err := p.a.store.ClientConfig("web", identity.Name{Service: "shop", Datacenter: "dc1"})
		if err != nil {
			t.Fatal(err)
		}
		cfg.NextProtos = []string{wire.ALPN}
		if _, err := tls.Dial("tcp", p.b.PeerAddr().String(), cfg); err == nil {
			t.Error("linked")
		}
		if !eventually(func() bool { return p.b.Counts().Handshakes["unknown_service"] == 1 }) {
			t.Errorf("handshakes %v", p.b.Counts().Handshakes)
		}
	})
}

// TestNoLeafYet: a host without certificate says so, once per request and not
// once per request in the log, and works as soon as it has one.
func TestNoLeafYet(t *testing.T) {
	app := meshtest.HTTPEcho(t, "world")
	p := newPair(t, 1, mesh.HTTP, app.Addr)
	p.a.store.Retain(nil)
	c := dial(t, p.addr)
	const n = 50
	for range n {
		send(t, c, "GET / HTTP/1.1\r\nhost: world\r\n\r\n")
		r := bufio.NewReader(c)
		c.SetReadDeadline(time.Now().Add(patience))
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 503 || resp.Header.Get("meshd-error") != "no_identity" {
			t.Fatalf("%v %v", resp, err)
		}
		io.Copy(io.Discard, resp.Body)
	}
	p.a.counts(telemetry.Outbound, mesh.HTTP, fmt.Sprintf("no_identity=%d", n))
	if h := p.a.Counts().Handshakes; h["no_leaf"] != n {
		t.Errorf("handshakes %v", h)
	}
	if lines := p.a.logs.count("cannot link to peer", "no_identity"); lines < 1 || lines > 5 {
		t.Errorf("%d log lines for %d requests", lines, n)
	}
	p.a.publish(p.ca) // gets a leaf
	if code, body, _ := get(t, "http://"+p.addr+"/"); code != 200 {
		t.Fatalf("%d %s", code, body)
	}
}

// TestDenied: whoever is not allowed reaches nothing of the application, and a
// picture that takes an allowance away works on links that are open.
func TestDenied(t *testing.T) {
	t.Run("http", func(t *testing.T) {
		app := meshtest.HTTPEcho(t, "world")
		p := newPair(t, 1, mesh.HTTP, app.Addr)
		if code, _, _ := get(t, "http://"+p.addr+"/"); code != 200 {
			t.Fatal(code)
		}
		allow := p.b.spec.Services[0].Allow
		p.b.spec.Services[0].Allow = []mesh.Allow{{Caller: "somebody"}}
		p.b.publish(p.ca)
		served := app.Served.Load()
		for range 3 {
			code, body, h := get(t, "http://"+p.addr+"/")
			if code != 403 || h.Get("meshd-error") != "denied" {
				t.Fatalf("%d %s %v", code, body, h)
			}
		}
		if n := app.Served.Load(); n != served {
			t.Errorf("the application saw %d requests of a denied caller", n-served)
		}
		p.a.counts(telemetry.Outbound, mesh.HTTP, "ok=1 denied=3")
		p.b.counts(telemetry.Inbound, mesh.HTTP, "ok=1 denied=3")
		// It was an answer: the breaker counts none of them.
		if s := p.a.Upstreams()[0].Endpoints[0]; s.Breaker != "closed" || s.Links != 1 {
			t.Errorf("%+v", s)
		}
		p.b.spec.Services[0].Allow = allow
		p.b.publish(p.ca)
		if code, _, _ := get(t, "http://"+p.addr+"/"); code != 200 {
			t.Fatal(code)
		}
	})
	t.Run("tcp", func(t *testing.T) {
		app := newRawApp(t)
		p := newPair(t, 1, mesh.TCP, mustAddr(app.Addr()), func(_, b *mesh.Spec) { b.Services[0].Allow = nil })
		for range 2 {
			c, err := netDial(p.addr)
			if err == nil {
				io.WriteString(c, "secret")
				c.SetReadDeadline(time.Now().Add(patience))
				_, err = c.Read(make([]byte, 1))
				c.Close()
			}
			if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Fatalf("got %v, want a reset", err)
			}
		}
		select {
		case <-app.conns:
			t.Fatal("a denied caller reached the application")
		case <-time.After(50 * time.Millisecond):
		}
		p.a.counts(telemetry.Outbound, mesh.TCP, "denied=2")
		p.calm()
	})
}

// TestInstances: several instances of a service on one host are told apart by
// the endpoint's id.
func TestInstances(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		apps := []*meshtest.App{meshtest.HTTPEcho(t, "one"), meshtest.HTTPEcho(t, "two"), meshtest.HTTPEcho(t, "three")}
		p := newPair(t, loops, mesh.HTTP, apps[0].Addr, func(_, b *mesh.Spec) {
			one := b.Services[0]
			b.Services = nil
			for _, a := range apps {
				s := one
				s.ID, s.Port = "world-"+a.Name, a.Port()
				b.Services = append(b.Services, s)
			}
		})
		use := func(ids ...string) map[string]int {
			p.a.spec.Static[0].Endpoints = nil
			for _, id := range ids {
				p.a.spec.Static[0].Endpoints = append(p.a.spec.Static[0].Endpoints, mesh.StaticEndpoint{ID: id, Address: p.b.PeerAddr(), Weight: 1})
			}
			p.a.publish(p.ca)
			got := map[string]int{}
			for range 30 {
				code, body, h := get(t, "http://"+p.addr+"/")
				if code != 200 {
					t.Fatalf("%d %s", code, body)
				}
				got[h.Get("echo-name")]++
			}
			return got
		}
		for _, a := range apps {
			if got := use("world-" + a.Name); got[a.Name] != 30 {
				t.Errorf("endpoint world-%s: answers by %v", a.Name, got)
			}
		}
		if got := use("world-one", "world-three"); got["one"] == 0 || got["three"] == 0 || got["two"] != 0 {
			t.Errorf("two endpoints: answers by %v", got)
		}
		p.calm()
	})
}
