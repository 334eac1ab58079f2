package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
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
}

// fetch makes one query with the given options, judges the answer and passes
// on what is new. An error means that nothing was learned: the query failed,
// or its answer is not to be believed. Fetches of one watch never overlap.
type fetch func(ctx context.Context, q *api.QueryOptions) (answer, error)

// watch repeats one blocking query.
//
//	      ┌──────────── believed: index of the answer ─────────────┐
//	      v                                                        │
//	bucket ──> query(index) ── held by Consul, bounded by a timeout ┤
//	      ^                                                        │
//	      └── backoff <── error or not believed: index 0 <─────────┘
type watch struct {
	c     *Client
	key   watchKey
	fetch fetch

	mu sync.Mutex // guards st
	st WatchStatus
}

func (c *Client) newWatch(key watchKey, f fetch) *watch {
	return &watch{c: c, key: key, fetch: f, st: WatchStatus{Kind: key.kind, Name: key.name, Datacenter: key.datacenter}}
}

func (w *watch) status() WatchStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.st
}

// run repeats the query until ctx is done.
func (w *watch) run(ctx context.Context) {
	p := &w.c.pace
	tokens := newBucket(time.Now())
	index, failures, idle := uint64(0), 0, 0
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
		got, err := w.ask(ctx, index)
		if ctx.Err() != nil {
			return // whoever cancelled is not interested in how the query ended
		}
		if err == nil {
			w.believed(got, failures)
			index, failures = nextIndex(index, got.index), 0
			if idle++; got.changed || time.Since(asked) >= p.refillIdle {
				idle = 0
			}
			continue
		}
		failures++
		w.failed(err, failures)
		// After an error the server may be another one, with a smaller index:
		// it would hold a query for the old index until its wait is over.
		index = 0
		if !w.sleep(ctx, p.backoff(failures, refused(err))) {
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
func (w *watch) ask(ctx context.Context, index uint64) (answer, error) {
	p := &w.c.pace
	limit := p.held()
	switch {
	case index == 0 && w.key.kind == KindLeaf:
		limit = p.sign
	case index == 0:
		limit = p.answer
	}
	w.mu.Lock()
	w.st.NextTry = time.Time{}
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	q := (&api.QueryOptions{WaitIndex: index, WaitTime: p.wait}).WithContext(ctx)
	got, err := w.fetch(ctx, q)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", w.key, explain(err, limit))
	}
	return got, nil
}

// explain replaces errors that say nothing to an operator.
func explain(err error, limit time.Duration) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer within %s: %w", limit.Round(time.Millisecond), context.DeadlineExceeded)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the answer ended too early")
	}
	return err
}

// refused is true when Consul itself said no.
func refused(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code >= 400 && status.Code < 500 && status.Code != http.StatusTooManyRequests
}

func (w *watch) believed(got answer, failures int) {
	now := time.Now()
	w.mu.Lock()
	w.st.Index, w.st.Confirmed = got.index, now
	w.st.Error, w.st.Failures = "", 0
	if got.changed {
		w.st.Changed = now
	}
	w.mu.Unlock()
	if failures > 0 {
		w.c.o.Log.Info("consul answers again", "watch", w.key.String(), "failures", failures)
	}
}

func (w *watch) failed(err error, failures int) {
	w.mu.Lock()
	changed := w.st.Error != err.Error()
	w.st.Error, w.st.Failures = err.Error(), failures
	w.mu.Unlock()
	w.c.via.failed(err)
	// One line per kind of trouble, not one per try.
	if failures == 1 || changed {
		w.c.o.Log.Warn("consul query failed, keeping what is known", "watch", w.key.String(), "error", err)
	}
}

// sleep waits, and returns false when ctx is done.
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
	}
}

// notBelieved is an answer that came and is not trusted.
type notBelieved struct{ why string }

func (e *notBelieved) Error() string { return e.why }

func distrust(format string, args ...any) error { return &notBelieved{fmt.Sprintf(format, args...)} }
