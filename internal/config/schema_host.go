package config

import (
	"net/netip"
	"time"

	"github.com/zclconf/go-cty/cty"
)

// maxLoops is far above what helps: batching is the gain of a loop, and every
// further one costs some of it.
const maxLoops = 256

// The defaults that are not written in the table because other code needs
// them too.
const (
	defaultDataDir = "/var/lib/meshd"
	// defaultMaxLoops ends the default of agent.loops on large hosts.
	defaultMaxLoops = 4
	// devDirName is the folder of the throwaway CA inside data_dir.
	devDirName = "dev-ca"
	// keyFileName is what seals private keys, inside data_dir.
	keyFileName = "snapshot.key"

	// tokenCredential and keyCredential are the names of systemd credentials
	// (systemd.exec(5), LoadCredential=).
	tokenCredential = "consul-token"
	keyCredential   = "meshd-snapshot-key"
)

// maxStale is 30 days: whoever wants facts older than that has stopped
// watching the host.
const maxStale = 30 * 24 * time.Hour

// minStale is above the time that passes between two confirmations of a fact
// that does not change: Consul holds a query for a minute, and a little more.
// Below it what is well would look stale.
const minStale = 2 * time.Minute

func agentBlock() *block {
	return &block{
		name:    "agent",
		meaning: "the process itself",
		attrs: []attr{
			{name: "node_name", kind: nodeName(), def: "(the host name)", reload: OnRestart,
				meaning: "names this host in registrations and messages"},
			{name: "data_dir", kind: absolutePath(0), def: `"` + defaultDataDir + `"`, reload: OnRestart,
				meaning: "folder for what must outlive a restart, such as the addresses given to upstreams"},
			{name: "log_level", kind: word([]string{"trace", "debug", "info", "warn", "error"}, nil), def: `"info"`, reload: OnReload,
				meaning: "least severity that is logged"},
			{name: "log_format", kind: word([]string{"json", "text"}, []string{"journal"}), def: "(text on a terminal, else json)", reload: OnRestart,
				meaning: "form of a log line"},
			{name: "loops", kind: integer("threads", 1, maxLoops), def: "(number of cores, at most 4)", reload: OnRestart,
				meaning: "event loops at most; a further one gets connections only while the others are busy"},
			{name: "drain_timeout", kind: span(0, time.Hour, 1), def: `"30s"`, reload: OnReload,
				meaning: "how long running exchanges may take to finish at shutdown before they are cut"},
			{name: "access_log", kind: boolean(), def: "false", reload: OnReload,
				meaning: "log one line per exchange"},
			{name: "persist_keys", kind: boolean(), def: "true", reload: OnRestart,
				meaning: "keep the keys of certificates in data_dir, sealed, so that a start without Consul can serve"},
			{name: "key_file", kind: absolutePath(0), def: "(" + keyFileName + " in data_dir, made when missing)", reload: OnRestart,
				meaning: "32 bytes that seal those keys; the systemd credential " + keyCredential + " wins over it"},
		},
	}
}

func adminBlock() *block {
	const allowed = "IP:PORT on loopback, or \"\""
	http := ipPort(allowed, "127.0.0.1:9900", func(a netip.AddrPort) string {
		if !a.Addr().IsLoopback() {
			return "the page and the metrics are for this host only, so the address is on loopback, such as \"127.0.0.1:9900\"."
		}
		return ""
	})
	return &block{
		name:    "admin",
		meaning: "how people and tools reach the agent",
		attrs: []attr{
			{name: "socket", kind: absolutePath(maxSocketPath), def: `"/run/meshd/meshd.sock"`, reload: OnRestart,
				meaning: "Unix socket that meshctl talks to"},
			{name: "group", kind: groupName(), def: "(the group of the process)", reload: OnRestart,
				meaning: "group that may use the socket: read and reload"},
			{name: "http", kind: orOff(http), def: `"127.0.0.1:9900"`, reload: OnRestart,
				meaning: "read-only listener for /metrics and /ready; \"\" turns it off, port 0 lets the kernel choose"},
		},
	}
}

