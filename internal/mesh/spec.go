package mesh

import (
	"fmt"
	"net/netip"
	"time"
)

// Protocol is what an application speaks on an upstream or service.
type Protocol uint8

// The protocols of the configuration attribute "protocol". TCP is the zero
// value because it promises nothing about the bytes.
const (
	TCP Protocol = iota
	HTTP
	HTTP2
	GRPC
)

var protocolNames = [...]string{TCP: "tcp", HTTP: "http", HTTP2: "http2", GRPC: "grpc"}

// String returns the word used in HCL and in metrics.
func (p Protocol) String() string {
	if int(p) < len(protocolNames) {
		return protocolNames[p]
	}
	return fmt.Sprintf("protocol(%d)", uint8(p))
}

// ParseProtocol accepts the words that String returns.
func ParseProtocol(s string) (Protocol, bool) {
	for i, n := range protocolNames {
		if n == s {
			return Protocol(i), true
		}
	}
	return TCP, false
}

// Pos is a place in a configuration file, for messages to the operator. The
// zero Pos means "not from a file".
type Pos struct {
	File   string
	Line   int // from 1
	Column int // from 1
}

// String returns FILE:LINE, or "" for the zero Pos.
func (p Pos) String() string {
	if p.File == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Spec is what this host wants, after defaults were filled in. It is a value:
// whoever built it does not write it again.
type Spec struct {
	// Node names this host in registrations and messages.
	Node string
	// Identity is the local service on whose behalf upstreams without From
	// call. "" means the only service, if there is exactly one name.
	Identity string
	// Domain is the DNS zone of upstream names, without a trailing dot.
	Domain string
	// Datacenter is the local one's name, "" when unknown.
	Datacenter string
	// Intentions says that a registry decides who may call, besides the allow
	// blocks: where it states nothing, nobody may.
	Intentions bool
	// Loopback is the range that upstream addresses are taken from; inside 127.0.0.0/8.
	Loopback netip.Prefix

	Services  []Service
	Upstreams []Upstream
	// Static is the catalog written by hand, nil when there is none. It wins
	// over a registry for the services it names.
	Static []StaticService
}

// Limits bound what one upstream or service may hold at a time. Zero means the
// default of the attribute in docs/configuration.md was not applied and
// nothing is refused.
type Limits struct {
	MaxConnections        int // connections accepted from, or opened to, applications
	MaxPendingRequests    int // requests waiting for a link or a local connection
	MaxConcurrentRequests int // requests in flight
}

// Breaker configures the circuit breaker of each endpoint of an upstream.
type Breaker struct {
	// ConsecutiveFailures opens the breaker; 0 turns the breaker off.
	ConsecutiveFailures int
	// OpenFor is how long an open breaker refuses before it lets one request try.
	OpenFor time.Duration
}

// Service is something this host offers to the mesh (inbound).
type Service struct {
	Name     string
	ID       string // instance id, unique on this host; default Name
	Address  netip.Addr
	Port     uint16 // the application's own port
	Protocol Protocol
	Tags     []string
	Meta     map[string]string

	// TokenFile holds the registry token for this service; "" uses the agent's.
	TokenFile string
	// Check is the health check to register for the application, nil for none.
	Check *Check

	// Allow lists the callers by service name. Empty means nobody, unless
	// Spec.Intentions is set: then the registry alone decides.
	Allow []Allow

	Limits         Limits
	ConnectTimeout time.Duration // to the application; 0 is off
	RequestTimeout time.Duration // whole exchange at this side; 0 is off
	IdleTimeout    time.Duration // no byte in either direction; 0 is off

	Pos Pos
}

// Check is a health check that the registry performs on the application.
// Exactly one of HTTP, TCP and GRPC is set.
type Check struct {
	HTTP     string // path, such as "/healthz"
	TCP      bool   // a connection is enough
	GRPC     string // service name of the gRPC health protocol; "-" is the whole server
	Interval time.Duration
	Timeout  time.Duration
	Pos      Pos
}

// Allow is one permitted caller.
type Allow struct {
	Caller string
	Pos    Pos
}

// Upstream is a remote service as an application here calls it (outbound).
type Upstream struct {
	Name        string // label: DNS name and metric label
	Destination string // the service's name in the catalog; default Name
	Query       bool   // Destination names a prepared query
	Datacenter  string // "" is the local one
	From        string // whose identity calls; "" see Spec.Identity
	Protocol    Protocol

	LocalBindAddress netip.Addr // default 127.0.0.1
	LocalBindPort    uint16     // 0: none on LocalBindAddress
	// SocketPath is a Unix socket to listen on as well, "" for none; SocketMode
	// are its permission bits.
	SocketPath string
	SocketMode uint32

	ConnectTimeout time.Duration // link to the peer; 0 is off
	RequestTimeout time.Duration // whole request, HTTP only; 0 is off
	IdleTimeout    time.Duration // no byte in either direction; 0 is off

	Breaker     Breaker
	ChoiceCount int // endpoints compared by least_request, 2 or more
	Limits      Limits

	// Origins tells where an attribute's value comes from, by attribute path
	// ("request_timeout", "circuit_breaker.open_for"). A missing entry is a
	// built-in default, which what the registry says overrides.
	Origins map[string]Provenance
	Pos     Pos
}

// Provenance is where a value was written.
type Provenance struct {
	// Kind is "upstream", "defaults", or the name of a registry entry's kind.
	Kind string
	Pos  Pos
}

// ServiceKey names a service in a catalog.
type ServiceKey struct {
	Name       string
	Datacenter string // "" is the local one
	Query      bool   // Name is that of a prepared query
}

// Key returns what the catalog files this upstream's endpoints under.
func (u *Upstream) Key() ServiceKey {
	return ServiceKey{Name: u.Destination, Datacenter: u.Datacenter, Query: u.Query}
}

// StaticService is a service of a `catalog "static"` block.
type StaticService struct {
	Name      string
	Port      uint16 // natural port; 0 is unknown
	Endpoints []StaticEndpoint
	Pos       Pos
}

// StaticEndpoint is one peer of a StaticService.
type StaticEndpoint struct {
	ID      string
	Address netip.AddrPort // the other agent's peer port
	Weight  int            // 1 or more
	Meta    map[string]string
	Pos     Pos
}

// ServiceNames returns the distinct names of the offered services in order of
// first appearance.
func (s *Spec) ServiceNames() []string {
	var names []string
	seen := make(map[string]bool, len(s.Services))
	for i := range s.Services {
		if n := s.Services[i].Name; !seen[n] {
			seen[n] = true
			names = append(names, n)
		}
	}
	return names
}

// Caller returns the name of the local service on whose behalf u calls:
// From, else Identity, else the only offered service. The error says what to
// write where when that is ambiguous or unknown.
func (s *Spec) Caller(u *Upstream) (string, error) {
	if u.From != "" {
		return u.From, nil
	}
	if s.Identity != "" {
		return s.Identity, nil
	}
	switch names := s.ServiceNames(); len(names) {
	case 1:
		return names[0], nil
	case 0:
		return "", fmt.Errorf("upstream %q has no identity to call with: this host offers no service; set identity { service = \"NAME\" }", u.Name)
	default:
		return "", fmt.Errorf("upstream %q could call as %s or %s: set from = \"NAME\" in it", u.Name, names[0], names[1])
	}
}
