package agent_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/snapshot"
)

// startLimit is the promise: so long after the start, at most, a host whose
// Consul is away serves from disk.
const startLimit = 2 * time.Second

func (h *host) file() string { return filepath.Join(h.data(), "snapshot") }

// stored reads what the host has on disk.
func (h *host) stored() snapshot.State {
	h.t.Helper()
	o := snapshot.Options{Path: h.file()}
	if _, err := os.Stat(h.file() + ".key"); err == nil {
		if o.Key, err = snapshot.LoadKey(h.file() + ".key"); err != nil {
			h.t.Fatal(err)
		}
	}
	s, err := snapshot.Load(o)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// age rewrites the file as if every fact in it were that old.
func (h *host) age(d time.Duration) {
	h.t.Helper()
	s, then := h.stored(), time.Now().Add(-d)
	for k, f := range s.Catalog.Services {
		f.Updated = then
		s.Catalog.Services[k] = f
	}
	for k, f := range s.Catalog.Intentions {
		f.Updated = then
		s.Catalog.Intentions[k] = f
	}
	s.Saved, s.Contact = then, then
	key, err := snapshot.LoadKey(h.file() + ".key")
	if err == nil {
		err = snapshot.Save(snapshot.Options{Path: h.file(), Key: key}, s)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// couple is a host that calls and one that answers, up once with Consul and
// stopped after Consul had gone.
type couple struct {
	consul         *meshtest.FakeConsul
	web, api       *host
	webText, text  string
	agentWas       string // what web's listener was
	confirmedUntil time.Time
}

func newCouple(t *testing.T, inAgent string) *couple {
	return newCoupleIn(meshtest.NewFakeConsul(t), t, inAgent)
}

func newCoupleIn(c *meshtest.FakeConsul, t *testing.T, inAgent string) *couple {
	app := meshtest.HTTPEcho(t, "api")
	p := &couple{consul: c, web: newHost(t, "host-a", ""), api: newHost(t, "host-b", "")}
	p.web.inAgent = inAgent
	p.webText = p.web.withConsul(p.consul, offer("web", 9, "nobody")+call("api", ""))
	p.text = p.api.withConsul(p.consul, offer("api", app.Port(), "web"))
	p.web.start(p.webText)
	p.api.start(p.text)
	p.web.awaitReady()
	p.api.awaitReady()
	eventually(t, func() error {
		if u := p.web.upstream("api"); u.Healthy != 1 {
			return fmt.Errorf("upstream %+v", u)
		}
		return nil
	})
	expectEcho(t, p.web.url("api"), "api")
	p.agentWas = p.web.url("api")
	p.consul.Down()
	p.confirmedUntil = time.Now()
	p.web.stop()
	p.api.stop()
	return p
}

// serves waits until web reaches api and returns how long that took.
func (p *couple) serves(t *testing.T) time.Duration {
	t.Helper()
	started := time.Now()
	p.api.start(p.text)
	p.web.start(p.webText)
	eventually(t, func() error {
		if p.web.agent.Snapshot() == nil {
			return errors.New("no picture yet")
		}
		status, header, _, err := get(p.agentWas) // the address has not moved either
		if err != nil || status != 200 {
			return fmt.Errorf("status %d, meshd-error %q, %v", status, header.Get("meshd-error"), err)
		}
		return nil
	})
	return time.Since(started)
}

// A reboot while Consul is away still gives a working mesh, and says what it is
// made of. When Consul is back, it is Consul's again.
func TestStartWithoutConsul(t *testing.T) {
	meshtest.Leaks(t)
	p := newCouple(t, "")
	took := p.serves(t)
	t.Logf("two agents served %s after their start, without Consul", took.Round(time.Millisecond))
	if took > startLimit {
		t.Errorf("it took %s, at most %s is promised", took, startLimit)
	}
	o := p.web.agent.Snapshot().Lookup("api")
	if o.Source != snapshot.Source || o.Refused != "" || o.Updated.After(p.confirmedUntil) {
		t.Errorf("source %q, refused %q, confirmed %s, Consul has been away since %s", o.Source, o.Refused, o.Updated, p.confirmedUntil)
	}
	if u := p.web.upstream("api"); u.Source != snapshot.Source || !u.StaleSince.Equal(o.Updated) {
		t.Errorf("upstream %+v, want it stale since %s", u, o.Updated)
	}
	if c := p.web.status().Catalog; c.Reachable || c.StaleSince.IsZero() || c.StaleSince.After(p.confirmedUntil) {
		t.Errorf("catalog %+v", c)
	}
	if n := strings.Count(p.web.log.String(), "last good picture was read"); n != 1 {
		t.Errorf("%d lines tell that the picture comes from disk", n)
	}
	// Stopped again without having heard of Consul: nothing is lost or made younger.
	before := p.web.stored()
	p.web.stop()
	after := p.web.stored()
	if !after.Contact.Equal(before.Contact) || len(after.Leafs) != 1 || after.Leafs[0].Key == nil || len(after.Roots) != 1 {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
	for k, f := range before.Catalog.Services {
		if got := after.Catalog.Services[k]; !got.Updated.Equal(f.Updated) {
			t.Errorf("%v was confirmed at %s, now at %s", k, f.Updated, got.Updated)
		}
	}

	p.web.start(p.webText)
	p.consul.Up()
	eventually(t, func() error {
		if o := p.web.agent.Snapshot(); o == nil || o.Lookup("api").Source != "consul" {
			return errors.New("Consul is back, the picture is not Consul's yet")
		}
		return nil
	})
	expectEcho(t, p.web.url("api"), "api")
}

// A Consul that takes connections and never answers holds nobody up.
func TestStartWithSilentConsul(t *testing.T) {
	meshtest.Leaks(t)
	p := newCouple(t, "")
	mend := p.consul.Break("/", meshtest.Fault{Hang: true})
	p.consul.Up()
	took := p.serves(t)
	t.Logf("two agents served %s after their start, with a silent Consul", took.Round(time.Millisecond))
	if took > startLimit {
		t.Errorf("it took %s, at most %s is promised", took, startLimit)
	}
	if o := p.web.agent.Snapshot().Lookup("api"); o.Source != snapshot.Source {
		t.Errorf("source %q", o.Source)
	}
	mend()
}

// An agent that is killed has its picture on the disk, too.
func TestPictureIsStoredWhileRunning(t *testing.T) {
	meshtest.Leaks(t)
	c := meshtest.NewFakeConsul(t)
	a := newHost(t, "host-a", "")
	a.start(a.withConsul(c, offer("web", 9, "nobody")))
	a.awaitReady()
	eventually(t, func() error {
		_, err := os.Stat(a.file())
		return err
	})
	if s := a.stored(); len(s.Leafs) != 1 || s.Leafs[0].Key == nil || len(s.Roots) != 1 || s.TrustDomain != c.CA().TrustDomain {
		t.Errorf("%+v", s)
	}
}

// Permissions are those that Consul stated last; without them nobody gets in.
func TestPermissionsWithoutConsul(t *testing.T) {
	meshtest.Leaks(t)
	c := meshtest.NewFakeConsul(t)
	c.SetDefault(false)
	c.SetIntentions("api", &api.Intention{
		SourceName: "web", DestinationName: "api", Precedence: 9, Action: api.IntentionActionAllow,
	})
	p := newCoupleIn(c, t, "")
	expect := func(from string, allowed bool, reason string) {
		t.Helper()
		got, err := p.api.agent.TestPolicy(from, "api")
		if err != nil || len(got.Instances) != 1 || got.Allowed != allowed || got.Instances[0].Reason != reason {
			t.Errorf("%s to api: %+v, %v; want %v, %s", from, got, err, allowed, reason)
		}
	}
	p.text = strings.Replace(p.text, `allow "web" {}`, "", 1) // Consul alone decides
	p.serves(t)
	expect("web", true, "allowed")
	expect("other", false, "default_denies")
	p.api.stop()

	if err := os.Truncate(p.api.file(), 100); err != nil {
		t.Fatal(err)
	}
	p.api.start(p.text)
	eventually(t, func() error {
		if p.api.agent.Snapshot() == nil {
			return errors.New("no picture yet")
		}
		return nil
	})
	expect("web", false, "no_information")
	expect("other", false, "no_information")
}

// Without keys on disk a start without Consul knows everything but has nothing
// to show to a peer.
func TestKeysAreNotPersisted(t *testing.T) {
	meshtest.Leaks(t)
	p := newCouple(t, "persist_keys = false")
	b, err := os.ReadFile(p.web.file())
	if err != nil || bytes.Contains(b, []byte("sealed_key")) || bytes.Contains(b, []byte("PRIVATE")) {
		t.Errorf("the file has keys, or is not there: %v", err)
	}
	if entries, err := os.ReadDir(p.web.data()); err != nil || len(entries) == 0 {
		t.Errorf("%v, %v", entries, err)
	} else {
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".key") {
				t.Errorf("%s was made for nothing", e.Name())
			}
		}
	}
	p.web.start(p.webText)
	eventually(t, func() error {
		if p.web.agent.Snapshot() == nil {
			return errors.New("no picture yet")
		}
		return nil
	})
	if o := p.web.agent.Snapshot().Lookup("api"); o.Source != snapshot.Source || o.Healthy != 1 {
		t.Errorf("upstream %+v", o)
	}
	if id := p.web.status().Identity; id.Roots != 1 || len(id.Missing) != 1 || id.Missing[0] != "web" {
		t.Errorf("identity %+v", id)
	}
	if status, _, _, err := get(p.agentWas); err != nil || status != 503 {
		t.Errorf("status %d, %v; nobody can be called without a certificate", status, err)
	}
}

// The first start after persist_keys was turned off takes them from the disk,
// whether Consul answers or not.
func TestKeysAreForgotten(t *testing.T) {
	meshtest.Leaks(t)
	p := newCouple(t, "")
	if s := p.web.stored(); len(s.Leafs) != 1 || s.Leafs[0].Key == nil {
		t.Fatalf("leafs %+v", s.Leafs)
	}
	p.web.inAgent = "persist_keys = false"
	p.web.start(p.webText)
	p.web.stop()
	if s := p.web.stored(); len(s.Leafs) != 0 || len(s.Roots) != 1 || len(s.Catalog.Services) != 1 {
		t.Errorf("%+v", s)
	}
}

// What is older than drop_after is not used, from the start and from the moment
// on at which it gets too old.
func TestDropAfter(t *testing.T) {
	meshtest.Leaks(t)
	p := newCouple(t, "")
	const limit = 24 * time.Hour // the default
	refused := func() error {
		s := p.web.agent.Snapshot()
		if s == nil {
			return errors.New("no picture yet")
		}
		if o := s.Lookup("api"); o.Refused != mesh.RefusedStale || len(o.Endpoints) != 0 {
			return fmt.Errorf("refused %q, endpoints %v", o.Refused, o.Endpoints)
		}
		if status, _, _, err := get(p.agentWas); err != nil || status != 503 {
			return fmt.Errorf("status %d, %v", status, err)
		}
		return nil
	}
	p.web.age(limit + time.Minute)
	p.web.start(p.webText)
	eventually(t, refused)
	if id := p.web.status().Identity; id.Roots != 0 || len(id.Missing) != 1 {
		t.Errorf("identity %+v of a file that is too old", id)
	}
	p.web.stop()

	const left = 4 * time.Second
	p.web.age(limit - left)
	began := time.Now()
	p.serves(t)
	eventually(t, refused)
	if d := time.Since(began); d < left {
		t.Errorf("refused after %s, %s before its time", d, left-d)
	}
	p.consul.Up()
	eventually(t, func() error {
		if status, header, _, err := get(p.agentWas); err != nil || status != 200 {
			return fmt.Errorf("Consul is back: status %d, meshd-error %q, %v", status, header.Get("meshd-error"), err)
		}
		return nil
	})
}

// A file that is not ours to the last bit is as none, is told once and kept for
// whoever wants to know why.
func TestDamagedPicture(t *testing.T) {
	meshtest.Leaks(t)
	p := newCouple(t, "")
	whole, err := os.ReadFile(p.web.file())
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for name, content := range map[string][]byte{
		"emptied": nil, "cut": whole[:len(whole)-7], "flipped": flipped,
		"future": bytes.Replace(whole, []byte("snapshot 1 "), []byte("snapshot 9 "), 1),
	} {
		if err := os.WriteFile(p.web.file(), content, 0o600); err != nil {
			t.Fatal(err)
		}
		p.web.log = &logBuffer{}
		p.web.start(p.webText)
		eventually(t, func() error {
			if p.web.agent.Snapshot() == nil {
				return errors.New("no picture yet")
			}
			return nil
		})
		if o := p.web.agent.Snapshot().Lookup("api"); o.Known || len(o.Endpoints) != 0 {
			t.Errorf("%s: upstream %+v", name, o)
		}
		if id := p.web.status().Identity; id.Roots != 0 || len(id.Missing) != 1 {
			t.Errorf("%s: identity %+v", name, id)
		}
		p.web.stop()
		log := p.web.log.String()
		if n := strings.Count(log, "part=snapshot"); n != 1 || !strings.Contains(log, "snapshot.damaged-1") {
			t.Errorf("%s: %d lines, want 1 that names the file:\n%s", name, n, log)
		}
		if kept, err := os.ReadFile(p.web.file() + ".damaged-1"); err != nil || !bytes.Equal(kept, content) {
			t.Errorf("%s: what was set aside is not what was there: %v", name, err)
		}
		if _, err := os.Stat(p.web.file()); err == nil {
			t.Errorf("%s: an agent that learned nothing wrote a picture", name)
		}
	}
}

// A key that is lost costs the keys, not the rest.
func TestLostKey(t *testing.T) {
	meshtest.Leaks(t)
	p := newCouple(t, "")
	if err := os.Remove(p.web.file() + ".key"); err != nil {
		t.Fatal(err)
	}
	p.web.start(p.webText)
	eventually(t, func() error {
		if p.web.agent.Snapshot() == nil {
			return errors.New("no picture yet")
		}
		return nil
	})
	if o := p.web.agent.Snapshot().Lookup("api"); o.Healthy != 1 {
		t.Errorf("upstream %+v", o)
	}
	if log := p.web.log.String(); strings.Count(log, "sealed under another key") != 1 {
		t.Errorf("log:\n%s", log)
	}
	p.web.stop()

	// One that others can read is none, and is told.
	if err := os.Chmod(p.web.file()+".key", 0o644); err != nil {
		t.Fatal(err)
	}
	p.web.start(p.webText)
	eventually(t, func() error {
		for _, problem := range p.web.status().Problems {
			if strings.Contains(problem.Why, "mode 0644") {
				return nil
			}
		}
		return errors.New("no problem names the key file")
	})
}
