package consul

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
)

// instanceOf makes a proxy entry; change has its way with it.
func instanceOf(id string, change func(*api.ServiceEntry)) *api.ServiceEntry {
	e := &api.ServiceEntry{
		Node: &api.Node{Node: "n", Address: "10.0.0.9", Datacenter: "dc1", TaggedAddresses: map[string]string{"wan": "198.51.100.9"}},
		Service: &api.AgentService{
			Kind: api.ServiceKindConnectProxy, ID: id + "-sidecar-proxy", Service: "web-sidecar-proxy", Port: 21900,
			Weights: api.AgentWeights{Passing: 2, Warning: 1},
			Proxy:   &api.AgentServiceConnectProxyConfig{DestinationServiceName: "web", DestinationServiceID: id, LocalServicePort: 8080},
		},
		Checks: api.HealthChecks{{CheckID: "serfHealth", Status: "passing"}, {CheckID: "peer", Status: "passing"}},
	}
	if change != nil {
		change(e)
	}
	return e
}

func TestEndpoints(t *testing.T) {
	key := mesh.ServiceKey{Name: "web"}
	plain := mesh.Endpoint{ID: "web-1", Address: netip.MustParseAddrPort("10.0.0.9:21900"), Service: "web", Datacenter: "dc1", Weight: 2, Healthy: true}
	with := func(change func(*mesh.Endpoint)) []mesh.Endpoint {
		e := plain
		change(&e)
		return []mesh.Endpoint{e}
	}
	for _, c := range []struct {
		name    string
		entry   func(*api.ServiceEntry)
		remote  bool
		want    []mesh.Endpoint
		port    uint16
		skipped int
	}{
		{name: "node address", want: []mesh.Endpoint{plain}, port: 8080},
		{name: "service address wins", entry: func(e *api.ServiceEntry) { e.Service.Address = "10.0.0.1" },
			want: with(func(e *mesh.Endpoint) { e.Address = netip.MustParseAddrPort("10.0.0.1:21900") }), port: 8080},
		{name: "v4 in v6", entry: func(e *api.ServiceEntry) { e.Service.Address = "::ffff:10.0.0.1" },
			want: with(func(e *mesh.Endpoint) { e.Address = netip.MustParseAddrPort("10.0.0.1:21900") }), port: 8080},
		{name: "native", entry: func(e *api.ServiceEntry) {
			e.Service = &api.AgentService{ID: "web-1", Service: "web", Port: 443, Weights: api.AgentWeights{Passing: 2}, Connect: &api.AgentServiceConnect{Native: true}}
		}, want: with(func(e *mesh.Endpoint) { e.Address = netip.MustParseAddrPort("10.0.0.9:443") }), port: 443},
		{name: "known by another id there", entry: func(e *api.ServiceEntry) {
			e.Service.Meta = map[string]string{"meshd": "1", "meshd-node": "n", "meshd-instance": "web-b"}
		}, want: with(func(e *mesh.Endpoint) {
			e.ID = "web-b"
			e.Meta = map[string]string{"meshd": "1", "meshd-node": "n", "meshd-instance": "web-b"}
		}), port: 8080},
		{name: "somebody else's meta does not rename", entry: func(e *api.ServiceEntry) {
			e.Service.Meta = map[string]string{"meshd-instance": "web-b"}
		}, want: with(func(e *mesh.Endpoint) { e.Meta = map[string]string{"meshd-instance": "web-b"} }), port: 8080},
		{name: "warning has its own weight", entry: func(e *api.ServiceEntry) { e.Checks[1].Status = "warning" },
			want: with(func(e *mesh.Endpoint) { e.Weight = 1 }), port: 8080},
		{name: "critical", entry: func(e *api.ServiceEntry) { e.Checks[1].Status = "critical" },
			want: with(func(e *mesh.Endpoint) { e.Healthy = false }), port: 8080},
		{name: "critical before warning", entry: func(e *api.ServiceEntry) { e.Checks[0].Status = "critical"; e.Checks[1].Status = "warning" },
			want: with(func(e *mesh.Endpoint) { e.Healthy = false; e.Weight = 1 }), port: 8080},
		{name: "a status we do not know", entry: func(e *api.ServiceEntry) { e.Checks[1].Status = "resting" },
			want: with(func(e *mesh.Endpoint) { e.Healthy = false }), port: 8080},
		{name: "weight zero", entry: func(e *api.ServiceEntry) { e.Service.Weights = api.AgentWeights{Passing: 0, Warning: 1} },
			want: with(func(e *mesh.Endpoint) { e.Healthy = false; e.Weight = 1 }), port: 8080},
		{name: "weight too large", entry: func(e *api.ServiceEntry) { e.Service.Weights.Passing = 65000 },
			want: with(func(e *mesh.Endpoint) { e.Weight = 128 }), port: 8080},
		{name: "no weights stated", entry: func(e *api.ServiceEntry) { e.Service.Weights = api.AgentWeights{} },
			want: with(func(e *mesh.Endpoint) { e.Weight = 1 }), port: 8080},
		{name: "no checks at all", entry: func(e *api.ServiceEntry) { e.Checks = nil }, want: []mesh.Endpoint{plain}, port: 8080},
		{name: "other datacenter, node's wan", remote: true, entry: func(e *api.ServiceEntry) { e.Node.Datacenter = "dc2" },
			want: with(func(e *mesh.Endpoint) {
				e.Datacenter = "dc2"
				e.Address = netip.MustParseAddrPort("198.51.100.9:21900")
			}), port: 8080},
		{name: "other datacenter, service's wan", remote: true, entry: func(e *api.ServiceEntry) {
			e.Service.Address = "10.0.0.1"
			e.Service.TaggedAddresses = map[string]api.ServiceAddress{"wan": {Address: "198.51.100.1", Port: 443}}
		}, want: with(func(e *mesh.Endpoint) { e.Address = netip.MustParseAddrPort("198.51.100.1:443") }), port: 8080},
		{name: "natural port nonsense", entry: func(e *api.ServiceEntry) { e.Service.Proxy.LocalServicePort = 70000 }, want: []mesh.Endpoint{plain}},
		{name: "host name", entry: func(e *api.ServiceEntry) { e.Service.Address = "web.example" }, want: []mesh.Endpoint{}, skipped: 1},
		{name: "wildcard", entry: func(e *api.ServiceEntry) { e.Service.Address = "0.0.0.0" }, want: []mesh.Endpoint{}, skipped: 1},
		{name: "no port", entry: func(e *api.ServiceEntry) { e.Service.Port = 0 }, want: []mesh.Endpoint{}, skipped: 1},
		{name: "no node", entry: func(e *api.ServiceEntry) { e.Node = nil }, want: []mesh.Endpoint{}, skipped: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, port, skipped := endpoints([]*api.ServiceEntry{instanceOf("web-1", c.entry)}, key, c.remote)
			if diff := cmp.Diff(c.want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("endpoints (-want +got):\n%s", diff)
			}
			if port != c.port || len(skipped) != c.skipped {
				t.Errorf("port %d, skipped %v; want %d and %d", port, skipped, c.port, c.skipped)
			}
		})
	}
}

