package mesh

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite testdata; commit only the differences you understand")

// The files in testdata/compile are stories. A paragraph whose first word is a
// command is carried out; any other paragraph is prose. The commands:
//
//	spec            the lines below are the configuration from now on
//	catalog         the lines below are what Consul states from now on
//	wildcard [PORT...]  these ports have a listener on every address
//	forget          the state directory is lost
//	compile         compile, and compare with what follows the line of dashes
//
// Each compile starts from what the one before assigned, as the agent does.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/compile/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := newStory(t).tell(string(raw))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(raw) {
				t.Errorf("%s tells something else now (run with -update and read the difference):\n%s", file, got)
			}
		})
	}
}

const dashes = "----"

type story struct {
	t  *testing.T
	in CompileInput
}

func newStory(t *testing.T) *story { return &story{t: t, in: CompileInput{Spec: newSpec()}} }

func newSpec() *Spec {
	return &Spec{Node: "host-a", Domain: "mesh.internal", Loopback: netip.MustParsePrefix("127.77.0.0/16")}
}

// tell carries the story out and returns it with the results it has now.
func (s *story) tell(text string) string {
	paragraphs := strings.Split(strings.TrimSuffix(text, "\n"), "\n\n")
	for i, p := range paragraphs {
		lines := strings.Split(p, "\n")
		words := strings.Fields(lines[0])
		switch {
		case len(words) == 0:
		case words[0] == "wildcard":
			s.in.Wildcard = make(map[uint16]bool)
			for _, w := range words[1:] {
				s.in.Wildcard[s.port(w)] = true
			}
		case p == "forget":
			s.in.Assigned = Assignments{}
		case lines[0] == "spec":
			s.in.Spec = newSpec()
			for n, line := range lines[1:] {
				s.specLine(strings.Fields(line), Pos{File: "meshd.hcl", Line: n + 1})
			}
		case lines[0] == "catalog":
			s.in.Catalog = &Catalog{Services: make(map[ServiceKey]CatalogService)}
			for _, line := range lines[1:] {
				s.catalogLine(strings.Fields(line))
			}
		case lines[0] == "compile":
			paragraphs[i] = "compile\n" + dashes + "\n" + s.compile()
		}
	}
	return strings.Join(paragraphs, "\n\n") + "\n"
}

func (s *story) compile() string {
	s.in.Generation++
	snap, err := Compile(s.in)
	if err != nil {
		s.in.Generation--
		return "error: " + strings.ReplaceAll(err.Error(), "\n", "\nerror: ")
	}
	s.in.Assigned = snap.Assigned
	return printed(snap)
}

// printed shows all of a picture that Compile decided.
func printed(s *Snapshot) string {
	var b strings.Builder
	fmt.Fprintf(&b, "generation %d\n", s.Generation)
	for _, o := range s.Outbound {
		state := "not in any catalog"
		if o.Known {
			state = fmt.Sprintf("%d of %d healthy by %s", o.Healthy, len(o.Endpoints), o.Source)
		}
		fmt.Fprintf(&b, "%s %s:%d as %s, %s\n", o.Name, o.Address, o.Port, o.Caller, state)
		if want := netip.AddrPortFrom(o.Address, o.Port); o.Binds[0] != want {
			fmt.Fprintf(&b, "  the first bind is %s\n", o.Binds[0])
		}
		for _, a := range o.Binds[1:] {
			fmt.Fprintf(&b, "  also on %s\n", a)
		}
		for i := range o.Endpoints {
			e := &o.Endpoints[i]
			fmt.Fprintf(&b, "  %s is %s weight %d healthy %t\n", e.Key(), e.Service, e.Weight, e.Healthy)
		}
	}
	for _, in := range s.Inbound {
		fmt.Fprintf(&b, "service %s at %s\n", in.Name, in.Target)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Assigned.Ports)) {
		fmt.Fprintf(&b, "keeps %s %s:%d\n", name, s.Assigned.Addresses[name], s.Assigned.Ports[name])
	}
	for _, name := range slices.Sorted(maps.Keys(s.Assigned.Ceded)) {
		fmt.Fprintf(&b, "%s has ceded %d\n", name, s.Assigned.Ceded[name])
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// specLine understands
//
//	loopback CIDR | identity NAME
//	service NAME PORT
//	upstream NAME [destination=NAME] [datacenter=DC] [from=NAME] [port=LOCAL_BIND_PORT]
//	static NAME PORT [ENDPOINT...]
func (s *story) specLine(w []string, pos Pos) {
	spec := s.in.Spec
	switch w[0] {
	case "loopback":
		spec.Loopback = netip.MustParsePrefix(w[1])
	case "identity":
		spec.Identity = w[1]
	case "service":
		spec.Services = append(spec.Services, Service{
			Name: w[1], ID: w[1], Address: netip.MustParseAddr("127.0.0.1"), Port: s.port(w[2]), Pos: pos,
		})
	case "upstream":
		u := Upstream{Name: w[1], Destination: w[1], LocalBindAddress: netip.MustParseAddr("127.0.0.1"), Pos: pos}
		for _, option := range w[2:] {
			key, value, _ := strings.Cut(option, "=")
			switch key {
			case "destination":
				u.Destination = value
			case "datacenter":
				u.Datacenter = value
			case "from":
				u.From = value
			case "port":
				u.LocalBindPort = s.port(value)
			default:
				s.t.Fatalf("no option %q", option)
			}
		}
		spec.Upstreams = append(spec.Upstreams, u)
	case "static":
		st := StaticService{Name: w[1], Port: s.port(w[2])}
		for _, e := range w[3:] {
			id, address, _ := strings.Cut(e, "@")
			st.Endpoints = append(st.Endpoints, StaticEndpoint{ID: id, Address: netip.MustParseAddrPort(address)})
		}
		spec.Static = append(spec.Static, st)
	default:
		s.t.Fatalf("no line %q in a spec", w[0])
	}
}

// catalogLine understands NAME[@DATACENTER] PORT [[!]ID@ADDRESS...]; "!" is an
// unhealthy endpoint.
func (s *story) catalogLine(w []string) {
	name, dc, _ := strings.Cut(w[0], "@")
	c := CatalogService{Port: s.port(w[1]), Source: "consul", Updated: time.Unix(1, 0)}
	for _, e := range w[2:] {
		e, sick := strings.CutPrefix(e, "!")
		id, address, _ := strings.Cut(e, "@")
		c.Endpoints = append(c.Endpoints, Endpoint{
			ID: id, Address: netip.MustParseAddrPort(address), Service: name, Datacenter: dc, Weight: 1, Healthy: !sick,
		})
	}
	s.in.Catalog.Services[ServiceKey{Name: name, Datacenter: dc}] = c
}

func (s *story) port(text string) uint16 {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		s.t.Fatal(err)
	}
	return uint16(n)
}
