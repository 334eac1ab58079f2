package mesh

import (
	"slices"
	"testing"
)

// rules lists what one token needs.
func rules(s *Spec, token string) (list []string) {
	for _, r := range Rights(s) {
		if r.Token == token {
			list = append(list, r.Rule())
		}
	}
	return list
}

func TestRightsAreTheLeastThatWork(t *testing.T) {
	s := &Spec{
		Intentions: true,
		Services:   []Service{{Name: "web"}, {Name: "web", ID: "web-2"}, {Name: "payments"}, {Name: "payments", ID: "p2", TokenFile: "/etc/meshd/payments.token"}, {Name: "payments", ID: "p3", TokenFile: "/ignored"}},
		Upstreams: []Upstream{
			{Name: "inventory", Destination: "stock", From: "web"},
			{Name: "web", Destination: "web", From: "web"}, // the host calls what it offers: write stays
			{Name: "geo", Destination: "geo-query", Query: true, From: "web"},
			{Name: "hand", Destination: "hand", From: "payments"},
		},
		Static: []StaticService{{Name: "hand"}},
	}
	want := []string{
		`node_prefix "" { policy = "read" }`,
		`service "stock" { policy = "read" }`,
		`service "stock-sidecar-proxy" { policy = "read" }`,
		`service "web" { policy = "write" }`,
		`service "web-sidecar-proxy" { policy = "write" }`,
		`service_prefix "" { policy = "read" }`,
	}
	if got := rules(s, ""); !slices.Equal(got, want) {
		t.Errorf("agent's token:\n%q, want\n%q", got, want)
	}
	want = []string{`service "payments" { policy = "write" }`, `service "payments-sidecar-proxy" { policy = "write" }`}
	if got := rules(s, "/etc/meshd/payments.token"); !slices.Equal(got, want) {
		t.Errorf("token of payments:\n%q, want\n%q", got, want)
	}
}

// Two reasons for one name are one rule, which has to do for both.
func TestRightsMergeToTheWiderOne(t *testing.T) {
	var rs rights
	rs.add("", "service", "web", "read", "calling it")
	rs.add("", "service", "web", "write", "offering it")
	rs.add("", "service", "web", "read", "calling it")
	if len(rs) != 1 || rs[0].Policy != "write" || !slices.Equal(rs[0].For, []string{"calling it", "offering it"}) {
		t.Errorf("merged to %+v", rs)
	}
}

// A host that only calls needs a certificate, and one with hand-made ones only
// reads.
func TestRightsOfAHostThatOffersNothing(t *testing.T) {
	s := &Spec{Intentions: true, Identity: "reports", Upstreams: []Upstream{{Name: "db", Destination: "db"}}}
	want := []string{
		`node_prefix "" { policy = "read" }`, `service "db" { policy = "read" }`,
		`service "db-sidecar-proxy" { policy = "read" }`, `service "reports" { policy = "write" }`,
	}
	if got := rules(s, ""); !slices.Equal(got, want) {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
	s.Intentions = false
	if got := rules(s, ""); !slices.Equal(got, want[:3]) {
		t.Errorf("without certificates from the registry: got\n%q, want\n%q", got, want[:3])
	}
	if got := Rights(&Spec{Identity: "x"}); len(got) != 0 {
		t.Errorf("a host that wants nothing needs %v", got)
	}
}
