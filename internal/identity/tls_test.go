package identity

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"testing"
)

func TestLink(t *testing.T) {
	ca := newCA(t, nil, nil)
	a, b := testStore(t, ca, "web", "batch"), testStore(t, ca, "payments", "shop")
	client := clientConfig(t, a, "batch", "shop")
	server := b.ServerConfig(every)
	client.NextProtos, server.NextProtos = []string{"x/1"}, []string{"x/1"}
	c, s := handshake(t, client, server)
	if c.err != nil || s.err != nil {
		t.Fatal(c.err, s.err)
	}
	if name, err := PeerName(c.state); err != nil || name != (Name{testDomain, testDC, "shop"}) {
		t.Errorf("the client sees %v, %v", name, err)
	}
	if name, err := PeerName(s.state); err != nil || name != (Name{testDomain, testDC, "batch"}) {
		t.Errorf("the server sees %v, %v", name, err)
	}
	if s.state.Version != tls.VersionTLS13 || s.state.NegotiatedProtocol != "x/1" || s.state.DidResume {
		t.Errorf("state %+v", s.state)
	}
	if got, want := s.state.ServerName, "shop.default.dc1.internal.1234.test"; got != want {
		t.Errorf("server name %q, want %q", got, want)
	}
	old := client.Clone()
	old.MaxVersion, old.MinVersion = tls.VersionTLS12, 0
	if _, s := handshake(t, old, server); s.err == nil {
		t.Error("TLS 1.2 was accepted")
	}
	other := client.Clone()
	other.NextProtos = []string{"y/1"}
	if _, s := handshake(t, other, server); s.err == nil {
		t.Error("a foreign protocol was accepted")
	}
}

// Without a datacenter, the caller's stands in the server name and none is compared.
func TestAnyDatacenter(t *testing.T) {
	ca := newCA(t, nil, nil)
	far := ca.leaf(t, "payments", func(c *x509.Certificate) {
		c.URIs[0] = uri(t, Name{testDomain, "dc2", "payments"}.SPIFFE())
	})
	cfg, err := testStore(t, ca, "web").ClientConfig("web", Name{Service: "payments"})
	if err != nil {
		t.Fatal(err)
	}
	c, s := handshake(t, cfg, &tls.Config{Certificates: []tls.Certificate{far}})
	if c.err != nil || s.state.ServerName != "payments.default.dc1.internal.1234.test" {
		t.Errorf("%v, server name %q", c.err, s.state.ServerName)
	}
}

func TestServerNames(t *testing.T) {
	ca := newCA(t, nil, nil)
	server := testStore(t, ca, "payments").ServerConfig(func(s string) bool { return s != "shop" })
	leaf := ca.leaf(t, "web", nil)
	for sni, want := range map[string]Reason{
		"payments.default.dc1.internal.1234.test":    "",
		"PAYMENTS.default.dc1.internal.1234.test":    "",
		"v2.payments.default.dc1.internal.1234.test": "",
		"shop.default.dc1.internal.1234.test":        UnknownService,
		"cart.default.dc1.internal.1234.test":        NoLeaf, // offered, but not ready
		"":                                           NoServerName,
		"payments":                                   NoServerName,
		"payments.other.dc1.internal.1234.test":      NoServerName,
	} {
		cfg := &tls.Config{ServerName: sni, InsecureSkipVerify: true, Certificates: []tls.Certificate{leaf}}
		c, s := handshake(t, cfg, server)
		if got := ReasonOf(s.err); got != want {
			t.Errorf("%q: refused with %q (%v), want %q", sni, got, s.err, want)
		}
		if want != "" && len(c.state.PeerCertificates) != 0 {
			t.Errorf("%q: was shown a certificate", sni)
		}
	}
}

