package telemetry

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// maxScrapes bounds concurrent scrapes: two Prometheus servers and a person.
	maxScrapes = 3
	// scrapeTimeout is Prometheus's own default.
	scrapeTimeout = 10 * time.Second
)

// Handler returns what serves /metrics: the series, the gauges, and the Go and
// process metrics of the client library. gauges is called once per scrape, from
// the scraper's goroutine and possibly from several at a time.
func (r *Registry) Handler(gauges func() Gauges) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collector{registry: r, gauges: gauges, now: time.Now},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		// One series that cannot be told is no reason to tell nothing.
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
	})
}

// metric is a metric of meshd with its labels.
type metric struct {
	desc   *prometheus.Desc
	name   string
	kind   prometheus.ValueType
	labels []string
}

// kindHistogram marks a histogram; the client has no ValueType for it.
const kindHistogram prometheus.ValueType = 0

func define(kind prometheus.ValueType, name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc(name, help, labels, nil), name, kind, labels}
}

func counter(name, help string, labels ...string) metric {
	return define(prometheus.CounterValue, name, help, labels...)
}

func gauge(name, help string, labels ...string) metric {
	return define(prometheus.GaugeValue, name, help, labels...)
}

// The metrics, as docs/metrics.md explains them. Units are part of the names.
var (
	requests    = counter("meshd_requests_total", "Exchanges that ended: HTTP requests or TCP connections.", "direction", "name", "protocol", "code_class", "outcome")
	duration    = define(kindHistogram, "meshd_request_duration_seconds", "Duration of the exchanges that ended.", "direction", "name", "protocol")
	attempts    = counter("meshd_attempts_total", "Tries of exchanges at endpoints.", "direction", "name", "protocol")
	connsOpen   = gauge("meshd_connections_active", "Connections with applications that are open.", "direction", "name", "protocol")
	connsTotal  = counter("meshd_connections_total", "Connections with applications that were opened.", "direction", "name", "protocol")
	bytesTotal  = counter("meshd_bytes_total", "Payload received from and sent to applications.", "direction", "name", "protocol", "flow")
	links       = gauge("meshd_links", "Live mTLS links to and from other agents.", "direction", "name")
	streams     = gauge("meshd_streams", "Exchanges in flight on live links.", "direction", "name")
	handshaking = gauge("meshd_handshakes_active", "TLS handshakes with other agents that go on.")
	handshakes  = counter("meshd_handshakes_total", "TLS handshakes with other agents that ended.", "result")
	breakers    = gauge("meshd_breaker_state", "Endpoints by the state of their circuit breaker.", "upstream", "state")
	endpoints   = gauge("meshd_endpoints", "Endpoints by the health that the catalog states.", "upstream", "state")
	catalogAge  = gauge("meshd_catalog_age_seconds", "Time since the registry last confirmed the endpoints.", "upstream")
	refused     = gauge("meshd_upstream_refused", "Whether nothing is forwarded for the upstream by what the registry says of it (1) or not (0).", "upstream")
	certExpiry  = gauge("meshd_certificate_expiry_timestamp_seconds", "When the certificate of the service expires.", "service")
	listeners   = gauge("meshd_listeners", "Listeners by state.", "state")
	reloadOK    = gauge("meshd_reload_success", "Whether the last attempt to load the configuration worked (1) or not (0).")
	reloadTime  = gauge("meshd_reload_timestamp_seconds", "When the configuration in force was loaded.")
	generation  = gauge("meshd_generation", "Number of the picture in force.")
	loopLoad    = gauge("meshd_loop_load_ratio", "Share of one core that the loop used lately.", "loop")
	consulUp    = gauge("meshd_consul_reachable", "Whether Consul answered last time (1) or not (0).")
	consulTotal = counter("meshd_consul_queries_total", "Queries to Consul by what they ask for and result.", "kind", "result")
	consulBack  = counter("meshd_consul_index_resets_total", "How often the index of a blocking query went back.", "kind")
	consulWatch = gauge("meshd_consul_watches", "Watches by what they ask for and whether the last query worked.", "kind", "state")
	consulAge   = gauge("meshd_consul_age_seconds", "Time since Consul confirmed the watch that waits longest.", "kind")
	consulReg   = gauge("meshd_consul_registrations", "Offered services by how they stand in Consul.", "state")
	consulWrite = counter("meshd_consul_registration_writes_total", "Changes made to registrations in Consul.")
	consulRight = gauge("meshd_consul_denied", "Rights that the token lacks.")
	consulHeld  = gauge("meshd_consul_held_endpoints", "Endpoints in use although their nodes are gone by Consul's gossip.")
	stored      = gauge("meshd_stored_timestamp_seconds", "When the last good picture was written to disk.")
	dnsTotal    = counter("meshd_dns_responses_total", "Answers of the name server by response code.", "rcode")
	buildInfo   = gauge("meshd_build_info", "Always 1; the version is a label.", "version")
)

// metrics lists them all: what Describe tells and docs/metrics.md must explain.
var metrics = []metric{
	requests, duration, attempts, connsOpen, connsTotal, bytesTotal,
	links, streams, handshaking, handshakes,
	breakers, endpoints, catalogAge, refused, certExpiry, listeners,
	reloadOK, reloadTime, generation, loopLoad, stored,
	consulUp, consulTotal, consulBack, consulWatch, consulAge, consulReg, consulWrite, consulRight, consulHeld,
	dnsTotal, buildInfo,
}

// collector turns series and gauges into samples at each scrape.
type collector struct {
	registry *Registry
	gauges   func() Gauges
	now      func() time.Time
}

// Describe implements [prometheus.Collector].
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- m.desc
	}
}

// Collect implements [prometheus.Collector].
func (c collector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.registry.all() {
		s.collect(ch)
	}
	g := c.gauges()
	g.collect(ch, c.now())
}
