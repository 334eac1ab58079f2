package agent_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/config"
	"meshd/internal/mesh"
	"meshd/internal/meshtest"
)

// withSecured is a configuration for a Consul that wants TLS and tokens.
func (h *host) withSecured(s *meshtest.SecuredServer, tokenFile, body string) string {
	h.ca = ""
	_, port, err := net.SplitHostPort(s.Address)
	if err != nil {
		h.t.Fatal(err)
	}
	return fmt.Sprintf(`
consul {
  address    = "127.0.0.1:%s"
  token_file = %q
  tls {
    ca_file   = %q
    cert_file = %q
    key_file  = %q
  }
}
`, port, tokenFile, s.CAFile, s.CertFile, s.KeyFile) + body
}

// rules is the policy that `meshctl consul policy` prints for the host.
func (h *host) rules(body string) string {
	h.t.Helper()
	h.write(body)
	cfg, err := config.Load(h.path())
	if err != nil {
		h.t.Fatal(err)
	}
	var lines []string
	for _, r := range mesh.Rights(cfg.Spec) {
		lines = append(lines, r.Rule())
	}
	return strings.Join(lines, "\n")
}

// Two agents, ACLs default-deny and TLS. A token that is revoked is told with
// what it hurts while traffic goes on; one put in its place heals it by itself.
func TestSecuredConsul(t *testing.T) {
	meshtest.Leaks(t)
	s := meshtest.SecuredConsul(t)
	app := meshtest.HTTPEcho(t, "api")
	a, b := newHost(t, "host-a", ""), newHost(t, "host-b", "")
	webBody := offer("web", 9) + call("api", "")
	apiBody := offer("api", app.Port())
	placeholder := meshtest.TokenFile(t, "none")
	token := s.Token(a.rules(a.withSecured(s, placeholder, webBody)))
	tokenFile := meshtest.TokenFile(t, token)
	a.start(a.withSecured(s, tokenFile, webBody))
	b.start(b.withSecured(s, meshtest.TokenFile(t, s.Token(b.rules(b.withSecured(s, placeholder, apiBody)))), apiBody))
	a.awaitReady()
	b.awaitReady()
	url := a.url("api")
	expect := func(status int, why string) {
		t.Helper()
		eventually(t, func() error {
			got, header, _, err := get(url)
			if err != nil || got != status || header.Get("meshd-error") != why {
				return fmt.Errorf("status %d, meshd-error %q, %v; want %d %q", got, header.Get("meshd-error"), err, status, why)
			}
			return nil
		})
	}
	expect(403, "denied") // no intention yet, and ACLs deny by default
	if r, err := b.agent.TestPolicy("web", "api"); err != nil || r.Allowed || r.Instances[0].Reason != "default_denies" {
		t.Errorf("policy test %+v, %v", r, err)
	}
	if _, _, err := s.Client.ConfigEntries().Set(&api.ServiceIntentionsConfigEntry{
		Kind: api.ServiceIntentions, Name: "api", Sources: []*api.SourceIntention{{Name: "web", Action: api.IntentionActionAllow}},
	}, nil); err != nil {
		t.Fatal(err)
	}
	expect(200, "")
	if d := append(a.agent.Catalog().Denied, b.agent.Catalog().Denied...); len(d) != 0 {
		t.Errorf("the printed policy lacks %+v", d)
	}

	s.Revoke(token)
	eventually(t, func() error {
		if p := a.problem("Consul denies"); p == "" {
			return fmt.Errorf("no problem is told: %+v", a.agent.Catalog())
		}
		return nil
	})
	var told []string
	for _, p := range a.status().Problems {
		told = append(told, p.What+": "+p.Why)
	}
	if text := strings.Join(told, "\n"); !strings.Contains(text, `api`) || !strings.Contains(text, tokenFile) {
		t.Errorf("problems\n%s\nname neither the upstream nor the token file %s", text, tokenFile)
	}
	expectEcho(t, url, "api")

	meshtest.ReplaceFile(t, tokenFile, s.Token(a.rules(a.withSecured(s, tokenFile, webBody))))
	replaced := time.Now()
	eventually(t, func() error {
		if c := a.agent.Catalog(); len(c.Denied) > 0 || !c.Reachable {
			return fmt.Errorf("still denied: %+v", c.Denied)
		}
		return nil
	})
	if d := time.Since(replaced); d > 5*time.Second {
		t.Errorf("healed %s after the token was replaced", d)
	} else {
		t.Logf("healed %s after the token was replaced", d)
	}
	expectEcho(t, url, "api")

	meshtest.ReplaceFile(t, tokenFile, "")
	eventually(t, func() error {
		if a.problem("a file that the consul block names") == "" {
			return fmt.Errorf("an empty token file is no problem")
		}
		return nil
	})
}
