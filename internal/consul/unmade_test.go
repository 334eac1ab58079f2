package consul

import (
	"testing"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
)

// What a restarted Consul agent says before it has looked changes nothing; what
// it says after that does.
func TestChecksThatWereNotMadeYet(t *testing.T) {
	key := mesh.ServiceKey{Name: "web"}
	before, _, _ := endpoints([]*api.ServiceEntry{instanceOf("web-1", nil)}, key, false)
	tcp := api.HealthCheck{CheckID: "peer", Type: "tcp", Status: "critical"}
	for _, c := range []struct {
		name   string
		before []mesh.Endpoint
		checks api.HealthChecks
		want   bool
	}{
		{"not made yet", before, api.HealthChecks{&tcp}, true},
		{"not made yet, beside a passing one", before, api.HealthChecks{&tcp, {CheckID: "serfHealth", Status: "passing"}}, true},
		{"not made yet, and never healthy", nil, api.HealthChecks{&tcp}, false},
		{"made", before, api.HealthChecks{{CheckID: "peer", Type: "tcp", Status: "critical", Output: "connection refused"}}, false},
		{"another is critical", before, api.HealthChecks{&tcp, {CheckID: "app", Type: "http", Status: "critical", Output: "503"}}, false},
		{"a silent ttl", before, api.HealthChecks{{CheckID: "ttl", Type: "ttl", Status: "critical"}}, false},
		{"a silent script", before, api.HealthChecks{{CheckID: "s", Type: "script", Status: "critical"}}, false},
		{"maintenance", before, api.HealthChecks{{CheckID: "_service_maintenance:x", Type: "maintenance", Status: "critical"}}, false},
		{"the node is gone", before, api.HealthChecks{&tcp, {CheckID: "serfHealth", Status: "critical"}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			entries := []*api.ServiceEntry{instanceOf("web-1", func(e *api.ServiceEntry) { e.Checks = c.checks }), nil}
			eps, _, _ := endpoints(entries, key, false)
			keepUnjudged(eps, unjudged(entries, key, false), c.before)
			if len(eps) != 1 || eps[0].Healthy != c.want {
				t.Errorf("%+v, want healthy %v", eps, c.want)
			}
		})
	}
}
