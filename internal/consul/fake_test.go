package consul

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
)

// me and other are the meshd of two nodes.
var (
	me    = owner{node: "host-a", peer: "10.0.0.1:21900"}
	other = owner{node: "host-b", peer: "10.0.0.1:21900"}
)

// hurry is a pace for tests: the relations of the real one, a hundredth of it.
var hurry = pace{
	wait: 400 * time.Millisecond, grace: 200 * time.Millisecond, answer: 400 * time.Millisecond, sign: 400 * time.Millisecond,
	patient: 400 * time.Millisecond, poll: 100 * time.Millisecond, query: 50 * time.Millisecond, files: 10 * time.Millisecond,
	pulse: 20 * time.Millisecond, pulseBad: 10 * time.Millisecond, pulseLimit: 200 * time.Millisecond, spread: 5 * time.Millisecond,
	plain: 100 * time.Millisecond, backoffFirst: 5 * time.Millisecond, backoffMost: 50 * time.Millisecond,
	backoffRefused: 100 * time.Millisecond, refill: 10 * time.Millisecond, refillIdle: 40 * time.Millisecond, settle: 400 * time.Millisecond,
}

// heard collects what a client says.
type heard struct {
	mu       sync.Mutex
	services map[mesh.ServiceKey][]mesh.CatalogService
	leafs    map[string][]tls.Certificate
	chains   map[mesh.ServiceKey]mesh.Chain
	intended map[string][]mesh.Intentions
	roots    [][]*x509.Certificate
	domain   string
	refuse   error // OnLeaf's answer
}

func (h *heard) options(address string) Options {
	h.services, h.leafs = make(map[mesh.ServiceKey][]mesh.CatalogService), make(map[string][]tls.Certificate)
	h.chains, h.intended = make(map[mesh.ServiceKey]mesh.Chain), make(map[string][]mesh.Intentions)
	return Options{
		OnIntentions: func(service string, in mesh.Intentions) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.intended[service] = append(h.intended[service], in)
		},
		Address: address, Node: "host-a", Datacenter: "dc1", Log: slog.New(slog.DiscardHandler),
		OnService: func(k mesh.ServiceKey, s mesh.CatalogService) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.services[k] = append(h.services[k], s)
		},
		OnLeaf: func(service string, leaf tls.Certificate) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.refuse != nil {
				return h.refuse
			}
			h.leafs[service] = append(h.leafs[service], leaf)
			return nil
		},
		OnRoots: func(domain string, roots []*x509.Certificate) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.domain, h.roots = domain, append(h.roots, roots)
		},
	}
}

// withChains asks for chains as well: a second watch per upstream.
func (h *heard) withChains(o Options) Options {
	o.OnChain = func(k mesh.ServiceKey, c mesh.Chain) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.chains[k] = c
	}
	return o
}

// endpoints returns "id id" of the last word on the service, "-" before any,
// and how many words there were. An unhealthy one has a "!".
func (h *heard) endpoints(name string) (string, int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	said := h.services[mesh.ServiceKey{Name: name}]
	if len(said) == 0 {
		return "-", 0
	}
	var ids []string
	for _, e := range said[len(said)-1].Endpoints {
		id := e.ID
		if !e.Healthy {
			id += "!"
		}
		ids = append(ids, id)
	}
	return strings.Join(ids, " "), len(said)
}

// chain returns the last word on a chain, without its time.
func (h *heard) chain(k mesh.ServiceKey) mesh.Chain {
	h.mu.Lock()
	defer h.mu.Unlock()
	c, ok := h.chains[k]
	if !ok {
		c.Refused = "nothing heard"
	}
	c.Updated = time.Time{}
	return c
}

