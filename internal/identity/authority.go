package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// authorityFile holds root and key together, so that one rename publishes both.
	authorityFile = "ca.pem"
	lockFile      = "ca.lock"
	// devDomainSuffix follows the random part of the trust domain.
	devDomainSuffix = ".dev.meshd"
)

// authority signs leafs of one trust domain, which its root names in a URI SAN.
type authority struct {
	root   *x509.Certificate
	key    *ecdsa.PrivateKey
	domain string
}

func (a *authority) roots() []*x509.Certificate { return []*x509.Certificate{a.root} }

// loadAuthority reads the authority of a folder, making both when they are
// missing. A lock file orders those who find none; the rename makes the file
// appear whole, so readers need no lock.
func loadAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, authorityFile)
	if a, err := readAuthority(path); !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // releases the lock too
	for {
		if err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if a, err := readAuthority(path); !errors.Is(err, fs.ErrNotExist) {
		return a, err // another agent was first
	}
	a, err := newAuthority(time.Now())
	if err != nil {
		return nil, err
	}
	return a, a.write(path)
}

func newAuthority(now time.Time) (*authority, error) {
	id := make([]byte, 8)
	rand.Read(id)
	domain := hex.EncodeToString(id) + devDomainSuffix
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "meshd dev CA " + domain},
		NotBefore:             now.Add(-devBackdate),
		NotAfter:              now.Add(devRootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // it signs leafs only
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: domain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{root: root, key: key, domain: domain}, nil
}

// serial returns a random one, RFC 5280 section 4.1.2.2: positive, at most 20 octets.
func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] &= 0x7f
	b[15] |= 1
	return new(big.Int).SetBytes(b)
}

// write publishes root and key under path, whole or not at all.
func (a *authority) write(path string) (err error) {
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".ca-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err = pem.Encode(f, &pem.Block{Type: "CERTIFICATE", Bytes: a.root.Raw}); err != nil {
		return err
	}
	if err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: key}); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// readAuthority returns fs.ErrNotExist when there is no file yet. Any other
// error leaves the file alone: leafs of its root may be in use.
func readAuthority(path string) (*authority, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if m := info.Mode().Perm(); m&0o007 != 0 {
		return nil, fmt.Errorf("%s has mode %04o and holds a private key: chmod o= %s", path, m, path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	a, err := parseAuthority(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; remove it to start with a new one", path, err)
	}
	if left := time.Until(a.root.NotAfter); left < devLeafLife {
		return nil, fmt.Errorf("%s: the root expires at %s; remove it to start with a new one", path, a.root.NotAfter.Format(time.RFC3339))
	}
	return a, nil
}

func parseAuthority(text []byte) (*authority, error) {
	pair, err := tls.X509KeyPair(text, text) // checks that both belong together
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("key is not an ECDSA key")
	}
	root := pair.Leaf
	if !root.IsCA || len(root.URIs) != 1 || !bytes.Equal(root.RawSubject, root.RawIssuer) {
		return nil, errors.New("certificate is not the root of a trust domain")
	}
	domain, err := checkDomain(root.URIs[0].Host)
	if err != nil {
		return nil, err
	}
	return &authority{root: root, key: key, domain: domain}, nil
}

// issue makes a leaf for a service, good for both sides of TLS.
func (a *authority) issue(service string, now time.Time) (tls.Certificate, error) {
	name := Name{TrustDomain: a.domain, Datacenter: DevDatacenter, Service: service}
	u, err := url.Parse(name.SPIFFE())
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	to := now.Add(devLeafLife)
	if to.After(a.root.NotAfter) {
		to = a.root.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: service},
		NotBefore:             now.Add(-devBackdate),
		NotAfter:              to,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{u},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.root, key.Public(), a.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
