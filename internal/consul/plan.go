package consul

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"
)

// The mark on everything we register, in the metadata of the service. Without
// the first two an entry is somebody else's.
const (
	metaMark  = "meshd"
	markValue = "1"
	metaNode  = "meshd-node"
	// metaPeer is the peer port, as ADDRESS:PORT: two meshd of one node name
	// can be on one Consul agent, but not on one port.
	metaPeer = "meshd-peer"
	// metaKeys lists the other keys that are ours, so that those which leave
	// the configuration leave Consul, and those of others stay.
	metaKeys = "meshd-keys"
	// metaInstance is set on a proxy whose service is registered under an id
	// that this host does not know it by, because somebody else registered it
	// or the id was taken: links name an instance by our id, the proxy has to
	// name Consul's.
	metaInstance = "meshd-instance"
)

// owner is who registers.
type owner struct {
	node string
	// peer is the metaPeer of this meshd.
	peer string
	// dead are the peers of this node name where nobody listens any more: what
	// they left is ours.
	dead map[string]bool
}

func ownerOf(node string, want []Registration) owner {
	o := owner{node: node}
	if len(want) > 0 {
		o.peer = peerOf(want[0].PeerAddress, int(want[0].PeerPort))
	}
	return o
}

func peerOf(address string, port int) string { return net.JoinHostPort(address, strconv.Itoa(port)) }

// registered is what the local agent has.
type registered struct {
	services map[string]*api.AgentService
	checks   map[string]*api.AgentCheck // by check id
}

// entry is one wanted registration and what is missing for it.
type entry struct {
	register []*api.AgentServiceRegistration // the service before its proxy
	status   RegistrationStatus
}

// registrationPlan is the difference between what the agent has and what is wanted.
type registrationPlan struct {
	entries    []entry
	deregister []string // proxies before services
	drop       []string // checks of ours that are no longer wanted
}

func (p *registrationPlan) statuses() []RegistrationStatus {
	st := make([]RegistrationStatus, len(p.entries))
	for i := range p.entries {
		st[i] = p.entries[i].status
	}
	return st
}

// plan works out the difference. It is pure.
func plan(has registered, want []Registration, me owner) registrationPlan {
	var p registrationPlan
	keep := make(map[string]bool)   // services
	checks := make(map[string]bool) // wanted checks
	for i := range want {
		p.entries = append(p.entries, planOne(has, &want[i], me, keep, checks))
	}
	for _, id := range slices.Sorted(maps.Keys(has.services)) {
		if !keep[id] && me.owns(has.services[id]) {
			p.deregister = append(p.deregister, id)
		}
	}
	// A service without its proxy is reachable in the clear by those who look
	// for it; a proxy without its service only reports a failed alias.
	slices.SortStableFunc(p.deregister, func(a, b string) int {
		return cmp.Compare(rank(has.services[a]), rank(has.services[b]))
	})
	for _, id := range slices.Sorted(maps.Keys(has.checks)) {
		c := has.checks[id]
		if strings.HasPrefix(id, checkPrefix) && keep[c.ServiceID] && !checks[id] {
			p.drop = append(p.drop, id)
		}
	}
	return p
}

func rank(s *api.AgentService) int {
	if s.Kind == api.ServiceKindConnectProxy {
		return 0
	}
	return 1
}

