package config

import (
	"net/netip"
	"time"
)

// The bounds of numbers that an operator may write. They are far above what one
// host does and low enough that a typing error is seen.
const (
	maxLimit     = 1_000_000
	maxFailures  = 1_000_000
	maxChoices   = 16
	maxWeight    = 10_000
	maxBreakOpen = 24 * time.Hour
)

// What protocols can be told apart now, and what is to come.
var (
	protocols      = []string{"tcp", "http"}
	protocolsLater = []string{"http2", "grpc"}
)

// runDir is where the service unit lets meshd make sockets.
const runDir = "/run/meshd"

// inherited is the default of what an upstream takes from the block "defaults".
const inherited = "(from defaults)"

// policyAttrs are what an upstream and the block "defaults" have in common. The
// defaults are those of the latter; an upstream inherits.
func policyAttrs(inherit bool) []attr {
	def := func(s string) string {
		if inherit {
			return inherited
		}
		return s
	}
	return []attr{
		{name: "connect_timeout", kind: timeout(), def: def(`"1s"`), reload: OnReload,
			meaning: "time for a new link to a peer, handshake included"},
		{name: "request_timeout", kind: timeout(), def: def(`"15s"`), reload: OnReload,
			meaning: "time for a whole request, from its head to the end of the response; http only"},
		{name: "idle_timeout", kind: timeout(), def: def(idleDefault), reload: OnReload,
			meaning: "time without a byte in either direction before a connection is closed"},
	}
}

// idleDefault stands in the table for two values: connections of databases
// and message queues are quiet for long.
const (
	idleDefault = "(5m for http, 1h for tcp)"
	idleHTTP    = 5 * time.Minute
	idleTCP     = time.Hour
)

func policyBlocks(inherit bool) []*block {
	def := func(s string) string {
		if inherit {
			return inherited
		}
		return s
	}
	return []*block{
		{
			name:    "circuit_breaker",
			meaning: "when an endpoint that fails is left alone; one breaker per endpoint",
			attrs: []attr{
				{name: "consecutive_failures", kind: integer("failures", 0, maxFailures), def: def("5"), reload: OnReload,
					meaning: "failures in a row that open the breaker; 0 turns it off"},
				{name: "open_for", kind: span(time.Millisecond, maxBreakOpen, 1), def: def(`"30s"`), reload: OnReload,
					meaning: "how long an open breaker refuses before one request may try"},
			},
			later: []string{"error_rate", "min_requests", "window", "max_open_for", "max_ejected"},
		},
		{
			name:    "load_balancer",
			meaning: "how an endpoint is chosen among the healthy ones",
			attrs: []attr{
				{name: "policy", kind: word([]string{"least_request"}, []string{"round_robin", "random", "ring_hash", "maglev", "peak_ewma"}), def: def(`"least_request"`), reload: OnReload,
					meaning: "least_request: of a few chosen at random, the one with the fewest requests in flight for its weight"},
			},
			blocks: []*block{{
				name:    "least_request",
				meaning: "settings of that policy",
				attrs: []attr{
					{name: "choice_count", kind: integer("endpoints", 2, maxChoices), def: def("2"), reload: OnReload,
						meaning: "how many endpoints are compared"},
				},
			}},
			later: []string{"hash", "ring_hash", "maglev"},
		},
		limitsBlock("what one upstream may hold at a time; more is refused", def("1024"), def("1024"), def("1024")),
	}
}

func limitsBlock(meaning, connections, pending, concurrent string) *block {
	return &block{
		name:    "limits",
		meaning: meaning,
		attrs: []attr{
			{name: "max_connections", kind: integer("connections", 1, maxLimit), def: connections, reload: OnReload,
				meaning: "connections with applications of this host"},
			{name: "max_pending_requests", kind: integer("requests", 1, maxLimit), def: pending, reload: OnReload,
				meaning: "requests that wait for a connection to be made"},
			{name: "max_concurrent_requests", kind: integer("requests", 1, maxLimit), def: concurrent, reload: OnReload,
				meaning: "requests in flight"},
		},
	}
}

