package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/admin"
	"meshd/internal/meshtest"
)

// long is true when stories take the time that their figures are about. Every
// run tells the same story; the ordinary one waits less.
func long() bool { return os.Getenv("MESHD_LONG") == "1" }

// atLeast gives a story's duration: the short one, or the one in full.
func atLeast(short, full time.Duration) time.Duration {
	if long() {
		return full
	}
	return short
}

// registry is a Consul that denies by default, spoken to by HTTPS.
type registry struct {
	*meshtest.SecuredServer
	t *testing.T
}

func secured(t *testing.T, o meshtest.ConsulOptions) *registry {
	t.Helper()
	return &registry{meshtest.SecuredConsulWith(t, o), t}
}

// host makes one whose token may do what meshctl consul policy prints for body,
// and nothing else. address is that of Consul or of what stands before it; more
// goes into the consul block. The agent is not started.
func (r *registry) host(name, address, more, body string) (h *host, token string) {
	r.t.Helper()
	h = newHost(r.t, name, "")
	h.trust = fmt.Sprintf("consul {\n  address    = %q\n  token_file = %q\n  tls {\n    ca_file   = %q\n    cert_file = %q\n    key_file  = %q\n  }\n%s\n}\n",
		address, h.tokenFile(), r.CAFile, r.CertFile, r.KeyFile, more)
	h.write(body)
	code, policy, stderr := execute(r.t, "meshctl", "consul", "policy", h.path())
	if code != 0 {
		r.t.Fatalf("meshctl consul policy: exit %d: %s", code, stderr)
	}
	token = r.Token(policy)
	h.setToken(token)
	return h, token
}

func (h *host) tokenFile() string { return filepath.Join(h.dir, "token") }

func (h *host) setToken(token string) { meshtest.ReplaceFile(h.t, h.tokenFile(), token+"\n") }

// intend states who may call; "" takes the intention away.
func (r *registry) intend(from, to string, action api.IntentionAction) {
	r.t.Helper()
	var err error
	if action == "" {
		_, err = r.Client.Connect().IntentionDeleteExact(from, to, nil)
	} else {
		_, err = r.Client.Connect().IntentionUpsert(&api.Intention{SourceType: api.IntentionSourceConsul, SourceName: from, DestinationName: to, Action: action}, nil)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// instances is the configuration of a service with an instance per application.
func instances(service string, apps ...*meshtest.App) (body string) {
	for _, app := range apps {
		body += offer(service, app.Port(), "http", fmt.Sprintf("  id = %q", app.Name))
	}
	return body
}

// healthy lists the endpoints of an upstream that the catalog calls so.
func (h *host) healthy(upstream string) []string {
	ids := []string{}
	for _, e := range h.upstream(upstream).Endpoints {
		if e.Healthy {
			ids = append(ids, e.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// awaitHealthy returns how long it took until exactly these are healthy.
func (h *host) awaitHealthy(upstream string, since time.Time, want ...string) time.Duration {
	h.t.Helper()
	h.eventually(fmt.Sprintf("%s has %v", upstream, want), func() error {
		if got := h.healthy(upstream); !slices.Equal(got, want) {
			return fmt.Errorf("it has %v", got)
		}
		return nil
	})
	return time.Since(since)
}

// awaitAllowed returns how long it took until the host's answer is that one.
func (h *host) awaitAllowed(from, to string, since time.Time, want bool) time.Duration {
	h.t.Helper()
	h.eventually(fmt.Sprintf("%s may call %s: %t", from, to, want), func() error {
		p, err := admin.NewClient(h.socket()).TestPolicy(context.Background(), from, to)
		if err == nil && p.Allowed != want {
			err = fmt.Errorf("allowed: %t", p.Allowed)
		}
		return err
	})
	return time.Since(since)
}

// awaitServed returns when a request through the upstream was answered 200.
func (h *host) awaitServed(upstream string) {
	h.t.Helper()
	h.eventually("a first answer of "+upstream, func() error {
		status, header, _, err := get(h.url(upstream))
		if err == nil && status != 200 {
			err = fmt.Errorf("%d, %s", status, header.Get("meshd-error"))
		}
		return err
	})
}

// awaitCalm returns when no watch of the host is in trouble.
func (h *host) awaitCalm() {
	h.t.Helper()
	h.eventually("no watch is in trouble", func() error {
		c := h.status().Catalog
		for _, w := range c.Watches {
			if w.Error != "" {
				return fmt.Errorf("%s %s: %s", w.Kind, w.Name, w.Error)
			}
		}
		if !c.Reachable || len(c.Denied) > 0 {
			return fmt.Errorf("reachable %t, denied %v", c.Reachable, c.Denied)
		}
		return nil
	})
}

// failures is how many requests have failed so far.
func (l *load) failures() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.failed)
}

// resting puts an instance into maintenance, by the registry, or out of it.
func (r *registry) resting(h *host, service string, app *meshtest.App, yes bool) {
	r.t.Helper()
	id := fmt.Sprintf("%s-%s-%d-sidecar-proxy", h.name, service, app.Port())
	err := r.Client.Agent().DisableServiceMaintenance(id)
	if yes {
		err = r.Client.Agent().EnableServiceMaintenance(id, "story")
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// lastUntil returns then: what a story measures takes that long.
func lastUntil(end time.Time) {
	for time.Now().Before(end) {
		time.Sleep(min(20*time.Millisecond, time.Until(end)))
	}
}
