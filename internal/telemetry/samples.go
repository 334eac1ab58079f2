package telemetry

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// classNames are the values of the label code_class.
var classNames = [classes]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

// send writes one sample of m. The client refuses label values that are no
// UTF-8; such a sample becomes an error of the scrape and not a panic.
func (m metric) send(ch chan<- prometheus.Metric, value float64, labels ...string) {
	s, err := prometheus.NewConstMetric(m.desc, m.kind, value, labels...)
	if err != nil {
		s = prometheus.NewInvalidMetric(m.desc, err)
	}
	ch <- s
}

// collect sends the samples of one series. Of the many combinations of class
// and outcome only those that happened are told.
func (s *Series) collect(ch chan<- prometheus.Metric) {
	t := s.Totals()
	d, n, p := s.key.direction.String(), s.key.name, s.key.protocol
	for o := range t.exchanges {
		for c, v := range t.exchanges[o] {
			if v > 0 {
				requests.send(ch, float64(v), d, n, p, classNames[c], s.registry.outcomes[o])
			}
		}
	}
	attempts.send(ch, float64(t.Attempts), d, n, p)
	connsOpen.send(ch, float64(t.Active), d, n, p)
	connsTotal.send(ch, float64(t.Opened), d, n, p)
	bytesTotal.send(ch, float64(t.Received), d, n, p, "received")
	bytesTotal.send(ch, float64(t.Sent), d, n, p, "sent")

	buckets := make(map[float64]uint64, len(bounds))
	for i, v := range t.Latency.cumulative() {
		buckets[float64(bounds[i])/1e9] = v
	}
	h, err := prometheus.NewConstHistogram(duration.desc, t.Latency.Count(), t.Latency.Sum().Seconds(), buckets, d, n, p)
	if err != nil {
		h = prometheus.NewInvalidMetric(duration.desc, err)
	}
	ch <- h
}

// collect sends the samples of what is the case at now.
func (g *Gauges) collect(ch chan<- prometheus.Metric, now time.Time) {
	buildInfo.send(ch, 1, g.Version)
	generation.send(ch, float64(g.Generation))
	reloadOK.send(ch, truth(g.ReloadOK))
	if !g.ReloadTime.IsZero() {
		reloadTime.send(ch, unixSeconds(g.ReloadTime))
	}
	for _, u := range g.Upstreams {
		endpoints.send(ch, float64(u.Healthy), u.Name, "healthy")
		endpoints.send(ch, float64(u.Total-u.Healthy), u.Name, "unhealthy")
		breakers.send(ch, float64(u.Total-u.BreakersOpen-u.BreakersHalfOpen), u.Name, "closed")
		breakers.send(ch, float64(u.BreakersOpen), u.Name, "open")
		breakers.send(ch, float64(u.BreakersHalfOpen), u.Name, "half-open")
		if !u.CatalogUpdated.IsZero() {
			catalogAge.send(ch, max(now.Sub(u.CatalogUpdated), 0).Seconds(), u.Name)
		}
		refused.send(ch, truth(u.Refused), u.Name)
	}
	for _, c := range g.Certificates {
		certExpiry.send(ch, unixSeconds(c.NotAfter), c.Service)
	}
	for _, l := range g.Links {
		links.send(ch, float64(l.Links), l.Direction.String(), l.Name)
		streams.send(ch, float64(l.Streams), l.Direction.String(), l.Name)
	}
	for _, l := range g.Loops {
		loopLoad.send(ch, l.Load, strconv.Itoa(l.Index))
	}
	listeners.send(ch, float64(g.Listeners), "open")
	listeners.send(ch, float64(g.ListenersFailed), "failed")
	handshaking.send(ch, float64(g.HandshakesInFlight))
	handshakes.sendEach(ch, g.Handshakes)
	dnsTotal.sendEach(ch, g.DNSResponses)
	if !g.StoredTime.IsZero() {
		stored.send(ch, unixSeconds(g.StoredTime))
	}
	if g.Consul.Used {
		g.Consul.collect(ch, now)
	}
}

func (c *ConsulGauge) collect(ch chan<- prometheus.Metric, now time.Time) {
	consulUp.send(ch, truth(c.Reachable))
	for _, k := range c.Kinds {
		consulTotal.send(ch, float64(k.Queries), k.Kind, "ok")
		consulTotal.send(ch, float64(k.Errors), k.Kind, "error")
		if k.Kind == OtherKind {
			continue
		}
		consulBack.send(ch, float64(k.Resets), k.Kind)
		consulWatch.send(ch, float64(k.Watches-k.Failing), k.Kind, "ok")
		consulWatch.send(ch, float64(k.Failing), k.Kind, "failing")
		if !k.Oldest.IsZero() {
			consulAge.send(ch, max(now.Sub(k.Oldest), 0).Seconds(), k.Kind)
		}
	}
	for _, state := range slices.Sorted(maps.Keys(c.Registrations)) {
		consulReg.send(ch, float64(c.Registrations[state]), state)
	}
	consulWrite.send(ch, float64(c.Writes))
	consulRight.send(ch, float64(c.Denied))
	consulHeld.send(ch, float64(c.Held))
}

// sendEach writes a sample of m for each value of its only label.
func (m metric) sendEach(ch chan<- prometheus.Metric, values map[string]uint64) {
	for _, label := range slices.Sorted(maps.Keys(values)) {
		m.send(ch, float64(values[label]), label)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
