package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

type watchKey struct {
	kind       Kind
	name       string
	datacenter string
}

func (k watchKey) String() string {
	s := string(k.kind)
	if k.name != "" {
		s += " " + k.name
	}
	if k.datacenter != "" {
		s += " in " + k.datacenter
	}
	return s
}

// answer is what one query brought.
type answer struct {
	// index is Consul's, 0 if it gave none.
	index uint64
	// changed is true when something new was passed on.
	changed bool
	// again asks for a second opinion: the answer cannot be judged, one that is
	// not held can. Nothing was learned.
	again bool
	// look is when to ask again although nothing may have changed, 0 for
	// whenever Consul answers.
	look time.Duration
	// lacking are rules without which the answer may be less than all.
	lacking []rule
	behind  time.Duration
	held    int
}

// fetch makes one query with the given options, judges the answer and passes
// on what is new. An error means that nothing was learned: the query failed,
// or its answer is not to be believed. Fetches of one watch never overlap.
type fetch func(ctx context.Context, q *api.QueryOptions) (answer, error)

// source is what a watch looks at.
type source struct {
	fetch   fetch
	service string // of this host, whose token is used; "" is the agent's
	rules   []rule // what the token needs
	// streams is true when the agent may answer held queries from a stream.
	streams bool
	// polled is true for what cannot be held.
	polled bool
}

// watch repeats one query, blocking if it can be.
//
//	      ┌──────────── believed: index of the answer ─────────────┐
//	      v                                                        │
//	bucket ──> query(index) ── held by Consul, bounded by a timeout ┤
//	      ^                                                        │
//	      └── backoff <── error or not believed: index 0 <─────────┘
//
// A kick (the token changed, Consul is back) ends what it waits for, and it
// asks anew with index 0.
type watch struct {
	source
	c    *Client
	key  watchKey
	wake chan struct{} // capacity 1: a kick, for a watch that sleeps

	// Only the goroutine of run has these.
	plainUntil time.Time     // no streams before that
	look       time.Duration // of the last answer

	mu     sync.Mutex // guards what follows
	st     WatchStatus
	denied *Denied
	cancel context.CancelCauseFunc // of the query on its way, else nil
}

func (c *Client) newWatch(key watchKey, s source) *watch {
	return &watch{
		source: s, c: c, key: key, wake: make(chan struct{}, 1),
		st: WatchStatus{Kind: key.kind, Name: key.name, Datacenter: key.datacenter},
	}
}

func (w *watch) status() (WatchStatus, *Denied) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.st, w.denied
}

// token returns what the watch asks with.
func (w *watch) token() *secret {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	return w.c.secretOf(w.service)
}

// errKicked ends a query that shall be asked anew. It is no failure.
var errKicked = errors.New("asked anew")

// kick makes the watch ask anew, soon, whatever it waits for.
func (w *watch) kick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel != nil {
		w.cancel(errKicked)
		return
	}
	poke(w.wake)
}

// run repeats the query until ctx is done.
func (w *watch) run(ctx context.Context) {
	p := &w.c.pace
	tokens := newBucket(time.Now())
	index, last, failures, idle := uint64(0), uint64(0), 0, 0
	for {
		refill := p.refill
		if idle >= idleAnswers {
			refill = p.refillIdle
		}
		for pause := tokens.take(time.Now(), refill); pause > 0; pause = tokens.take(time.Now(), refill) {
			if !w.sleep(ctx, pause) {
				return
			}
		}
		asked := time.Now()
		got, err := w.ask(ctx, index, failures)
		if err == nil && got.again {
			got, err = w.ask(ctx, 0, failures)
			if err == nil && got.again {
				err = distrust("the answer cannot be judged")
			}
		}
		switch {
		case ctx.Err() != nil:
			return // whoever cancelled is not interested in how the query ended
		case errors.Is(err, errKicked):
			index, w.plainUntil = 0, time.Now().Add(p.plain)
			if !w.sleep(ctx, rand.N(p.spread+1)) {
				return
			}
			continue
		case err == nil:
			w.believed(ctx, got, failures, got.index < index)
			index, failures, w.look = nextIndex(index, got.index), 0, got.look
			// An answer that came at once and brought nothing. The index of a
			// registry that works has at least gone on.
			if idle++; got.index <= last {
				idle += idleAnswers / burst
			}
			if last = got.index; got.changed || time.Since(asked) >= p.refillIdle {
				idle = 0
			}
			if w.polled {
				index = 0
				if !w.sleep(ctx, p.query+rand.N(p.query+1)) {
					return
				}
			}
			continue
		}
		failures++
		w.failed(ctx, err, failures)
		// After an error the server may be another one, with a smaller index:
		// it would hold a query for the old index until its wait is over.
		index, w.plainUntil = 0, time.Now().Add(p.plain)
		pause := p.backoff(failures, refused(err))
		// Time that the query took is a pause as well.
		pause = max(pause-time.Since(asked), pause/8)
		if !w.sleep(ctx, pause) {
			return
		}
	}
}

// nextIndex gives the index to ask with after an answer, by the rules for
// clients of blocking queries: one that went back starts again, and one below 1
// counts as 1, since a query with 0 is never held.
func nextIndex(asked, got uint64) uint64 {
	if got < asked {
		return 0
	}
	return max(got, 1)
}

