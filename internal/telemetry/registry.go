package telemetry

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
)

// Direction is the side of the mesh an exchange was seen from.
type Direction uint8

// The directions: from and to the applications of this host.
const (
	Outbound Direction = iota
	Inbound
)

// String returns the word used as metric label and log field.
func (d Direction) String() string {
	if d == Inbound {
		return "inbound"
	}
	return "outbound"
}

// classes are the code classes an exchange can have: 0 for none (TCP, or no
// response), 1 to 5 for 1xx to 5xx.
const classes = 6

// Registry holds the series of an agent. Its methods may be called from any
// goroutine; none of them belongs on the way of a request.
type Registry struct {
	loops    int
	outcomes []string
	failed   []bool // by outcome

	mu     sync.Mutex // guards series
	series map[seriesKey]*Series
}

type seriesKey struct {
	direction Direction
	name      string
	protocol  string
}

func (a seriesKey) compare(b seriesKey) int {
	return cmp.Or(
		cmp.Compare(a.direction, b.direction),
		cmp.Compare(a.name, b.name),
		cmp.Compare(a.protocol, b.protocol),
	)
}

// New returns a registry for loops numbered from 0 to loops-1. outcomes is the
// closed list of the ways an exchange can end: an outcome's number is its index.
// The first one is the good one. The others count as failed, unless blameless
// names them: those for which nobody in the mesh can be blamed, such as a
// caller that went away.
func New(loops int, outcomes []string, blameless ...string) *Registry {
	r := &Registry{
		loops:    loops,
		outcomes: slices.Clone(outcomes),
		failed:   make([]bool, len(outcomes)),
		series:   make(map[seriesKey]*Series),
	}
	for i, o := range outcomes {
		r.failed[i] = i > 0 && !slices.Contains(blameless, o)
	}
	return r
}

// Outcomes returns the list given to New.
func (r *Registry) Outcomes() []string { return slices.Clone(r.outcomes) }

// Series returns the series of an upstream (Outbound) or service (Inbound), and
// makes it if it does not exist. The same arguments give the same Series until
// Forget drops it.
func (r *Registry) Series(d Direction, name string, protocol string) *Series {
	key := seriesKey{d, name, protocol}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.series[key]
	if s == nil {
		s = &Series{key: key, registry: r, shards: make([]Shard, r.loops)}
		for i := range s.shards {
			s.shards[i].exchanges = make([][classes]atomic.Uint64, len(r.outcomes)+2)[:len(r.outcomes)]
		}
		r.series[key] = s
	}
	return s
}

// Forget drops every series that keep does not want. Loops that still hold
// shards of it write on; nobody reads those.
func (r *Registry) Forget(keep func(d Direction, name string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.series {
		if !keep(key.direction, key.name) {
			delete(r.series, key)
		}
	}
}

// all returns the series in a stable order.
func (r *Registry) all() []*Series {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]*Series, 0, len(r.series))
	for _, s := range r.series {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *Series) int { return a.key.compare(b.key) })
	return list
}

// Series is what is counted for one upstream or service and protocol.
type Series struct {
	key      seriesKey
	registry *Registry
	shards   []Shard
}

// Shard returns the shard that the loop with this number writes.
func (s *Series) Shard(loop int) *Shard { return &s.shards[loop] }

// cacheLine keeps what two loops write apart; see Shard.
const cacheLine = 64

// Shard is the part of a series that one loop writes: its methods must be
// called from that loop only. Reading may happen at any time, hence atomics;
// they are uncontended, and a reader can see an exchange in one counter and not
// yet in another.
type Shard struct {
	_ [cacheLine]byte // the neighbour's counters end here

	opened, closed atomic.Uint64 // connections
	received, sent atomic.Uint64 // bytes
	attempts       atomic.Uint64
	nanos          atomic.Uint64 // sum of durations
	buckets        [bucketCount]atomic.Uint64
	exchanges      [][classes]atomic.Uint64 // by outcome
}

// Exchange counts an exchange that ended, once. outcome is its number in the
// list given to New, class the first digit of its status or 0 if it had none
// (then, and for TCP), nanos its duration in nanoseconds. An outcome or class
// that does not exist panics.
func (s *Shard) Exchange(outcome uint8, class uint8, nanos int64) {
	v := uint64(max(nanos, 0))
	s.exchanges[outcome][class].Add(1)
	s.buckets[counterOf(v)].Add(1)
	s.nanos.Add(v)
}

// Bytes counts payload received from and sent to the application.
func (s *Shard) Bytes(received, sent int64) {
	if received > 0 {
		s.received.Add(uint64(received))
	}
	if sent > 0 {
		s.sent.Add(uint64(sent))
	}
}

// ConnOpened counts a connection with an application.
func (s *Shard) ConnOpened() { s.opened.Add(1) }

// ConnClosed counts the end of one that ConnOpened counted, on whichever loop
// it ends.
func (s *Shard) ConnClosed() { s.closed.Add(1) }

// Attempts counts n tries of an exchange at an endpoint.
func (s *Shard) Attempts(n int) {
	if n > 0 {
		s.attempts.Add(uint64(n))
	}
}

// Totals is what a series has counted since it exists, or the difference of two
// such moments. Nobody writes it after it was returned.
type Totals struct {
	Requests  uint64          // exchanges that ended
	Failed    uint64          // of these, with a failed outcome (see New) or a 5xx status
	ByOutcome []uint64        // Requests by outcome number
	ByClass   [classes]uint64 // Requests by code class, 0 is none
	Attempts  uint64          // tries at endpoints

	Opened         uint64 // connections with applications
	Active         int64  // of these, still open
	Received, Sent uint64 // bytes from and to applications

	Latency Histogram // durations of the exchanges that ended

	exchanges [][classes]uint64 // by outcome
	failedBy  []uint64          // Failed by outcome
}

// Totals adds up the shards.
func (s *Series) Totals() Totals {
	n := len(s.registry.outcomes)
	t := Totals{
		ByOutcome: make([]uint64, n),
		Latency:   Histogram{counts: make([]uint64, bucketCount)},
		exchanges: make([][classes]uint64, n),
		failedBy:  make([]uint64, n),
	}
	var closed uint64
	for i := range s.shards {
		sh := &s.shards[i]
		// Before opened, so that a connection which opens and closes meanwhile
		// cannot make Active negative.
		closed += sh.closed.Load()
	}
	for i := range s.shards {
		sh := &s.shards[i]
		t.Opened += sh.opened.Load()
		t.Received += sh.received.Load()
		t.Sent += sh.sent.Load()
		t.Attempts += sh.attempts.Load()
		t.Latency.nanos += sh.nanos.Load()
		for b := range sh.buckets {
			t.Latency.counts[b] += sh.buckets[b].Load()
		}
		for o := range sh.exchanges {
			for c := range sh.exchanges[o] {
				t.exchanges[o][c] += sh.exchanges[o][c].Load()
			}
		}
	}
	t.Active = int64(t.Opened - closed)
	for o := range t.exchanges {
		for c, v := range t.exchanges[o] {
			t.Requests += v
			t.ByOutcome[o] += v
			t.ByClass[c] += v
			if s.registry.failed[o] || c == 5 {
				t.Failed += v
				t.failedBy[o] += v
			}
		}
	}
	return t
}
