package config

import (
	"cmp"
	"net/netip"
	"time"

	"meshd/internal/mesh"
)

func (b *builder) offered(spec *mesh.Spec) {
	for _, s := range b.root.inner["service"] {
		protocol := protocolOf(s)
		out := mesh.Service{
			Name:           s.label,
			ID:             cmp.Or(get[string](s, "id"), s.label),
			Address:        get[netip.Addr](s, "address"),
			Port:           uint16(get[int](s, "port")),
			Protocol:       protocol,
			Tags:           get[[]string](s, "tags"),
			Meta:           get[map[string]string](s, "meta"),
			Limits:         limits(s, s),
			ConnectTimeout: get[time.Duration](s, "connect_timeout"),
			RequestTimeout: get[time.Duration](s, "request_timeout"),
			IdleTimeout:    idle(protocol, s),
			TokenFile:      get[string](s, "token_file"),
			Check:          b.healthCheck(s),
			Pos:            pos(s.at),
		}
		b.httpOnly(s, protocol)
		for i, a := range s.inner["allow"] {
			for _, had := range s.inner["allow"][:i] {
				if had.label == a.label {
					b.clashf(a.at, had.at, "Duplicate caller", "The service %q already allows %q at %s.", s.label, a.label, short(had.at))
					break
				}
			}
			out.Allow = append(out.Allow, mesh.Allow{Caller: a.label, Pos: pos(a.at)})
		}
		b.services = append(b.services, serviceBody{out, s})
		spec.Services = append(spec.Services, out)
	}
}

func (b *builder) called(spec *mesh.Spec) {
	defaults := b.root.only("defaults")
	for _, u := range b.root.inner["upstream"] {
		protocol := protocolOf(u)
		out := mesh.Upstream{
			Name:             u.label,
			Destination:      cmp.Or(get[string](u, "destination_name"), u.label),
			Query:            get[string](u, "destination_type") == "prepared_query",
			Datacenter:       get[string](u, "datacenter"),
			From:             get[string](u, "from"),
			Protocol:         protocol,
			LocalBindAddress: get[netip.Addr](u, "local_bind_address"),
			LocalBindPort:    uint16(get[int](u, "local_bind_port")),
			SocketPath:       get[string](u, "local_bind_socket_path"),
			ConnectTimeout:   inherit[time.Duration](u, defaults, "connect_timeout"),
			RequestTimeout:   inherit[time.Duration](u, defaults, "request_timeout"),
			IdleTimeout:      idle(protocol, u, defaults),
			Breaker: mesh.Breaker{
				ConsecutiveFailures: inherit[int](u, defaults, "consecutive_failures", "circuit_breaker"),
				OpenFor:             inherit[time.Duration](u, defaults, "open_for", "circuit_breaker"),
			},
			ChoiceCount: inherit[int](u, defaults, "choice_count", "load_balancer", "least_request"),
			Limits:      limits(u, defaults),
			Origins:     origins(u, defaults),
			Pos:         pos(u.at),
		}
		b.httpOnly(u, protocol)
		if v := u.values["destination_name"]; !out.Query && !v.wrong && !u.values["destination_type"].wrong {
			if wrong := checkName(out.Destination); wrong != "" {
				b.errorf(v.at, "Invalid name", "destination_name is %s; %s", quote(out.Destination), wrong)
			}
		}
		if u.has("local_bind_address") && out.LocalBindPort == 0 && !u.values["local_bind_port"].wrong {
			b.errorf(u.placeOf("local_bind_address"), "Argument without effect", "local_bind_address needs a local_bind_port beside it.")
		}
		if out.SocketPath != "" {
			out.SocketMode = get[uint32](u, "local_bind_socket_mode")
		} else if u.has("local_bind_socket_mode") && !u.values["local_bind_socket_path"].wrong {
			b.errorf(u.placeOf("local_bind_socket_mode"), "Argument without effect", "local_bind_socket_mode needs a local_bind_socket_path beside it.")
		}
		b.upstreams = append(b.upstreams, upstreamBody{out, u})
		spec.Upstreams = append(spec.Upstreams, out)
	}
}

