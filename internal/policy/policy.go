package policy

import "meshd/internal/mesh"

// Reasons of a [Decision]. The set is closed; the words go into logs and into
// the answer of `meshctl policy test`.
const (
	ReasonAllowed       = "allowed"                    // an allow block or an intention lets the caller in
	ReasonNotListed     = "not_listed"                 // there are allow blocks, none names it
	ReasonNoAllow       = "no_allow_block"             // the service allows nobody, and no registry decides
	ReasonNoCaller      = "no_caller"                  // the caller has no name
	ReasonNotCompiled   = "no_rules"                   // nil or zero Rules: an error of ours, refused
	ReasonNoInformation = "no_information"             // the registry decides and has not said anything yet
	ReasonIntention     = "intention_denies"           // an intention names the caller, or everybody, and denies
	ReasonDefault       = "default_denies"             // no intention matches and the default denies
	ReasonHTTPIntention = "l7_intention_not_supported" // the deciding intention looks at requests
)

// Decision is the answer for one caller and why.
type Decision struct {
	Allowed bool
	Reason  string
	// Line is where the configuration decided: the allow block that names the
	// caller, or the service block that does not. The zero Pos when no block
	// took part.
	Line mesh.Pos
	// Intention is the entry that decided, nil when none took part or the
	// registry's default did.
	Intention *mesh.Intention
	// Default is set when the registry's default decided.
	Default bool
}

// Rules are the compiled permissions of one service. Nobody writes them after
// [Compile]. The zero Rules allow nobody.
type Rules struct {
	compiled bool
	allow    map[string]mesh.Pos // by caller
	blocks   bool                // there are allow blocks, be they without a name
	service  mesh.Pos

	registry   bool // intentions decide as well
	known      bool
	fallback   mesh.Action
	intentions map[string]*mesh.Intention // by source; "*" is everybody else
}

// Compile reads the allow blocks and the intentions of a service. A block with
// an empty name allows nobody; of two for one caller the first is reported. Of
// the intentions of one source the one of highest precedence counts; an exact
// source comes before "*" only if its precedence is at least as high, as in
// Consul, where an exact destination always is (service intentions,
// "precedence and match order").
func Compile(in *mesh.Inbound) *Rules {
	r := &Rules{compiled: true, service: in.Pos, registry: in.NeedIntentions}
	r.allow, r.blocks = make(map[string]mesh.Pos, len(in.Allow)), len(in.Allow) > 0
	for _, a := range in.Allow {
		if _, twice := r.allow[a.Caller]; a.Caller != "" && !twice {
			r.allow[a.Caller] = a.Pos
		}
	}
	if in.Intentions == nil {
		return r
	}
	r.known, r.fallback = true, in.Intentions.Default
	r.intentions = make(map[string]*mesh.Intention, len(in.Intentions.List))
	for i := range in.Intentions.List {
		n := &in.Intentions.List[i]
		if n.Source == "" {
			continue
		}
		if had := r.intentions[n.Source]; had == nil || n.Precedence > had.Precedence {
			r.intentions[n.Source] = n
		}
	}
	return r
}

// Decide says whether the service of this name may call: the allow blocks must
// name it, where there are any, and the registry must allow it, where it
// decides. Without either nobody may. Names are compared exactly. It allocates
// nothing.
func (r *Rules) Decide(caller string) Decision {
	if r == nil || !r.compiled {
		return Decision{Reason: ReasonNotCompiled}
	}
	if caller == "" {
		return Decision{Reason: ReasonNoCaller, Line: r.service}
	}
	d := Decision{Allowed: true, Reason: ReasonAllowed}
	switch at, ok := r.allow[caller]; {
	case ok:
		d.Line = at
	case len(r.allow) > 0, r.blocks && r.registry:
		return Decision{Reason: ReasonNotListed, Line: r.service}
	case !r.registry:
		return Decision{Reason: ReasonNoAllow, Line: r.service}
	}
	if r.registry {
		r.consult(caller, &d)
	}
	return d
}

// consult asks the registry's permissions.
func (r *Rules) consult(caller string, d *Decision) {
	if !r.known {
		d.Allowed, d.Reason = false, ReasonNoInformation
		return
	}
	n := r.intentions[caller]
	if all := r.intentions["*"]; n == nil || all != nil && all.Precedence > n.Precedence {
		n = all
	}
	switch d.Intention = n; {
	case n == nil:
		d.Default = true
		if r.fallback != mesh.Allowed {
			d.Allowed, d.Reason = false, ReasonDefault
		}
	case n.HTTP:
		d.Allowed, d.Reason = false, ReasonHTTPIntention
	case n.Action != mesh.Allowed:
		d.Allowed, d.Reason = false, ReasonIntention
	}
}
