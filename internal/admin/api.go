package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"meshd/internal/config"
)

// Agent is what the server asks. All methods are safe for concurrent use and,
// but for Reload, return at once.
type Agent interface {
	// Status reports facts. Problems may stay empty: the server adds what
	// [Diagnose] reads out of the facts.
	Status() Status
	// Reload reads the configuration again and publishes it, or keeps the old
	// picture. A bad configuration is not an error but a result with
	// Applied == false and Diagnostics. An error means that the attempt itself
	// failed (ctx ended, the agent is draining).
	Reload(ctx context.Context) (ReloadResult, error)
	// Ready reports whether the agent can do its work; if not, waiting says
	// what it waits for, in words for an operator.
	Ready() (ready bool, waiting []string)
	Version() Version
	// Catalog reports where facts come from, with the state of every watch.
	// It is Status().Catalog without the cost of the rest.
	Catalog() Catalog
	// Explain tells the value of every attribute of an upstream that is in
	// force, and where it comes from. The error for a name that is none of an
	// upstream in force is a *NotFoundError.
	Explain(upstream string) (Explanation, error)
	// TestPolicy tells whether service from may call service to, which this
	// host must offer: only the called side decides. Otherwise the error is a
	// *NotFoundError.
	TestPolicy(from, to string) (PolicyTest, error)
}

// Seconds is a duration that travels as a JSON number of seconds, the unit of
// every duration in this interface.
type Seconds time.Duration

// Duration returns s for use with package time.
func (s Seconds) Duration() time.Duration { return time.Duration(s) }

// MarshalJSON writes seconds with at most nanosecond digits.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(s).Seconds())
}

// UnmarshalJSON reads a number of seconds; what exceeds a time.Duration is an error.
func (s *Seconds) UnmarshalJSON(b []byte) error {
	var f float64
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if f = math.Round(f * float64(time.Second)); math.Abs(f) > math.MaxInt64/2 {
		return fmt.Errorf("duration of %s seconds out of range", b)
	}
	*s = Seconds(f)
	return nil
}

// Version identifies a build.
type Version struct {
	Version  string `json:"version"`            // release, or "dev"
	Revision string `json:"revision,omitempty"` // of the source tree, with "-dirty"
	Built    string `json:"built,omitempty"`    // commit time, RFC 3339
	Go       string `json:"go"`
	Protocol string `json:"protocol,omitempty"` // link protocol, as in ALPN
}

// Status is everything `meshctl status` shows.
type Status struct {
	Problems []Problem `json:"problems"` // worst first

	Node    string    `json:"node"`
	PID     int       `json:"pid"`
	Version Version   `json:"version"`
	Started time.Time `json:"started"`
	Uptime  Seconds   `json:"uptime_seconds"`

	Ready    bool     `json:"ready"`
	Waiting  []string `json:"waiting,omitempty"`
	Draining bool     `json:"draining,omitempty"`

	// Generation counts published pictures; Published is when the last one was.
	Generation uint64    `json:"generation"`
	Published  time.Time `json:"published"`
	LastReload *Reload   `json:"last_reload,omitempty"` // nil: none since the start

	Upstreams    []Upstream    `json:"upstreams"`
	Services     []Service     `json:"services"`
	Certificates []Certificate `json:"certificates"`
	Catalog      Catalog       `json:"catalog"`
	Identity     Identity      `json:"identity"`
	Listeners    []Listener    `json:"listeners"` // peer, dns, admin
	Loops        []Loop        `json:"loops"`
}

// Severity says whether a problem hurts now.
type Severity string

// The severities. Error: something does not work. Warning: it works, but will
// not for long, or not as configured.
const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
)

// Problem is one thing that is wrong, told so that the reader can act.
type Problem struct {
	Severity Severity `json:"severity"`
	What     string   `json:"what"`           // `upstream "inventory" has no healthy endpoint`
	Why      string   `json:"why,omitempty"`  // the cause, as far as it is known
	Next     string   `json:"next,omitempty"` // what to look at or to run
}

// Reload is the outcome of the last reload, however it was asked for.
type Reload struct {
	At      time.Time `json:"at"`
	Success bool      `json:"success"`
	Error   string    `json:"error,omitempty"` // first line; `meshctl validate` has all of it
}

// Rates are what one upstream or service did in the last ten seconds.
type Rates struct {
	RPS         float64 `json:"rps"`                 // requests (tcp: connections) that ended, per second
	FailedShare float64 `json:"failed_share"`        // 0 to 1, of those that ended
	FailedBy    string  `json:"failed_by,omitempty"` // the outcome that most of these had
	P50         Seconds `json:"p50_seconds"`         // 0 when nothing ended
	P99         Seconds `json:"p99_seconds"`
	InFlight    int64   `json:"in_flight"`
	Total       uint64  `json:"total"`  // since the start
	Failed      uint64  `json:"failed"` // since the start
}