// The order of Consul's answer must not count, and one that says a thing twice
// or null in between must not break anything.
func TestEndpointsOrderAndRepetition(t *testing.T) {
	at := func(a string) func(*api.ServiceEntry) {
		return func(e *api.ServiceEntry) { e.Service.Address = a }
	}
	a, b, c := instanceOf("web-1", at("10.0.0.1")), instanceOf("web-1", at("10.0.0.2")), instanceOf("web-2", at("10.0.0.1"))
	key := mesh.ServiceKey{Name: "web"}
	want, _, _ := endpoints([]*api.ServiceEntry{a, b, c}, key, false)
	got, port, skipped := endpoints([]*api.ServiceEntry{c, nil, b, a, b}, key, false)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" || len(got) != 3 {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if port != 8080 || len(skipped) != 1 {
		t.Errorf("port %d, skipped %v", port, skipped)
	}
	c.Service.Proxy.LocalServicePort = 9090
	if _, port, _ := endpoints([]*api.ServiceEntry{a, c}, key, false); port != 0 {
		t.Errorf("instances disagree about the port, got %d, want 0", port)
	}
}

// What is held and what is believed at once: features in the order of trust.
func TestDoubt(t *testing.T) {
	c, err := New(Options{Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	key := mesh.ServiceKey{Name: "web"}
	two, _, _ := endpoints([]*api.ServiceEntry{instanceOf("a", nil), instanceOf("b", nil)}, key, false)
	one := two[:1]
	sick := []mesh.Endpoint{two[0], two[1]}
	sick[1].Healthy = false
	start := time.Unix(1000, 0)
	for _, tc := range []struct {
		name    string
		known   bool
		now     []mesh.Endpoint
		index   uint64
		lost    bool
		rewound bool // the index went back before the settling time
		held    bool
	}{
		{name: "first answer", now: two, index: 50},
		{name: "first answer is empty", now: nil, index: 50},
		{name: "first answer is empty without an index", now: nil, index: 0, held: true},
		{name: "first answer is empty with index 1", now: nil, index: 1, held: true},
		{name: "first answer is empty, no leader", now: nil, index: 50, lost: true, held: true},
		{name: "first answer, no leader: better than nothing", now: two, index: 50, lost: true},
		{name: "removal", known: true, now: one, index: 101},
		{name: "removal of all", known: true, now: nil, index: 101},
		{name: "removal of all at the same index", known: true, now: nil, index: 100},
		{name: "emptiness without an index", known: true, now: nil, index: 0, held: true},
		{name: "emptiness, no leader", known: true, now: nil, index: 101, lost: true, held: true},
		{name: "removal, no leader", known: true, now: one, index: 101, lost: true, held: true},
		{name: "the same, no leader", known: true, now: two, index: 101, lost: true},
		{name: "removal, index back", known: true, now: one, index: 40, held: true},
		{name: "removal of all, index back", known: true, now: nil, index: 40, held: true},
		{name: "turned critical, index back", known: true, now: sick, index: 40, held: true},
		{name: "the same, index back", known: true, now: two, index: 40},
		{name: "removal, index back long ago", known: true, now: one, index: 40, rewound: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHealth(c, key)
			if tc.known {
				h.known, h.seen.index, h.last = true, 100, mesh.CatalogService{Endpoints: two}
			}
			if tc.rewound {
				h.seen.rewound = start.Add(-c.pace.settle)
			}
			if err := h.doubt(tc.now, len(tc.now) == 0 || tc.known && loses(two, tc.now), tc.index, &notes{leaderless: tc.lost}, start); (err != nil) != tc.held {
				t.Errorf("held: %v (%v), want %v", err != nil, err, tc.held)
			}
		})
	}
}
