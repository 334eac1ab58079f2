package identity

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// namespace is the only one there is in Consul's community edition.
const namespace = "default"

// Name is who a service is, as its certificate states it.
type Name struct {
	TrustDomain string // lower case
	Datacenter  string
	Service     string
}

// SPIFFE returns the id in Consul's form:
// spiffe://TRUSTDOMAIN/ns/default/dc/DATACENTER/svc/SERVICE.
func (n Name) SPIFFE() string {
	return "spiffe://" + n.TrustDomain + "/ns/" + namespace + "/dc/" + n.Datacenter + "/svc/" + n.Service
}

// SNI returns the server name that asks a peer for this service, in Consul's
// form: SERVICE.default.DATACENTER.internal.TRUSTDOMAIN.
func (n Name) SNI() string {
	return n.Service + "." + namespace + "." + n.Datacenter + ".internal." + n.TrustDomain
}

// String returns the SPIFFE id.
func (n Name) String() string { return n.SPIFFE() }

// ServiceOfSNI returns the service that a server name asks for: the form of
// [Name.SNI], or the same with a subset label in front, which is dropped. The
// trust domain is not looked at, since the certificates decide that.
func ServiceOfSNI(sni string) (service string, ok bool) {
	// At most subset, service, namespace, datacenter, "internal", trust domain.
	l := strings.SplitN(strings.ToLower(sni), ".", 6)
	switch {
	case len(l) >= 5 && l[1] == namespace && l[3] == "internal":
		service = l[0]
	case len(l) == 6 && l[2] == namespace && l[4] == "internal" && l[0] != "":
		service = l[1]
	}
	return service, service != ""
}

// ParseCertificate returns the name that a leaf states. It wants exactly one
// URI SAN (SPIFFE X.509-SVID, section 2) in the form of [Name.SPIFFE]; DNS
// names and the subject are not looked at. It does not say whether the
// certificate is to be believed. Errors are *[VerifyError].
func ParseCertificate(c *x509.Certificate) (Name, error) {
	if c == nil {
		return Name{}, refuse(NoCertificate, "none was presented")
	}
	if n := len(c.URIs); n != 1 {
		return Name{}, refuse(URISANCount, "%d URI SANs, want exactly 1", n)
	}
	return parseURI(c.URIs[0])
}

func parseURI(u *url.URL) (Name, error) {
	// Consul compares the host without regard to case, spiffeid wants it lower.
	low := *u
	low.Host = strings.ToLower(u.Host)
	id, err := spiffeid.FromURI(&low)
	if err != nil {
		return Name{}, refuse(URISANForm, "%q: %v", u.String(), err)
	}
	// spiffeid refuses empty segments, dot segments and anything escaped.
	p := strings.Split(id.Path(), "/")
	if len(p) != 7 || p[1] != "ns" || p[2] != namespace || p[3] != "dc" || p[5] != "svc" {
		return Name{}, refuse(URISANForm, "%q is not spiffe://TRUSTDOMAIN/ns/%s/dc/DATACENTER/svc/SERVICE", u.String(), namespace)
	}
	return Name{TrustDomain: id.TrustDomain().Name(), Datacenter: p[4], Service: p[6]}, nil
}

// checkDomain returns the trust domain in the spelling names use.
func checkDomain(trustDomain string) (string, error) {
	td, err := spiffeid.TrustDomainFromString(strings.ToLower(trustDomain))
	if err != nil {
		return "", fmt.Errorf("trust domain %q: %w", trustDomain, err)
	}
	return td.Name(), nil
}