// Upstream is one upstream as it is in force.
type Upstream struct {
	Name        string `json:"name"`
	Destination string `json:"destination"`
	Datacenter  string `json:"datacenter,omitempty"`
	Protocol    string `json:"protocol"`
	Host        string `json:"host"`    // DNS name: NAME.mesh.internal
	Address     string `json:"address"` // loopback address of its own, without port
	Port        uint16 `json:"port"`    // on Address
	Caller      string `json:"caller"`  // the local service it calls as
	Binds       []Bind `json:"binds"`

	// Known is false until a catalog has stated the service at all.
	Known     bool       `json:"known"`
	Healthy   int        `json:"healthy"` // endpoints the catalog calls healthy
	Endpoints []Endpoint `json:"endpoints"`
	Source    string     `json:"source"` // of the endpoints: consul, snapshot (the last good picture on disk), static or ""
	// CatalogAge is the time since the source last confirmed; 0 for static.
	CatalogAge Seconds `json:"catalog_age_seconds"`
	// Refused says why nothing is forwarded although the upstream is
	// configured, "" when it is in order.
	Refused string `json:"refused,omitempty"`
	// StaleSince is when the endpoints were last confirmed, if that is longer
	// ago than stale { warn_after } or they come from disk; zero otherwise.
	StaleSince time.Time `json:"stale_since,omitzero"`

	Rates
	Defined string `json:"defined,omitempty"` // FILE:LINE
}

// BindState says how a listener is.
type BindState string

// The states of a listener.
const (
	BindListening BindState = "listening"
	BindFailed    BindState = "failed" // Error says why; it is retried
)

// Bind is one address an upstream listens on.
type Bind struct {
	Address string    `json:"address"` // IP:PORT, or the path of a Unix socket
	State   BindState `json:"state"`
	Error   string    `json:"error,omitempty"`
}

// Endpoint is one address of an upstream's service.
type Endpoint struct {
	ID       string `json:"id"`
	Address  string `json:"address"` // the peer's mTLS port
	Weight   int    `json:"weight"`
	Healthy  bool   `json:"healthy"`             // as the catalog states it
	Breaker  string `json:"breaker"`             // closed, open, half-open
	OpenedBy string `json:"opened_by,omitempty"` // what opened the breaker
	InFlight int64  `json:"in_flight"`
	Links    int    `json:"links"`
}

// Service is one offered service as it is in force.
type Service struct {
	Name     string `json:"name"`
	ID       string `json:"id"`
	Address  string `json:"address"` // where the application listens, IP:PORT
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	// Allow lists the callers that allow blocks name. Empty is nobody, unless
	// Intentions is not "": then they alone decide.
	Allow      []string        `json:"allow"`
	Intentions IntentionsState `json:"intentions,omitempty"`
	// IntentionsAge is the time since Consul last confirmed them.
	IntentionsAge Seconds `json:"intentions_age_seconds,omitempty"`
	// Registered: "consul" (by this agent), "other" (somebody registered it
	// before us), "no", or "" when there is no registry.
	Registered string `json:"registered,omitempty"`
	Error      string `json:"error,omitempty"` // of the registration

	Rates
	Defined string `json:"defined,omitempty"` // FILE:LINE
}

// IntentionsState says whether the registry's permissions for a service are known.
type IntentionsState string

// The states of intentions; "" is that no registry decides who may call.
const (
	IntentionsKnown   IntentionsState = "known"
	IntentionsUnknown IntentionsState = "unknown" // nobody may call
)