func planOne(has registered, want *Registration, me owner, keep, checks map[string]bool) entry {
	e := entry{status: status(want, me.node)}
	fail := func(format string, args ...any) entry {
		e.register, e.status.State, e.status.Error = nil, Failed, fmt.Sprintf(format, args...)
		return e
	}
	own := cmp.Or(want.Service.ID, want.Service.Name)
	add := func(reg *api.AgentServiceRegistration) {
		keep[reg.ID] = true
		for _, c := range reg.Checks {
			checks[c.CheckID] = true
		}
		if !agrees(has, reg) {
			inherit(reg, has.services[reg.ID])
			e.register = append(e.register, reg)
		}
	}
	proxyID, why := me.choose(has.services, keep, e.status.ProxyID, fmt.Sprintf("%s-%s-%d-%d-sidecar-proxy", me.node, want.Service.Name, want.Service.Port, want.PeerPort))
	if proxyID == "" && keep[e.status.ProxyID] {
		return fail("another service block has the same name and port, so Consul cannot tell them apart")
	}
	var svc *api.AgentServiceRegistration
	e.status.State = Registered
	if id := somebodys(has.services, want); id != "" {
		e.status.State, e.status.ID = Adopted, id
	} else {
		id, why := me.choose(has.services, keep, own, me.node+"-"+own, fmt.Sprintf("%s-%s-%d", me.node, own, want.PeerPort))
		if id == "" {
			return fail("id %q %s", own, why)
		}
		e.status.ID = id
		svc = service(want, me, id)
		add(svc)
	}
	if proxyID == "" {
		return fail("id %q %s", e.status.ProxyID, why)
	}
	e.status.ProxyID = proxyID
	add(proxy(want, me, proxyID, e.status.ID, svc == nil))
	return e
}

// choose returns the id to register under: one of ids that is ours already,
// else the first that is free. A later one is for when another meshd has the
// first. "" comes with the reason.
func (o owner) choose(services map[string]*api.AgentService, keep map[string]bool, ids ...string) (id, why string) {
	for _, id := range ids {
		if s := services[id]; s != nil && o.owns(s) && !keep[id] {
			return id, ""
		}
	}
	if keep[ids[0]] {
		return "", "is used by another service block"
	}
	for i, id := range ids {
		switch s := services[id]; {
		case s == nil && !keep[id]:
			return id, ""
		case s != nil && i == 0 && s.Meta[metaMark] != markValue:
			return "", fmt.Sprintf("is taken in Consul by service %q on port %d, which meshd did not register: set another id, or remove it with: consul services deregister -id=%s", s.Service, s.Port, id)
		}
	}
	return "", "is taken in Consul by other meshd agents: give this host a node_name of its own"
}

// owns reports whether the entry carries our mark, or that of a meshd of this
// node that is no more.
func (o owner) owns(s *api.AgentService) bool {
	if s == nil || s.Meta[metaMark] != markValue || s.Meta[metaNode] != o.node {
		return false
	}
	peer := s.Meta[metaPeer]
	return peer == "" || o.peer == "" || peer == o.peer || o.dead[peer]
}

