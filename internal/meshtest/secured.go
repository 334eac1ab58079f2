package meshtest

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/consul/api"
)

// ManagementToken is the token of SecuredConsul that may do everything.
const ManagementToken = "7fa2c6a3-5a0e-4a53-9f52-0d3d0b1c1f11"

// SecuredServer is a Consul whose ACLs deny by default and that is spoken to by
// HTTPS alone, with a client certificate. Client has ManagementToken.
type SecuredServer struct {
	*ConsulServer
	URL string // https://HOST:PORT

	// What a client needs. The server's certificate is for localhost and
	// 127.0.0.1.
	CAFile, CertFile, KeyFile string

	servers []*ConsulServer // of its cluster
	made    int             // names given to policies
}

// SecuredConsul starts one for the test.
func SecuredConsul(t testing.TB) *SecuredServer {
	t.Helper()
	return SecuredConsulWith(t, ConsulOptions{})
}

// SecuredConsulWith is SecuredConsul with options.
func SecuredConsulWith(t testing.TB, o ConsulOptions) *SecuredServer {
	t.Helper()
	c := newCredentials(t)
	s := c.secured(newConsul(t, "meshtest", !o.Persistent, c))
	hcl := c.hcl("https", c.server)
	if o.Persistent {
		hcl += "server = true\nbootstrap_expect = 1\n"
	}
	s.write("20-extra.hcl", hcl+o.HCL)
	s.start()
	return s
}

// credentials are what agents and their clients prove themselves with.
type credentials struct {
	caFile                string
	server, agent, client keyPair
	tls                   *tls.Config // of clients
}

// keyPair is a certificate and its key, as files.
type keyPair struct{ cert, key string }

func newCredentials(t testing.TB) *credentials {
	t.Helper()
	dir := t.TempDir()
	ca := NewCA(t, "consul-https.test", "dc1")
	c := &credentials{caFile: filepath.Join(dir, "ca.pem")}
	writeFile(t, c.caFile, ca.RootPEM())
	issue := func(name string, dns ...string) keyPair {
		cert, key := ca.LeafPEM(t, "https", func(c *x509.Certificate) {
			c.URIs = nil
			c.DNSNames = append(dns, "localhost")
			c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		})
		p := keyPair{filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")}
		writeFile(t, p.cert, cert)
		writeFile(t, p.key, key)
		return p
	}
	// By that name, and by nothing else, servers know each other.
	c.server = issue("server", "server.dc1.consul")
	c.agent, c.client = issue("agent"), issue("client")
	leaf, err := tls.LoadX509KeyPair(c.client.cert, c.client.key)
	if err != nil {
		t.Fatalf("meshtest: %v", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Root)
	c.tls = &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{leaf}}
	return c
}

// hcl is the configuration of an agent with the certificate. where is the part
// of tls that it is for: "https", or "defaults", which is agents among
// themselves too.
func (c *credentials) hcl(where string, own keyPair) string {
	hostname := ""
	if where == "defaults" {
		hostname = "verify_outgoing = true\n\t\t\tverify_server_hostname = true"
	}
	return fmt.Sprintf(`
		acl {
			enabled = true
			default_policy = "deny"
			tokens { initial_management = %q agent = %q }
		}
		tls { %s {
			ca_file = %q
			cert_file = %q
			key_file = %q
			verify_incoming = true
			%s
		} }
	`, ManagementToken, ManagementToken, where, c.caFile, own.cert, own.key, hostname)
}

// secured says how clients reach s.
func (c *credentials) secured(s *ConsulServer) *SecuredServer {
	return &SecuredServer{ConsulServer: s, URL: "https://" + s.Address, CAFile: c.caFile, CertFile: c.client.cert, KeyFile: c.client.key}
}

// Policy makes a policy of the rules (HCL), and a token that has it and nothing
// else.
func (s *SecuredServer) Policy(rules string) (policy *api.ACLPolicy, token string) {
	s.t.Helper()
	s.made++
	policy, _, err := s.Client.ACL().PolicyCreate(&api.ACLPolicy{Name: fmt.Sprintf("meshtest-%d", s.made), Rules: rules}, nil)
	if err != nil {
		s.t.Fatalf("meshtest: policy: %v\n%s", err, rules)
	}
	made, _, err := s.Client.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{ID: policy.ID}}}, nil)
	if err != nil {
		s.t.Fatalf("meshtest: token: %v", err)
	}
	awaitToken(s.t, s.servers, made.SecretID)
	return policy, made.SecretID
}

// Token makes a token with exactly these rules.
func (s *SecuredServer) Token(rules string) string {
	s.t.Helper()
	_, token := s.Policy(rules)
	return token
}

// SetRules replaces the rules of a policy.
func (s *SecuredServer) SetRules(policy *api.ACLPolicy, rules string) {
	s.t.Helper()
	p := *policy
	p.Rules = rules
	if _, _, err := s.Client.ACL().PolicyUpdate(&p, nil); err != nil {
		s.t.Fatalf("meshtest: policy: %v\n%s", err, rules)
	}
}

// Revoke deletes a token.
func (s *SecuredServer) Revoke(token string) {
	s.t.Helper()
	self, _, err := s.Client.ACL().TokenReadSelf(&api.QueryOptions{Token: token})
	if err == nil {
		_, err = s.Client.ACL().TokenDelete(self.AccessorID, nil)
	}
	if err != nil {
		s.t.Fatalf("meshtest: revoke: %v", err)
	}
}

// TokenFile writes a token into a file of the test, mode 0600, and returns its
// path.
func TokenFile(t testing.TB, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	writeFile(t, path, token+"\n")
	return path
}

// ReplaceFile puts new content at path in one step, as an operator's tool does.
func ReplaceFile(t testing.TB, path, content string) {
	t.Helper()
	next := path + ".next"
	writeFile(t, next, content)
	if err := os.Rename(next, path); err != nil {
		t.Fatalf("meshtest: %v", err)
	}
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatalf("meshtest: %v", err)
	}
}
