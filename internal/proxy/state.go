package proxy

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"meshd/internal/breaker"
	"meshd/internal/telemetry"
)

// What outlives pictures is here: an upstream, service, endpoint or target
// keeps its state, and its slot in the loops' arrays, as long as its key stays
// in force. Only the publishing goroutine makes and forgets them; loops reach
// them through pointers in the picture.

// upstreamState is one per upstream name.
type upstreamState struct {
	name   string
	slot   int // index into picture.outbound
	series *telemetry.Series
	shards []*telemetry.Shard // by loop
	usage  usage
}

// serviceState is one per local service instance.
type serviceState struct {
	id     string
	slot   int // index into picture.inbound and worker.pools
	series *telemetry.Series
	shards []*telemetry.Shard
	usage  usage
}

// usage counts what limits bound, over all loops: atomic words on a cache line
// of their own. They are the only words that loops share on the way of a
// request; with one loop they never leave its core.
type usage struct {
	_           [64]byte
	connections atomic.Int64
	pending     atomic.Int64
	requests    atomic.Int64
	_           [40]byte
}

// take counts one more if that stays within limit; 0 is no limit.
func take(n *atomic.Int64, limit int) bool {
	if v := n.Add(1); limit > 0 && v > int64(limit) {
		n.Add(-1)
		return false
	}
	return true
}

// endpointState is one per endpoint of an upstream (mesh.Endpoint.Key).
type endpointState struct {
	slot     int // index into worker.eps
	breaker  breaker.Breaker
	lastErr  atomic.Pointer[string] // why the last dial failed, for status
	openedBy atomic.Pointer[string] // why the breaker opened last, for status
}

// opened notes with what the attempt ended that opened the breaker.
func (e *endpointState) opened(o Outcome, status int) {
	why := o.String()
	switch dial := e.lastErr.Load(); {
	case o == OK:
		why = fmt.Sprintf("status %d", status)
	case dial != nil && (o == ConnectFailed || o == HandshakeFailed):
		why += ": " + *dial
	}
	e.openedBy.Store(&why)
}

// targetKey names the links that may be shared: same caller, same called
// service, same peer.
type targetKey struct {
	caller, service, datacenter string
	address                     netip.AddrPort
}

// target is one per targetKey.
type target struct {
	targetKey
	slot int // index into worker.links
}

// slots hands out small numbers and takes them back, so that arrays indexed by
// them stay as small as what is in force.
type slots struct {
	free []int
	next int
}

func (s *slots) get() int {
	if n := len(s.free); n > 0 {
		v := s.free[n-1]
		s.free = s.free[:n-1]
		return v
	}
	s.next++
	return s.next - 1
}

func (s *slots) put(v int) { s.free = append(s.free, v) }
