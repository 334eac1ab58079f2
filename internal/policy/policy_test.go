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
		{"named", two, "web", Decision{true, ReasonAllowed, at(2)}},
		{"second block", two, "batch", Decision{true, ReasonAllowed, at(3)}},
		{"not named", two, "shop", Decision{false, ReasonNotListed, at(1)}},
		{"prefix of a name", two, "we", Decision{false, ReasonNotListed, at(1)}},
		{"other case", two, "Web", Decision{false, ReasonNotListed, at(1)}},
		{"wildcard is a name like others", service(mesh.Allow{Caller: "*", Pos: at(2)}), "web", Decision{false, ReasonNotListed, at(1)}},
		{"no name", two, "", Decision{false, ReasonNoCaller, at(1)}},
		{"no name, block without a name", service(mesh.Allow{Pos: at(2)}), "", Decision{false, ReasonNoCaller, at(1)}},
		{"only a block without a name", service(mesh.Allow{Pos: at(2)}), "web", Decision{false, ReasonNoAllow, at(1)}},
		{"no block", service(), "web", Decision{false, ReasonNoAllow, at(1)}},
		{"the service itself", service(), "payments", Decision{false, ReasonNoAllow, at(1)}},
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
