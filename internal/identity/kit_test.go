package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/url"
	"testing"
	"time"
)

// testCA signs whatever a test asks for, the wrong things above all.
type testCA struct {
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	chain [][]byte // intermediates to send, nearest first; nil for a root
}

const (
	testDomain = "1234.test"
	testDC     = "dc1"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newCA makes an authority, signed by above or by itself.
func newCA(t testing.TB, above *testCA, change func(*x509.Certificate)) *testCA {
	t.Helper()
	ca := &testCA{key: newKey(t)}
	c := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	if change != nil {
		change(c)
	}
	parent, key := c, ca.key
	if above != nil {
		c.Subject.CommonName = "test intermediate"
		parent, key = above.cert, above.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, ca.key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if above != nil {
		ca.chain = append([][]byte{der}, above.chain...)
	}
	return ca
}

// leaf signs a certificate for a service of the test's trust domain, changed
// as told.
func (ca *testCA) leaf(t testing.TB, service string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key := newKey(t)
	c := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: service},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{uri(t, Name{testDomain, testDC, service}.SPIFFE())},
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: append([][]byte{der}, ca.chain...), PrivateKey: key}
}

func uri(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// testStore believes ca and presents the services.
func testStore(t testing.TB, ca *testCA, services ...string) *Store {
	t.Helper()
	s := NewStore()
	s.SetRoots(testDomain, []*x509.Certificate{ca.cert})
	for _, service := range services {
		if err := s.SetLeaf(service, ca.leaf(t, service, nil)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func clientConfig(t testing.TB, s *Store, caller, service string) *tls.Config {
	t.Helper()
	cfg, err := s.ClientConfig(caller, Name{Datacenter: testDC, Service: service})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func every(string) bool { return true }

// side is how a handshake ended for one of the two.
type side struct {
	state tls.ConnectionState
	err   error // of the handshake, or of reading one octet from the other
}

// handshake joins two configurations over TCP. Each side reads one octet of
// the other, since a client learns of its refusal only then.
func handshake(t testing.TB, client, server *tls.Config) (c, s side) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan side, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- side{err: err}
			return
		}
		done <- talk(tls.Server(conn, server))
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c = talk(tls.Client(conn, client))
	return c, <-done
}

func talk(conn *tls.Conn) side {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := conn.Handshake(); err != nil {
		return side{conn.ConnectionState(), err}
	}
	_, err := conn.Write([]byte{1})
	if err == nil {
		var n int
		if n, err = conn.Read(make([]byte, 1)); n == 1 {
			err = nil // it came together with the end
		}
	}
	return side{conn.ConnectionState(), err}
}