// ask makes one query, bounded in time.
func (w *watch) ask(ctx context.Context, index uint64, failures int) (answer, error) {
	p := &w.c.pace
	q := &api.QueryOptions{WaitIndex: index, WaitTime: p.wait, AllowStale: true}
	if w.look > 0 {
		q.WaitTime = max(min(p.wait, w.look), time.Millisecond)
	}
	if w.streams && time.Now().Before(w.plainUntil) {
		q.Near = "_agent" // an order that a stream does not have
	}
	w.mu.Lock()
	unknown := w.st.Confirmed.IsZero()
	w.mu.Unlock()
	limit := p.held(q.WaitTime)
	switch {
	case index == 0 && w.key.kind == KindLeaf:
		limit = p.sign
	case index == 0 && (unknown || failures >= manyFailures && failures%2 == 0):
		limit = p.patient
	case index == 0:
		limit = p.answer
	}
	ctx, kick := context.WithCancelCause(ctx)
	defer kick(nil)
	w.mu.Lock()
	w.st.NextTry, w.cancel = time.Time{}, kick
	select { // what was to wake a sleep is served by asking
	case <-w.wake:
	default:
	}
	w.mu.Unlock()
	bounded, cancel := context.WithTimeout(withSecret(ctx, w.token()), limit)
	defer cancel()
	got, err := w.fetch(bounded, q.WithContext(bounded))
	w.mu.Lock()
	w.cancel = nil
	w.st.Queries++
	w.mu.Unlock()
	switch {
	case err == nil:
		return got, nil
	case context.Cause(ctx) == errKicked:
		return answer{}, errKicked
	}
	return answer{}, fmt.Errorf("%s: %w", w.key, explain(err, limit))
}

// explain replaces errors that say nothing to an operator.
func explain(err error, limit time.Duration) error {
	var target *url.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer within %s: %w", limit.Round(time.Millisecond), context.DeadlineExceeded)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the answer ended too early")
	case errors.As(err, &target):
		return target.Err // what is asked for stands before it, and the address is no address that anybody knows
	}
	return err
}

// refused is true when Consul itself said no.
func refused(err error) bool {
	var status api.StatusError
	if errors.As(err, &status) {
		return status.Code >= 400 && status.Code < 500 && status.Code != http.StatusTooManyRequests
	}
	return lacksRights(err)
}

func (w *watch) believed(ctx context.Context, got answer, failures int, reset bool) {
	var denied *Denied
	if len(got.lacking) > 0 {
		// Asked for once, not with every answer.
		if _, denied = w.status(); denied == nil {
			denied = w.c.denial(ctx, w.key, w.token(), got.lacking, errFiltered)
		}
	}
	now := time.Now()
	w.mu.Lock()
	w.st.Index, w.st.Confirmed = got.index, now
	w.st.Error, w.st.Failures = "", 0
	w.st.Behind, w.st.Held = got.behind, got.held
	w.denied = denied
	if got.changed {
		w.st.Changed = now
	}
	if reset {
		w.st.Resets++
	}
	w.mu.Unlock()
	if failures > 0 {
		w.c.o.Log.Info("consul answers again", "watch", w.key.String(), "failures", failures)
	}
}

func (w *watch) failed(ctx context.Context, err error, failures int) {
	lacking := lacksRights(err)
	w.mu.Lock()
	changed := w.st.Error != err.Error()
	denied := w.denied
	w.mu.Unlock()
	switch token := w.token(); {
	case !lacking:
		denied = nil
	case changed || denied == nil:
		// Before anybody sees it: with an error there is always its reason.
		denied = w.c.denial(ctx, w.key, token, w.rules, err)
		if unknownToken(err) && token.gone() {
			// The others wait with it for something that will not come.
			w.c.kick(token, w)
		}
	}
	w.mu.Lock()
	w.st.Error, w.st.Failures, w.denied = err.Error(), failures, denied
	w.st.Errors++
	w.mu.Unlock()
	w.c.via.failed(err)
	var answered api.StatusError
	if !errors.As(err, &answered) {
		// What is wrong with one connection may be wrong with those that wait
		// for use, and the HTTP library tries them one after the other.
		w.c.via.CloseIdleConnections()
	}
	// One line per kind of trouble, not one per try.
	if failures == 1 || changed {
		w.c.o.Log.Warn("consul query failed, keeping what is known", "watch", w.key.String(), "error", err)
	}
}

// sleep waits for d or a kick, and returns false when ctx is done.
func (w *watch) sleep(ctx context.Context, d time.Duration) bool {
	w.mu.Lock()
	w.st.NextTry = time.Now().Add(d)
	w.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	case <-w.wake:
	}
	t.Reset(rand.N(w.c.pace.spread + 1))
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// notBelieved is an answer that came and is not trusted.
type notBelieved struct{ why string }

func (e *notBelieved) Error() string { return e.why }

func distrust(format string, args ...any) error { return &notBelieved{fmt.Sprintf(format, args...)} }

// memory is what a watch keeps to tell a change from a server that has lost
// its own memory, or its leader.
type memory struct {
	index uint64 // of the last believed answer
	// rewound is when the registry's index was first seen below that, zero
	// when it is not. Servers that were restored or restarted empty tell the
	// truth about themselves but not yet about the mesh.
	rewound time.Time
}

func (m *memory) believed(index uint64) { m.index, m.rewound = index, time.Time{} }

// doubt says why a change for the worse is not believed, or nil.
func (m *memory) doubt(index uint64, leaderless bool, now time.Time, settle time.Duration) error {
	if leaderless {
		return distrust("a removal stated by a server without a leader is not believed")
	}
	if m.index == 0 || index >= m.index {
		return nil
	}
	if m.rewound.IsZero() {
		m.rewound = now
	}
	if left := settle - now.Sub(m.rewound); left > 0 {
		return distrust("the index went back from %d to %d: removals are held for %s more", m.index, index, left.Round(time.Second))
	}
	return nil
}
