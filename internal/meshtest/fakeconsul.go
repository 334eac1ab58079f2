package meshtest

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// firstIndex is where a fake's index starts: well above 1, as in a Consul that
// has registered itself.
const firstIndex = 10

// FakeConsul speaks as much of Consul's HTTP API as meshd uses and can be
// broken on purpose (see Break). Proxies that are registered with it appear in
// the health of their service; SetService states endpoints without that.
type FakeConsul struct {
	Address    string // HOST:PORT
	Datacenter string // "dc1"

	t      testing.TB
	server *http.Server
	served chan struct{} // closed when the server of now has ended

	mu       sync.Mutex // guards what follows
	index    uint64
	changed  chan struct{} // closed and replaced with every change
	ca       *CA
	roots    []*CA // newest last
	leafs    map[string]*api.LeafCert
	stated   map[serviceIn][]*api.ServiceEntry
	local    map[string]*api.AgentServiceRegistration
	checks   map[string]string // by service id: status other than passing
	resting  map[string]string // services in maintenance, by id, with the reason
	dropped  map[string]bool   // checks that were removed one by one
	chains   map[string]any    // by service, what /v1/discovery-chain answers
	allow    bool              // what holds where no intention does
	intended map[string][]*api.Intention
	queries  map[string]any // by name, what execute answers
	faults   []*brokenPath
	requests []string // METHOD PATH
	tokens   map[string]int
}

// serviceIn is a service in a datacenter.
type serviceIn struct{ name, datacenter string }

// NewFakeConsul starts a fake that ends with the test.
func NewFakeConsul(t testing.TB) *FakeConsul {
	t.Helper()
	f := &FakeConsul{
		t: t, Datacenter: "dc1", index: firstIndex, changed: make(chan struct{}),
		leafs: make(map[string]*api.LeafCert), stated: make(map[serviceIn][]*api.ServiceEntry),
		local: make(map[string]*api.AgentServiceRegistration), checks: make(map[string]string),
		tokens: make(map[string]int), resting: make(map[string]string), dropped: make(map[string]bool),
		chains: make(map[string]any), intended: make(map[string][]*api.Intention), queries: make(map[string]any), allow: true,
	}
	f.ca = NewCA(t, "11111111-2222-3333-4444-555555555555.consul", f.Datacenter)
	f.roots = []*CA{f.ca}
	f.Address = FreeAddr(t).String()
	f.Up()
	t.Cleanup(f.Down)
	return f
}

// Down closes the port and every connection. It may be called twice.
func (f *FakeConsul) Down() {
	f.mu.Lock()
	server, served := f.server, f.served
	f.server = nil
	f.mu.Unlock()
	if server != nil {
		server.Close()
		<-served
	}
}

// Up listens again on the same port after Down.
func (f *FakeConsul) Up() {
	f.t.Helper()
	l, err := net.Listen("tcp", f.Address)
	if err != nil {
		f.t.Fatalf("meshtest: fake consul: %v", err)
	}
	server, served := &http.Server{Handler: f.handler()}, make(chan struct{})
	f.mu.Lock()
	f.server, f.served = server, served
	f.mu.Unlock()
	go func() { // Down waits for it
		defer close(served)
		server.Serve(l)
	}()
}

// change runs f with the lock held and lets every waiting query answer.
func (f *FakeConsul) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	f.index++
	close(f.changed)
	f.changed = make(chan struct{})
}

// Index returns the index of now.
func (f *FakeConsul) Index() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.index
}

// Rewind sets the index, as a Consul restored from a backup would have it, and
// lets every waiting query answer with it.
func (f *FakeConsul) Rewind(index uint64) {
	f.change(func() { f.index = index - 1 })
}

// SetService states the endpoints of a service in the fake's datacenter, none
// for emptiness.
func (f *FakeConsul) SetService(name string, entries ...*api.ServiceEntry) {
	f.SetServiceIn(f.Datacenter, name, entries...)
}

