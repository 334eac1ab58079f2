package identity

import (
	"crypto/tls"
	"crypto/x509"
)

// ClientConfig returns the configuration of a link that the local service
// caller opens to the service want. An empty want.TrustDomain means the own
// one, an empty want.Datacenter is not compared (the server name then carries
// the caller's). The caller of this function sets NextProtos.
//
// It fails with a *[VerifyError] ([NoLeaf], [NoRoots], [WrongTrustDomain])
// where no handshake could succeed. Leaf and roots are read again at each
// handshake. With TLS 1.3 the handshake returns before the peer has looked at
// our leaf: its refusal comes out of the first Read, see [RefusedByPeer].
func (s *Store) ClientConfig(caller string, want Name) (*tls.Config, error) {
	if want.Service == "" {
		return nil, refuse(UnknownService, "no service is asked for")
	}
	own, ok := s.leaf(caller)
	if !ok {
		return nil, refuse(NoLeaf, "service %q has no certificate yet", caller)
	}
	t := s.trust.Load()
	if len(t.roots) == 0 {
		return nil, refuse(NoRoots, "no certificate authority is known yet")
	}
	if want.TrustDomain != "" && want.TrustDomain != t.domain {
		return nil, refuse(WrongTrustDomain, "asked for %q, ours is %q", want.TrustDomain, t.domain)
	}
	asked := want
	asked.TrustDomain = t.domain
	if asked.Datacenter == "" {
		asked.Datacenter = own.name.Datacenter
	}
	cfg := s.common()
	cfg.ServerName = asked.SNI()
	// This turns off crypto/tls's own check, which compares DNS names and uses
	// roots fixed at configuration time. VerifyConnection below replaces it: it
	// is called for every handshake and its error ends it.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		got, err := s.verify(cs, x509.ExtKeyUsageServerAuth)
		if err != nil {
			return err
		}
		switch {
		case want.TrustDomain != "" && got.TrustDomain != want.TrustDomain:
			return refuse(WrongTrustDomain, "%q, want %q", got.TrustDomain, want.TrustDomain)
		case got.Service != want.Service:
			return refuse(WrongService, "%q, want %q", got.Service, want.Service)
		case want.Datacenter != "" && got.Datacenter != want.Datacenter:
			return refuse(WrongDatacenter, "%q, want %q", got.Datacenter, want.Datacenter)
		}
		return nil
	}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		c, ok := s.Leaf(caller)
		if !ok {
			// An empty certificate would only make the peer say it.
			return nil, refuse(NoLeaf, "service %q has no certificate any more", caller)
		}
		return c, nil
	}
	return cfg, nil
}

// ServerConfig returns the configuration of the peer port. The server name
// says which service is wanted; offered, called in the handshake's goroutine,
// says whether this host offers it. Everything else is refused: there is no
// default certificate. The caller sets NextProtos.
//
// Whoever completed the handshake is a service of the own trust domain, and
// [PeerName] says which; whether it may talk is for package policy. The
// service that was asked for is [ServiceOfSNI] of the connection's ServerName.
func (s *Store) ServerConfig(offered func(service string) bool) *tls.Config {
	cfg := s.common()
	cfg.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		service, ok := ServiceOfSNI(h.ServerName)
		if !ok {
			return nil, refuse(NoServerName, "server name %q asks for no service", h.ServerName)
		}
		if !offered(service) {
			return nil, refuse(UnknownService, "%q is not offered here", service)
		}
		c, ok := s.Leaf(service)
		if !ok {
			return nil, refuse(NoLeaf, "service %q has no certificate yet", service)
		}
		return c, nil
	}
	cfg.ClientAuth = tls.RequireAnyClientCert // presence; the rest is ours:
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := s.verify(cs, x509.ExtKeyUsageClientAuth)
		return err
	}
	return cfg
}

// common is what both sides of a link have.
func (s *Store) common() *tls.Config {
	return &tls.Config{
		MinVersion:    tls.VersionTLS13,
		Renegotiation: tls.RenegotiateNever,
		// A ticket would carry a peer past a change of roots or rules.
		SessionTicketsDisabled: true,
		// A link carries many streams: its first kilobytes need not be small records.
		DynamicRecordSizingDisabled: true,
	}
}

// PeerName returns who the other side of an established link is. It fails
// before the handshake is complete.
func PeerName(cs tls.ConnectionState) (Name, error) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return Name{}, refuse(NoCertificate, "no completed handshake")
	}
	return ParseCertificate(cs.PeerCertificates[0])
}
