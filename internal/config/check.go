package config

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"meshd/internal/mesh"
)

const (
	// maxUpstreams and maxServices together stay below the number of ports
	// that mesh.Compile has to give, so that it always finds one.
	maxUpstreams = 10_000
	maxServices  = 1_000
)

// check looks for what is wrong only in company. Clashes are looked for in
// whatever could be read; what is missing, only if everything could be.
func (b *builder) check(c *Config) {
	b.names()
	b.sockets(c)
	b.socketFiles(c)
	b.room(c.Spec)
	if !b.incomplete {
		b.callers(c.Spec)
	}
	if b.errors == 0 {
		b.advice(c)
		b.adviceOnConsul(c)
	}
}

// names finds what is there twice.
func (b *builder) names() {
	upstreams := make(map[string]*body)
	for _, u := range b.upstreams {
		if had := upstreams[u.Name]; had != nil {
			b.clashf(u.body.at, had.at, "Duplicate upstream", "There is already an upstream %q at %s. For a second way to call the same service take another name and set destination_name = %q.",
				u.Name, short(had.at), u.Destination)
			continue
		}
		upstreams[u.Name] = u.body
	}
	type instance struct {
		name string
		port uint16
	}
	ids, instances := make(map[string]*body), make(map[instance]*body)
	for _, s := range b.services {
		had := ids[s.ID]
		switch {
		case had != nil && !s.body.has("id") && !had.has("id"):
			b.clashf(s.body.at, had.at, "Duplicate service", "There is already a service %q at %s. Give instances of one service different ids: id = \"%s-2\".", s.Name, short(had.at), s.Name)
			continue
		case had != nil:
			b.clashf(s.body.placeOf("id"), had.placeOf("id"), "Duplicate service id", "The id %q is already taken at %s. The id of a service is unique on a host.", s.ID, short(had.placeOf("id")))
			continue
		}
		ids[s.ID] = s.body
		key := instance{s.Name, s.Port}
		if had := instances[key]; had != nil && s.Port != 0 {
			b.clashf(s.body.placeOf("port"), had.placeOf("port"), "Port clash", "The service %q has another instance on port %d at %s. Instances on one host differ by their port, since their registrations are named by it.",
				s.Name, s.Port, short(had.placeOf("port")))
			continue
		}
		instances[key] = s.body
	}
}

// socket is an address that something on this host listens on.
type socket struct {
	what    string // for messages: `upstream "x"`
	addr    netip.AddrPort
	at      hcl.Range // empty: a default, not written anywhere
	service bool      // an application's own, not ours
}

// meets says whether only one of the two could be bound.
func (s socket) meets(o socket) bool {
	if s.addr.Port() != o.addr.Port() || s.addr.Port() == 0 {
		return false
	}
	return s.addr.Addr() == o.addr.Addr() || s.covers(o) || o.covers(s)
}

// covers says whether s listens on every address that o could mean. [::] is
// IPv4 too.
func (s socket) covers(o socket) bool {
	a := s.addr.Addr()
	return a.IsUnspecified() && (a.Is6() || o.addr.Addr().Is4())
}

// sockets finds ports that are wanted twice on one address.
func (b *builder) sockets(c *Config) {
	var list []socket
	setting := func(what, block, attr string, a netip.AddrPort) {
		in := b.root.only(block)
		if v := in.values[attr]; v.wrong || !a.IsValid() {
			return
		}
		list = append(list, socket{what: what + " (" + block + "." + attr + ")", addr: a, at: in.placeOf(attr)})
	}
	setting("port for other agents", "peer", "bind", c.Peer.Bind)
	setting("name server", "dns", "address", c.DNS.Address)
	if a, err := netip.ParseAddrPort(c.Admin.HTTP); err == nil {
		setting("admin listener", "admin", "http", a)
	}
	for _, s := range b.services {
		list = append(list, socket{what: `service "` + s.Name + `"`, addr: netip.AddrPortFrom(s.Address, s.Port), at: s.body.placeOf("port"), service: true})
	}
	for _, u := range b.upstreams {
		if u.LocalBindPort != 0 {
			list = append(list, socket{what: `upstream "` + u.Name + `"`, addr: netip.AddrPortFrom(u.LocalBindAddress, u.LocalBindPort), at: u.body.placeOf("local_bind_port")})
		}
		if c.Spec.Loopback.Contains(u.LocalBindAddress) {
			b.errorf(u.body.placeOf("local_bind_address"), "Address given to upstreams", "local_bind_address is %q, inside %s, where each upstream gets an address of its own. Take one outside, such as \"127.0.0.1\".",
				u.LocalBindAddress, c.Spec.Loopback)
		}
	}
	byPort := make(map[uint16][]int)
	for i, s := range list {
		for _, j := range byPort[s.addr.Port()] {
			o := list[j]
			if !s.meets(o) {
				continue
			}
			if s.service && o.service {
				continue // two names for one application
			}
			b.portClash(s, o)
			break // one place to change is enough
		}
		byPort[s.addr.Port()] = append(byPort[s.addr.Port()], i)
	}
}

