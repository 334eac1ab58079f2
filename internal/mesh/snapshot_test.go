package mesh

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestLookup(t *testing.T) {
	in := large(3, 1)
	in.Spec.Upstreams[0].Name = "Mixed-Case"
	s := mustCompile(t, in)
	for _, label := range []string{"mixed-case", "MIXED-CASE", "Mixed-Case"} {
		if o := s.Lookup(label); o == nil || o.Name != "Mixed-Case" {
			t.Errorf("Lookup(%q) = %v", label, o)
		}
	}
	if o := s.Lookup("s"); o != nil {
		t.Errorf("Lookup of a part found %s", o.Name)
	}
	for _, o := range s.Outbound {
		if s.ByAddress(o.Address) != o {
			t.Errorf("ByAddress(%s) is not %s", o.Address, o.Name)
		}
	}
	if s.ByAddress(netip.MustParseAddr("127.0.0.1")) != nil {
		t.Error("127.0.0.1 belongs to an upstream")
	}
}

func TestOfferedInstances(t *testing.T) {
	in := large(0, 0)
	in.Spec.Services = []Service{{Name: "web", ID: "1", Port: 1}, {Name: "api", ID: "2", Port: 2}, {Name: "web", ID: "3", Port: 3}}
	s := mustCompile(t, in)
	var ids []string
	for _, o := range s.Offered("web") {
		ids = append(ids, o.ID)
	}
	if !slices.Equal(ids, []string{"1", "3"}) || s.Offered("db") != nil {
		t.Errorf("offered are %v", ids)
	}
}

// A leaf is needed for every service offered and every caller, once.
func TestIdentities(t *testing.T) {
	spec := &Spec{
		Services: []Service{{Name: "web"}, {Name: "api"}, {Name: "web"}},
		Upstreams: []Upstream{
			{Name: "a", From: "web"}, {Name: "b", From: "batch"}, {Name: "c", From: "batch"},
			{Name: "d"}, // ambiguous: Compile refuses it, a leaf would be for nobody
		},
	}
	if got := spec.Identities(); !slices.Equal(got, []string{"web", "api", "batch"}) {
		t.Errorf("identities are %v", got)
	}
	if got := (&Spec{Identity: "cron", Upstreams: []Upstream{{Name: "a"}}}).Identities(); !slices.Equal(got, []string{"cron"}) {
		t.Errorf("identities of a host without services are %v", got)
	}
}

// The state directory holds what a Compile needs from the one before.
func TestAssignmentsSurviveTheDisk(t *testing.T) {
	first := mustCompile(t, large(20, 2))
	raw, err := json.Marshal(first.Assigned)
	if err != nil {
		t.Fatal(err)
	}
	var read Assignments
	if err := json.Unmarshal(raw, &read); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(read, first.Assigned) {
		t.Errorf("%s\nis read as %+v, was %+v", raw, read, first.Assigned)
	}
}

// A changed address is another endpoint: what failed at the old one says
// nothing about the new one.
func TestEndpointKey(t *testing.T) {
	e := Endpoint{ID: "w1", Address: netip.MustParseAddrPort("[2001:db8::1]:21900")}
	if got := e.Key(); got != "w1@[2001:db8::1]:21900" {
		t.Errorf("key is %s", got)
	}
}

func TestStaticCatalogFillsIn(t *testing.T) {
	c := StaticCatalog([]StaticService{{Name: "x", Port: 80, Endpoints: []StaticEndpoint{{ID: "a", Weight: -2}, {ID: "b", Weight: 3}}}})
	s := c.Services[ServiceKey{Name: "x"}]
	if s.Source != "static" || s.Port != 80 || !s.Updated.IsZero() {
		t.Errorf("service is %+v", s)
	}
	for i, want := range []int{1, 3} {
		if e := s.Endpoints[i]; e.Weight != want || !e.Healthy || e.Service != "x" {
			t.Errorf("endpoint is %+v", e)
		}
	}
}

func TestProtocolWords(t *testing.T) {
	for p := TCP; p <= GRPC; p++ {
		if got, ok := ParseProtocol(p.String()); !ok || got != p {
			t.Errorf("ParseProtocol(%q) = %v, %t", p, got, ok)
		}
	}
	if _, ok := ParseProtocol("HTTP"); ok {
		t.Error("words in capitals are accepted")
	}
	if s := Protocol(99).String(); !strings.Contains(s, "99") {
		t.Errorf("an unknown protocol is %q", s)
	}
}

func TestPos(t *testing.T) {
	if s := (Pos{File: "a.hcl", Line: 3, Column: 7}).String(); s != "a.hcl:3" {
		t.Error(s)
	}
	if s := (Pos{Line: 3}).String(); s != "" {
		t.Error(s)
	}
}

func TestHeadKeepsItsMemory(t *testing.T) {
	h := Head{Method: []byte("GET"), Path: []byte("/"), Status: 200, Fields: make([]Field, 0, 4)}
	h.Fields = append(h.Fields, Field{Name: []byte("x"), Value: []byte("0")}, Field{Name: []byte("age"), Value: []byte("1"), Known: Age}, Field{Name: []byte("age"), Value: []byte("2"), Known: Age})
	if got := h.Get(Age); string(got) != "1" {
		t.Errorf("Get gives %q, want the first", got)
	}
	if got := h.Get(ETag); got != nil {
		t.Errorf("Get of an absent field gives %q", got)
	}
	h.Reset()
	if h.Method != nil || h.Path != nil || h.Status != 0 || len(h.Fields) != 0 || cap(h.Fields) != 4 {
		t.Errorf("after Reset: %+v", h)
	}
}

func BenchmarkLookupKnown(b *testing.B) {
	names := [][]byte{[]byte("content-length"), []byte("user-agent"), []byte("x-forwarded-for"), []byte("x-unknown-header")}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		LookupKnown(names[i&3])
		i++
	}
}