func TestClientConfigRefuses(t *testing.T) {
	ca := newCA(t, nil, nil)
	s := testStore(t, ca, "web")
	for _, c := range []struct {
		caller string
		want   Name
		reason Reason
	}{
		{"shop", Name{Service: "payments"}, NoLeaf},
		{"", Name{Service: "payments"}, NoLeaf},
		{"web", Name{TrustDomain: "5678.test", Service: "payments"}, WrongTrustDomain},
		{"web", Name{}, UnknownService},
	} {
		if _, err := s.ClientConfig(c.caller, c.want); ReasonOf(err) != c.reason {
			t.Errorf("ClientConfig(%q, %+v) = %v, want %s", c.caller, c.want, err, c.reason)
		}
	}
	cfg := clientConfig(t, s, "web", "payments")
	s.Retain(nil)
	c, _ := handshake(t, cfg, testStore(t, ca, "payments").ServerConfig(every))
	if ReasonOf(c.err) != NoLeaf {
		t.Errorf("leaf gone: %v, want %s", c.err, NoLeaf)
	}
}

// A rotated leaf is used, and a rotated root believed, at the next handshake
// of configurations that were made before.
func TestRotation(t *testing.T) {
	ca, next := newCA(t, nil, nil), newCA(t, nil, nil)
	a, b := testStore(t, ca, "web"), testStore(t, ca, "payments")
	client, server := clientConfig(t, a, "web", "payments"), b.ServerConfig(every)
	shown := func() (byClient, byServer *x509.Certificate) {
		t.Helper()
		c, s := handshake(t, client, server)
		if c.err != nil || s.err != nil {
			t.Fatal(c.err, s.err)
		}
		return s.state.PeerCertificates[0], c.state.PeerCertificates[0]
	}
	web, payments := shown()
	if w, p := shown(); !w.Equal(web) || !p.Equal(payments) {
		t.Error("leafs changed by themselves")
	}

	rotate := func(s *Store, service string, ca *testCA) *x509.Certificate {
		t.Helper()
		if err := s.SetLeaf(service, ca.leaf(t, service, nil)); err != nil {
			t.Fatal(err)
		}
		l, _ := s.Leaf(service)
		return l.Leaf
	}
	web, payments = rotate(a, "web", ca), rotate(b, "payments", ca)
	if w, p := shown(); !w.Equal(web) || !p.Equal(payments) {
		t.Error("the new leafs are not used")
	}

	// Root rotation: first both believe both, then leafs move, then the old goes.
	for _, s := range []*Store{a, b} {
		s.SetRoots(testDomain, []*x509.Certificate{ca.cert, next.cert})
	}
	web = rotate(a, "web", next)
	if w, p := shown(); !w.Equal(web) || !p.Equal(payments) {
		t.Error("mixed roots: other leafs shown")
	}
	a.SetRoots(testDomain, []*x509.Certificate{next.cert})
	c, s := handshake(t, client, server)
	check(t, c, s, UnknownAuthority) // payments still shows a leaf of the old root
	rotate(b, "payments", next)
	b.SetRoots(testDomain, []*x509.Certificate{next.cert})
	shown()
}