func defaultsBlock() *block {
	return &block{
		name:    "defaults",
		meaning: "what every upstream starts from; an upstream's own value wins, attribute by attribute",
		attrs:   policyAttrs(false),
		blocks:  policyBlocks(false),
		later:   []string{"protocol", "retries"},
	}
}

func serviceBlock() *block {
	address := ip("an IP address of this host", func(a netip.Addr) string {
		if a.IsUnspecified() || a.IsMulticast() {
			return "it is the address that meshd connects to; an application that listens on every address is reached at \"127.0.0.1\"."
		}
		return ""
	})
	return &block{
		name:    "service",
		label:   &label{is: "NAME", kind: serviceName()},
		many:    true,
		meaning: "something this host offers to the mesh; several instances have the same name and different ids",
		attrs: []attr{
			{name: "id", kind: instanceID(), def: "(the name)", reload: OnReload,
				meaning: "names the instance on this host"},
			{name: "address", kind: address, def: `"127.0.0.1"`, reload: OnReload,
				meaning: "where the application listens"},
			{name: "port", kind: integer("port", 1, 65535), required: true, reload: OnReload,
				meaning: "the application's own port"},
			{name: "protocol", kind: word(protocols, protocolsLater), def: `"tcp"`, reload: OnReload,
				meaning: "what the application speaks"},
			{name: "tags", kind: tags(), def: "[]", reload: OnReload,
				meaning: "tags in the registry"},
			{name: "meta", kind: meta(), def: "{}", reload: OnReload,
				meaning: "metadata in the registry"},
			{name: "connect_timeout", kind: timeout(), def: `"1s"`, reload: OnReload,
				meaning: "time for a connection to the application"},
			{name: "request_timeout", kind: timeout(), def: `"off"`, reload: OnReload,
				meaning: "time for a whole request at this side, besides the caller's own deadline; http only"},
			{name: "idle_timeout", kind: timeout(), def: idleDefault, reload: OnReload,
				meaning: "time without a byte in either direction before a connection is closed"},
			{name: "token_file", kind: absolutePath(0), def: "(consul.token_file)", reload: OnReload,
				meaning: "file with the ACL token that registers this service, read again when it changes"},
		},
		blocks: []*block{
			checkBlock(),
			{
				name:    "allow",
				label:   &label{is: "CALLER", kind: serviceName()},
				many:    true,
				meaning: "a service that may call, if Consul's intentions allow it too; without any block they decide alone, and where there are none nobody may",
				later:   []string{"methods", "paths"},
			},
			limitsBlock("what the service may hold at a time; more is refused", "10000", "1024", "10000"),
		},
		later: []string{"socket_path", "weights"},
	}
}

// The bounds of a check: Consul itself refuses an interval below a second.
const (
	minCheckInterval = time.Second
	minCheckTimeout  = 10 * time.Millisecond
	maxCheckSpan     = time.Hour
)

func checkBlock() *block {
	return &block{
		name:    "check",
		meaning: "a health check that Consul makes on the application; exactly one of http, tcp and grpc",
		attrs: []attr{
			{name: "http", kind: checkPath(), def: "(none)", reload: OnReload,
				meaning: "path that is asked for with GET and must be answered with 2xx"},
			{name: "tcp", kind: boolean(), def: "false", reload: OnReload,
				meaning: "a connection to the port is enough"},
			{name: "grpc", kind: grpcService(), def: "(none)", reload: OnReload,
				meaning: "service that is asked for in the gRPC health protocol; \"-\" is the whole server"},
			{name: "interval", kind: span(minCheckInterval, maxCheckSpan, 1), def: `"10s"`, reload: OnReload,
				meaning: "time between two checks"},
			{name: "timeout", kind: span(minCheckTimeout, maxCheckSpan, 1), def: `"2s"`, reload: OnReload,
				meaning: "time for an answer"},
		},
	}
}

