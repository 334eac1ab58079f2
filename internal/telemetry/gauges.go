package telemetry

import "time"

// Gauges is what is the case at the moment of a scrape, as the agent knows it.
// Empty lists and zero values are fine: what they would say is left out or 0.
type Gauges struct {
	Version    string // of meshd
	Generation uint64 // of the picture in force

	// ReloadOK is whether the last attempt to load the configuration worked;
	// the start counts as one.
	ReloadOK bool
	// ReloadTime is when the configuration in force was loaded.
	ReloadTime time.Time

	Upstreams    []UpstreamGauge
	Certificates []CertificateGauge
	Links        []LinkGauge
	Loops        []LoopGauge

	Listeners       int // listeners that are open
	ListenersFailed int // listeners whose address could not be bound, and is retried

	// HandshakesInFlight counts TLS handshakes between agents that go on now.
	HandshakesInFlight int
	// Handshakes counts those that ended, by result: "ok", or why a peer was
	// refused.
	Handshakes map[string]uint64

	Consul ConsulGauge
	// StoredTime is when the last good picture was written to disk; zero when
	// there is none, and without Consul.
	StoredTime time.Time
	// DNSResponses counts answers of the name server by response code, such as
	// "NOERROR".
	DNSResponses map[string]uint64
}

// UpstreamGauge describes the endpoints of one upstream.
type UpstreamGauge struct {
	Name           string
	Healthy, Total int // endpoints, as the catalog states their health
	// BreakersOpen and BreakersHalfOpen count endpoints in that state; the
	// other breakers are closed. Which ones they are is told by status: a
	// series per endpoint would make the size of /metrics depend on the size of
	// the mesh.
	BreakersOpen, BreakersHalfOpen int
	// CatalogUpdated is when the registry last confirmed the endpoints. The
	// zero time means that it never did, or that they are written by hand; the
	// age is left out then.
	CatalogUpdated time.Time
	// Refused is set when nothing is forwarded although the upstream is
	// configured: what the registry says about it is too old, or not supported.
	Refused bool
}

// CertificateGauge describes the leaf of a local service.
type CertificateGauge struct {
	Service  string
	NotAfter time.Time
}

// LinkGauge counts the live links of one upstream or service.
type LinkGauge struct {
	Direction Direction
	Name      string
	Links     int
	Streams   int // on these links together
}

// LoopGauge describes one event loop.
type LoopGauge struct {
	Index int
	Load  float64 // share of one core its thread used lately, 0 to 1
}

// ConsulGauge describes the registry.
type ConsulGauge struct {
	Used      bool // by this configuration; the rest is left out otherwise
	Reachable bool
	// Kinds are what is watched, and OtherKind.
	Kinds []ConsulKind
	// Registrations counts offered services by how they stand there.
	Registrations map[string]int
	// Writes counts what was changed in Consul: registrations, deregistrations
	// and removed checks.
	Writes uint64
	Denied int // rights that the token lacks
	// Held counts endpoints that are used although their nodes are gone by
	// Consul's gossip: too many vanished at once to believe it.
	Held int
}

// OtherKind is the [ConsulKind] of requests that no watch makes: registrations
// and questions about rights.
const OtherKind = "other"

// ConsulKind sums up the watches of one kind.
type ConsulKind struct {
	Kind    string
	Queries uint64 // since the start, answered ones that were believed
	Errors  uint64 // the others
	Resets  uint64 // how often an index went back

	Watches int // that exist now
	Failing int // of these: whose last query failed
	// Oldest is when the watch that waits longest for a confirmation got the
	// last one; zero when none of this kind has been confirmed.
	Oldest time.Time
}