// intentions returns "deny: shop+9 *-8" of the last word on who may call the
// service: the default, then source, sign (+ allow, - deny, ? by the request)
// and precedence of each. "" is no word.
func (h *heard) intentions(service string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	said := h.intended[service]
	if len(said) == 0 {
		return ""
	}
	last := said[len(said)-1]
	text := "deny:"
	if last.Default == mesh.Allowed {
		text = "allow:"
	}
	for _, in := range last.List {
		sign := "-"
		switch {
		case in.HTTP:
			sign = "?"
		case in.Action == mesh.Allowed:
			sign = "+"
		}
		text += fmt.Sprintf(" %s%s%d", in.Source, sign, in.Precedence)
	}
	return text
}

// run starts a client and ends it with the test.
func run(t *testing.T, o Options, p pace, w Wanted) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	c.pace = p
	c.Want(w)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run did not end")
		}
	})
	return c
}

// eventually polls, since what is waited for happens in another process or on
// another goroutine behind a socket.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	within(t, 10*time.Second, what, ok)
}

func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func web(f *meshtest.FakeConsul, n int) (entries []*api.ServiceEntry) {
	for i := 1; i <= n; i++ {
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 21900)
		entries = append(entries, f.Entry("web", fmt.Sprintf("web-%d", i), at, 8080))
	}
	return entries
}

var wantUpstream = Wanted{Upstreams: []mesh.ServiceKey{{Name: "web"}}}

func TestServiceChangesAreHeardOnce(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	f.SetService("web", web(f, 2)...)
	var h heard
	c := run(t, h.options(f.Address), hurry, wantUpstream)
	says := func(want string) func() bool {
		return func() bool { got, _ := h.endpoints("web"); return got == want }
	}
	eventually(t, "the first answer", says("web-1 web-2"))
	f.SetService("web", web(f, 3)...)
	eventually(t, "a third endpoint", says("web-1 web-2 web-3"))
	f.SetService("other", web(f, 1)...) // wakes the query, changes nothing
	f.SetService("web", web(f, 1)...)
	eventually(t, "a removal", says("web-1"))
	f.SetService("web")
	eventually(t, "true emptiness", says(""))
	if _, n := h.endpoints("web"); n != 4 {
		t.Errorf("%d calls for 4 states", n)
	}
	h.mu.Lock()
	last := h.services[mesh.ServiceKey{Name: "web"}][3]
	h.mu.Unlock()
	if last.Port != 8080 || last.Source != "consul" || last.Updated.IsZero() {
		t.Errorf("emptiness forgot what is known: %+v", last)
	}
	s := c.Status()
	if !s.Reachable || s.Error != "" || s.Failures != 0 || len(s.Watches) != 1 || s.Watches[0].Index != f.Index() || s.Watches[0].Age(time.Now()) < 0 {
		t.Errorf("status %+v", s)
	}
}

