package mesh

import (
	"cmp"
	"slices"
	"strconv"
)

// SidecarSuffix makes the name under which a service's proxy stands in the
// registry, as Consul's own sidecar_service does.
const SidecarSuffix = "-sidecar-proxy"

// Right is a permission that a token needs at the registry (a rule of a Consul
// ACL policy).
type Right struct {
	Kind   string // "service", "service_prefix" or "node_prefix"
	Name   string
	Policy string // "read" or "write"; write contains read
	// Token is the file of the service's own token that needs it, "" for the
	// agent's.
	Token string
	// For says what stops working without it, one entry each.
	For []string
}

// Rule writes r as a rule of an ACL policy: service "web" { policy = "write" }.
func (r Right) Rule() string {
	return r.Kind + " " + strconv.Quote(r.Name) + " { policy = " + strconv.Quote(r.Policy) + " }"
}

// Rights lists what the tokens of this host need and nothing else: the agent's
// first, then those of services by file; each by kind and name. A prepared query
// is the exception: only the registry knows which services it finds, so it takes
// read on all of them.
func Rights(s *Spec) []Right {
	var rs rights
	own := make(map[string]string) // by service name; of several instances the first with a file decides
	for i := range s.Services {
		if v := &s.Services[i]; v.TokenFile != "" && own[v.Name] == "" {
			own[v.Name] = v.TokenFile
		}
	}
	for _, name := range s.ServiceNames() {
		what := "service " + strconv.Quote(name)
		rs.add(own[name], "service", name, "write", "registration of "+what)
		rs.add(own[name], "service", name+SidecarSuffix, "write", "registration of "+what)
	}
	if s.Intentions { // certificates come from the registry as well
		for _, name := range s.Identities() {
			rs.add(own[name], "service", name, "write", "certificate of "+strconv.Quote(name)+" and who may call it")
		}
	}
	static := StaticCatalog(s.Static)
	for i := range s.Upstreams {
		u := &s.Upstreams[i]
		if _, byHand := static.Services[u.Key()]; byHand {
			continue
		}
		what := "endpoints of upstream " + strconv.Quote(u.Name)
		// Endpoints are proxies: the registry leaves out those of whose own name,
		// or of whose node, the token may not know.
		rs.add("", "node_prefix", "", "read", "endpoints of upstreams, which may be on any node")
		if u.Query {
			rs.add("", "service_prefix", "", "read", what+": a prepared query may find any service; read on those it does find, and on their proxies, is enough")
			continue
		}
		rs.add("", "service", u.Destination, "read", what)
		rs.add("", "service", u.Destination+SidecarSuffix, "read", what)
	}
	slices.SortFunc(rs, func(a, b Right) int {
		return cmp.Or(cmp.Compare(a.Token, b.Token), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return rs
}

type rights []Right

// add merges with what is there: of two policies for one name in one token the
// wider one holds.
func (rs *rights) add(token, kind, name, policy, why string) {
	for i := range *rs {
		r := &(*rs)[i]
		if r.Token != token || r.Kind != kind || r.Name != name {
			continue
		}
		if policy == "write" {
			r.Policy = policy
		}
		if !slices.Contains(r.For, why) {
			r.For = append(r.For, why)
		}
		return
	}
	*rs = append(*rs, Right{Kind: kind, Name: name, Policy: policy, Token: token, For: []string{why}})
}