// A peer that was believed once must not come back by a session ticket after
// roots or rules changed, whichever side is patient.
func TestNoResumption(t *testing.T) {
	ca := newCA(t, nil, nil)
	t.Run("to our server", func(t *testing.T) {
		store := testStore(t, ca, "payments")
		server := store.ServerConfig(every)
		cfg := &tls.Config{
			ServerName: Name{testDomain, testDC, "payments"}.SNI(), InsecureSkipVerify: true,
			Certificates:       []tls.Certificate{ca.leaf(t, "web", nil)},
			ClientSessionCache: tls.NewLRUClientSessionCache(8),
		}
		for range 2 {
			if c, s := handshake(t, cfg, server); c.err != nil || s.err != nil || c.state.DidResume || s.state.DidResume {
				t.Fatalf("%v, %v, resumed %v", c.err, s.err, s.state.DidResume)
			}
		}
		store.SetRoots(testDomain, []*x509.Certificate{newCA(t, nil, nil).cert})
		c, s := handshake(t, cfg, server)
		check(t, s, c, UnknownAuthority)
	})
	t.Run("by our client", func(t *testing.T) {
		// The peer gives tickets, and somebody put a cache into our configuration.
		store := testStore(t, ca, "web")
		cfg := clientConfig(t, store, "web", "payments")
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(8)
		server := &tls.Config{Certificates: []tls.Certificate{ca.leaf(t, "payments", nil)}}
		for range 2 {
			if c, _ := handshake(t, cfg, server); c.err != nil || c.state.DidResume {
				t.Fatalf("%v, resumed %v", c.err, c.state.DidResume)
			}
		}
		// Even a resumed handshake is checked.
		cfg.SessionTicketsDisabled = false
		handshake(t, cfg, server)
		if c, _ := handshake(t, cfg, server); c.err != nil || !c.state.DidResume {
			t.Fatalf("the test cannot resume at all: %v", c.err)
		}
		store.SetRoots(testDomain, []*x509.Certificate{newCA(t, nil, nil).cert})
		if c, _ := handshake(t, cfg, server); ReasonOf(c.err) != UnknownAuthority {
			t.Errorf("after a change of roots: %v, resumed %v", c.err, c.state.DidResume)
		}
	})
}

func TestSetLeafRefuses(t *testing.T) {
	ca := newCA(t, nil, nil)
	s := testStore(t, ca, "web")
	before, _ := s.Leaf("web")
	right, other := ca.leaf(t, "web", nil), ca.leaf(t, "web", nil)
	for name, c := range map[string]tls.Certificate{
		"empty":           {},
		"garbage":         {Certificate: [][]byte{{1, 2, 3}}, PrivateKey: right.PrivateKey},
		"no key":          {Certificate: right.Certificate},
		"another key":     {Certificate: right.Certificate, PrivateKey: other.PrivateKey},
		"not a key":       {Certificate: right.Certificate, PrivateKey: "key"},
		"another service": ca.leaf(t, "shop", nil),
		"no name":         ca.leaf(t, "web", func(c *x509.Certificate) { c.URIs = nil }),
		"expired":         ca.leaf(t, "web", func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(1) }),
	} {
		if err := s.SetLeaf("web", c); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			t.Log(err)
		}
	}
	if after, _ := s.Leaf("web"); after != before {
		t.Error("the leaf changed")
	}
	if err := s.SetLeaf("web", right); err != nil {
		t.Error(err)
	}
}

func TestStatus(t *testing.T) {
	s := NewStore()
	if r := s.Roots(); r.TrustDomain != "" || len(r.Roots) != 0 || len(s.Leafs()) != 0 || s.TrustDomain() != "" {
		t.Errorf("new store: %+v, %+v", r, s.Leafs())
	}
	s = testStore(t, newCA(t, nil, nil), "web", "payments", "shop")
	s.Retain([]string{"web", "payments", "absent"})
	var got []string
	for _, l := range s.Leafs() {
		got = append(got, l.Service+" "+l.SPIFFE+" "+l.Issuer)
		if !l.NotBefore.Before(l.NotAfter) {
			t.Errorf("times %+v", l)
		}
	}
	want := []string{
		"payments spiffe://1234.test/ns/default/dc/dc1/svc/payments test CA",
		"web spiffe://1234.test/ns/default/dc/dc1/svc/web test CA",
	}
	if !slices.Equal(got, want) {
		t.Errorf("Leafs = %q, want %q", got, want)
	}
	if r := s.Roots(); r.TrustDomain != testDomain || len(r.Roots) != 1 || r.Roots[0].Subject != "test CA" || s.TrustDomain() != testDomain {
		t.Errorf("Roots = %+v", r)
	}
	s.SetRoots("1234.TEST", nil)
	if got := s.TrustDomain(); got != testDomain {
		t.Errorf("trust domain %q", got)
	}
}
