package meshtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"
	"time"
)

// CA issues certificates in the form that Consul's CA gives them, and, by
// Leaf's template function, in any wrong form.
type CA struct {
	TrustDomain string
	Datacenter  string
	Root        *x509.Certificate

	key *ecdsa.PrivateKey
}

// NewCA makes a CA with a root of ten years for the trust domain.
func NewCA(t testing.TB, trustDomain, datacenter string) *CA {
	t.Helper()
	key := newKey(t)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "meshtest root"},
		NotBefore: now.Add(-5 * time.Minute), NotAfter: now.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		URIs:     []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatalf("meshtest: root: %v", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("meshtest: root: %v", err)
	}
	return &CA{TrustDomain: trustDomain, Datacenter: datacenter, Root: root, key: key}
}

// RootPEM returns the root as Consul gives it.
func (ca *CA) RootPEM() string { return certPEM(ca.Root.Raw) }

// LeafPEM issues a leaf for the service, valid for three days from five
// minutes ago, after change (nil for none) has had its way with the template.
func (ca *CA) LeafPEM(t testing.TB, service string, change func(*x509.Certificate)) (cert, key string) {
	t.Helper()
	priv := newKey(t)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(t),
		NotBefore:    now.Add(-5 * time.Minute), NotAfter: now.Add(72 * time.Hour),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: ca.TrustDomain,
			Path: "/ns/default/dc/" + ca.Datacenter + "/svc/" + service}},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Root, priv.Public(), ca.key)
	if err != nil {
		t.Fatalf("meshtest: leaf for %s: %v", service, err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatalf("meshtest: key for %s: %v", service, err)
	}
	return certPEM(der), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

// Leaf is LeafPEM, ready for crypto/tls.
func (ca *CA) Leaf(t testing.TB, service string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	cert, key := ca.LeafPEM(t, service, change)
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatalf("meshtest: leaf for %s: %v", service, err)
	}
	return pair
}

func certPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("meshtest: key: %v", err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
	if err != nil {
		t.Fatalf("meshtest: serial number: %v", err)
	}
	return n
}