// The words of mesh.Provenance for what was written in a file.
const (
	fromUpstream = "upstream"
	fromDefaults = "defaults"
)

// origins says where each attribute of an upstream was written: in its own
// block or in defaults. What is in neither is not in the map.
func origins(own, defaults *body) map[string]mesh.Provenance {
	m := make(map[string]mesh.Provenance)
	note(m, defaults, "", fromDefaults)
	note(m, own, "", fromUpstream)
	return m
}

func note(m map[string]mesh.Provenance, b *body, path, kind string) {
	for name, v := range b.values {
		if !v.wrong {
			m[join(path, name)] = mesh.Provenance{Kind: kind, Pos: pos(v.at)}
		}
	}
	for name, inner := range b.inner {
		for _, in := range inner {
			note(m, in, join(path, name), kind)
		}
	}
}

// withoutRequests turns request_timeout off where there are no requests. Where
// the protocol is not written, Consul may still say that there are.
func withoutRequests(spec *mesh.Spec) {
	static := mesh.StaticCatalog(spec.Static).Services
	for i := range spec.Upstreams {
		u := &spec.Upstreams[i]
		_, written := u.Origins["protocol"]
		_, byHand := static[u.Key()]
		if u.Protocol == mesh.TCP && (written || byHand || u.Query) {
			u.RequestTimeout = 0
			delete(u.Origins, "request_timeout")
		}
	}
}

func protocolOf(b *body) mesh.Protocol {
	p, _ := mesh.ParseProtocol(get[string](b, "protocol"))
	return p
}

// idle is the first idle_timeout that is written, else the protocol's own.
func idle(p mesh.Protocol, bodies ...*body) time.Duration {
	for _, b := range bodies {
		if b.has("idle_timeout") {
			return get[time.Duration](b, "idle_timeout")
		}
	}
	if p == mesh.TCP {
		return idleTCP
	}
	return idleHTTP
}

func limits(own, defaults *body) mesh.Limits {
	return mesh.Limits{
		MaxConnections:        inherit[int](own, defaults, "max_connections", "limits"),
		MaxPendingRequests:    inherit[int](own, defaults, "max_pending_requests", "limits"),
		MaxConcurrentRequests: inherit[int](own, defaults, "max_concurrent_requests", "limits"),
	}
}

// httpOnly refuses what would do nothing on bytes without requests.
func (b *builder) httpOnly(in *body, p mesh.Protocol) {
	if p == mesh.TCP && in.has("request_timeout") && get[time.Duration](in, "request_timeout") != 0 && !in.values["protocol"].wrong {
		b.errorf(in.placeOf("request_timeout"), "Argument without effect",
			"request_timeout is for requests, and the protocol of %s %q is \"tcp\". Set protocol = \"http\", or use idle_timeout.", in.block.name, in.label)
	}
}

func (b *builder) static(spec *mesh.Spec) {
	seen := make(map[string]*body)
	for _, catalog := range b.root.inner["catalog"] {
		for _, s := range catalog.inner["service"] {
			if had := seen[s.label]; had != nil {
				b.clashf(s.at, had.at, "Duplicate service", "The static catalog already has the service %q at %s. Put all its endpoints there.", s.label, short(had.at))
				continue
			}
			seen[s.label] = s
			out := mesh.StaticService{Name: s.label, Port: uint16(get[int](s, "port")), Pos: pos(s.at)}
			ids := make(map[string]*body)
			for _, e := range s.inner["endpoint"] {
				if had := ids[e.label]; had != nil {
					b.clashf(e.at, had.at, "Duplicate endpoint", "The service %q already has an endpoint %q at %s.", s.label, e.label, short(had.at))
					continue
				}
				ids[e.label] = e
				out.Endpoints = append(out.Endpoints, mesh.StaticEndpoint{
					ID: e.label, Address: get[netip.AddrPort](e, "address"), Weight: get[int](e, "weight"),
					Meta: get[map[string]string](e, "meta"), Pos: pos(e.at),
				})
			}
			spec.Static = append(spec.Static, out)
		}
	}
}
