package mesh

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// large makes a host with that many upstreams, each with that many endpoints.
func large(upstreams, endpoints int) CompileInput {
	spec := newSpec()
	spec.Identity = "web"
	spec.Services = []Service{{Name: "web", ID: "web", Address: netip.MustParseAddr("127.0.0.1"), Port: 8080, Tags: []string{"a"}, Allow: []Allow{{Caller: "x"}}}}
	spec.Static = []StaticService{{Name: "s0001", Port: 9, Endpoints: []StaticEndpoint{{ID: "hand", Address: netip.MustParseAddrPort("10.1.1.1:21900"), Meta: map[string]string{"a": "b"}}}}}
	catalog := &Catalog{Services: make(map[ServiceKey]CatalogService)}
	for i := range upstreams {
		name := fmt.Sprintf("s%04d", i)
		spec.Upstreams = append(spec.Upstreams, Upstream{Name: name, Destination: name, LocalBindAddress: netip.MustParseAddr("127.0.0.1")})
		c := CatalogService{Port: uint16(8000 + i%500), Source: "consul", Updated: time.Unix(1, 0)}
		for e := range endpoints {
			c.Endpoints = append(c.Endpoints, Endpoint{
				ID: fmt.Sprintf("%s-%d", name, e), Service: name, Weight: 1, Healthy: e%7 != 0,
				Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(e)}), 21900),
				Meta:    map[string]string{"zone": "a"},
			})
		}
		catalog.Services[ServiceKey{Name: name}] = c
	}
	return CompileInput{
		Generation: 1, Spec: spec, Catalog: catalog,
		Wildcard: map[uint16]bool{8001: true, 22: true},
		Assigned: Assignments{
			Addresses: map[string]netip.Addr{"s0002": netip.MustParseAddr("127.77.9.9"), "gone": netip.MustParseAddr("127.77.9.10")},
			Ports:     map[string]uint16{"s0002": 8002, "s0003": 22000, "gone": 22001},
			Ceded:     map[string]uint16{"s0004": 8004, "s0005": 1, "gone": 5},
		},
	}
}

// copyOf makes a copy that shares no memory with what Compile could write.
func copyOf(in CompileInput) CompileInput {
	spec := *in.Spec
	spec.Services = slices.Clone(spec.Services)
	for i := range spec.Services {
		spec.Services[i].Tags = slices.Clone(spec.Services[i].Tags)
		spec.Services[i].Allow = slices.Clone(spec.Services[i].Allow)
	}
	spec.Upstreams = slices.Clone(spec.Upstreams)
	spec.Static = slices.Clone(spec.Static)
	for i := range spec.Static {
		spec.Static[i].Endpoints = slices.Clone(spec.Static[i].Endpoints)
		for j := range spec.Static[i].Endpoints {
			spec.Static[i].Endpoints[j].Meta = maps.Clone(spec.Static[i].Endpoints[j].Meta)
		}
	}
	in.Spec = &spec
	catalog := &Catalog{Services: maps.Clone(in.Catalog.Services)}
	for key, s := range catalog.Services {
		s.Endpoints = slices.Clone(s.Endpoints)
		for i := range s.Endpoints {
			s.Endpoints[i].Meta = maps.Clone(s.Endpoints[i].Meta)
		}
		catalog.Services[key] = s
	}
	in.Catalog = catalog
	in.Wildcard = maps.Clone(in.Wildcard)
	in.Assigned = Assignments{
		Addresses: maps.Clone(in.Assigned.Addresses), Ports: maps.Clone(in.Assigned.Ports), Ceded: maps.Clone(in.Assigned.Ceded),
	}
	return in
}

func mustCompile(t testing.TB, in CompileInput) *Snapshot {
	t.Helper()
	s, err := Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The pictures of before and after share memory with catalog and spec, which
// others read meanwhile: Compile must write none of it.
func TestCompileNeverWritesItsInput(t *testing.T) {
	in := large(30, 5)
	before := copyOf(in)
	s := mustCompile(t, in)
	if !reflect.DeepEqual(in, before) {
		t.Errorf("Compile wrote its input")
	}
	// Nor may the picture keep maps that the agent goes on to use.
	before = copyOf(in)
	for _, m := range []map[string]uint16{s.Assigned.Ports, s.Assigned.Ceded} {
		clear(m)
	}
	clear(s.Assigned.Addresses)
	if !reflect.DeepEqual(in, before) {
		t.Errorf("the picture shares its assignments with the input")
	}
}

// The race detector sees a write that is undone again, too.
func TestCompileConcurrently(t *testing.T) {
	in := large(30, 5)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { mustCompile(t, in) })
	}
	wg.Wait()
}

func TestCompileIsDeterministic(t *testing.T) {
	in := large(200, 2)
	want := mustCompile(t, in)
	r := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		if got := mustCompile(t, in); !reflect.DeepEqual(got, want) {
			t.Fatal("the same input gave another picture")
		}
		// The order of upstreams in the files means nothing.
		shuffled := copyOf(in)
		r.Shuffle(len(shuffled.Spec.Upstreams), reflect.Swapper(shuffled.Spec.Upstreams))
		if got := mustCompile(t, shuffled); printed(got) != printed(want) {
			t.Fatal("another order of the upstreams gave another picture")
		}
	}
}

