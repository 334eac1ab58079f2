package consul

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"

	"github.com/hashicorp/consul/api"
)

// The mark on everything we register, in the metadata of the service. Without
// both of the first two an entry is somebody else's.
const (
	metaMark  = "meshd"
	markValue = "1"
	metaNode  = "meshd-node"
	// metaInstance is set on a proxy whose service somebody else registered
	// under an id that this host does not know it by: links name an instance
	// by our id, the proxy has to name Consul's.
	metaInstance = "meshd-instance"
)

const (
	// checkInterval and checkTimeout are what Consul uses for sidecars itself,
	// the timeout aside: its 10 s would let a hung agent look well for long.
	checkInterval = "10s"
	checkTimeout  = "2s"
)

// entry is one wanted registration and what is missing for it.
type entry struct {
	register []*api.AgentServiceRegistration // the service before its proxy
	status   RegistrationStatus
}

// registrationPlan is the difference between what the agent has and what is wanted.
type registrationPlan struct {
	entries    []entry
	deregister []string // proxies before services
}

func (p *registrationPlan) statuses() []RegistrationStatus {
	st := make([]RegistrationStatus, len(p.entries))
	for i := range p.entries {
		st[i] = p.entries[i].status
	}
	return st
}

// plan works out the difference. It is pure.
func plan(local map[string]*api.AgentService, want []Registration, node string) registrationPlan {
	var p registrationPlan
	keep := make(map[string]bool)
	for i := range want {
		p.entries = append(p.entries, planOne(local, &want[i], node, keep))
	}
	for _, id := range slices.Sorted(maps.Keys(local)) {
		if !keep[id] && ours(local[id], node) {
			p.deregister = append(p.deregister, id)
		}
	}
	// A service without its proxy is reachable in the clear by those who look
	// for it; a proxy without its service only reports a failed alias.
	slices.SortStableFunc(p.deregister, func(a, b string) int {
		return cmp.Compare(rank(local[a]), rank(local[b]))
	})
	return p
}

func rank(s *api.AgentService) int {
	if s.Kind == api.ServiceKindConnectProxy {
		return 0
	}
	return 1
}

func planOne(local map[string]*api.AgentService, want *Registration, node string, keep map[string]bool) entry {
	e := entry{status: status(want, node)}
	fail := func(format string, args ...any) entry {
		e.register, e.status.State, e.status.Error = nil, Failed, fmt.Sprintf(format, args...)
		return e
	}
	proxyID := e.status.ProxyID
	if keep[proxyID] {
		return fail("another service block has the same name and port, so Consul cannot tell them apart")
	}
	e.status.State = Registered
	if id := somebodys(local, want); id != "" {
		e.status.State, e.status.ID = Adopted, id
	} else {
		svc := service(want, node)
		if has := local[svc.ID]; has != nil && !ours(has, node) {
			return fail("id %q is taken in Consul by service %q on port %d, which meshd on this node did not register: set another id, or remove it with: consul services deregister -id=%s", svc.ID, has.Service, has.Port, svc.ID)
		}
		if keep[svc.ID] {
			return fail("id %q is used by another service block", svc.ID)
		}
		keep[svc.ID] = true
		if !agrees(local[svc.ID], svc) {
			e.register = append(e.register, svc)
		}
	}
	if has := local[proxyID]; has != nil && !ours(has, node) {
		return fail("id %q is taken in Consul by something that meshd on this node did not register: remove it with: consul services deregister -id=%s", proxyID, proxyID)
	}
	keep[proxyID] = true
	prx := proxy(want, node, e.status.ID)
	if !agrees(local[proxyID], prx) {
		e.register = append(e.register, prx)
	}
	return e
}

// ours reports whether the entry carries our mark.
func ours(s *api.AgentService, node string) bool {
	return s != nil && s.Meta[metaMark] == markValue && s.Meta[metaNode] == node
}

