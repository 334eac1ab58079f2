// Package telemetry counts what the data path does and tells it: to Prometheus,
// to status, to the access log.
//
// Each loop has a [Shard] of each [Series] and is the only one to write it, so
// counting takes no lock and no core waits for another one's cache line.
// Readers add the shards up: [Series.Totals] for status and its [Window], a
// Prometheus collector for /metrics. What is not counted but simply the case
// (endpoints, breakers, certificates, generation) is told by the agent at the
// moment of the scrape, as [Gauges].
//
// The package does not decide what is worth counting, what an outcome means or
// where the log goes. It is the only one that imports the Prometheus client,
// and never touches that client's default registry. proxy and agent may import
// it. Every metric is described in docs/metrics.md; a test compares both.
package telemetry