func consulBlock() *block {
	return &block{
		name:    "consul",
		meaning: "the Consul agent of this host; without the block its defaults hold, unless nothing needs Consul",
		attrs: []attr{
			{name: "address", kind: hostPort(), def: `"127.0.0.1:8500"`, reload: OnRestart,
				meaning: "HTTP API of the Consul agent"},
			{name: "datacenter", kind: datacenterName(), def: "(that of the Consul agent)", reload: OnRestart,
				meaning: "datacenter that is asked when an upstream names none"},
			{name: "token_file", kind: absolutePath(0), def: "(the systemd credential " + tokenCredential + ", or none)", reload: OnRestart,
				meaning: "file with the ACL token of this host, read again when it changes"},
		},
		blocks: []*block{
			{
				name:    "tls",
				meaning: "HTTPS with the Consul agent; an empty block is enough where the system trusts its CA",
				attrs: []attr{
					{name: "ca_file", kind: absolutePath(0), def: "(what the system trusts)", reload: OnRestart,
						meaning: "CA certificates that the agent's certificate is checked with, PEM, read again when it changes"},
					{name: "cert_file", kind: absolutePath(0), def: "(none)", reload: OnRestart,
						meaning: "certificate to show to the agent, PEM, read again when it changes; together with key_file"},
					{name: "key_file", kind: absolutePath(0), def: "(none)", reload: OnRestart,
						meaning: "private key of cert_file, PEM"},
					{name: "server_name", kind: hostName(), def: "(the host of consul.address)", reload: OnRestart,
						meaning: "name or IP address that the agent's certificate must be for"},
				},
			},
			{
				name:    "stale",
				meaning: "how long to believe what Consul said last",
				attrs: []attr{
					{name: "warn_after", kind: span(minStale, maxStale, 1), def: `"5m"`, reload: OnReload,
						meaning: "age at which the status warns; not above drop_after"},
					{name: "drop_after", kind: span(minStale, maxStale, 1), def: `"24h"`, reload: OnReload,
						meaning: "age at which a fact is no longer used: such upstreams are refused"},
					{name: "shrink_after", kind: span(0, maxStale, 1), def: `"5m"`, reload: OnRestart,
						meaning: "how long endpoints are held whose nodes turned critical together, over half of at least five; 0s does not hold them"},
				},
			},
		},
	}
}

func identityBlock() *block {
	return &block{
		name:    "identity",
		meaning: "where certificates come from",
		attrs: []attr{
			{name: "provider", kind: word([]string{"consul", "dev"}, []string{"files"}), def: `"consul"`, reload: OnRestart,
				meaning: "consul: Consul's own CA; dev: a throwaway CA in a folder, for trying out"},
			{name: "service", kind: serviceName(), def: "(the only service)", reload: OnReload,
				meaning: "service on whose behalf upstreams without from call"},
		},
		blocks: []*block{{
			name:    "dev",
			meaning: "the throwaway CA; only with provider = \"dev\"",
			attrs: []attr{
				{name: "dir", kind: absolutePath(0), def: "(" + devDirName + " in agent.data_dir)", reload: OnRestart,
					meaning: "folder of the CA; agents that share it trust each other"},
			},
		}},
		later: []string{"files"},
	}
}

func dnsBlock() *block {
	address := ipPort("IP:PORT on loopback", "127.0.0.1:8653", func(a netip.AddrPort) string {
		if !a.Addr().IsLoopback() {
			return "the names are those of this host and point at its loopback, so the address is on loopback, such as \"127.0.0.1:8653\"."
		}
		return ""
	})
	return &block{
		name:    "dns",
		meaning: "the name server for upstream names",
		attrs: []attr{
			{name: "domain", kind: domainName(), def: `"mesh.internal"`, reload: OnRestart,
				meaning: "zone of the names: upstream \"x\" is x.mesh.internal"},
			{name: "address", kind: address, def: `"127.0.0.1:8653"`, reload: OnRestart,
				meaning: "where it listens, UDP and TCP; port 0 lets the kernel choose"},
			{name: "ttl", kind: span(0, 24*time.Hour, time.Second), def: `"5s"`, reload: OnRestart,
				meaning: "how long others may keep an answer"},
		},
	}
}

func loopbackBlock() *block {
	return &block{
		name:    "loopback",
		meaning: "the addresses given to upstreams",
		attrs: []attr{
			{name: "cidr", kind: loopbackRange(), def: `"127.77.0.0/16"`, reload: OnReload,
				meaning: "range that each upstream gets an address of its own from, kept across restarts"},
		},
	}
}

func peerBlock() *block {
	bind := ipPort("IP:PORT", "[::]:21900", func(a netip.AddrPort) string {
		if a.Addr().IsMulticast() {
			return "it is an address of this host, or [::] for all."
		}
		return ""
	})
	advertise := ip("an IP address other hosts can reach", func(a netip.Addr) string {
		if a.IsUnspecified() || a.IsMulticast() {
			return "it is an address that other hosts connect to, such as \"10.4.0.17\"."
		}
		return ""
	})
	return &block{
		name:    "peer",
		meaning: "where other agents connect to",
		attrs: []attr{
			{name: "bind", kind: bind, def: `"[::]:21900"`, reload: OnRestart,
				meaning: "the mTLS port of the host; [::] is IPv4 too, port 0 lets the kernel choose"},
			{name: "advertise", kind: advertise, def: "(the node's address in Consul)", reload: OnRestart,
				meaning: "address that is registered for other agents"},
		},
	}
}

// orOff is k, or "" for off.
func orOff(k kind) kind {
	inner := k.parse
	k.parse = func(v cty.Value) (any, *fault) {
		if s, f := asText(v); f == nil && s == "" {
			return netip.AddrPort{}, nil
		}
		return inner(v)
	}
	return k
}
