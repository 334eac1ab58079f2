package identity

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"testing"
	"time"
)

// Every certificate that must not be believed, presented to both sides. web
// calls payments; the peer that presents is made by hand, the side that checks
// is the store's.
func TestCertificateMatrix(t *testing.T) {
	ca := newCA(t, nil, nil)
	stranger := newCA(t, nil, nil) // same names, another key
	below := newCA(t, newCA(t, nil, func(c *x509.Certificate) { c.Subject.CommonName = "stranger" }), nil)
	mid := newCA(t, ca, nil)
	oldMid := newCA(t, ca, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	uris := func(s ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.URIs = nil
			for _, u := range s {
				c.URIs = append(c.URIs, uri(t, u))
			}
		}
	}
	const good = "spiffe://1234.test/ns/default/dc/dc1/svc/"
	for _, c := range []struct {
		name     string
		signer   *testCA
		change   func(c *x509.Certificate)
		byClient Reason // when payments presents it
		byServer Reason // when web presents it
	}{
		{name: "right", signer: ca},
		{name: "right, with intermediate", signer: mid},
		{name: "right, trust domain in capitals", signer: ca, change: func(c *x509.Certificate) { c.URIs[0].Host = "1234.TEST" }},
		{name: "right, DNS names are not looked at", signer: ca, change: func(c *x509.Certificate) { c.DNSNames = []string{"other"} }},
		// A server does not know whom to expect: policy decides by the name.
		{name: "another service", signer: ca, change: uris(good + "shop"), byClient: WrongService},
		{name: "a longer name", signer: ca, change: uris(good + "payments2"), byClient: WrongService},
		{name: "name in capitals", signer: ca, change: uris(good + "Payments"), byClient: WrongService},
		{name: "another datacenter", signer: ca, change: uris("spiffe://1234.test/ns/default/dc/dc2/svc/payments"), byClient: WrongDatacenter},
		{name: "another trust domain, our CA", signer: ca, change: uris("spiffe://5678.test/ns/default/dc/dc1/svc/payments"), byClient: WrongTrustDomain, byServer: WrongTrustDomain},
		{name: "another trust domain, its CA", signer: stranger, change: uris("spiffe://5678.test/ns/default/dc/dc1/svc/payments"), byClient: WrongTrustDomain, byServer: WrongTrustDomain},
		{name: "expired", signer: ca, change: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, byClient: Expired, byServer: Expired},
		{name: "not yet valid", signer: ca, change: func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, byClient: NotYetValid, byServer: NotYetValid},
		{name: "expired intermediate", signer: oldMid, byClient: Expired, byServer: Expired},
		{name: "two URI SANs", signer: ca, change: uris(good+"payments", good+"web"), byClient: URISANCount, byServer: URISANCount},
		{name: "the same URI SAN twice", signer: ca, change: uris(good+"payments", good+"payments"), byClient: URISANCount, byServer: URISANCount},
		{name: "no URI SAN", signer: ca, change: uris(), byClient: URISANCount, byServer: URISANCount},
		{name: "only a DNS name", signer: ca, change: func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"payments"} }, byClient: URISANCount, byServer: URISANCount},
		{name: "an agent's id", signer: ca, change: uris("spiffe://1234.test/agent/client/dc/dc1/id/n"), byClient: URISANForm, byServer: URISANForm},
		{name: "another namespace", signer: ca, change: uris("spiffe://1234.test/ns/other/dc/dc1/svc/payments"), byClient: URISANForm, byServer: URISANForm},
		{name: "another scheme", signer: ca, change: uris("https://1234.test/ns/default/dc/dc1/svc/payments"), byClient: URISANForm, byServer: URISANForm},
		{name: "unknown authority", signer: stranger, byClient: UnknownAuthority, byServer: UnknownAuthority},
		{name: "unknown authority, with intermediate", signer: below, byClient: UnknownAuthority, byServer: UnknownAuthority},
		{name: "intermediate not sent", signer: &testCA{cert: mid.cert, key: mid.key}, byClient: UnknownAuthority, byServer: UnknownAuthority},
		{name: "no TLS usage", signer: ca, change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, byClient: WrongUsage, byServer: WrongUsage},
		{name: "client usage only", signer: ca, change: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, byClient: WrongUsage},
		{name: "server usage only", signer: ca, change: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, byServer: WrongUsage},
		{name: "an authority", signer: ca, change: func(c *x509.Certificate) { c.IsCA = true }, byClient: InvalidCertificate, byServer: InvalidCertificate},
		{name: "may sign certificates", signer: ca, change: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, byClient: InvalidCertificate, byServer: InvalidCertificate},
		{name: "unknown critical extension", signer: ca, change: func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}, byClient: InvalidCertificate, byServer: InvalidCertificate},
	} {
		t.Run(c.name, func(t *testing.T) {
			presented := c.signer.leaf(t, "payments", c.change)
			t.Run("to a client", func(t *testing.T) {
				client, server := handshake(t,
					clientConfig(t, testStore(t, ca, "web"), "web", "payments"),
					&tls.Config{Certificates: []tls.Certificate{presented}, ClientAuth: tls.RequireAnyClientCert})
				check(t, client, server, c.byClient)
			})
			t.Run("to a server", func(t *testing.T) {
				server, client := handshakeToServer(t, testStore(t, ca, "payments"), &presented)
				check(t, server, client, c.byServer)
				if c.byServer == "" && server.err == nil {
					if name, err := PeerName(server.state); err != nil || name.SPIFFE() != lower(presented) {
						t.Errorf("PeerName = %v, %v", name, err)
					}
				}
			})
		})
	}
}