// Every way in which a registry can fail: what is known stays, nothing is said,
// Status tells, queries stay few, and it heals.
func TestFaultsKeepWhatIsKnown(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault meshtest.Fault
		says  string // part of the watch's error
	}{
		{"hang", meshtest.Fault{Hang: true}, "no answer within"},
		{"500", meshtest.Fault{Status: 500, Body: meshtest.Text("No cluster leader")}, "No cluster leader"},
		{"403", meshtest.Fault{Status: 403, Body: meshtest.Text("Permission denied")}, "Permission denied"},
		{"429", meshtest.Fault{Status: 429, Body: meshtest.Text("Your IP is issuing too many concurrent connections")}, "too many"},
		{"redirect", meshtest.Fault{Status: 302}, "302"},
		{"empty body", meshtest.Fault{Body: meshtest.Text("")}, "ended too early"},
		{"null", meshtest.Fault{Body: meshtest.Text("null")}, "null"},
		{"not JSON", meshtest.Fault{Body: meshtest.Text("<html>")}, "invalid character"},
		{"wrong JSON", meshtest.Fault{Body: meshtest.Text(`{"a":1}`)}, "cannot unmarshal"},
		{"[] with index 0", meshtest.Fault{Body: meshtest.Text("[]"), Index: meshtest.Number(0)}, "not believed"},
		{"[] with index 1", meshtest.Fault{Body: meshtest.Text("[]"), Index: meshtest.Number(1)}, "not believed"},
		{"[] without a leader", meshtest.Fault{Body: meshtest.Text("[]"), Leaderless: true}, "without a leader"},
		{"[] with the index back", meshtest.Fault{Body: meshtest.Text("[]"), Index: meshtest.Number(5)}, "went back"},
		{"cut short", meshtest.Fault{Cut: 20}, ""},
		{"slow", meshtest.Fault{Drip: 20 * time.Millisecond}, "no answer within"},
		{"late", meshtest.Fault{Delay: time.Minute}, "no answer within"},
		{"resets", meshtest.Fault{Reset: true}, ""},
		{"index no number", meshtest.Fault{Body: meshtest.Text("[]"), Index: nil, Leaderless: true}, "without a leader"},
	} {
		t.Run(c.name, func(t *testing.T) {
			meshtest.Leaks(t)
			f := meshtest.NewFakeConsul(t)
			f.SetService("web", web(f, 2)...)
			var h heard
			p := hurry
			p.settle = time.Minute
			client := run(t, h.options(f.Address), p, wantUpstream)
			eventually(t, "the first answer", func() bool { got, _ := h.endpoints("web"); return got == "web-1 web-2" })

			mend := f.Break("/v1/health/", c.fault)
			before := f.Requests("GET /v1/health/")
			broke := time.Now()
			f.SetService("x") // lets the waiting query end and run into it
			eventually(t, "three failures", func() bool { return client.Status().Watches[0].Failures >= 3 })
			took := time.Since(broke)
			st := client.Status()
			if w := st.Watches[0]; !strings.Contains(w.Error, c.says) || w.Confirmed.IsZero() || w.Index == 0 {
				t.Errorf("watch %+v, want an error with %q", w, c.says)
			}
			if st.Reachable || st.Error == "" || st.Failures == 0 {
				t.Errorf("status %+v while every watch fails", st)
			}
			asked := f.Requests("GET /v1/health/") - before
			if most := burst + 2 + int(took/p.refill); asked > most {
				t.Errorf("%d queries in %s, want at most %d", asked, took, most)
			}
			if got, n := h.endpoints("web"); got != "web-1 web-2" || n != 1 {
				t.Errorf("told %q in %d calls during the fault", got, n)
			}
			mend()
			f.SetService("web", web(f, 3)...)
			eventually(t, "healed", func() bool { got, _ := h.endpoints("web"); return got == "web-1 web-2 web-3" })
			eventually(t, "no trouble in the status", func() bool {
				st := client.Status()
				return st.Reachable && st.Watches[0].Error == "" && st.Watches[0].Failures == 0
			})
		})
	}
}

// An outage is asked about seldom, whatever the bucket would allow.
func TestOutageIsAskedSeldom(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	f.Break("/v1/health/", meshtest.Fault{Status: 500})
	var h heard
	p := hurry
	p.refill, p.refillIdle = time.Microsecond, time.Microsecond
	start := time.Now()
	client := run(t, h.options(f.Address), p, wantUpstream)
	eventually(t, "twenty failures", func() bool { return client.Status().Watches[0].Failures >= 20 })
	// 20 pauses of 25 ms on average, each anything from 0 to 50 ms: 500 ms,
	// and under a fifth of that once in more tests than will ever run.
	if took := time.Since(start); took < 100*time.Millisecond {
		t.Errorf("20 tries in %s", took)
	}
}