// somebodys returns the id of the wanted service if somebody who is no meshd
// registered it, "" if nobody did. Another meshd on the same Consul agent
// offers another instance.
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
	id := fmt.Sprintf("%s-%s-%d-sidecar-proxy", node, s.Name, s.Port)
	return RegistrationStatus{
		Service: s.Name, ID: cmp.Or(s.ID, s.Name), Port: s.Port, State: Waiting, ProxyID: id, key: id,
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
func service(want *Registration, me owner, id string) *api.AgentServiceRegistration {
	s := &want.Service
	reg := &api.AgentServiceRegistration{
		ID: id, Name: s.Name, Port: int(s.Port),
		Tags: s.Tags, Meta: marked(want, me),
	}
	// A loopback address in the catalog would send others to themselves;
	// without one Consul gives the node's.
	if s.Address.IsValid() && !s.Address.IsLoopback() && !s.Address.IsUnspecified() {
		reg.Address = s.Address.String()
	}
	if c := applicationCheck(s, id); c != nil {
		reg.Checks = api.AgentServiceChecks{c}
	}
	return reg
}

// proxy is our registration of the peer port, as sidecar_service would make it.
// With alone it is all that is ours, and has the application's check as well.
func proxy(want *Registration, me owner, id, service string, alone bool) *api.AgentServiceRegistration {
	s := &want.Service
	meta := marked(want, me)
	if own := cmp.Or(s.ID, s.Name); own != service {
		meta[metaInstance] = own
	}
	reg := &api.AgentServiceRegistration{
		Kind: api.ServiceKindConnectProxy,
		ID:   id, Name: sidecarName(s.Name),
		Address: want.PeerAddress, Port: int(want.PeerPort),
		Tags: s.Tags, Meta: meta,
		Proxy: &api.AgentServiceConnectProxyConfig{
			DestinationServiceName: s.Name, DestinationServiceID: service,
			LocalServiceAddress: applicationHost(s), LocalServicePort: int(s.Port),
		},
		Checks: proxyChecks(want, id, service),
	}
	if c := applicationCheck(s, id); c != nil && alone {
		reg.Checks = append(reg.Checks, c)
	}
	return reg
}

func marked(want *Registration, me owner) map[string]string {
	m := make(map[string]string, len(want.Service.Meta)+5)
	maps.Copy(m, want.Service.Meta)
	m[metaMark], m[metaNode] = markValue, me.node
	m[metaPeer] = peerOf(want.PeerAddress, int(want.PeerPort))
	if len(want.Service.Meta) > 0 {
		m[metaKeys] = strings.Join(slices.Sorted(maps.Keys(want.Service.Meta)), ",")
	}
	return m
}

// foreign returns the metadata that somebody else added to an entry of ours.
func foreign(meta map[string]string) map[string]string {
	ours := strings.Split(meta[metaKeys], ",")
	m := make(map[string]string)
	for k, v := range meta {
		if !strings.HasPrefix(k, metaMark) && !slices.Contains(ours, k) {
			m[k] = v
		}
	}
	return m
}

// inherit keeps what somebody else set on an entry of ours and what the
// configuration has no word for: a registration replaces everything.
func inherit(reg *api.AgentServiceRegistration, has *api.AgentService) {
	if has == nil {
		return
	}
	for k, v := range foreign(has.Meta) {
		if _, ok := reg.Meta[k]; !ok {
			reg.Meta[k] = v
		}
	}
	if has.EnableTagOverride {
		reg.EnableTagOverride, reg.Tags = true, has.Tags
	}
	if has.Weights != (api.AgentWeights{}) {
		reg.Weights = &has.Weights
	}
	for name, at := range has.TaggedAddresses {
		// Consul makes the others itself, of an address that may be another now.
		if name == "lan" || name == "wan" || name == "virtual" {
			if reg.TaggedAddresses == nil {
				reg.TaggedAddresses = make(map[string]api.ServiceAddress)
			}
			reg.TaggedAddresses[name] = at
		}
	}
	reg.Connect, reg.Locality, reg.SocketPath = has.Connect, has.Locality, has.SocketPath
	if reg.Proxy != nil && has.Proxy != nil {
		p := *has.Proxy
		p.DestinationServiceName, p.DestinationServiceID = reg.Proxy.DestinationServiceName, reg.Proxy.DestinationServiceID
		p.LocalServiceAddress, p.LocalServicePort = reg.Proxy.LocalServiceAddress, reg.Proxy.LocalServicePort
		reg.Proxy = &p
	}
}

// agrees reports whether what the agent has is what we would register.
func agrees(all registered, want *api.AgentServiceRegistration) bool {
	has := all.services[want.ID]
	if has == nil || has.Kind != want.Kind || has.Service != want.Name || has.Port != want.Port || has.Address != want.Address ||
		!has.EnableTagOverride && !slices.Equal(has.Tags, want.Tags) {
		return false
	}
	left := foreign(has.Meta)
	for k, v := range want.Meta {
		if has.Meta[k] != v {
			return false
		}
		delete(left, k)
	}
	if len(has.Meta) != len(want.Meta)+len(left) {
		return false // a key of ours is no longer wanted
	}
	for _, c := range want.Checks {
		if is := all.checks[c.CheckID]; is == nil || is.ServiceID != want.ID || is.Notes != c.Notes {
			return false
		}
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