// somebodys returns the id of the wanted service if somebody who is no meshd
// registered it, "" if nobody did. Another node's meshd on the same Consul
// agent offers another instance.
func somebodys(local map[string]*api.AgentService, want *Registration) string {
	for _, id := range slices.Sorted(maps.Keys(local)) {
		s := local[id]
		if s != nil && s.Kind == api.ServiceKindTypical && s.Meta[metaMark] != markValue &&
			s.Service == want.Service.Name && s.Port == int(want.Service.Port) {
			return id
		}
	}
	return ""
}

func status(want *Registration, node string) RegistrationStatus {
	s := &want.Service
	return RegistrationStatus{
		Service: s.Name, ID: cmp.Or(s.ID, s.Name), Port: s.Port, State: Waiting,
		ProxyID: fmt.Sprintf("%s-%s-%d-sidecar-proxy", node, s.Name, s.Port),
	}
}

// waiting is what Status shows before the agent has answered.
func waiting(want []Registration, node string) []RegistrationStatus {
	st := make([]RegistrationStatus, len(want))
	for i := range want {
		st[i] = status(&want[i], node)
	}
	return st
}

// service is our registration of the application itself.
func service(want *Registration, node string) *api.AgentServiceRegistration {
	s := &want.Service
	reg := &api.AgentServiceRegistration{
		ID: cmp.Or(s.ID, s.Name), Name: s.Name, Port: int(s.Port),
		Tags: s.Tags, Meta: marked(s.Meta, node),
	}
	// A loopback address in the catalog would send others to themselves;
	// without one Consul gives the node's.
	if s.Address.IsValid() && !s.Address.IsLoopback() && !s.Address.IsUnspecified() {
		reg.Address = s.Address.String()
	}
	return reg
}

// proxy is our registration of the peer port, as sidecar_service would make it.
func proxy(want *Registration, node, id string) *api.AgentServiceRegistration {
	s := &want.Service
	meta := marked(s.Meta, node)
	if own := cmp.Or(s.ID, s.Name); own != id {
		meta[metaInstance] = own
	}
	app := "127.0.0.1"
	if s.Address.IsValid() && !s.Address.IsUnspecified() {
		app = s.Address.String()
	}
	name := s.Name + "-sidecar-proxy"
	return &api.AgentServiceRegistration{
		Kind: api.ServiceKindConnectProxy,
		ID:   status(want, node).ProxyID, Name: name,
		Address: want.PeerAddress, Port: int(want.PeerPort),
		Tags: s.Tags, Meta: meta,
		Proxy: &api.AgentServiceConnectProxyConfig{
			DestinationServiceName: s.Name, DestinationServiceID: id,
			LocalServiceAddress: app, LocalServicePort: int(s.Port),
		},
		Checks: api.AgentServiceChecks{
			{
				Name: "meshd peer port", Interval: checkInterval, Timeout: checkTimeout,
				TCP: net.JoinHostPort(cmp.Or(want.PeerAddress, "127.0.0.1"), strconv.Itoa(int(want.PeerPort))),
				// A new check starts critical and is first made within its
				// interval. The port is bound before anything is registered.
				Status: api.HealthPassing,
			},
			{Name: "service " + s.Name, AliasService: id, Status: api.HealthPassing},
		},
	}
}

func marked(meta map[string]string, node string) map[string]string {
	m := make(map[string]string, len(meta)+3)
	maps.Copy(m, meta)
	m[metaMark], m[metaNode] = markValue, node
	return m
}

// agrees reports whether what the agent has is what we would register.
func agrees(has *api.AgentService, want *api.AgentServiceRegistration) bool {
	if has == nil || has.Kind != want.Kind || has.Service != want.Name || has.Port != want.Port || has.Address != want.Address ||
		!slices.Equal(has.Tags, want.Tags) || !maps.Equal(has.Meta, want.Meta) {
		return false
	}
	if want.Proxy == nil {
		return true
	}
	return has.Proxy != nil &&
		has.Proxy.DestinationServiceName == want.Proxy.DestinationServiceName &&
		has.Proxy.DestinationServiceID == want.Proxy.DestinationServiceID &&
		has.Proxy.LocalServiceAddress == want.Proxy.LocalServiceAddress &&
		has.Proxy.LocalServicePort == want.Proxy.LocalServicePort
}