// When Run has ended nothing of it is left, connections that were kept for the
// next query included, while Consul is still there.
func TestRunLeavesNothing(t *testing.T) {
	f := meshtest.NewFakeConsul(t)
	f.SetService("web", web(f, 1)...)
	meshtest.Leaks(t) // after the fake: its cleanup comes before the fake's end
	var h heard
	run(t, h.options(f.Address), hurry, Wanted{
		Upstreams: wantUpstream.Upstreams, Identities: []string{"shop"}, Register: []Registration{wantWeb(nil)},
	})
	eventually(t, "all of it", func() bool { got, _ := h.endpoints("web"); return got != "-" && len(f.Registered()) == 2 })
}

func TestConsulNotThereAtStart(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	f.SetService("web", web(f, 1)...)
	f.Down()
	var h heard
	c := run(t, h.options(f.Address), hurry, Wanted{
		Upstreams: wantUpstream.Upstreams, Identities: []string{"shop"}, Register: []Registration{wantWeb(nil)},
	})
	eventually(t, "failures on every watch", func() bool {
		s := c.Status()
		for _, w := range s.Watches {
			if w.Failures < 2 || w.Age(time.Now()) >= 0 {
				return false
			}
		}
		return len(s.Watches) == 3 && !s.Reachable && s.Contact.IsZero() && len(s.Registrations) == 1 && s.Registrations[0].State == Waiting
	})
	f.Up()
	eventually(t, "all of it", func() bool {
		got, _ := h.endpoints("web")
		h.mu.Lock()
		defer h.mu.Unlock()
		return got != "-" && len(h.leafs["shop"]) == 1 && len(h.roots) == 1 && len(f.Registered()) == 2
	})
	eventually(t, "registered", func() bool {
		s := c.Status()
		return s.Reachable && s.Registrations[0].State == Registered && !s.Registrations[0].Confirmed.IsZero()
	})
}

// Consul goes away under waiting queries and comes back.
func TestConsulDownAndUp(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	f.SetService("web", web(f, 2)...)
	var h heard
	c := run(t, h.options(f.Address), hurry, wantUpstream)
	eventually(t, "the first answer", func() bool { got, _ := h.endpoints("web"); return got == "web-1 web-2" })
	f.Down()
	eventually(t, "unreachable", func() bool { return !c.Status().Reachable })
	f.SetService("web", web(f, 1)...)
	f.Up()
	eventually(t, "the change", func() bool { got, _ := h.endpoints("web"); return got == "web-1" })
}

// A Consul that came back empty is believed only after the others had time to
// register again; what it still or again knows is taken at once.
func TestRewoundIndex(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	for range 20 {
		f.SetService("web", web(f, 3)...)
	}
	var h heard
	p := hurry
	p.wait = time.Hour // a query with the index of before would be held for that
	c := run(t, h.options(f.Address), p, wantUpstream)
	says := func(want string) func() bool {
		return func() bool { got, _ := h.endpoints("web"); return got == want }
	}
	eventually(t, "the first answer", says("web-1 web-2 web-3"))
	f.Down()
	eventually(t, "unreachable", func() bool { return !c.Status().Reachable })
	f.SetService("web")
	f.SetService("web", web(f, 2)...)
	f.Rewind(5)
	f.Up()
	emptied := time.Now()
	eventually(t, "the two that are left", says("web-1 web-2"))
	if held := time.Since(emptied); held < hurry.settle/2 {
		t.Errorf("a removal with a smaller index was believed after %s, want about %s", held, hurry.settle)
	}
	if _, n := h.endpoints("web"); n != 2 {
		t.Errorf("%d calls, want 2: no emptiness in between", n)
	}
	f.SetService("web", web(f, 1)...)
	eventually(t, "an ordinary removal after that", says("web-1"))
}

