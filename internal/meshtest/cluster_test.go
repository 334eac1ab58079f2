package meshtest

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// One that is secured in name only would let the tests of it pass.
func TestSecuredConsul(t *testing.T) {
	Leaks(t)
	refusesStrangers(t, SecuredConsul(t))
}

// The servers refuse each other without TLS too, and the agent outlives a leader.
func TestSecuredConsulCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("starts four agents")
	}
	Leaks(t)
	c := SecuredConsulCluster(t, 3)
	refusesStrangers(t, c.Agent)
	refusesPlainRPC(t, c)

	c.KillLeader().Launch()
	c.Leader()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(leaderPatience); ; <-tick.C {
		_, err := c.Agent.Client.KV().Put(&api.KVPair{Key: "a", Value: []byte("2")}, nil)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after an election: %v", err)
		}
	}
}

// refusesStrangers asks with less than it takes.
func refusesStrangers(t *testing.T, s *SecuredServer) {
	t.Helper()
	if _, err := s.Client.KV().Put(&api.KVPair{Key: "a", Value: []byte("1")}, nil); err != nil {
		t.Fatal(err)
	}
	token := s.Token(`service "web" { policy = "write" }`)

	certificate, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	// status asks the agent; 0 is no answer at all.
	status := func(path, token string, certificates ...tls.Certificate) int {
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certificates}}
		defer transport.CloseIdleConnections()
		r, err := http.NewRequest("GET", s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Consul-Token", token)
		resp, err := (&http.Client{Transport: transport}).Do(r)
		if err != nil {
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for _, x := range []struct {
		what, token  string
		certificates []tls.Certificate
		want         int
	}{
		{"with everything", ManagementToken, []tls.Certificate{certificate}, 200},
		{"without a token", "", []tls.Certificate{certificate}, 403},
		{"with a token for something else", token, []tls.Certificate{certificate}, 403},
		{"without a certificate", ManagementToken, nil, 0},
	} {
		if got := status("/v1/kv/a", x.token, x.certificates...); got != x.want {
			t.Errorf("%s: %d, want %d", x.what, got, x.want)
		}
	}
}

// refusesPlainRPC asks a server to speak RPC without TLS.
func refusesPlainRPC(t *testing.T, c *SecuredCluster) {
	t.Helper()
	members, err := c.Agent.Client.Agent().Members(false)
	if err != nil {
		t.Fatal(err)
	}
	servers := 0
	for _, m := range members {
		if m.Tags["role"] != "consul" {
			continue
		}
		servers++
		conn, err := net.Dial("tcp", net.JoinHostPort(m.Addr, m.Tags["port"]))
		if err != nil {
			t.Fatal(err)
		}
		// The first byte of a connection says what will be spoken; 1 is RPC.
		conn.Write([]byte{1})
		conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) || err == nil {
			t.Errorf("%s waits for RPC without TLS: %v", m.Name, err)
		}
		conn.Close()
	}
	if servers != len(c.Servers) {
		t.Errorf("%d servers among the members, want %d", servers, len(c.Servers))
	}
}