// Certificate is the leaf of one service.
type Certificate struct {
	Service   string    `json:"service"`
	SPIFFE    string    `json:"spiffe"`
	Issuer    string    `json:"issuer,omitempty"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Remaining Seconds   `json:"remaining_seconds"` // negative: expired
}

// Identity is where certificates come from.
type Identity struct {
	Provider    string   `json:"provider"` // consul, dev
	TrustDomain string   `json:"trust_domain,omitempty"`
	Roots       int      `json:"roots"`
	Missing     []string `json:"missing,omitempty"` // services without a leaf yet
	Error       string   `json:"error,omitempty"`
}

// Catalog is where the knowledge of endpoints comes from.
type Catalog struct {
	Source    string  `json:"source"` // consul, static, or "consul, static"
	Address   string  `json:"address,omitempty"`
	Reachable bool    `json:"reachable"`   // always true for static alone
	Age       Seconds `json:"age_seconds"` // of the oldest answer in use; 0 for static
	Error     string  `json:"error,omitempty"`
	// UnreachableSince is when Consul last answered, while it does not; zero
	// while it does and when it never did.
	UnreachableSince time.Time `json:"unreachable_since,omitzero"`
	// StaleSince is when the oldest fact in use was confirmed, if that is
	// longer ago than stale { warn_after }, or it comes from disk; zero
	// otherwise.
	StaleSince time.Time `json:"stale_since,omitzero"`
	// WarnAfter and DropAfter are those of stale {}; 0 is off.
	WarnAfter Seconds `json:"warn_after_seconds,omitempty"`
	DropAfter Seconds `json:"drop_after_seconds,omitempty"`

	Watches       []Watch        `json:"watches,omitzero"`
	Registrations []Registration `json:"registrations,omitzero"`
	// Denied lists what the token may not do.
	Denied []Denied `json:"denied,omitzero"`
	// Unusable are files of the consul block that cannot be used, with the
	// reason and with what is in force instead.
	Unusable []string `json:"unusable_files,omitempty"`
	// Stored is when the last good picture was written to disk, for a start
	// without Consul; zero when there is none.
	Stored time.Time `json:"stored,omitzero"`
}

// Watch is one blocking query, or one that is repeated.
type Watch struct {
	Kind       string    `json:"kind"` // service, chain, leaf, roots, intentions, query
	Name       string    `json:"name,omitempty"`
	Datacenter string    `json:"datacenter,omitempty"` // "" is the local one
	Index      uint64    `json:"index"`
	Success    time.Time `json:"last_success,omitzero"`
	Age        Seconds   `json:"age_seconds"` // since Success; 0 if never confirmed
	Error      string    `json:"error,omitempty"`
	Next       time.Time `json:"next_try,omitzero"` // zero: a query is running
	Queries    uint64    `json:"queries"`           // ended since the start
	Errors     uint64    `json:"errors"`            // those that failed or were not believed
	Resets     uint64    `json:"resets"`            // how often the index went back
	// Held is how many endpoints are used although their nodes are gone by
	// Consul's gossip, see stale { shrink_after }.
	Held int `json:"held,omitempty"`
	// Serves names the upstreams or services that need it, "upstream api".
	Serves []string `json:"serves,omitempty"`
}

// Registration is one offered service as Consul has it.
type Registration struct {
	Service   string    `json:"service"`
	ID        string    `json:"id,omitempty"`       // of the application's instance in Consul
	ProxyID   string    `json:"proxy_id,omitempty"` // of ours beside it
	Port      uint16    `json:"port"`
	State     string    `json:"state"` // waiting, registered, adopted, failed
	Confirmed time.Time `json:"last_success,omitzero"`
	Error     string    `json:"error,omitempty"`
}

// Denied is a right that the token lacks.
type Denied struct {
	Kind       string `json:"kind"` // as Watch.Kind, or registration
	Name       string `json:"name,omitempty"`
	Datacenter string `json:"datacenter,omitempty"`

	What string `json:"what"`           // that was refused: "endpoints of service api"
	Hurt string `json:"hurt,omitempty"` // whom: `upstream "api"`, `service "web"`
	// Rule would allow it: `service "api" { policy = "read" }`; several stand on
	// lines of their own.
	Rule string `json:"rule,omitempty"`
	// Token says which one lacks it: the path of its file, or words.
	Token string    `json:"token,omitempty"`
	Error string    `json:"error,omitempty"` // Consul's own words
	Since time.Time `json:"since,omitzero"`
}

// Listener is a port of the agent itself.
type Listener struct {
	Name    string `json:"name"` // peer, dns, admin
	Address string `json:"address"`
	Error   string `json:"error,omitempty"`
}

// Loop is one event loop.
type Loop struct {
	Index       int     `json:"index"`
	Load        float64 `json:"load"` // share of one core, 0 to 1
	Connections int     `json:"connections"`
}

// ReloadResult says what a reload did.
type ReloadResult struct {
	Applied    bool     `json:"applied"`
	Generation uint64   `json:"generation"` // in force now
	Changes    []Change `json:"changes"`    // empty and Applied: the files say the same as before
	// Restart lists what was read but takes effect at the next start.
	Restart []Change `json:"restart,omitempty"`
	// Diagnostics holds the errors that kept the old picture, and warnings in
	// either case. They carry their source lines.
	Diagnostics []Diagnostic `json:"diagnostics,omitempty"`
}

// Change is one difference between two configurations, as [config.Diff] gives it.
type Change = config.Change

// Diagnostic is one finding in a configuration file.
type Diagnostic = config.Diagnostic