// SetServiceIn is SetService for another datacenter.
func (f *FakeConsul) SetServiceIn(datacenter, name string, entries ...*api.ServiceEntry) {
	f.change(func() { f.stated[serviceIn{name, datacenter}] = entries })
}

// Entry makes an instance for SetService: a proxy on a node of its own, one
// passing check, weight 1.
func (f *FakeConsul) Entry(service, id string, at netip.AddrPort, natural uint16) *api.ServiceEntry {
	return &api.ServiceEntry{
		Node: &api.Node{Node: "node-" + id, Address: at.Addr().String(), Datacenter: f.Datacenter},
		Service: &api.AgentService{
			Kind: api.ServiceKindConnectProxy, ID: id + "-sidecar-proxy", Service: service + "-sidecar-proxy",
			Address: at.Addr().String(), Port: int(at.Port()), Weights: api.AgentWeights{Passing: 1, Warning: 1},
			Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: service, DestinationServiceID: id,
				LocalServiceAddress: "127.0.0.1", LocalServicePort: int(natural)},
		},
		Checks: api.HealthChecks{{CheckID: "peer", Name: "peer", Status: api.HealthPassing}},
	}
}

// Register puts somebody else's service into the local agent.
func (f *FakeConsul) Register(reg *api.AgentServiceRegistration) {
	f.change(func() { f.local[reg.ID] = reg })
}

// Forget removes a registration behind its owner's back.
func (f *FakeConsul) Forget(id string) {
	f.change(func() { delete(f.local, id) })
}

// Registered returns what is registered with the local agent, by id.
func (f *FakeConsul) Registered() map[string]*api.AgentServiceRegistration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.local)
}

// SetCheck sets the status of the checks of a registered id, api.HealthPassing
// being what they have without it.
func (f *FakeConsul) SetCheck(id, status string) {
	f.change(func() { f.checks[id] = status })
}

// SetMaintenance puts a registered service into maintenance for a reason, or
// takes it out with "".
func (f *FakeConsul) SetMaintenance(id, reason string) {
	f.change(func() {
		if f.resting[id] = reason; reason == "" {
			delete(f.resting, id)
		}
	})
}

// Maintenance returns the services in maintenance, by id, with the reason.
func (f *FakeConsul) Maintenance() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.resting)
}

// ForgetAll is an agent that comes back without any local service, check or
// maintenance.
func (f *FakeConsul) ForgetAll() {
	f.change(func() { clear(f.local); clear(f.checks); clear(f.resting); clear(f.dropped) })
}

// SetChain replaces the whole answer of /v1/discovery-chain/SERVICE, nil for
// the one that a service without configuration entries has.
func (f *FakeConsul) SetChain(service string, answer any) {
	f.change(func() { f.chains[service] = answer })
}

// DefaultChain is what Consul compiles of no configuration entry at all.
func (f *FakeConsul) DefaultChain(service, protocol string) *api.DiscoveryChainResponse {
	id := service + ".default.default." + f.Datacenter
	return &api.DiscoveryChainResponse{Chain: &api.CompiledDiscoveryChain{
		ServiceName: service, Namespace: "default", Datacenter: f.Datacenter, Default: true, Protocol: protocol, StartNode: "resolver:" + id,
		Nodes: map[string]*api.DiscoveryGraphNode{"resolver:" + id: {
			Type: api.DiscoveryGraphNodeTypeResolver, Name: id,
			Resolver: &api.DiscoveryResolver{Default: true, ConnectTimeout: 5 * time.Second, Target: id},
		}},
		Targets: map[string]*api.DiscoveryTarget{id: {ID: id, Service: service, Namespace: "default", Datacenter: f.Datacenter}},
	}}
}

// SetIntentions states who may call a service, in the order of evaluation.
func (f *FakeConsul) SetIntentions(service string, in ...*api.Intention) {
	f.change(func() { f.intended[service] = in })
}

// SetDefault says what holds where no intention does. At first everything is
// allowed, as in a Consul without ACLs.
func (f *FakeConsul) SetDefault(allow bool) {
	f.change(func() { f.allow = allow })
}

