package agent

import (
	"testing"
	"time"

	"meshd/internal/consul"
	"meshd/internal/telemetry"
)

// Counters never fall: not when a watch goes, not when it comes back and
// begins at 0, not when the two numbers that the rest is made of were read at two moments.
func TestQueriesAddUp(t *testing.T) {
	at := time.Unix(1000, 0)
	watch := func(name string, queries, errors uint64) consul.WatchStatus {
		return consul.WatchStatus{Kind: consul.KindService, Name: name, Queries: queries, Errors: errors, Resets: errors, Confirmed: at}
	}
	var q queries
	for i, step := range []struct {
		status                   consul.Status
		ok, errors, other, wrong uint64
	}{
		{consul.Status{Queries: 12, Failures: 3, Watches: []consul.WatchStatus{watch("a", 8, 2)}}, 6, 2, 3, 1},
		{consul.Status{Queries: 20, Failures: 4, Watches: []consul.WatchStatus{watch("a", 10, 2), watch("b", 5, 1)}}, 12, 3, 4, 1},
		{consul.Status{Queries: 21, Failures: 4, Watches: []consul.WatchStatus{watch("b", 6, 1)}}, 13, 3, 4, 1},
		{consul.Status{Queries: 22, Failures: 4, Watches: []consul.WatchStatus{watch("a", 1, 0), watch("b", 6, 1)}}, 14, 3, 4, 1},
		{consul.Status{Queries: 22, Failures: 4, Watches: []consul.WatchStatus{watch("a", 2, 0), watch("b", 6, 1)}}, 15, 3, 4, 1},
		{consul.Status{Queries: 22, Failures: 4, Watches: []consul.WatchStatus{watch("a", 2, 0), watch("b", 2, 1)}}, 16, 4, 4, 1},
	} {
		list := q.add(&step.status)
		s, o := list[0], list[len(list)-1]
		if s.Kind != "service" || s.Queries != step.ok || s.Errors != step.errors || s.Resets != step.errors || s.Watches != len(step.status.Watches) {
			t.Errorf("step %d: %+v, want %d ok, %d errors", i, s, step.ok, step.errors)
		}
		if o.Kind != telemetry.OtherKind || o.Queries != step.other || o.Errors != step.wrong {
			t.Errorf("step %d: the rest is %+v, want %d ok, %d errors", i, o, step.other, step.wrong)
		}
		if len(list) != len(kindOrder)+1 || !s.Oldest.Equal(at) {
			t.Errorf("step %d: %d kinds, oldest %s", i, len(list), s.Oldest)
		}
	}
}
