package telemetry

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

var update = flag.Bool("update", false, "rewrite testdata; read the difference before it is committed")

// example is a registry and gauges that make every metric appear.
func example() (*Registry, Gauges) {
	r := New(2, []string{"ok", "timeout", "client_closed"}, "client_closed")
	web := r.Series(Outbound, "world", "http")
	for i := range 2 {
		sh := web.Shard(i)
		sh.ConnOpened()
		sh.Attempts(3)
		sh.Bytes(100, 2000)
		sh.Exchange(0, 2, int64(700*time.Microsecond))
		sh.Exchange(0, 5, int64(40*time.Millisecond))
	}
	web.Shard(1).ConnClosed()
	web.Shard(1).Exchange(1, 0, int64(15*time.Second))
	web.Shard(1).Exchange(2, 0, int64(time.Minute))
	db := r.Series(Inbound, "db", "tcp").Shard(0)
	db.ConnOpened()
	db.ConnClosed()
	db.Exchange(0, 0, int64(2*time.Hour))
	return r, Gauges{
		Version:    "1.2.3",
		Generation: 7,
		ReloadOK:   true,
		ReloadTime: start.Add(-time.Hour),
		Upstreams: []UpstreamGauge{
			{Name: "world", Healthy: 4, Total: 5, BreakersOpen: 1, BreakersHalfOpen: 1, CatalogUpdated: start.Add(-90 * time.Second)},
			{Name: "by-hand", Healthy: 1, Total: 1},
			{Name: "split", Refused: true},
		},
		Certificates:       []CertificateGauge{{Service: "hello", NotAfter: start.Add(72 * time.Hour)}},
		Links:              []LinkGauge{{Outbound, "world", 2, 9}, {Inbound, "db", 1, 0}},
		Loops:              []LoopGauge{{0, 0.5}, {1, 0}},
		Listeners:          4,
		ListenersFailed:    1,
		HandshakesInFlight: 3,
		Handshakes:         map[string]uint64{"ok": 12, "wrong_service": 1},
		Consul: ConsulGauge{Used: true, Reachable: true, Kinds: []ConsulKind{
			{Kind: "service", Queries: 40, Errors: 2, Resets: 1, Watches: 3, Failing: 1, Oldest: start.Add(-30 * time.Second)},
			{Kind: OtherKind, Queries: 9},
		}, Registrations: map[string]int{"registered": 1, "failed": 0}, Writes: 2, Denied: 1, Held: 6},
		StoredTime:   start.Add(-5 * time.Second),
		DNSResponses: map[string]uint64{"NOERROR": 5, "REFUSED": 1},
	}
}

// gatherer tells the metrics of meshd alone, at the moment start.
func gatherer(t *testing.T, r *Registry, g Gauges) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(collector{registry: r, gauges: func() Gauges { return g }, now: func() time.Time { return start }}); err != nil {
		t.Fatal(err)
	}
	return reg
}

func scrape(t *testing.T, h http.Handler) string {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if rec.Code != http.StatusOK {
		t.Fatalf("status %d: %s", rec.Code, rec.Body)
	}
	return rec.Body.String()
}

func exposition(t *testing.T, r *Registry, g Gauges) string {
	t.Helper()
	return scrape(t, promhttp.HandlerFor(gatherer(t, r, g), promhttp.HandlerOpts{}))
}

func TestExposition(t *testing.T) {
	const file = "testdata/exposition.txt"
	r, g := example()
	got := exposition(t, r, g)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the exposition differs from %s (run with -update and read the difference):\n%s", file, got)
	}
}

// The example must show every metric, or golden file and lint would miss one.
func TestEveryMetricAppears(t *testing.T) {
	r, g := example()
	text := exposition(t, r, g)
	for _, m := range metrics {
		if !strings.Contains(text, "# TYPE "+m.name+" "+m.typeName()+"\n") {
			t.Errorf("%s %s does not appear", m.typeName(), m.name)
		}
	}
}

// What is empty or unknown says nothing wrong.
func TestExpositionOfNothing(t *testing.T) {
	text := exposition(t, New(1, []string{"ok"}), Gauges{})
	for _, absent := range []string{"meshd_reload_timestamp_seconds", "meshd_consul", "meshd_requests", "meshd_catalog", "meshd_stored"} {
		if strings.Contains(text, absent) {
			t.Errorf("%s appears:\n%s", absent, text)
		}
	}
	for _, present := range []string{"meshd_generation 0\n", "meshd_reload_success 0\n", "meshd_listeners{state=\"open\"} 0\n"} {
		if !strings.Contains(text, present) {
			t.Errorf("%q is missing:\n%s", present, text)
		}
	}
}