// SetQuery states what a prepared query finds: a service, in a datacenter.
func (f *FakeConsul) SetQuery(name, service, datacenter string, entries ...*api.ServiceEntry) {
	if entries == nil {
		entries = []*api.ServiceEntry{}
	}
	f.change(func() {
		f.queries[name] = map[string]any{"Service": service, "Datacenter": datacenter, "Nodes": entries}
	})
}

// CA returns the CA that signs leafs now.
func (f *FakeConsul) CA() *CA {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ca
}

// RenewLeaf replaces the leaf of a service; change, nil for none, has its way
// with the template.
func (f *FakeConsul) RenewLeaf(service string, change func(*x509.Certificate)) {
	f.change(func() { f.leafs[service] = f.issue(service, change) })
}

// ReplaceCA makes a new CA active and keeps the old root beside it until
// DropOldRoots. All leafs are made anew.
func (f *FakeConsul) ReplaceCA() {
	f.change(func() {
		f.ca = NewCA(f.t, f.ca.TrustDomain, f.Datacenter)
		f.roots = append(f.roots, f.ca)
		for service := range f.leafs {
			f.leafs[service] = f.issue(service, nil)
		}
	})
}

// DropOldRoots leaves the active root only.
func (f *FakeConsul) DropOldRoots() {
	f.change(func() { f.roots = []*CA{f.ca} })
}

// issue makes a leaf. f.mu is held.
func (f *FakeConsul) issue(service string, change func(*x509.Certificate)) *api.LeafCert {
	cert, key := f.ca.LeafPEM(f.t, service, change)
	return &api.LeafCert{CertPEM: cert, PrivateKeyPEM: key, Service: service, ModifyIndex: f.index + 1}
}

// Requests counts the requests whose "METHOD /path" begins so, for example
// "GET /v1/health/".
func (f *FakeConsul) Requests(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

// Tokens returns the tokens that requests came with and how often; "" is none.
func (f *FakeConsul) Tokens() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.tokens)
}

