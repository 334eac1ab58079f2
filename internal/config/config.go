package config

import (
	"net/netip"
	"time"

	"meshd/internal/mesh"
)

// Config is everything the files say, with defaults filled in. It is a value:
// nobody writes it after [Load] or [Parse] returned it.
type Config struct {
	// Spec is what this host wants from the mesh.
	Spec *mesh.Spec

	Agent    Agent
	Admin    Admin
	Consul   Consul
	Identity Identity
	DNS      DNS
	Peer     Peer

	// Files are the files that were read, in the order they were read.
	Files []string
	// Warnings are what is allowed but probably not meant, sorted like errors.
	Warnings []Diagnostic
}

// Agent is the block "agent": the process itself.
type Agent struct {
	NodeName     string // names this host in registrations; same as Spec.Node
	DataDir      string // absolute path
	LogLevel     string // trace, debug, info, warn or error
	LogFormat    string // json or text; "" leaves the choice to the agent
	Loops        int    // event loops at most, 1 or more
	DrainTimeout time.Duration
	AccessLog    bool
	// PersistKeys keeps the private keys of leafs in the last good picture on
	// disk, sealed under the key in KeyFile. KeyFile is "" when nothing is kept.
	PersistKeys bool
	KeyFile     string // absolute path
}

// Admin is the block "admin": how people and tools reach the agent.
type Admin struct {
	Socket string // absolute path of the Unix socket
	Group  string // owns the socket; "" leaves the group of the process
	HTTP   string // IP:PORT of the read-only listener; "" is off
}

// Consul is the block "consul".
type Consul struct {
	// Enabled is false only when nothing in the configuration needs Consul:
	// no block, another identity provider, and a static entry for every upstream.
	Enabled    bool
	Address    string // HOST:PORT of the agent's HTTP API
	Datacenter string // "" is the datacenter of the agent that is asked
	// TokenFile holds the ACL token for everything but the registration of
	// services that have their own; "" is no token. What is in the file is read
	// by whoever asks Consul, again whenever it changes.
	TokenFile string // absolute path
	TLS       TLS
	Stale     Stale
}

// TLS is the block "tls" of "consul": how the agent is spoken to. Its files are
// named here and read by whoever asks Consul.
type TLS struct {
	// Enabled is set when the block is written, even an empty one: then HTTPS
	// is spoken. The other fields are only set with it.
	Enabled    bool
	CAFile     string // absolute path; "" is what the system trusts
	CertFile   string // absolute path, together with KeyFile; "" shows no certificate
	KeyFile    string
	ServerName string // expected in the certificate; "" is the host of Consul.Address
}

// Stale is the block "stale" of "consul": how long to believe what Consul said
// last.
type Stale struct {
	WarnAfter   time.Duration // age at which the status says so; at most DropAfter
	DropAfter   time.Duration // age at which it is as if it had never been said
	ShrinkAfter time.Duration // how long to hold endpoints whose nodes vanished together; 0 not at all
}

// Identity is the block "identity".
type Identity struct {
	Provider string // "consul" or "dev"
	Service  string // same as Spec.Identity
	DevDir   string // folder of the throwaway CA; set only for provider "dev"
}

// DNS is the block "dns".
type DNS struct {
	Domain  string // without a trailing dot, lower case; same as Spec.Domain
	Address netip.AddrPort
	TTL     time.Duration // whole seconds
}

// Peer is the block "peer": where other agents connect to.
type Peer struct {
	Bind      netip.AddrPort
	Advertise string // IP address; "" is the node's own as the registry knows it
}
