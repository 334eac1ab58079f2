package policy

import (
	"testing"

	"meshd/internal/mesh"
)

func TestDecide(t *testing.T) {
	at := func(line int) mesh.Pos { return mesh.Pos{File: "web.hcl", Line: line} }
	service := func(allow ...mesh.Allow) *Rules {
		return Compile(&mesh.Inbound{Service: mesh.Service{Name: "payments", Allow: allow, Pos: at(1)}})
	}
	two := service(mesh.Allow{Caller: "web", Pos: at(2)}, mesh.Allow{Caller: "batch", Pos: at(3)}, mesh.Allow{Caller: "web", Pos: at(4)})
	for _, c := range []struct {
		name   string
		rules  *Rules
		caller string
		want   Decision
	}{
		{"named", two, "web", Decision{Allowed: true, Reason: ReasonAllowed, Line: at(2)}},
		{"second block", two, "batch", Decision{Allowed: true, Reason: ReasonAllowed, Line: at(3)}},
		{"not named", two, "shop", Decision{Allowed: false, Reason: ReasonNotListed, Line: at(1)}},
		{"prefix of a name", two, "we", Decision{Allowed: false, Reason: ReasonNotListed, Line: at(1)}},
		{"other case", two, "Web", Decision{Allowed: false, Reason: ReasonNotListed, Line: at(1)}},
		{"wildcard is a name like others", service(mesh.Allow{Caller: "*", Pos: at(2)}), "web", Decision{Allowed: false, Reason: ReasonNotListed, Line: at(1)}},
		{"no name", two, "", Decision{Allowed: false, Reason: ReasonNoCaller, Line: at(1)}},
		{"no name, block without a name", service(mesh.Allow{Pos: at(2)}), "", Decision{Allowed: false, Reason: ReasonNoCaller, Line: at(1)}},
		{"only a block without a name", service(mesh.Allow{Pos: at(2)}), "web", Decision{Allowed: false, Reason: ReasonNoAllow, Line: at(1)}},
		{"no block", service(), "web", Decision{Allowed: false, Reason: ReasonNoAllow, Line: at(1)}},
		{"the service itself", service(), "payments", Decision{Allowed: false, Reason: ReasonNoAllow, Line: at(1)}},
		{"zero rules", &Rules{}, "web", Decision{Reason: ReasonNotCompiled}},
		{"nil rules", nil, "web", Decision{Reason: ReasonNotCompiled}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.rules.Decide(c.caller); got != c.want {
				t.Errorf("Decide(%q) = %+v, want %+v", c.caller, got, c.want)
			}
		})
	}
}

// The table of Consul's documentation on precedence, and ours on what is not
// known. Who both decides, both must allow.
func TestIntentions(t *testing.T) {
	yes, no := mesh.Allowed, mesh.Deny
	entry := func(source string, precedence int, a mesh.Action) mesh.Intention {
		return mesh.Intention{Source: source, Precedence: precedence, Action: a}
	}
	stated := func(fallback mesh.Action, list ...mesh.Intention) *mesh.Intentions {
		return &mesh.Intentions{Default: fallback, List: list}
	}
	for _, c := range []struct {
		name       string
		intentions *mesh.Intentions
		allow      []mesh.Allow
		caller     string
		want       string // reason
		by         string // source of the deciding intention
	}{
		{"nothing known denies", nil, nil, "web", ReasonNoInformation, ""},
		{"nothing known denies whom an allow block names", nil, []mesh.Allow{{Caller: "web"}}, "web", ReasonNoInformation, ""},
		{"default denies", stated(no), nil, "web", ReasonDefault, ""},
		{"default allows", stated(yes), nil, "web", ReasonAllowed, ""},
		{"exact allows", stated(no, entry("web", 9, yes)), nil, "web", ReasonAllowed, "web"},
		{"exact is not a prefix", stated(no, entry("web", 9, yes)), nil, "web2", ReasonDefault, ""},
		{"exact before everybody", stated(yes, entry("web", 9, yes), entry("*", 8, no)), nil, "web", ReasonAllowed, "web"},
		{"everybody else", stated(yes, entry("web", 9, yes), entry("*", 8, no)), nil, "shop", ReasonIntention, "*"},
		{"exact denies, everybody may", stated(yes, entry("web", 9, no), entry("*", 8, yes)), nil, "web", ReasonIntention, "web"},
		{"everybody to this service before web to every service", stated(yes, entry("*", 8, no), entry("web", 6, yes)), nil, "web", ReasonIntention, "*"},
		{"web to this service before web to every service", stated(no, entry("web", 6, no), entry("web", 9, yes)), nil, "web", ReasonAllowed, "web"},
		{"looks at requests", stated(yes, mesh.Intention{Source: "web", Precedence: 9, HTTP: true}), nil, "web", ReasonHTTPIntention, "web"},
		{"looks at requests of another", stated(yes, mesh.Intention{Source: "web", Precedence: 9, HTTP: true}), nil, "shop", ReasonAllowed, ""},
		{"allow block and intention", stated(no, entry("web", 9, yes)), []mesh.Allow{{Caller: "web"}}, "web", ReasonAllowed, "web"},
		{"intention without the block", stated(yes), []mesh.Allow{{Caller: "web"}}, "shop", ReasonNotListed, ""},
		{"block without the intention", stated(no), []mesh.Allow{{Caller: "web"}}, "web", ReasonDefault, ""},
		{"block without a name", stated(yes), []mesh.Allow{{}}, "web", ReasonNotListed, ""},
		{"an entry without a source is nobody's", stated(no, entry("", 9, yes)), nil, "web", ReasonDefault, ""},
		{"no name", stated(yes), nil, "", ReasonNoCaller, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Compile(&mesh.Inbound{Service: mesh.Service{Allow: c.allow}, NeedIntentions: true, Intentions: c.intentions}).Decide(c.caller)
			by := ""
			if d.Intention != nil {
				by = d.Intention.Source
			}
			if d.Reason != c.want || by != c.by || d.Allowed != (c.want == ReasonAllowed) {
				t.Errorf("Decide(%q) = %+v by %q, want %s by %q", c.caller, d, by, c.want, c.by)
			}
		})
	}
}

// Without a registry what it might once have said does not matter.
func TestIntentionsWithoutRegistry(t *testing.T) {
	in := &mesh.Inbound{Intentions: &mesh.Intentions{Default: mesh.Allowed}}
	if d := Compile(in).Decide("web"); d.Allowed || d.Reason != ReasonNoAllow {
		t.Errorf("Decide = %+v, want refused for the missing allow block", d)
	}
}

// The decision is taken for every stream that arrives.
func TestDecideAllocatesNothing(t *testing.T) {
	r := Compile(&mesh.Inbound{Service: mesh.Service{Allow: []mesh.Allow{{Caller: "web"}}}})
	if n := testing.AllocsPerRun(100, func() { r.Decide("web"); r.Decide("shop") }); n != 0 {
		t.Errorf("Decide allocates %v times, want 0", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	in := &mesh.Inbound{}
	for _, c := range []string{"web", "batch", "shop", "mail", "search", "cron", "admin", "report"} {
		in.Allow = append(in.Allow, mesh.Allow{Caller: c})
	}
	r := Compile(in)
	b.ReportAllocs()
	for b.Loop() {
		r.Decide("search")
	}
}