func (f *FakeConsul) handler() http.Handler {
	mux := http.NewServeMux()
	health := f.blocking(func(r *http.Request) any {
		return f.health(r.PathValue("name"), r.URL.Query().Get("dc"))
	})
	mux.HandleFunc("GET /v1/health/connect/{name}", func(w http.ResponseWriter, r *http.Request) {
		// As Consul 1.20 does: what was asked with an index comes from a
		// stream, and then the leader is never known.
		header := w.Header()
		if header.Set("X-Consul-Query-Backend", "blocking-query"); r.URL.Query().Get("index") != "" {
			header.Set("X-Consul-Query-Backend", "streaming")
			header.Set("X-Consul-KnownLeader", "false")
		}
		health(w, r)
	})
	roots := f.blocking(func(*http.Request) any { return f.rootList() })
	mux.HandleFunc("GET /v1/agent/connect/ca/roots", roots)
	mux.HandleFunc("GET /v1/connect/ca/roots", roots)
	mux.HandleFunc("GET /v1/agent/connect/ca/leaf/{name}", f.blocking(func(r *http.Request) any {
		name := r.PathValue("name")
		if f.leafs[name] == nil {
			f.leafs[name] = f.issue(name, nil)
		}
		return f.leafs[name]
	}))
	mux.HandleFunc("GET /v1/agent/services", func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		all := make(map[string]*api.AgentService)
		for id, reg := range f.local {
			all[id] = agentService(reg)
		}
		writeJSON(w, all)
	})
	mux.HandleFunc("GET /v1/agent/checks", func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		writeJSON(w, f.localChecks())
	})
	mux.HandleFunc("PUT /v1/agent/check/deregister/{id}", func(w http.ResponseWriter, r *http.Request) {
		f.change(func() { f.dropped[r.PathValue("id")] = true })
	})
	mux.HandleFunc("PUT /v1/agent/service/maintenance/{id}", func(w http.ResponseWriter, r *http.Request) {
		reason := ""
		if r.URL.Query().Get("enable") == "true" {
			reason = cmp.Or(r.URL.Query().Get("reason"), "Maintenance mode is enabled")
		}
		f.SetMaintenance(r.PathValue("id"), reason)
	})
	mux.HandleFunc("GET /v1/discovery-chain/{name}", f.blocking(func(r *http.Request) any {
		name := r.PathValue("name")
		if chain := f.chains[name]; chain != nil {
			return chain
		}
		return f.DefaultChain(name, "tcp")
	}))
	mux.HandleFunc("GET /v1/connect/intentions/match", f.blocking(func(r *http.Request) any {
		name := r.URL.Query().Get("name")
		return map[string][]*api.Intention{name: f.intended[name]}
	}))
	mux.HandleFunc("GET /v1/connect/intentions/check", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, map[string]bool{"Allowed": f.allowed(r.URL.Query().Get("source"), r.URL.Query().Get("destination"))})
	})
	mux.HandleFunc("POST /v1/agent/connect/authorize", func(w http.ResponseWriter, r *http.Request) {
		var ask struct{ Target, ClientCertURI string }
		if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
			http.Error(w, "Request decode failed", http.StatusBadRequest)
			return
		}
		writeJSON(w, map[string]any{"Authorized": f.allowed(path.Base(ask.ClientCertURI), ask.Target), "Reason": "said the fake"})
	})
	mux.HandleFunc("GET /v1/query/{name}/execute", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		found := f.queries[r.PathValue("name")]
		if found == nil {
			http.Error(w, "Query not found", http.StatusNotFound)
			return
		}
		writeJSON(w, found)
	})
	mux.HandleFunc("PUT /v1/agent/service/register", func(w http.ResponseWriter, r *http.Request) {
		var reg api.AgentServiceRegistration
		if err := json.NewDecoder(r.Body).Decode(&reg); err != nil || reg.Name == "" {
			http.Error(w, "Request decode failed", http.StatusBadRequest)
			return
		}
		if reg.ID == "" {
			reg.ID = reg.Name
		}
		f.change(func() {
			f.local[reg.ID] = &reg
			for _, c := range reg.Checks {
				delete(f.dropped, c.CheckID)
			}
			if r.URL.Query().Has("replace-existing-checks") {
				delete(f.resting, reg.ID) // it is a check like others
			}
		})
	})
	mux.HandleFunc("PUT /v1/agent/service/deregister/{id}", func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		known := false
		f.change(func() {
			_, known = f.local[id]
			delete(f.local, id)
			delete(f.resting, id)
		})
		if !known {
			http.Error(w, fmt.Sprintf("Unknown service ID %q", id), http.StatusNotFound)
		}
	})
	mux.HandleFunc("GET /v1/status/leader", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, "127.0.0.1:8300") })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, r.Method+" "+r.URL.Path)
		f.tokens[r.Header.Get("X-Consul-Token")]++
		fault := f.fault(r)
		f.mu.Unlock()
		if fault == nil {
			mux.ServeHTTP(w, r)
			return
		}
		fault.serve(w, r, mux)
	})
}

// maxWait is Consul's own bound on a blocking query.
const maxWait = 10 * time.Minute

// blocking answers when the index is above the one asked for, or the wait is
// over. get runs with f.mu held.
func (f *FakeConsul) blocking(get func(*http.Request) any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		asked, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
		wait, err := time.ParseDuration(r.URL.Query().Get("wait"))
		if err != nil || wait > maxWait {
			wait = maxWait / 2
		}
		over := time.NewTimer(wait)
		defer over.Stop()
		f.mu.Lock()
		// A query whose index is above ours waits as well: a real Consul does
		// not know that its own went back.
		start := f.index
		for asked != 0 && f.index <= asked && f.index >= start {
			changed := f.changed
			f.mu.Unlock()
			select {
			case <-changed:
			case <-r.Context().Done():
				return
			case <-over.C:
				asked = 0
			}
			f.mu.Lock()
		}
		index, body := f.index, get(r)
		f.mu.Unlock()
		w.Header().Set("X-Consul-Index", strconv.FormatUint(index, 10))
		if w.Header().Get("X-Consul-KnownLeader") == "" {
			w.Header().Set("X-Consul-KnownLeader", "true")
		}
		w.Header().Set("X-Consul-LastContact", "0")
		writeJSON(w, body)
	}
}

