package agent

import (
	"sync"

	"meshd/internal/consul"
	"meshd/internal/telemetry"
)

// queries adds up what watches count. They come and go with the configuration;
// a counter of a kind must not fall when one of them goes. The zero value is
// ready.
type queries struct {
	mu    sync.Mutex // guards what follows
	seen  map[watchName]counts
	kinds map[consul.Kind]counts
	other counts
}

type watchName struct {
	kind             consul.Kind
	name, datacenter string
}

type counts struct{ queries, errors, resets uint64 }

func (c *counts) plus(d counts) {
	c.queries += d.queries
	c.errors += d.errors
	c.resets += d.resets
}

// since is what has been counted after was. A watch that counts less than it
// did is another one, which began at 0.
func (c counts) since(was counts) counts {
	if c.queries < was.queries || c.errors < was.errors || c.resets < was.resets {
		return c
	}
	return counts{c.queries - was.queries, c.errors - was.errors, c.resets - was.resets}
}

// kindOrder is the order of the kinds in /metrics; those that nothing is
// watched of are told, too.
var kindOrder = [...]consul.Kind{
	consul.KindService, consul.KindQuery, consul.KindChain, consul.KindLeaf, consul.KindRoots, consul.KindIntentions,
}

// add takes in what c says and returns the sums by kind.
func (q *queries) add(c *consul.Status) []telemetry.ConsulKind {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.kinds == nil {
		q.kinds = make(map[consul.Kind]counts)
	}
	now := make(map[watchName]counts, len(c.Watches))
	live := make(map[consul.Kind]*telemetry.ConsulKind, len(kindOrder))
	list := make([]telemetry.ConsulKind, len(kindOrder), len(kindOrder)+1)
	for i, k := range kindOrder {
		list[i].Kind = string(k)
		live[k] = &list[i]
	}
	for i := range c.Watches {
		w := &c.Watches[i]
		key := watchName{w.Kind, w.Name, w.Datacenter}
		now[key] = counts{w.Queries, w.Errors, w.Resets}
		sum := q.kinds[w.Kind]
		sum.plus(now[key].since(q.seen[key]))
		q.kinds[w.Kind] = sum
		if k := live[w.Kind]; k != nil {
			watchOf(k, w)
		}
	}
	q.seen = now
	var watched counts
	for i, k := range kindOrder {
		sum := q.kinds[k]
		list[i].Queries, list[i].Errors, list[i].Resets = sum.queries-min(sum.errors, sum.queries), sum.errors, sum.resets
		watched.plus(sum)
	}
	// The rest of all requests. The two are not read at one moment: the rest
	// may seem to shrink, which a counter does not.
	q.other.queries = max(q.other.queries, c.Queries-min(watched.queries, c.Queries))
	q.other.errors = max(q.other.errors, c.Failures-min(watched.errors, c.Failures))
	return append(list, telemetry.ConsulKind{
		Kind: telemetry.OtherKind, Queries: q.other.queries - min(q.other.errors, q.other.queries), Errors: q.other.errors,
	})
}

// watchOf adds one watch as it is now.
func watchOf(k *telemetry.ConsulKind, w *consul.WatchStatus) {
	k.Watches++
	if w.Error != "" {
		k.Failing++
	}
	at := lastTrue(w)
	if !at.IsZero() && (k.Oldest.IsZero() || at.Before(k.Oldest)) {
		k.Oldest = at
	}
}