func TestNamesPassTheLinter(t *testing.T) {
	r, g := example()
	families, err := gatherer(t, r, g).Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestHandlerServesRuntimeAndProcessToo(t *testing.T) {
	r, g := example()
	calls := 0
	text := scrape(t, r.Handler(func() Gauges { calls++; return g }))
	for _, name := range []string{"go_goroutines", "process_open_fds", "meshd_generation"} {
		if !strings.Contains(text, "\n"+name+" ") {
			t.Errorf("%s is missing", name)
		}
	}
	if calls != 1 {
		t.Errorf("gauges were asked for %d times in one scrape", calls)
	}
}

// A name that Prometheus cannot express costs its own samples, not the scrape.
func TestOneBadNameDoesNotHideTheRest(t *testing.T) {
	r, g := example()
	r.Series(Outbound, "bad\xff", "http").Shard(0).Exchange(0, 2, 1)
	g.Certificates = append(g.Certificates, CertificateGauge{Service: "\xff"})
	text := scrape(t, r.Handler(func() Gauges { return g }))
	if !strings.Contains(text, `meshd_connections_total{direction="outbound",name="world",protocol="http"} 2`) {
		t.Errorf("the others are missing:\n%s", text)
	}
}

// docs/metrics.md lists what the code has, and the code has what it lists.
func TestMetricsAreDocumented(t *testing.T) {
	raw, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	row := regexp.MustCompile("(?m)^\\| `(meshd_[a-z0-9_]+)` \\| (\\w+) \\|([^|]*)\\|[^|]*\\| .+ \\|$")
	label := regexp.MustCompile("`([a-z_]+)`")
	documented := make(map[string]string)
	for _, m := range row.FindAllStringSubmatch(doc, -1) {
		var labels []string
		for _, l := range label.FindAllStringSubmatch(m[3], -1) {
			labels = append(labels, l[1])
		}
		documented[m[1]] = fmt.Sprint(m[2], labels)
	}
	for _, m := range metrics {
		want := fmt.Sprint(m.typeName(), m.labels)
		switch got := documented[m.name]; {
		case got == "":
			t.Errorf("%s %s is not in docs/metrics.md", m.name, want)
		case got != want:
			t.Errorf("docs/metrics.md says %s is %s, the code %s", m.name, got, want)
		}
		delete(documented, m.name)
		for _, l := range m.labels {
			if !regexp.MustCompile("(?m)^\\| [^|]*`" + l + "`[^|]* \\| [^|]+ \\|$").MatchString(doc) {
				t.Errorf("the table of labels has no row for %s", l)
			}
		}
	}
	for name := range documented {
		t.Errorf("docs/metrics.md has %s, the code has not", name)
	}
	// Any other mention must be of a metric that exists, or of its buckets.
	names := make([]string, 0, len(metrics))
	for _, m := range metrics {
		names = append(names, m.name)
	}
	for _, word := range regexp.MustCompile(`meshd_[a-z0-9_]+`).FindAllString(doc, -1) {
		if !slices.Contains(names, strings.TrimSuffix(word, "_bucket")) {
			t.Errorf("docs/metrics.md mentions %s, which does not exist", word)
		}
	}
	var list []string
	for _, b := range bounds {
		list = append(list, fmt.Sprint(float64(b)/1e9))
	}
	if want := "\n    " + strings.Join(list, " ") + "\n"; !strings.Contains(doc, want) {
		t.Errorf("docs/metrics.md does not list the bounds:%s", want)
	}
}

func (m metric) typeName() string {
	switch m.kind {
	case prometheus.CounterValue:
		return "counter"
	case prometheus.GaugeValue:
		return "gauge"
	}
	return "histogram"
}

func TestSeriesOrder(t *testing.T) {
	keys := []seriesKey{{Inbound, "a", "tcp"}, {Outbound, "b", "http"}, {Outbound, "a", "tcp"}, {Outbound, "a", "http"}}
	slices.SortFunc(keys, seriesKey.compare)
	want := []seriesKey{{Outbound, "a", "http"}, {Outbound, "a", "tcp"}, {Outbound, "b", "http"}, {Inbound, "a", "tcp"}}
	if !slices.Equal(keys, want) {
		t.Errorf("order is %v", keys)
	}
}

// The cost of a scrape on a large host: 1,000 upstreams, four loops.
func BenchmarkScrapeThousandUpstreams(b *testing.B) {
	r := New(4, make([]string, 20))
	g := Gauges{}
	for i := range 1000 {
		name := fmt.Sprintf("upstream-%d", i)
		r.Series(Outbound, name, "http").Shard(0).Exchange(0, 2, 1e6)
		g.Upstreams = append(g.Upstreams, UpstreamGauge{Name: name, Healthy: 20, Total: 20, CatalogUpdated: start})
	}
	h := r.Handler(func() Gauges { return g })
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
	}
}
