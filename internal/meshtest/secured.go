package meshtest

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

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

	made int // names given to policies
}

// SecuredConsul starts one for the test.
func SecuredConsul(t testing.TB) *SecuredServer {
	t.Helper()
	return SecuredConsulWith(t, ConsulOptions{})
}

// SecuredConsulWith is SecuredConsul with options.
func SecuredConsulWith(t testing.TB, o ConsulOptions) *SecuredServer {
	t.Helper()
	dir := t.TempDir()
	s := &SecuredServer{
		CAFile: filepath.Join(dir, "ca.pem"), CertFile: filepath.Join(dir, "client.pem"), KeyFile: filepath.Join(dir, "client-key.pem"),
	}
	ca := NewCA(t, "consul-https.test", "dc1")
	writeFile(t, s.CAFile, ca.RootPEM())
	serverCert, serverKey := filepath.Join(dir, "server.pem"), filepath.Join(dir, "server-key.pem")
	pair := func(certFile, keyFile string) tls.Certificate {
		cert, key := ca.LeafPEM(t, "https", func(c *x509.Certificate) {
			c.URIs = nil
			// Consul wants the second name of servers that speak RPC by TLS.
			c.DNSNames = []string{"localhost", "server.dc1.consul"}
			c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		})
		writeFile(t, certFile, cert)
		writeFile(t, keyFile, key)
		leaf, err := tls.X509KeyPair([]byte(cert), []byte(key))
		if err != nil {
			t.Fatalf("meshtest: %v", err)
		}
		return leaf
	}
	pair(serverCert, serverKey)
	client := pair(s.CertFile, s.KeyFile)
	pool := x509.NewCertPool()
	pool.AddCert(ca.Root)
	s.ConsulServer = newConsul(t, "meshtest", !o.Persistent, &consulTLS{
		client: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{client}}, token: ManagementToken,
	})
	s.URL = "https://" + s.Address
	hcl := fmt.Sprintf(`
		acl {
			enabled = true
			default_policy = "deny"
			tokens { initial_management = %q agent = %q }
		}
		tls { https { ca_file = %q cert_file = %q key_file = %q verify_incoming = true } }
	`, ManagementToken, ManagementToken, s.CAFile, serverCert, serverKey)
	if o.Persistent {
		hcl += "server = true\nbootstrap_expect = 1\n"
	}
	s.write("20-extra.hcl", hcl+o.HCL)
	s.start()
	return s
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

// Cluster is several Consul servers and one agent that is none, as a host has
// it: killing servers leaves that agent.
type Cluster struct {
	Servers []*ConsulServer
	Agent   *ConsulServer

	t testing.TB
}

// ConsulCluster starts n servers and an agent. They keep what they know over a
// restart.
func ConsulCluster(t testing.TB, n int) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	join := ""
	for i := range n {
		s := newConsul(t, fmt.Sprintf("server-%d", i+1), false, nil)
		c.Servers = append(c.Servers, s)
		join += fmt.Sprintf("%q, ", fmt.Sprintf("127.0.0.1:%d", s.serf))
	}
	c.Agent = newConsul(t, "agent", false, nil)
	more := fmt.Sprintf("retry_join = [%s]\nretry_interval = \"1s\"\n", join)
	for _, s := range c.Servers {
		s.write("20-extra.hcl", more+fmt.Sprintf("server = true\nbootstrap_expect = %d\n", n))
		s.launch()
	}
	c.Agent.write("20-extra.hcl", more)
	c.Agent.launch()
	for _, s := range append([]*ConsulServer{c.Agent}, c.Servers...) {
		s.await()
	}
	return c
}

// leaderPatience is how long an election may take on a busy machine.
const leaderPatience = 60 * time.Second

// Leader returns the server that leads, after waiting for there being one that
// is alive.
func (c *Cluster) Leader() *ConsulServer {
	c.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(leaderPatience); ; <-tick.C {
		for _, s := range c.Servers {
			if s.process == nil {
				continue
			}
			// A server says so of itself; what others say may be of before.
			self, err := s.Client.Agent().Self()
			if err != nil {
				continue
			}
			if consul, ok := self["Stats"]["consul"].(map[string]any); ok && consul["leader"] == "true" {
				return s
			}
		}
		if time.Now().After(end) {
			c.t.Fatal("meshtest: no leader")
		}
	}
}

// KillLeader kills the server that leads, at once, and returns it; its Restart
// brings it back.
func (c *Cluster) KillLeader() *ConsulServer {
	c.t.Helper()
	s := c.Leader()
	s.Kill()
	return s
}

// Launch starts a killed server again without waiting until it can answer:
// whether it can is up to the others.
func (s *ConsulServer) Launch() {
	s.t.Helper()
	s.Kill()
	s.launch()
}
