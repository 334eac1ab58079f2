package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"
)

// verify decides whether a peer is a service of the own trust domain and
// returns its name. The form and the trust domain are looked at before the
// chain only because that gives the operator the better reason: nothing is
// believed unless all of it holds.
func (s *Store) verify(cs tls.ConnectionState, usage x509.ExtKeyUsage) (Name, error) {
	t := s.trust.Load()
	if len(t.roots) == 0 {
		return Name{}, refuse(NoRoots, "no certificate authority is known yet")
	}
	if len(cs.PeerCertificates) == 0 {
		return Name{}, refuse(NoCertificate, "none was presented")
	}
	peer := cs.PeerCertificates[0]
	name, err := ParseCertificate(peer)
	if err != nil {
		return Name{}, err
	}
	if name.TrustDomain != t.domain {
		return Name{}, refuse(WrongTrustDomain, "%q, want %q", name.TrustDomain, t.domain)
	}
	now := time.Now()
	switch {
	case now.After(peer.NotAfter):
		return Name{}, refuse(Expired, "%s since %s", name, peer.NotAfter.Format(time.RFC3339))
	case now.Before(peer.NotBefore):
		return Name{}, refuse(NotYetValid, "%s before %s; compare the clocks of the two hosts", name, peer.NotBefore.Format(time.RFC3339))
	}
	// X.509-SVID, section 4.1 and 4.3: a leaf cannot sign certificates.
	if peer.IsCA || peer.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return Name{}, refuse(InvalidCertificate, "%s presented an authority's certificate as its own", name)
	}
	above := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		above.AddCert(c)
	}
	_, err = peer.Verify(x509.VerifyOptions{
		Roots: t.pool, Intermediates: above, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return Name{}, refuse(chainReason(err), "%s: %v", name, err)
	}
	return name, nil
}

func chainReason(err error) Reason {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return UnknownAuthority
	}
	if inv, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch inv.Reason {
		case x509.Expired:
			return Expired // of an intermediate or root; the leaf's dates were looked at
		case x509.IncompatibleUsage:
			return WrongUsage
		}
	}
	return InvalidCertificate
}
