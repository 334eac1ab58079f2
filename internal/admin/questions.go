package admin

import "time"

// NotFoundError is the answer to a question about a name that this host does
// not have. Over HTTP it is 404.
type NotFoundError struct {
	Message string // a sentence for the operator, with the names there are
}

// Error returns the sentence.
func (e *NotFoundError) Error() string { return e.Message }

// Explanation is an upstream in force, attribute by attribute.
type Explanation struct {
	Upstream string `json:"upstream"`
	Defined  string `json:"defined,omitempty"` // FILE:LINE
	// Refused says why nothing is forwarded, "" when it is in order.
	Refused string `json:"refused,omitempty"`
	// Values in the order of docs/configuration.md.
	Values []Value `json:"values"`
}

// Value is one attribute with what is in force.
type Value struct {
	Attribute string `json:"attribute"` // "circuit_breaker.open_for"
	Value     string `json:"value"`     // as one would write it in HCL, strings without quotes
	Origin    Origin `json:"origin"`
	// Where is FILE:LINE of the upstream or the defaults block, the Consul
	// entry, or "" for what is written nowhere.
	Where string `json:"where,omitempty"`
}

// Origin is the kind of place a value comes from.
type Origin string

// The origins, in the order in which they win.
const (
	OriginUpstream Origin = "upstream" // written in the block
	OriginDefaults Origin = "defaults" // written in defaults {}
	OriginConsul   Origin = "consul"   // stated by the registry
	OriginStatic   Origin = "static"   // written in catalog "static"
	OriginAssigned Origin = "assigned" // given out by this agent, kept in data_dir
	OriginBuiltIn  Origin = "built-in"
)

// PolicyTest answers whether one service may call another.
type PolicyTest struct {
	From string `json:"from"`
	To   string `json:"to"`
	// Allowed is whether every instance of To here lets From in.
	Allowed bool `json:"allowed"`
	// Instances of To on this host: allow blocks may differ between them.
	Instances []PolicyDecision `json:"instances"`
}

// PolicyDecision is the answer of one instance.
type PolicyDecision struct {
	ID      string `json:"id"`
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason"` // a word of package policy, such as "allowed" or "not_listed"
	// Line is FILE:LINE of the allow block that decided, or of the service
	// block that lacks one; "" when no block took part.
	Line string `json:"line,omitempty"`
	// Intention is the entry that decided, nil when none took part.
	Intention *Intention `json:"intention,omitempty"`
	// IntentionsUpdated is when Consul last confirmed them; zero when it has
	// stated none, or does not decide.
	IntentionsUpdated time.Time `json:"intentions_updated,omitzero"`
}

// Intention is one permission as the registry states it.
type Intention struct {
	Source      string `json:"source"` // service, "*", or "" for the default policy
	Destination string `json:"destination"`
	Precedence  int    `json:"precedence"` // 0 for the default policy
	Action      string `json:"action"`     // allow, deny
	HTTP        bool   `json:"http,omitempty"`
}