func upstreamBlock() *block {
	local := ip("an address of 127.0.0.0/8, or ::1", func(a netip.Addr) string {
		if !a.IsLoopback() {
			return "whoever connects gets this host's identity, so upstreams listen on loopback only, such as \"127.0.0.1\"."
		}
		return ""
	})
	return &block{
		name:    "upstream",
		label:   &label{is: "NAME", kind: serviceName()},
		many:    true,
		meaning: "a remote service as applications of this host call it",
		attrs: append([]attr{
			{name: "destination_name", kind: destinationName(), def: "(the name)", reload: OnReload,
				meaning: "name of the service in the catalog, or name or id of the prepared query"},
			{name: "destination_type", kind: word([]string{"service", "prepared_query"}, nil), def: `"service"`, reload: OnReload,
				meaning: "what destination_name names; a prepared query of Consul is executed every 10 to 30 s"},
			{name: "datacenter", kind: datacenterName(), def: "(the local one)", reload: OnReload,
				meaning: "datacenter of the service"},
			{name: "from", kind: serviceName(), def: "(identity.service, or the only service)", reload: OnReload,
				meaning: "local service on whose behalf it is called"},
			{name: "protocol", kind: word(protocols, protocolsLater), def: `"tcp"`, reload: OnReload,
				meaning: "what applications speak; the same as in the block of the called service"},
			{name: "local_bind_port", kind: integer("port", 1, 65535), def: "(none)", reload: OnReload,
				meaning: "also listen on this port of local_bind_address, and use it on the upstream's own address"},
			{name: "local_bind_address", kind: local, def: `"127.0.0.1"`, reload: OnReload,
				meaning: "address of local_bind_port"},
			{name: "local_bind_socket_path", kind: absolutePath(maxSocketPath), def: "(none)", reload: OnReload,
				meaning: "also listen on this Unix socket, under " + runDir + " or the folder of admin.socket"},
			{name: "local_bind_socket_mode", kind: socketMode(), def: `"0660"`, reload: OnReload,
				meaning: "permissions of that socket: who may write may connect"},
		}, policyAttrs(true)...),
		blocks: policyBlocks(true),
		later: []string{
			"retries", "subset", "route", "split", "failover", "destination_peer", "mesh_gateway", "allow_users", "allow_units",
		},
	}
}

func catalogBlock() *block {
	peer := ipPort("IP:PORT", "10.4.0.18:21900", func(a netip.AddrPort) string {
		switch {
		case a.Port() == 0:
			return "the port is the other agent's peer port, such as 21900."
		case a.Addr().IsUnspecified() || a.Addr().IsMulticast():
			return "it is the address of one other agent, such as \"10.4.0.18:21900\"."
		}
		return ""
	})
	return &block{
		name:    "catalog",
		label:   &label{is: "static", kind: word([]string{"static"}, nil)},
		many:    true,
		meaning: "who exists, by hand; wins over Consul for the services it names",
		blocks: []*block{{
			name:    "service",
			label:   &label{is: "NAME", kind: serviceName()},
			many:    true,
			meaning: "a service of the mesh",
			attrs: []attr{
				{name: "port", kind: integer("port", 1, 65535), def: "(unknown)", reload: OnReload,
					meaning: "the natural port: the application's own"},
			},
			blocks: []*block{{
				name:    "endpoint",
				label:   &label{is: "ID", kind: instanceID()},
				many:    true,
				meaning: "an instance of the service",
				attrs: []attr{
					{name: "address", kind: peer, required: true, reload: OnReload,
						meaning: "peer port of the agent beside the instance"},
					{name: "weight", kind: integer("", 1, maxWeight), def: "1", reload: OnReload,
						meaning: "share of the traffic compared with the other endpoints"},
					{name: "meta", kind: meta(), def: "{}", reload: OnReload,
						meaning: "metadata of the instance"},
				},
			}},
		}},
	}
}