func TestWantStartsAndStopsByDifference(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	f.SetService("web", web(f, 1)...)
	f.SetServiceIn("dc2", "web", web(f, 2)...)
	var h heard
	c := run(t, h.options(f.Address), hurry, wantUpstream)
	eventually(t, "web", func() bool { got, _ := h.endpoints("web"); return got == "web-1" })
	other := mesh.ServiceKey{Name: "web", Datacenter: "dc2"}
	c.Want(Wanted{Upstreams: []mesh.ServiceKey{{Name: "web"}, other}})
	eventually(t, "web in dc2", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.services[other]) == 1 && len(h.services[other][0].Endpoints) == 2
	})
	if _, n := h.endpoints("web"); n != 1 {
		t.Errorf("the watch that stayed was disturbed: %d calls", n)
	}
	c.Want(Wanted{Identities: []string{"shop"}})
	if s := c.Status(); len(s.Watches) != 2 || s.Watches[0].Age(time.Now()) >= 0 {
		t.Errorf("right after Want: %+v, whoever waits for all watches would not wait", s.Watches)
	}
	eventually(t, "leaf and roots instead", func() bool {
		s := c.Status()
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(s.Watches) == 2 && len(h.leafs["shop"]) == 1 && len(h.roots) == 1
	})
	asked := f.Requests("GET /v1/health/")
	f.SetService("web", web(f, 3)...)
	c.Want(wantUpstream) // back again: told anew, it is a new watch
	eventually(t, "web again", func() bool { got, n := h.endpoints("web"); return got == "web-1 web-2 web-3" && n == 2 })
	if asked == 0 {
		t.Error("nothing was asked")
	}
}

func TestLeafAndRootsFollowTheCA(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	var h heard
	c := run(t, h.options(f.Address), hurry, Wanted{Identities: []string{"shop"}})
	count := func(leafs, roots int) func() bool {
		return func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return len(h.leafs["shop"]) == leafs && len(h.roots) == roots
		}
	}
	eventually(t, "the first leaf and root", count(1, 1))
	f.SetService("x") // wakes both, changes neither
	f.RenewLeaf("shop", nil)
	eventually(t, "a renewed leaf", count(2, 1))
	f.ReplaceCA()
	eventually(t, "a leaf of the new CA and both roots", count(3, 2))
	f.DropOldRoots()
	eventually(t, "the new root only", count(3, 3))
	h.mu.Lock()
	if h.domain != f.CA().TrustDomain || len(h.roots[1]) != 2 || len(h.roots[2]) != 1 {
		t.Errorf("trust domain %q, roots %d then %d", h.domain, len(h.roots[1]), len(h.roots[2]))
	}
	pool := x509.NewCertPool()
	pool.AddCert(h.roots[2][0])
	if _, err := h.leafs["shop"][2].Leaf.Verify(x509.VerifyOptions{Roots: pool}); err != nil {
		t.Errorf("the last leaf does not belong to the last root: %v", err)
	}
	h.mu.Unlock()

	// A leaf that ran out while nobody could sign is not passed on.
	f.RenewLeaf("shop", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })
	eventually(t, "an expired leaf is shown", func() bool { return strings.Contains(c.Status().Watches[0].Error, "expired") })
	f.RenewLeaf("shop", nil)
	eventually(t, "the next good leaf", count(4, 3))
}

