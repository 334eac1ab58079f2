package agent

import (
	"context"
	"sync"
	"time"

	"meshd/internal/admin"
	"meshd/internal/mesh"
	"meshd/internal/proxy"
	"meshd/internal/telemetry"
)

// rates samples every series once a second, so that status can say what
// happened in the last ten seconds. The zero value is ready.
type rates struct {
	mu      sync.Mutex // guards windows
	windows map[rateKey]*telemetry.Window
}

type rateKey struct {
	direction telemetry.Direction
	name      string
	protocol  mesh.Protocol
}

// run samples until ctx is done.
func (r *rates) run(ctx context.Context, a *Agent) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if s := a.Snapshot(); s != nil {
				r.sample(now, s, a.telemetry)
			}
		}
	}
}

func (r *rates) sample(now time.Time, s *mesh.Snapshot, t *telemetry.Registry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := make(map[rateKey]*telemetry.Window, len(s.Outbound)+len(s.Inbound))
	add := func(k rateKey) {
		if next[k] != nil {
			return // several instances of a service share a series
		}
		w := r.windows[k]
		if w == nil {
			w = &telemetry.Window{}
		}
		w.Add(now, t.Series(k.direction, k.name, k.protocol.String()).Totals())
		next[k] = w
	}
	for _, o := range s.Outbound {
		add(rateKey{telemetry.Outbound, o.Name, o.Protocol})
	}
	for _, in := range s.Inbound {
		add(rateKey{telemetry.Inbound, in.Name, in.Protocol})
	}
	r.windows = next
}

// of returns the rates of one series, with the totals of now.
func (r *rates) of(k rateKey, t *telemetry.Registry) admin.Rates {
	totals := t.Series(k.direction, k.name, k.protocol.String()).Totals()
	var s telemetry.Summary
	r.mu.Lock()
	if w := r.windows[k]; w != nil {
		s = w.Summary()
	}
	r.mu.Unlock()
	failedBy := ""
	switch {
	case s.FailedShare == 0:
	case s.Worst == int(proxy.OK):
		failedBy = "5xx of the application"
	default:
		failedBy = proxy.OutcomeNames[s.Worst]
	}
	return admin.Rates{
		RPS: s.RPS, FailedShare: s.FailedShare, FailedBy: failedBy, P50: admin.Seconds(s.P50), P99: admin.Seconds(s.P99),
		Total: totals.Requests, Failed: totals.Failed,
	}
}
