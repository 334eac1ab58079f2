package consul

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Policy returns the text of the ACL policy (HCL) that lets meshd on the given
// node do what is wanted, and nothing else. Services with a token file of their
// own have a section of their own, headed by a comment that names the file: a
// policy for each of those tokens. The text ends with a newline.
func Policy(w Wanted, node string) string {
	own := make(map[string]string) // token file by service; "" is the agent's
	for i := range w.Register {
		s := &w.Register[i].Service
		own[s.Name] = cmp.Or(own[s.Name], s.TokenFile) // as setTokens decides
	}
	files := map[string][]rule{"": nil}
	add := func(service string, rules ...rule) { files[own[service]] = append(files[own[service]], rules...) }
	for _, u := range w.Upstreams {
		if u.Query {
			files[""] = append(files[""], queryRules()...)
		} else {
			files[""] = append(files[""], endpointRules(u.Name)...)
		}
	}
	for i := range w.Register {
		add(w.Register[i].Service.Name, offerRules(w.Register[i].Service.Name)...)
	}
	for _, name := range slices.Concat(w.Identities, w.Intentions) {
		add(name, offerRules(name)[0])
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# ACL policy of meshd on %s\n", node)
	if len(files) > 1 {
		b.WriteString("# for the token of consul { token_file }\n")
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if path != "" {
			var names []string
			for name, file := range own {
				if file == path {
					names = append(names, name)
				}
			}
			slices.Sort(names)
			fmt.Fprintf(&b, "\n# for the token in %s (service %s)\n", path, strings.Join(names, ", "))
		}
		for _, r := range least(files[path]) {
			b.WriteString(r.String() + "\n")
		}
	}
	return b.String()
}

// least leaves out what another rule allows as well, and sorts.
func least(rules []rule) []rule {
	has := make(map[rule]bool, len(rules))
	for _, r := range rules {
		has[r] = true
	}
	slices.SortFunc(rules, func(a, b rule) int {
		return cmp.Or(cmp.Compare(b.resource, a.resource), cmp.Compare(a.name, b.name), cmp.Compare(a.access, b.access))
	})
	rules = slices.Compact(rules)
	return slices.DeleteFunc(rules, func(r rule) bool {
		return r.resource == "service" && r.access == "read" &&
			(has[rule{"service", r.name, "write"}] || has[anyService])
	})
}
