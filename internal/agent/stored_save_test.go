package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meshd/internal/config"
	"meshd/internal/consul"
	"meshd/internal/identity"
	"meshd/internal/mesh"
	"meshd/internal/snapshot"
)

// offline is as much of an agent as a picture on disk needs. Its Consul is
// never asked.
func offline(t *testing.T, dir string, log *slog.Logger) *Agent {
	t.Helper()
	a := &Agent{
		log: log, identity: identity.NewStore(),
		boot: &config.Config{
			Agent:    config.Agent{DataDir: dir, PersistKeys: true, KeyFile: filepath.Join(dir, "snapshot.key")},
			Consul:   config.Consul{Enabled: true, Address: "127.0.0.1:1", Stale: config.Stale{DropAfter: time.Hour}},
			Identity: config.Identity{Provider: "consul"},
		},
	}
	a.catalog.changed = make(chan struct{}, 1)
	var err error
	if a.consul, err = consul.New(consul.Options{Address: a.boot.Consul.Address, Log: log}); err != nil {
		t.Fatal(err)
	}
	a.stored.init(a)
	return a
}

func fact(port uint16, updated time.Time) mesh.CatalogService {
	return mesh.CatalogService{Port: port, Source: "consul", Updated: updated, Endpoints: []mesh.Endpoint{
		{ID: "api-1", Address: netip.MustParseAddrPort("10.0.0.1:21900"), Service: "api", Weight: 1, Healthy: true},
	}}
}

// contacted is the status of a Consul that has answered just now.
func contacted() *consul.Status {
	return &consul.Status{Watches: []consul.WatchStatus{{Kind: consul.KindRoots, Confirmed: time.Now()}}}
}

var apiKey = mesh.ServiceKey{Name: "api"}

