package meshtest

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

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
	return newCluster(t, n, nil)
}

// SecuredCluster is a Cluster whose agent is a SecuredServer.
type SecuredCluster struct {
	*Cluster
	Agent *SecuredServer
}

// SecuredConsulCluster is ConsulCluster with what SecuredConsul has. The agents
// speak TLS to each other too, and want to see certificates.
func SecuredConsulCluster(t testing.TB, n int) *SecuredCluster {
	t.Helper()
	keys := newCredentials(t)
	c := newCluster(t, n, keys)
	agent := keys.secured(c.Agent)
	agent.servers = c.Servers
	return &SecuredCluster{c, agent}
}

// newCluster starts a cluster that is secured if there are keys.
func newCluster(t testing.TB, n int, keys *credentials) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	join := ""
	for i := range n {
		s := newConsul(t, fmt.Sprintf("server-%d", i+1), false, keys)
		c.Servers = append(c.Servers, s)
		join += fmt.Sprintf("%q, ", fmt.Sprintf("127.0.0.1:%d", s.serf))
	}
	c.Agent = newConsul(t, "agent", false, keys)
	more := fmt.Sprintf("retry_join = [%s]\nretry_interval = \"1s\"\n", join)
	servers, agent := fmt.Sprintf("%sserver = true\nbootstrap_expect = %d\n", more, n), more
	if keys != nil {
		servers += keys.hcl("defaults", keys.server)
		agent += keys.hcl("defaults", keys.agent)
	}
	for _, s := range c.Servers {
		s.write("20-extra.hcl", servers)
		s.launch()
	}
	for _, s := range c.Servers {
		s.await()
	}
	if keys != nil {
		awaitToken(t, c.Servers, ManagementToken)
	}
	c.Agent.write("20-extra.hcl", agent)
	c.Agent.start()
	return c
}

// tokenPatience is how long a server may be behind the one that leads.
const tokenPatience = 20 * time.Second

// awaitToken returns when each of the servers knows the token by itself. An
// agent asks any of them, and believes one that does not know it for 30 s.
func awaitToken(t testing.TB, servers []*ConsulServer, token string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(tokenPatience)
	for _, s := range servers {
		for {
			_, _, err := s.Client.ACL().TokenReadSelf(&api.QueryOptions{Token: token, AllowStale: true})
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("meshtest: token at %s: %v", s.Address, err)
			}
			<-tick.C
		}
	}
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
