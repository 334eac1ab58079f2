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
	kept        kept // of connections, those to an application that nothing runs on
	_           [32]byte
}

// kept counts the idle connections to an application in all loops' pools. A
// loop that may open no more claims one that another loop keeps: it opens its
// own at once and the other loop closes one as soon as it can. Both numbers are
// in one word, so that their sum is how many there are: the lower half are free,
// the upper half claimed.
type kept struct{ word atomic.Uint64 }

const (
	oneFree    = 1
	oneClaimed = 1 << 32
	freeMask   = oneClaimed - 1
)

// add is for a connection that a pool has taken in.
func (k *kept) add() { k.word.Add(oneFree) }

// reuse takes a free one; false leaves all as it was, since the others are claimed.
func (k *kept) reuse() bool { return k.change(freeMask, ^uint64(oneFree-1)) }

// claim makes a free one a claimed one.
func (k *kept) claim() bool { return k.change(freeMask, oneClaimed-oneFree) }

// pay takes a claimed one, to be closed.
func (k *kept) pay() bool { return k.change(^uint64(freeMask), ^uint64(oneClaimed-1)) }

// claimed tells whether there is one to be closed.
func (k *kept) claimed() bool { return k.word.Load()&^freeMask != 0 }

// drop is for one that is closed, whatever for: it pays if one is claimed.
func (k *kept) drop() {
	if !k.pay() {
		k.word.Add(^uint64(oneFree - 1))
	}
}

// change adds delta if what mask selects is not 0.
func (k *kept) change(mask, delta uint64) bool {
	for {
		v := k.word.Load()
		if v&mask == 0 {
			return false
		}
		if k.word.CompareAndSwap(v, v+delta) {
			return true
		}
	}
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
