package policy

import "meshd/internal/mesh"

// Reasons of a [Decision]. The set is closed; the words go into logs.
const (
	ReasonAllowed     = "allowed"        // an allow block names the caller
	ReasonNotListed   = "not_listed"     // there are allow blocks, none names it
	ReasonNoAllow     = "no_allow_block" // the service allows nobody
	ReasonNoCaller    = "no_caller"      // the caller has no name
	ReasonNotCompiled = "no_rules"       // nil or zero Rules: an error of ours, refused
)

// Decision is the answer for one caller and why.
type Decision struct {
	Allowed bool
	Reason  string
	// Line is where it was decided: the allow block that names the caller, or
	// the service block that does not.
	Line mesh.Pos
}

// Rules are the compiled permissions of one service. Nobody writes them after
// [Compile]. The zero Rules allow nobody.
type Rules struct {
	allow   map[string]mesh.Pos // by caller, nil until compiled
	service mesh.Pos
}

// Compile reads the allow blocks of a service. A block with an empty name
// allows nobody; of two for one caller the first is reported.
func Compile(in *mesh.Inbound) *Rules {
	r := &Rules{allow: make(map[string]mesh.Pos, len(in.Allow)), service: in.Pos}
	for _, a := range in.Allow {
		if _, twice := r.allow[a.Caller]; a.Caller != "" && !twice {
			r.allow[a.Caller] = a.Pos
		}
	}
	return r
}

// Decide says whether the service of this name may call. Names are compared
// exactly. It allocates nothing.
func (r *Rules) Decide(caller string) Decision {
	if r == nil || r.allow == nil {
		return Decision{Reason: ReasonNotCompiled}
	}
	if caller == "" {
		return Decision{Reason: ReasonNoCaller, Line: r.service}
	}
	if at, ok := r.allow[caller]; ok {
		return Decision{Allowed: true, Reason: ReasonAllowed, Line: at}
	}
	if len(r.allow) == 0 {
		return Decision{Reason: ReasonNoAllow, Line: r.service}
	}
	return Decision{Reason: ReasonNotListed, Line: r.service}
}