func (b *builder) portClash(s, o socket) {
	if b.compare(s.at, o.at) < 0 {
		s, o = o, s
	}
	if o.at.Filename == "" { // the default of a block that is not written
		b.errorf(s.at, "Port clash", "The %s on %s cannot have the port of the %s, which is on %s by default.", s.what, s.addr, o.what, o.addr)
		return
	}
	b.clashf(s.at, o.at, "Port clash", "The %s on %s cannot have the port of the %s on %s, at %s.", s.what, s.addr, o.what, o.addr, short(o.at))
}

// room finds what mesh.Compile would have no address or port for.
func (b *builder) room(spec *mesh.Spec) {
	free := 1<<(32-spec.Loopback.Bits()) - 3 // as mesh.Compile counts
	switch n := len(b.upstreams); {
	case n > maxUpstreams:
		b.errorf(b.upstreams[maxUpstreams].body.at, "Too many upstreams", "There are %d upstreams; at most %d are allowed.", n, maxUpstreams)
	case n > free:
		b.errorf(b.root.only("loopback").placeOf("cidr"), "Range too small", "The range %s has room for %d upstreams, and there are %d. Take a larger one.", spec.Loopback, free, n)
	}
	if n := len(b.services); n > maxServices {
		b.errorf(b.services[maxServices].body.at, "Too many services", "There are %d services; at most %d are allowed.", n, maxServices)
	}
}

// callers finds upstreams of which it is not clear who calls.
func (b *builder) callers(spec *mesh.Spec) {
	names := spec.ServiceNames()
	identity := b.root.only("identity")
	for i := range b.upstreams {
		u := &b.upstreams[i]
		if v := u.body.values["from"]; v.wrong {
			continue
		}
		if u.From != "" {
			if len(names) > 0 && !slices.Contains(names, u.From) && u.From != spec.Identity {
				b.errorf(u.body.placeOf("from"), "Unknown caller", "from is %q, and this host offers no such service.%s Services here: %s.", u.From, didYouMean(u.From, names), strings.Join(names, ", "))
			}
			continue
		}
		if identity.values["service"].wrong {
			continue
		}
		if _, err := spec.Caller(&u.Upstream); err == nil {
			continue
		}
		if len(names) == 0 {
			b.errorf(u.body.at, "No identity to call with", "The upstream %q needs a service on whose behalf it is called, and this host offers none. Set identity { service = \"NAME\" }, or from = \"NAME\" in the upstream.", u.Name)
			continue
		}
		first, second := b.serviceNamed(names[0]), b.serviceNamed(names[1])
		b.add(finding{severity: SeverityError, at: u.body.at, other: &second.at, summary: "Ambiguous caller",
			detail: "The upstream " + quote(u.Name) + " could call as " + quote(names[0]) + " (" + short(first.at) + ") or " + quote(names[1]) + " (" + short(second.at) +
				"). Set from = \"NAME\" in it, or identity { service = \"NAME\" } for all."})
	}
}

func (b *builder) serviceNamed(name string) *body {
	for _, s := range b.services {
		if s.Name == name {
			return s.body
		}
	}
	return nil
}

// advice warns of what works and is probably not meant. Beside errors it would
// only be in the way.
func (b *builder) advice(c *Config) {
	for _, s := range b.services {
		if len(s.Allow) == 0 && !c.Spec.Intentions {
			b.warnf(s.body.at, "Nobody may call", "The service %q allows nobody, so every call is refused. Add allow \"NAME\" {} for each caller.", s.Name)
		}
	}
	static := make(map[string]bool)
	for _, catalog := range b.root.inner["catalog"] {
		for _, s := range catalog.inner["service"] {
			static[s.label] = true
			if len(s.inner["endpoint"]) == 0 {
				b.warnf(s.at, "No endpoint", "The static service %q has no endpoint, so whoever calls it is refused.", s.label)
			}
		}
	}
	for _, u := range b.upstreams {
		if u.Query && static[u.Destination] {
			b.warnf(u.body.placeOf("destination_type"), "Static entry not used", "The static catalog has %q, but prepared queries are Consul's, so the endpoints of this upstream come from there.", u.Destination)
		} else if u.Datacenter != "" && static[u.Destination] {
			b.warnf(u.body.placeOf("datacenter"), "Static entry not used", "The static catalog has %q, but not for a datacenter, so the endpoints of this upstream come from Consul.", u.Destination)
		}
		for _, s := range b.services {
			if u.LocalBindPort != 0 && u.LocalBindPort == s.Port && u.LocalBindAddress != s.Address {
				b.warnf(u.body.placeOf("local_bind_port"), "Port of a local service", "The service %q has port %d too (%s). If its application listens on every address, one of the two cannot start.",
					s.Name, s.Port, short(s.body.placeOf("port")))
			}
		}
	}
}