// The disk is written for what is new, not for what is the same again, and
// tells when it could not be.
func TestSavesWhatChanged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	a := offline(t, dir, slog.New(slog.NewTextHandler(&log, nil)))
	s := &a.stored
	now := time.Now()
	written := func() bool {
		_, err := os.Stat(s.o.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		os.Remove(s.o.Path)
		return err == nil
	}
	consulSaid := func(at time.Time) *consul.Status {
		return &consul.Status{Watches: []consul.WatchStatus{{Kind: consul.KindRoots, Confirmed: at}, {Kind: consul.KindService, Name: "other"}}}
	}
	status := consulSaid(now)
	a.catalog.put(apiKey, fact(8080, now))
	s.save(now, consulSaid(time.Time{}), true)
	if written() {
		t.Error("an agent that Consul has told nothing wrote that down")
	}
	s.save(now, status, false)
	if !written() {
		t.Error("a new fact was not written")
	}
	a.catalog.put(apiKey, fact(8080, now.Add(time.Second)))
	s.save(now, status, false)
	if written() {
		t.Error("the same fact was written again")
	}
	a.catalog.put(apiKey, fact(8081, now))
	a.catalog.putChain(apiKey, mesh.Chain{Protocol: mesh.HTTP})
	a.catalog.putIntentions("web", mesh.Intentions{Updated: now})
	s.save(now, status, false)
	if !written() {
		t.Error("a changed fact was not written")
	}
	a.catalog.putIntentions("web", mesh.Intentions{Updated: now, Default: mesh.Allowed})
	s.save(now, status, false)
	if !written() {
		t.Error("a changed permission was not written")
	}

	// What Consul confirms is written once a minute, and at the end.
	status = consulSaid(now.Add(time.Second))
	s.save(now.Add(confirmEvery-time.Second), status, false)
	if written() {
		t.Error("a confirmation was written at once")
	}
	s.save(now.Add(confirmEvery), status, false)
	if !written() {
		t.Error("a confirmation was not written after a minute")
	}
	status = consulSaid(now.Add(2 * time.Second))
	s.save(now.Add(confirmEvery), status, true)
	if !written() {
		t.Error("a confirmation was not written at the end")
	}

	// The disk is away: told once, shown, tried again, mended.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	a.catalog.put(apiKey, fact(8082, now))
	for range 3 {
		s.save(now, status, false)
	}
	if _, err := a.storedState(); err == nil || len(s.problems()) != 1 || strings.Count(log.String(), "cannot be stored") != 1 {
		t.Errorf("error %v, problems %v, log:\n%s", err, s.problems(), log.String())
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.save(now, status, false)
	if saved, err := a.storedState(); err != nil || !saved.Equal(now) || len(s.problems()) != 0 || !written() {
		t.Errorf("saved %s, error %v, problems %v", saved, err, s.problems())
	}
}

// A fact is as young as its last confirmation by Consul itself.
func TestConfirmedFacts(t *testing.T) {
	now := time.Now()
	old := now.Add(-time.Hour)
	c := &catalog{changed: make(chan struct{}, 1)}
	elsewhere, query := mesh.ServiceKey{Name: "api", Datacenter: "dc2"}, mesh.ServiceKey{Name: "api", Query: true}
	for _, k := range []mesh.ServiceKey{apiKey, elsewhere, query} {
		c.put(k, fact(1, old))
		c.putChain(k, mesh.Chain{Updated: old})
	}
	c.putIntentions("api", mesh.Intentions{Updated: old})
	at := func(minutes time.Duration) time.Time { return old.Add(minutes * time.Minute) }
	got := c.confirmed(&consul.Status{Watches: []consul.WatchStatus{
		{Kind: consul.KindService, Name: "api", Confirmed: at(10), Behind: time.Minute},
		{Kind: consul.KindService, Name: "api", Datacenter: "dc2", Confirmed: at(-10)},
		{Kind: consul.KindQuery, Name: "api", Confirmed: at(20)},
		{Kind: consul.KindChain, Name: "api", Confirmed: at(30)},
		{Kind: consul.KindIntentions, Name: "api", Confirmed: at(40)},
		{Kind: consul.KindLeaf, Name: "api", Confirmed: at(50)},
		{Kind: consul.KindService, Name: "unknown", Confirmed: at(50)},
	}})
	for name, times := range map[string][2]time.Time{
		"service, from a cache":    {got.Services[apiKey].Updated, at(9)},
		"service, newer than that": {got.Services[elsewhere].Updated, old},
		"prepared query":           {got.Services[query].Updated, at(20)},
		"chain":                    {got.Chains[apiKey].Updated, at(30)},
		"chain elsewhere":          {got.Chains[elsewhere].Updated, old},
		"permissions":              {got.Intentions["api"].Updated, at(40)},
	} {
		if !times[0].Equal(times[1]) {
			t.Errorf("%s: %s, want %s", name, times[0], times[1])
		}
	}
	if len(got.Services) != 3 || !c.take().Services[apiKey].Updated.Equal(old) {
		t.Error("what the catalog itself holds was written")
	}
}

// Whatever became of the file, the agent starts, and nothing is known, trusted
// or allowed by it.
func TestStartsWithAnyFile(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	a := offline(t, dir, log)
	a.catalog.put(apiKey, fact(8080, time.Now()))
	a.catalog.putIntentions("web", mesh.Intentions{Updated: time.Now(), Default: mesh.Allowed})
	a.stored.save(time.Now(), contacted(), true)
	whole, err := os.ReadFile(a.stored.o.Path)
	if err != nil {
		t.Fatal(err)
	}
	if got := offline(t, dir, log).catalog.take(); len(got.Services) != 1 || got.Intentions["web"].Default != mesh.Allowed {
		t.Fatalf("the file as it was: %+v", got) // or the rest proves nothing
	}
	r := rand.New(rand.NewPCG(5, 6))
	for n := range 1000 {
		m := append([]byte(nil), whole...)
		switch n % 4 {
		case 0:
			m[r.IntN(len(m))] ^= 1 << r.IntN(8)
		case 1:
			m = m[:r.IntN(len(m))]
		case 2:
			m = nil
		case 3:
			m = []byte(strings.Replace(string(m), "snapshot 1 ", fmt.Sprintf("snapshot %d ", 2+n), 1))
		}
		if err := os.WriteFile(a.stored.o.Path, m, 0o600); err != nil {
			t.Fatal(err)
		}
		b := offline(t, dir, log)
		if c := b.catalog.take(); len(c.Services)+len(c.Chains)+len(c.Intentions)+len(b.identity.Roots().Roots)+len(b.identity.Leafs()) > 0 {
			t.Fatalf("mutation %d: %+v is believed of\n%s", n, c, m)
		}
	}
}

// A host that takes its certificates from elsewhere keeps none, and makes no key.
func TestStoredWithoutConsulsCertificates(t *testing.T) {
	dir := t.TempDir()
	a := offline(t, dir, slog.New(slog.DiscardHandler))
	a.boot.Identity.Provider = "dev"
	os.Remove(a.boot.Agent.KeyFile)
	a.stored = stored{}
	a.stored.init(a)
	a.stored.setRoots("x.consul", nil)
	a.catalog.put(apiKey, fact(1, time.Now()))
	a.stored.save(time.Now(), contacted(), true)
	st, err := snapshot.Load(snapshot.Options{Path: a.stored.o.Path})
	if err != nil || st.TrustDomain != "" || len(st.Catalog.Services) != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := os.Stat(a.boot.Agent.KeyFile); err == nil {
		t.Error("a key was made")
	}
}
