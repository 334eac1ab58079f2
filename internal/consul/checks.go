package consul

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net"
	"strconv"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
)

const (
	// checkPrefix begins the id of every check of ours.
	checkPrefix = "meshd:"
	// checkInterval and checkTimeout are what Consul uses for sidecars itself,
	// the timeout aside: its 10 s would let a hung agent look well for long.
	checkInterval = "10s"
	checkTimeout  = "2s"
	// maintenance begins the id of the check by which Consul takes a service
	// out of use on an operator's word.
	maintenance = "_service_maintenance:"
)

// proxyChecks are those of the peer port and of the application behind it.
func proxyChecks(want *Registration, id, service string) api.AgentServiceChecks {
	follows := api.HealthPassing
	if want.Service.Check != nil {
		follows = "" // critical, as the application's own check is at first
	}
	return api.AgentServiceChecks{
		defined(&api.AgentServiceCheck{
			CheckID: checkPrefix + id + ":peer", Name: "meshd peer port", Interval: checkInterval, Timeout: checkTimeout,
			TCP: net.JoinHostPort(cmp.Or(want.PeerAddress, "127.0.0.1"), strconv.Itoa(int(want.PeerPort))),
			// A new check starts critical and is first made within its
			// interval. The port is bound before anything is registered.
			Status: api.HealthPassing,
		}),
		defined(&api.AgentServiceCheck{
			CheckID: checkPrefix + id + ":alias", Name: "service " + want.Service.Name, AliasService: service, Status: follows,
		}),
	}
}

// applicationCheck is the one that the configuration asks for, nil for none. It
// starts critical: nobody has seen the application yet.
func applicationCheck(s *mesh.Service, id string) *api.AgentServiceCheck {
	if s.Check == nil {
		return nil
	}
	at := net.JoinHostPort(applicationHost(s), strconv.Itoa(int(s.Port)))
	c := &api.AgentServiceCheck{CheckID: checkPrefix + id + ":app", Interval: s.Check.Interval.String(), Timeout: s.Check.Timeout.String()}
	switch {
	case s.Check.HTTP != "":
		c.Name, c.HTTP = "HTTP "+s.Check.HTTP, "http://"+at+s.Check.HTTP
	case s.Check.GRPC == "-":
		c.Name, c.GRPC = "gRPC health", at
	case s.Check.GRPC != "":
		c.Name, c.GRPC = "gRPC health of "+s.Check.GRPC, at+"/"+s.Check.GRPC
	default:
		c.Name, c.TCP = "TCP connection", at
	}
	return defined(c)
}

// applicationHost is where the application is reached from its own host.
func applicationHost(s *mesh.Service) string {
	if s.Address.IsValid() && !s.Address.IsUnspecified() {
		return s.Address.String()
	}
	return "127.0.0.1"
}

// defined writes into the notes of a check what it is. Consul does not tell the
// definition of a check that it has, and it has to be known whether it is this
// one.
func defined(c *api.AgentServiceCheck) *api.AgentServiceCheck {
	d := *c
	d.Status = ""
	text, err := json.Marshal(d)
	if err != nil {
		text = []byte(c.CheckID) // cannot happen: it is strings and numbers
	}
	h := fnv.New32a()
	h.Write(text)
	c.Notes = fmt.Sprintf("by meshd, definition %08x", h.Sum32())
	return c
}