func TestLeafAndRootsBadAnswers(t *testing.T) {
	for _, c := range []struct {
		name, path, body, says string
		refuse                 bool
	}{
		{name: "leaf is empty", path: "/v1/agent/connect/ca/leaf/", body: "{}", says: "leaf cannot be used"},
		{name: "leaf is no PEM", path: "/v1/agent/connect/ca/leaf/", body: `{"CertPEM":"x","PrivateKeyPEM":"y"}`, says: "leaf cannot be used"},
		{name: "leaf is refused by identity", path: "/v1/agent/connect/ca/leaf/", refuse: true, says: "refused: no such service"},
		{name: "no roots", path: "/v1/agent/connect/ca/roots", body: `{"TrustDomain":"td","Roots":[]}`, says: "no root at all"},
		{name: "roots are null", path: "/v1/agent/connect/ca/roots", body: `null`, says: "no trust domain"},
		{name: "no trust domain", path: "/v1/agent/connect/ca/roots", body: `{"Roots":[{"RootCert":"x"}]}`, says: "no trust domain"},
		{name: "root is null", path: "/v1/agent/connect/ca/roots", body: `{"TrustDomain":"td","Roots":[null]}`, says: "root is null"},
		{name: "root is no certificate", path: "/v1/agent/connect/ca/roots", body: `{"TrustDomain":"td","Roots":[{"ID":"r1","RootCert":"x"}]}`, says: "root r1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			meshtest.Leaks(t)
			f := meshtest.NewFakeConsul(t)
			var h heard
			o := h.options(f.Address)
			if c.refuse {
				h.refuse = errors.New("no such service")
			} else {
				f.Break(c.path, meshtest.Fault{Body: meshtest.Text(c.body)})
			}
			client := run(t, o, hurry, Wanted{Identities: []string{"shop"}})
			eventually(t, "the error", func() bool {
				for _, w := range client.Status().Watches {
					if strings.Contains(w.Error, c.says) && w.Failures >= 2 {
						return true
					}
				}
				return false
			})
			h.mu.Lock()
			defer h.mu.Unlock()
			if strings.Contains(c.path, "leaf") && len(h.leafs["shop"]) != 0 || strings.Contains(c.path, "roots") && len(h.roots) != 0 {
				t.Errorf("passed on: %d leafs, %d roots", len(h.leafs["shop"]), len(h.roots))
			}
		})
	}
}

func TestRegistrationLife(t *testing.T) {
	meshtest.Leaks(t)
	const proxyID = "host-a-web-8080-sidecar-proxy"
	f := meshtest.NewFakeConsul(t)
	somebody := &api.AgentServiceRegistration{ID: "db-1", Name: "db", Port: 5432}
	f.Register(somebody)
	left := wantWeb(func(r *Registration) { r.Service.Name, r.Service.ID = "old", "old" })
	f.Register(service(&left, me, "old")) // of a run before
	f.Register(service(&left, other, "old"))
	theirs := service(&left, other, "old")
	theirs.ID = "old-b"
	f.Register(theirs)
	f.Forget("old")
	f.Register(service(&left, me, "old"))

	var h heard
	db := wantWeb(func(r *Registration) { r.Service.Name, r.Service.ID, r.Service.Port = "db", "db", 5432 })
	c := run(t, h.options(f.Address), hurry, Wanted{Register: []Registration{wantWeb(nil), db}})
	has := func(want string) func() bool {
		return func() bool {
			got := f.Registered()
			for id := range strings.FieldsSeq(want) {
				if got[id] == nil {
					return false
				}
			}
			return len(got) == len(strings.Fields(want))
		}
	}
	all := "web " + proxyID + " db-1 host-a-db-5432-sidecar-proxy old-b"
	eventually(t, "both registered, the stale one gone, others' untouched", has(all))
	eventually(t, "states", func() bool {
		s := c.Status().Registrations
		return len(s) == 2 && s[0].State == Registered && s[1].State == Adopted && s[1].ID == "db-1"
	})
	writes := f.Requests("PUT ")
	looks := f.Requests("GET /v1/agent/services")
	eventually(t, "some more looks", func() bool { return f.Requests("GET /v1/agent/services") > looks+2 })
	if n := f.Requests("PUT "); n != writes {
		t.Errorf("%d writes although nothing changed", n-writes)
	}
	f.Forget(proxyID)
	f.Forget("web")
	eventually(t, "what vanished is registered again", has(all))

	mend := f.Break("/v1/agent/service/register", meshtest.Fault{Status: 403, Body: meshtest.Text("Permission denied")})
	f.Forget("web")
	eventually(t, "a refusal is shown", func() bool {
		s := c.Status().Registrations
		return s[0].State == Failed && strings.Contains(s[0].Error, "Permission denied") && s[1].State == Adopted
	})
	mend()
	eventually(t, "registered after all", has(all))
	eventually(t, "no error left", func() bool {
		s := c.Status().Registrations
		return s[0].State == Registered && s[0].Error == ""
	})

	c.Want(Wanted{Register: []Registration{db}})
	eventually(t, "web is gone", has("db-1 host-a-db-5432-sidecar-proxy old-b"))
	if err := c.Deregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !has("db-1 old-b")() {
		t.Errorf("after Deregister: %v", f.Registered())
	}
	c.Want(Wanted{Register: []Registration{wantWeb(nil)}})
	looks = f.Requests("GET /v1/agent/services")
	timer := time.NewTimer(3 * hurry.poll)
	<-timer.C
	if !has("db-1 old-b")() || f.Requests("GET /v1/agent/services") != looks {
		t.Errorf("registered again after Deregister: %v", f.Registered())
	}
}

