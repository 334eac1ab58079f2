package consul

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
)

// What meshd makes of a compiled chain, in the form in which Consul sends it.
func TestObeyable(t *testing.T) {
	const target = `{"Service":"api","Datacenter":"dc1","Namespace":"default"}`
	chain := func(start, resolver, target string) string {
		return `{"ServiceName":"api","Datacenter":"dc1","Protocol":"http","StartNode":"n","Nodes":{"n":{"Type":"` + start + `","Resolver":` + resolver + `}},"Targets":{"t":` + target + `}}`
	}
	for _, c := range []struct {
		name, text string
		want       mesh.Chain
		bad        bool
	}{
		{name: "default", text: chain("resolver", `{"Default":true,"ConnectTimeout":"5s","Target":"t"}`, target), want: mesh.Chain{Protocol: mesh.HTTP}},
		{name: "timeouts in both forms", text: chain("resolver", `{"ConnectTimeout":"1.5s","RequestTimeout":7000000000,"Target":"t"}`, target),
			want: mesh.Chain{Protocol: mesh.HTTP, ConnectTimeout: 1500 * time.Millisecond, RequestTimeout: 7 * time.Second}},
		{name: "request timeout off", text: chain("resolver", `{"RequestTimeout":-1,"Target":"t"}`, target), want: mesh.Chain{Protocol: mesh.HTTP, RequestTimeout: -1}},
		{name: "router", text: chain("router", `null`, target), want: mesh.Chain{Protocol: mesh.HTTP, Refused: "router"}},
		{name: "splitter", text: chain("splitter", `null`, target), want: mesh.Chain{Protocol: mesh.HTTP, Refused: "splitter"}},
		{name: "a node kind of tomorrow", text: chain("teleporter", `null`, target), want: mesh.Chain{Protocol: mesh.HTTP, Refused: "teleporter"}},
		{name: "another service", text: chain("resolver", `{"Target":"t"}`, `{"Service":"other","Datacenter":"dc1"}`), want: mesh.Chain{Protocol: mesh.HTTP, Refused: "redirect"}},
		{name: "another datacenter", text: chain("resolver", `{"Target":"t"}`, `{"Service":"api","Datacenter":"dc2"}`), want: mesh.Chain{Protocol: mesh.HTTP, Refused: "redirect"}},
		{name: "a peer", text: chain("resolver", `{"Target":"t"}`, `{"Service":"api","Datacenter":"dc1","Peer":"p"}`), want: mesh.Chain{Protocol: mesh.HTTP, Refused: "redirect"}},
		{name: "subset", text: chain("resolver", `{"Target":"t"}`, `{"Service":"api","Datacenter":"dc1","ServiceSubset":"v2"}`), want: mesh.Chain{Protocol: mesh.HTTP, Refused: "subset"}},
		{name: "external", text: chain("resolver", `{"Target":"t"}`, `{"Service":"api","Datacenter":"dc1","External":true}`), want: mesh.Chain{Protocol: mesh.HTTP, Refused: "external service"}},
		{name: "gateway within the datacenter", text: chain("resolver", `{"Default":true,"Target":"t"}`, `{"Service":"api","Datacenter":"dc1","MeshGateway":{"Mode":"local"}}`), want: mesh.Chain{Protocol: mesh.HTTP}},
		{name: "failover is not needed", text: chain("resolver", `{"Target":"t","Failover":{"Targets":["x"]}}`, target), want: mesh.Chain{Protocol: mesh.HTTP}},
		{name: "unknown protocol", text: strings.Replace(chain("resolver", `{"Target":"t"}`, target), `"http"`, `"quic"`, 1), want: mesh.Chain{Refused: "protocol quic"}},
		{name: "no start", text: `{"Protocol":"tcp","StartNode":"gone"}`, bad: true},
		{name: "no resolver", text: chain("resolver", `null`, target), bad: true},
		{name: "no target", text: chain("resolver", `{"Target":"x"}`, target), bad: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var parsed compiled
			if err := json.Unmarshal([]byte(c.text), &parsed); err != nil {
				t.Fatal(err)
			}
			got, err := obeyable(&parsed, mesh.ServiceKey{Name: "api"})
			if (err != nil) != c.bad || err == nil && got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

// Only what can decide about a caller of this mesh, strictest reading first.
func TestIntentionList(t *testing.T) {
	text := `[
		{"SourceName":"*","DestinationName":"*","Action":"allow","Precedence":5},
		{"SourceName":"shop","DestinationName":"web","Action":"allow","Precedence":9},
		{"SourceName":"peered","SourcePeer":"east","DestinationName":"web","Action":"allow","Precedence":9},
		{"SourceName":"group","SourceSamenessGroup":"g","DestinationName":"web","Action":"allow","Precedence":9},
		{"SourceName":"elsewhere","SourceNS":"other","DestinationName":"web","Action":"allow","Precedence":9},
		{"SourceName":"odd","SourceType":"spiffe","DestinationName":"web","Action":"allow","Precedence":9},
		{"SourceName":"web","DestinationName":"db","Action":"allow","Precedence":9},
		{"SourceName":"word","DestinationName":"web","Action":"maybe","Precedence":9},
		{"SourceName":"l7","DestinationName":"web","Permissions":[{"Action":"allow"}],"Precedence":9},
		{"SourceName":"jwt","DestinationName":"web","Action":"allow","JWT":{"Providers":[{"Name":"okta"}]},"Precedence":9},
		{"SourceName":"*","DestinationName":"web","Action":"deny","Precedence":8,"JWT":null},
		null
	]`
	var in []*intention
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		t.Fatal(err)
	}
	h := heard{intended: map[string][]mesh.Intentions{"web": {{List: list(in, "web")}}}}
	if got, want := h.intentions("web"), "deny: shop+9 word-9 l7?9 jwt?9 *-8 *+5"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestIntentionsAndChainsOfAFake(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	f.Rewind(5000)
	f.SetService("web", web(f, 1)...)
	deny := &api.Intention{SourceName: "cron", DestinationName: "shop", Action: api.IntentionActionDeny, Precedence: 9}
	f.SetIntentions("shop", deny)
	var h heard
	p := hurry
	p.settle = time.Minute
	c := run(t, h.withChains(h.options(f.Address)), p, Wanted{Upstreams: wantUpstream.Upstreams, Intentions: []string{"shop"}})
	key := wantUpstream.Upstreams[0]
	eventually(t, "both", func() bool { return h.intentions("shop") == "allow: cron-9" && h.chain(key) == mesh.Chain{} })

	// breakIn lets the query that waits go, so that the next runs into a fault.
	breakIn := func(path string) {
		before := f.Requests("GET " + path)
		f.SetService("x")
		eventually(t, "the next query", func() bool { return f.Requests("GET "+path) > before })
	}
	// What a server says that lost its leader, or its memory, allows nothing:
	// here everything but cron is allowed, and then cron would be.
	for name, fault := range map[string]meshtest.Fault{
		"without a leader": {Leaderless: true},
		"without an index": {Index: meshtest.Number(0)},
		"empty body":       {Body: meshtest.Text("")},
		"null":             {Body: meshtest.Text("null")},
		"another service":  {Body: meshtest.Text(`{"other":null}`)},
	} {
		mend := f.Break("/v1/connect/intentions/match", fault)
		breakIn("/v1/connect/intentions/match")
		f.SetIntentions("shop")
		eventually(t, name+" is not believed", func() bool {
			for _, w := range c.Status().Watches {
				if w.Kind == KindIntentions && w.Failures >= 2 {
					return true
				}
			}
			return false
		})
		if got := h.intentions("shop"); got != "allow: cron-9" {
			t.Errorf("%s: %q", name, got)
		}
		f.SetIntentions("shop", deny)
		mend()
		eventually(t, "well after "+name, func() bool { return well(c) })
	}
	f.SetDefault(false)
	f.SetIntentions("shop")
	eventually(t, "none, and by default deny", func() bool { return h.intentions("shop") == "deny:" })
	// The default that is probed in the modern way, in the old way, and not at all.
	f.SetDefault(true)
	f.Break("/v1/agent/connect/authorize", meshtest.Fault{Status: 404})
	f.SetIntentions("other")
	eventually(t, "the check says it, too", func() bool { return h.intentions("shop") == "allow:" })

	splitter := f.DefaultChain("web", "http")
	splitter.Chain.Nodes[splitter.Chain.StartNode].Type = api.DiscoveryGraphNodeTypeSplitter
	mend := f.Break("/v1/discovery-chain/", meshtest.Fault{Leaderless: true})
	breakIn("/v1/discovery-chain/")
	f.SetChain("web", splitter)
	eventually(t, "a chain without a leader is not believed", func() bool { return c.Status().Watches[0].Failures >= 2 })
	if got := h.chain(key); got != (mesh.Chain{}) {
		t.Errorf("told %+v", got)
	}
	mend()
	eventually(t, "refused", func() bool { return h.chain(key).Refused == "splitter" })
	f.SetChain("web", nil)
	eventually(t, "obeyed again", func() bool { return h.chain(key) == mesh.Chain{} })
}

// A prepared query is polled; what it finds has the identity it is found under.
func TestQuery(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	key := mesh.ServiceKey{Name: "nearest", Query: true}
	var h heard
	c := run(t, h.withChains(h.options(f.Address)), hurry, Wanted{Upstreams: []mesh.ServiceKey{key}})
	last := func() (ids string) {
		h.mu.Lock()
		defer h.mu.Unlock()
		said := h.services[key]
		if len(said) == 0 {
			return "-"
		}
		for _, e := range said[len(said)-1].Endpoints {
			ids += e.ID + "/" + e.Service + "/" + e.Datacenter + "@" + e.Address.Addr().String() + " "
		}
		return ids
	}
	eventually(t, "no such query", func() bool {
		w := c.Status().Watches
		return len(w) == 1 && w[0].Kind == KindQuery && strings.Contains(w[0].Error, "Query not found")
	})
	f.SetQuery("nearest", "web", "dc1", web(f, 1)...)
	eventually(t, "found", func() bool { return last() == "web-1/web/dc1@10.0.0.1 " })
	mend := f.Break("/v1/query/", meshtest.Fault{Status: 500})
	eventually(t, "failure", func() bool { return c.Status().Watches[0].Failures > 2 })
	if got := last(); got != "web-1/web/dc1@10.0.0.1 " {
		t.Errorf("after failures: %q", got)
	}
	mend()
	far := web(f, 1)
	far[0].Node.Datacenter = "dc2"
	far[0].Service.TaggedAddresses = map[string]api.ServiceAddress{"wan": {Address: "198.51.100.7", Port: 443}}
	f.SetQuery("nearest", "web", "dc2", far...)
	eventually(t, "in another datacenter", func() bool { return strings.HasPrefix(last(), "web-1/web/dc2@") })
	f.SetQuery("nearest", "web", "dc1")
	eventually(t, "none", func() bool { return last() == "" })
}

func TestPolicyText(t *testing.T) {
	web, db := wantWeb(nil), wantWeb(func(r *Registration) { r.Service.Name, r.Service.TokenFile = "db", "/run/db-token" })
	w := Wanted{
		Upstreams:  []mesh.ServiceKey{{Name: "api"}, {Name: "web"}, {Name: "api", Datacenter: "dc2"}},
		Identities: []string{"web", "db", "cron"}, Intentions: []string{"web", "db"}, Register: []Registration{web, db},
	}
	if got, want := Policy(w, "host-a"), `# ACL policy of meshd on host-a
# for the token of consul { token_file }
service "api" { policy = "read" }
service "api-sidecar-proxy" { policy = "read" }
service "cron" { policy = "write" }
service "web" { policy = "write" }
service "web-sidecar-proxy" { policy = "write" }
node_prefix "" { policy = "read" }

# for the token in /run/db-token (service db)
service "db" { policy = "write" }
service "db-sidecar-proxy" { policy = "write" }
`; got != want {
		t.Errorf("policy:\n%s\nwant:\n%s", got, want)
	}
	w.Upstreams = append(w.Upstreams, mesh.ServiceKey{Name: "nearest", Query: true})
	if got := Policy(w, "host-a"); !strings.Contains(got, `service_prefix "" { policy = "read" }`) || strings.Contains(got, `service "api" `) {
		t.Errorf("with a prepared query:\n%s", got)
	}
	if got := Policy(Wanted{}, "host-a"); got != "# ACL policy of meshd on host-a\n" {
		t.Errorf("nothing wanted: %q", got)
	}
}

// A token file in every state in which it can be found.
func TestTokenFile(t *testing.T) {
	path := meshtest.TokenFile(t, "first")
	s := &secret{path: path}
	if !s.refresh() || s.value() != "first" || s.problem() != "" || s.refresh() {
		t.Errorf("%q, %q", s.value(), s.problem())
	}
	for _, bad := range []string{"", " \n", "two tokens", strings.Repeat("x", maxSecretFile+1)} {
		meshtest.ReplaceFile(t, path, bad)
		if s.refresh() || s.value() != "first" || !strings.Contains(s.problem(), "of before") || strings.Contains(s.problem(), "two") {
			t.Errorf("after %.10q: token %q, problem %.100q", bad, s.value(), s.problem())
		}
	}
	meshtest.ReplaceFile(t, path, "second")
	if !s.refresh() || s.value() != "second" || s.problem() != "" {
		t.Errorf("%q, %q", s.value(), s.problem())
	}
	if s.String() != path || !s.gone() || s.gone() {
		t.Error("a token is gone once")
	}
	meshtest.ReplaceFile(t, path, "third")
	if !s.refresh() || !s.gone() {
		t.Error("another token can be gone again")
	}
	none := &secret{path: path + ".missing"}
	if none.refresh() || !strings.Contains(none.problem(), "without a token") {
		t.Errorf("%q", none.problem())
	}
}

// An intention for everybody is taken away, and for a moment the agent still
// decides by it. What it allowed must not become the default.
func TestDefaultIsNotWhatAnIntentionSaid(t *testing.T) {
	meshtest.Leaks(t)
	f := meshtest.NewFakeConsul(t)
	f.SetDefault(false)
	f.SetIntentions("shop", &api.Intention{SourceName: "*", DestinationName: "shop", Action: api.IntentionActionAllow, Precedence: 8})
	var h heard
	run(t, h.options(f.Address), hurry, Wanted{Intentions: []string{"shop"}})
	eventually(t, "the intention", func() bool { return h.intentions("shop") == "deny: *+8" })
	f.Break("/v1/agent/connect/authorize", meshtest.Fault{
		Body:  meshtest.Text(`{"Authorized":true,"Reason":"Matched L4 intention: default/* => default/shop (Precedence: 8, Action: ALLOW)"}`),
		Times: 3,
	})
	f.SetIntentions("shop")
	eventually(t, "none, and by default deny", func() bool {
		got := h.intentions("shop")
		if got == "allow:" {
			t.Fatal("everybody is allowed")
		}
		return got == "deny:"
	})
}
