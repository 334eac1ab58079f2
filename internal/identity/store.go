package identity

import (
	"cmp"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Store holds what this host presents and believes. Readers take one atomic
// load; what they took stays as it was. The zero Store is not usable.
type Store struct {
	mu    sync.Mutex // orders writers; readers take none
	leafs atomic.Pointer[map[string]*leaf]
	trust atomic.Pointer[trust]
}

// leaf is one certificate with what its SAN states. Nobody writes it again.
type leaf struct {
	cert tls.Certificate
	name Name
}

// trust is the own trust domain and its roots, replaced together so that no
// handshake checks a name of one domain against the roots of another.
type trust struct {
	domain string
	roots  []*x509.Certificate
	pool   *x509.CertPool
}

// NewStore returns a store that presents nothing and believes nobody.
func NewStore() *Store {
	s := &Store{}
	s.leafs.Store(&map[string]*leaf{})
	s.trust.Store(&trust{})
	return s
}

// SetLeaf gives the service its certificate (chain and key); the next
// handshake uses it. It refuses one whose key does not fit, that names another
// service, or that has expired: the leaf before stays then.
func (s *Store) SetLeaf(service string, c tls.Certificate) error {
	if len(c.Certificate) == 0 {
		return fmt.Errorf("leaf of service %q: %w", service, refuse(NoCertificate, "empty chain"))
	}
	// Parsed here even if the giver did: Leaf must be what is sent.
	x, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return fmt.Errorf("leaf of service %q: %w", service, err)
	}
	name, err := ParseCertificate(x)
	if err != nil {
		return fmt.Errorf("leaf of service %q: %w", service, err)
	}
	if name.Service != service {
		return fmt.Errorf("leaf of service %q: %w", service, refuse(WrongService, "it names %q", name.Service))
	}
	if now := time.Now(); now.After(x.NotAfter) {
		return fmt.Errorf("leaf of service %q: %w", service, refuse(Expired, "since %s", x.NotAfter.Format(time.RFC3339)))
	}
	key, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return fmt.Errorf("leaf of service %q: key cannot sign", service)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(x.PublicKey) {
		return fmt.Errorf("leaf of service %q: key and certificate do not belong together", service)
	}
	c.Leaf = x

	s.mu.Lock()
	defer s.mu.Unlock()
	next := maps.Clone(*s.leafs.Load())
	next[service] = &leaf{cert: c, name: name}
	s.leafs.Store(&next)
	return nil
}

// Retain drops the leafs of all other services. Links that are up stay.
func (s *Store) Retain(services []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := maps.Clone(*s.leafs.Load())
	maps.DeleteFunc(next, func(service string, _ *leaf) bool { return !slices.Contains(services, service) })
	s.leafs.Store(&next)
}

// SetRoots replaces the own trust domain and the roots that are believed in
// it; the next handshake uses them. No roots, or a trust domain that is none,
// refuses every peer. During a root rotation both roots are in the list.
func (s *Store) SetRoots(trustDomain string, roots []*x509.Certificate) {
	t := &trust{}
	if domain, err := checkDomain(trustDomain); err == nil {
		t.domain = domain
		t.roots = slices.Clone(roots)
		t.pool = x509.NewCertPool()
		for _, r := range roots {
			t.pool.AddCert(r)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trust.Store(t)
}

// TrustDomain returns the own trust domain, "" while there is none.
func (s *Store) TrustDomain() string { return s.trust.Load().domain }

// Leaf returns the certificate of a service in force. The caller must not
// write it.
func (s *Store) Leaf(service string) (*tls.Certificate, bool) {
	l, ok := s.leaf(service)
	if !ok {
		return nil, false
	}
	return &l.cert, true
}

func (s *Store) leaf(service string) (*leaf, bool) {
	l, ok := (*s.leafs.Load())[service]
	return l, ok
}

// LeafStatus describes a leaf for an operator.
type LeafStatus struct {
	Service   string
	SPIFFE    string
	NotBefore time.Time
	NotAfter  time.Time
	Issuer    string // common name of whoever signed it
}

// Leafs describes all leafs, by service.
func (s *Store) Leafs() []LeafStatus {
	m := *s.leafs.Load()
	out := make([]LeafStatus, 0, len(m))
	for service, l := range m {
		out = append(out, LeafStatus{
			Service: service, SPIFFE: l.name.SPIFFE(),
			NotBefore: l.cert.Leaf.NotBefore, NotAfter: l.cert.Leaf.NotAfter,
			Issuer: l.cert.Leaf.Issuer.CommonName,
		})
	}
	slices.SortFunc(out, func(a, b LeafStatus) int { return cmp.Compare(a.Service, b.Service) })
	return out
}

// RootsStatus describes what is believed.
type RootsStatus struct {
	TrustDomain string // "" while there is none
	Roots       []RootStatus
}

// RootStatus describes one root.
type RootStatus struct {
	Subject   string // common name
	NotBefore time.Time
	NotAfter  time.Time
}

// Roots describes the trust domain and roots in force.
func (s *Store) Roots() RootsStatus {
	t := s.trust.Load()
	out := RootsStatus{TrustDomain: t.domain, Roots: make([]RootStatus, 0, len(t.roots))}
	for _, r := range t.roots {
		out.Roots = append(out.Roots, RootStatus{Subject: r.Subject.CommonName, NotBefore: r.NotBefore, NotAfter: r.NotAfter})
	}
	return out
}