// Before Want nothing is known, so nothing of a run before is removed.
func TestNothingIsDeregisteredBeforeWant(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	mine := wantWeb(nil)
	f.Register(service(&mine, me, "web"))
	var h heard
	c, err := New(h.options(f.Address))
	if err != nil {
		t.Fatal(err)
	}
	c.pace = hurry
	ctx, cancel := context.WithTimeout(t.Context(), 3*hurry.poll)
	defer cancel()
	c.Run(ctx)
	if len(f.Registered()) != 1 {
		t.Error("a registration was removed before anybody said what is wanted")
	}
}

// Deregister while Consul hangs ends with its context.
func TestDeregisterIsBounded(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	f.Break("/v1/agent/services", meshtest.Fault{Hang: true})
	var h heard
	c, err := New(h.options(f.Address))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Deregister(ctx); err == nil {
		t.Error("no error although nothing answered")
	}
}

// The token goes to Consul and is ours alone, whatever the environment holds
// for Consul's own tools.
func TestToken(t *testing.T) {
	meshtest.Leaks(t)
	t.Setenv("CONSUL_HTTP_TOKEN", "of the environment")
	t.Setenv("CONSUL_NAMESPACE", "elsewhere")
	for _, token := range []string{"", "secret"} {
		f := meshtest.NewFakeConsul(t)
		f.SetService("web", web(f, 1)...)
		var h heard
		o := h.options(f.Address)
		o.Token = token
		run(t, o, hurry, Wanted{Upstreams: wantUpstream.Upstreams, Identities: []string{"shop"}, Register: []Registration{wantWeb(nil)}})
		eventually(t, "endpoints and a registration", func() bool {
			got, _ := h.endpoints("web")
			return got == "web-1 host-a" || got != "-" && len(f.Registered()) == 2
		})
		if tokens := f.Tokens(); len(tokens) != 1 || tokens[token] == 0 {
			t.Errorf("tokens %v, want %q only", tokens, token)
		}
	}
}

// A stream says nothing about missing rights but an empty list, with a good
// index. It is asked about again, and only that answer counts.
func TestStreamedEmptinessIsAskedAbout(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	f.SetService("web", web(f, 2)...)
	var h heard
	c := run(t, h.options(f.Address), hurry, wantUpstream)
	eventually(t, "the first answer", func() bool { got, _ := h.endpoints("web"); return got == "web-1 web-2" })
	for range 3 {
		asked := f.Requests("GET /v1/health/")
		f.Break("/v1/health/", meshtest.Fault{Body: meshtest.Text("[]"), Times: 1})
		f.SetService("x") // lets the query that waits go; the next one runs into it
		eventually(t, "the next query", func() bool { return f.Requests("GET /v1/health/") > asked })
		f.SetService("y")
		eventually(t, "the question", func() bool { return f.Requests("GET /v1/health/") >= asked+3 })
	}
	if got, n := h.endpoints("web"); got != "web-1 web-2" || n != 1 {
		t.Errorf("told %q in %d calls", got, n)
	}
	if st := c.Status(); st.Failures != 0 {
		t.Errorf("status %+v: the question is no failure", st)
	}
}