// Whatever comes and goes, in any order: addresses and ports are never shared
// in a way that two binds would clash, nobody who stays moves without a reason,
// and no rule about ports is broken.
func TestRandomChanges(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 3))
		in := CompileInput{Spec: newSpec(), Catalog: &Catalog{}}
		in.Spec.Loopback = netip.MustParsePrefix("127.90.0.0/27")
		var last *Snapshot
		for step := range 60 {
			spec := newSpec()
			spec.Identity, spec.Loopback = "web", in.Spec.Loopback
			catalog := &Catalog{Services: make(map[ServiceKey]CatalogService)}
			in.Wildcard = make(map[uint16]bool)
			for i := range 12 {
				name := fmt.Sprintf("u%d", i)
				if r.IntN(4) > 0 {
					spec.Upstreams = append(spec.Upstreams, Upstream{Name: name, Destination: name})
				}
				if r.IntN(3) > 0 {
					catalog.Services[ServiceKey{Name: name}] = CatalogService{Port: uint16(r.IntN(3)) * 4000, Source: "consul"}
				}
				if r.IntN(6) == 0 {
					port := uint16(1+r.IntN(2)) * 4000
					spec.Services = append(spec.Services, Service{Name: name, ID: name, Address: netip.MustParseAddr("127.0.0.1"), Port: port})
				}
			}
			if r.IntN(3) == 0 {
				in.Wildcard[uint16(1+r.IntN(2))*4000] = true
			}
			in.Spec, in.Catalog, in.Generation = spec, catalog, uint64(step+1)
			s := mustCompile(t, in)
			checkPicture(t, s, in, last)
			if t.Failed() {
				t.Fatalf("seed %d, step %d:\n%s", seed, step, printed(s))
			}
			in.Assigned, last = s.Assigned, s
		}
	}
}

func checkPicture(t *testing.T, s *Snapshot, in CompileInput, last *Snapshot) {
	t.Helper()
	taken := make(map[netip.AddrPort]string)
	local := make(map[uint16]bool)
	for _, svc := range in.Spec.Services {
		local[svc.Port] = true
	}
	for _, o := range s.Outbound {
		for _, b := range o.Binds {
			if other, ok := taken[b]; ok {
				t.Errorf("%s and %s both bind %s", o.Name, other, b)
			}
			taken[b] = o.Name
		}
		if s.ByAddress(o.Address) != o || s.Lookup(o.Name) != o {
			t.Errorf("%s is not found again", o.Name)
		}
		if o.Port == 0 || !in.Spec.Loopback.Contains(o.Address) {
			t.Errorf("%s is at %s:%d", o.Name, o.Address, o.Port)
		}
		if local[o.Port] {
			t.Errorf("%s has port %d of a local service", o.Name, o.Port)
		}
		had := in.Assigned.Ports[o.Name]
		if in.Wildcard[o.Port] && o.Port != had {
			t.Errorf("%s took port %d from a wildcard listener", o.Name, o.Port)
		}
		natural := in.Catalog.Services[o.Key()].Port
		if o.Port != natural && o.Port != had && o.Port < FirstAssignedPort {
			t.Errorf("%s has port %d, which is neither natural, nor assigned, nor the one of before", o.Name, o.Port)
		}
		if c := in.Assigned.Ceded[o.Name]; c != 0 && o.Port == c {
			t.Errorf("%s took back port %d, which it had ceded", o.Name, c)
		}
		if last == nil {
			continue
		}
		if was := last.Lookup(o.Name); was != nil {
			if was.Address != o.Address {
				t.Errorf("%s moved from %s to %s", o.Name, was.Address, o.Address)
			}
			// Who was told the port of before still finds the upstream there.
			bound := slices.Contains(o.Binds, netip.AddrPortFrom(o.Address, was.Port))
			if !bound && !local[was.Port] && !in.Wildcard[was.Port] {
				t.Errorf("%s has left port %d: it listens on %v", o.Name, was.Port, o.Binds)
			}
			// A service that moved to a port we may not use leaves the old one,
			// but an assigned port has nothing to do with that.
			left := was.Port < FirstAssignedPort && natural != 0 && natural != was.Port
			if was.Port != o.Port && !local[was.Port] && natural != o.Port && !left {
				t.Errorf("%s moved from port %d to %d without a reason", o.Name, was.Port, o.Port)
			}
		}
	}
}

func TestNoPortLeft(t *testing.T) {
	in := large(1, 1)
	in.Catalog, in.Spec.Static, in.Assigned = nil, nil, Assignments{}
	in.Wildcard = make(map[uint16]bool)
	for p := FirstAssignedPort; p <= lastAssignedPort; p++ {
		in.Wildcard[uint16(p)] = true
	}
	_, err := Compile(in)
	if err == nil || !strings.Contains(err.Error(), `no free port between 21300 and 32767 for upstream "s0000"`) {
		t.Fatalf("error is %v", err)
	}
	delete(in.Wildcard, 30000) // wherever the search begins, it finds the only one
	if got := mustCompile(t, in).Outbound[0].Port; got != 30000 {
		t.Fatalf("port %d", got)
	}
}

// A range that upstreams fill to the last address is filled, and each has its own.
func TestFullRange(t *testing.T) {
	in := large(253, 0)
	in.Assigned = Assignments{}
	in.Spec.Loopback = netip.MustParsePrefix("127.80.1.0/24")
	seen := make(map[netip.Addr]bool)
	for _, o := range mustCompile(t, in).Outbound {
		seen[o.Address] = true
	}
	if len(seen) != 253 || seen[netip.MustParseAddr("127.80.1.0")] || seen[netip.MustParseAddr("127.80.1.255")] || seen[netip.MustParseAddr("127.80.1.254")] {
		t.Fatalf("%d different addresses", len(seen))
	}
}

func BenchmarkCompile1000x20(b *testing.B) {
	in := large(1000, 20)
	in.Assigned = mustCompile(b, in).Assigned
	b.ReportAllocs()
	for b.Loop() {
		mustCompile(b, in)
	}
}