// health lists what is stated and what is registered. f.mu is held.
func (f *FakeConsul) health(name, datacenter string) []*api.ServiceEntry {
	if datacenter == "" {
		datacenter = f.Datacenter
	}
	all := slices.Clone(f.stated[serviceIn{name, datacenter}])
	if all == nil {
		all = []*api.ServiceEntry{}
	}
	if datacenter != f.Datacenter {
		return all
	}
	for _, id := range slices.Sorted(maps.Keys(f.local)) {
		reg := f.local[id]
		if reg.Kind != api.ServiceKindConnectProxy || reg.Proxy == nil || reg.Proxy.DestinationServiceName != name {
			continue
		}
		status := f.status(id)
		all = append(all, &api.ServiceEntry{
			Node:    &api.Node{Node: "fake", Address: "127.0.0.1", Datacenter: f.Datacenter},
			Service: agentService(reg),
			Checks:  api.HealthChecks{{CheckID: "service:" + id, ServiceID: id, Status: status}},
		})
	}
	return all
}

// allowed decides by the intentions that are stated.
func (f *FakeConsul) allowed(source, destination string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, in := range f.intended[destination] {
		if in.SourceName == source || in.SourceName == "*" {
			return in.Action == api.IntentionActionAllow
		}
	}
	return f.allow
}

// status is that of a service's checks. f.mu is held.
func (f *FakeConsul) status(id string) string {
	if reg := f.local[id]; f.resting[id] != "" || reg != nil && reg.Proxy != nil && f.resting[reg.Proxy.DestinationServiceID] != "" {
		return api.HealthCritical
	}
	return cmp.Or(f.checks[id], api.HealthPassing)
}

// localChecks lists the agent's checks. f.mu is held.
func (f *FakeConsul) localChecks() map[string]*api.AgentCheck {
	all := make(map[string]*api.AgentCheck)
	for id, reg := range f.local {
		for _, c := range reg.Checks {
			if !f.dropped[c.CheckID] {
				all[c.CheckID] = &api.AgentCheck{CheckID: c.CheckID, Name: c.Name, ServiceID: id, Notes: c.Notes, Status: f.status(id)}
			}
		}
		if reason := f.resting[id]; reason != "" {
			check := "_service_maintenance:" + id
			all[check] = &api.AgentCheck{CheckID: check, ServiceID: id, Notes: reason, Status: api.HealthCritical}
		}
	}
	return all
}

// rootList is what Consul trusts. f.mu is held.
func (f *FakeConsul) rootList() *api.CARootList {
	list := &api.CARootList{TrustDomain: f.ca.TrustDomain}
	for i, ca := range f.roots {
		id := fmt.Sprintf("root-%d", i)
		if ca == f.ca {
			list.ActiveRootID = id
		}
		list.Roots = append(list.Roots, &api.CARoot{ID: id, Name: id, RootCertPEM: ca.RootPEM(), Active: ca == f.ca})
	}
	return list
}

func agentService(reg *api.AgentServiceRegistration) *api.AgentService {
	weights := api.AgentWeights{Passing: 1, Warning: 1}
	if reg.Weights != nil {
		weights = *reg.Weights
	}
	return &api.AgentService{
		TaggedAddresses: reg.TaggedAddresses, EnableTagOverride: reg.EnableTagOverride,
		Kind: reg.Kind, ID: reg.ID, Service: reg.Name, Tags: reg.Tags, Meta: reg.Meta, Port: reg.Port,
		Address: reg.Address, Weights: weights, Proxy: reg.Proxy, Connect: reg.Connect,
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}