// handshakeToServer calls payments with whatever certificate, or none.
func handshakeToServer(t *testing.T, s *Store, presented *tls.Certificate) (server, client side) {
	t.Helper()
	cfg := &tls.Config{ServerName: Name{testDomain, testDC, "payments"}.SNI(), InsecureSkipVerify: true}
	if presented != nil {
		cfg.Certificates = []tls.Certificate{*presented}
	}
	client, server = handshake(t, cfg, s.ServerConfig(every))
	return server, client
}

// check compares the side that verifies; the other one must see a refusal.
func check(t *testing.T, verifier, other side, want Reason) {
	t.Helper()
	if got := ReasonOf(verifier.err); got != want {
		t.Errorf("refused with %q (%v), want %q", got, verifier.err, want)
	}
	if want != "" && ReasonOf(other.err) != RefusedByPeer {
		t.Errorf("the other side got %v, want an alert", other.err)
	}
	if want == "" && other.err != nil {
		t.Errorf("the other side got %v", other.err)
	}
}

func lower(c tls.Certificate) string {
	x, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return err.Error()
	}
	u := *x.URIs[0]
	u.Host = testDomain
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

func TestNoCertificate(t *testing.T) {
	ca := newCA(t, nil, nil)
	server, client := handshakeToServer(t, testStore(t, ca, "payments"), nil)
	check(t, server, client, NoCertificate)
	if _, err := PeerName(server.state); err == nil {
		t.Error("PeerName gave a name")
	}
}

// Nothing is believed because something is missing.
func TestEmptyRootsRefuseEverything(t *testing.T) {
	ca := newCA(t, nil, nil)
	for name, empty := range map[string]func(*Store){
		"never set":         func(s *Store) { s.trust.Store(NewStore().trust.Load()) },
		"nil":               func(s *Store) { s.SetRoots(testDomain, nil) },
		"empty":             func(s *Store) { s.SetRoots(testDomain, []*x509.Certificate{}) },
		"bad trust domain":  func(s *Store) { s.SetRoots("a b", []*x509.Certificate{ca.cert}) },
		"no trust domain":   func(s *Store) { s.SetRoots("", []*x509.Certificate{ca.cert}) },
		"only another root": func(s *Store) { s.SetRoots("5678.test", []*x509.Certificate{newCA(t, nil, nil).cert}) },
	} {
		t.Run(name, func(t *testing.T) {
			want := NoRoots
			if name == "only another root" {
				want = WrongTrustDomain
			}
			store := testStore(t, ca, "web", "payments")
			cfg := clientConfig(t, store, "web", "payments") // made while there were roots
			empty(store)

			leaf := ca.leaf(t, "payments", nil)
			client, server := handshake(t, cfg, &tls.Config{Certificates: []tls.Certificate{leaf}, ClientAuth: tls.RequireAnyClientCert})
			check(t, client, server, want)
			server, client = handshakeToServer(t, store, &leaf)
			check(t, server, client, want)
			if _, err := store.ClientConfig("web", Name{TrustDomain: testDomain, Service: "payments"}); ReasonOf(err) != want {
				t.Errorf("ClientConfig: %v, want %s", err, want)
			}
		})
	}
}
