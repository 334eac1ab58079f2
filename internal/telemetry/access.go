package telemetry

import (
	"context"
	"log/slog"
	"strings"
	"time"
)

// Access is one exchange as the access log tells it. Empty strings and a zero
// Status are left out.
type Access struct {
	Time      time.Time // when the exchange ended, zero is now: the time of the line
	Direction Direction
	Name      string // of the upstream or service
	Protocol  string
	Client    string // outbound: the application's address and port
	Peer      string // outbound: the service asked for; inbound: the caller's service
	Endpoint  string // outbound: the endpoint of the last attempt
	Method    string
	Authority string
	Path      string // as received; what follows "?" is not logged
	Status    int    // of the response
	Outcome   string
	Reason    string // more about the outcome, if there is more to say
	Tries     int    // attempts at endpoints
	Duration  time.Duration
	BytesIn   int64 // received from the application
	BytesOut  int64 // sent to it
}

// maxLoggedPath bounds what a caller can make us write for one request. The
// journal cuts lines at 48 KiB and rate-limits by number, not by size.
const maxLoggedPath = 1024

// AccessLine writes one line about an exchange, at level info. The query string
// of the path is left out: that is where callers put secrets.
func AccessLine(log *slog.Logger, e Access) {
	ctx := context.Background()
	if !log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now() // handlers leave a zero time out
	}
	r := slog.NewRecord(e.Time, slog.LevelInfo, "access", 0)
	attrs := make([]slog.Attr, 0, 16)
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	path, _, _ := strings.Cut(e.Path, "?")
	if len(path) > maxLoggedPath {
		path = path[:maxLoggedPath] + "..."
	}
	text("direction", e.Direction.String())
	text("name", e.Name)
	text("protocol", e.Protocol)
	text("client", e.Client)
	text("peer", e.Peer)
	text("endpoint", e.Endpoint)
	text("method", e.Method)
	text("authority", e.Authority)
	text("path", path)
	if e.Status != 0 {
		attrs = append(attrs, slog.Int("status", e.Status))
	}
	text("outcome", e.Outcome)
	text("reason", e.Reason)
	attrs = append(attrs,
		slog.Int("tries", e.Tries),
		slog.Float64("duration_ms", float64(e.Duration.Microseconds())/1000),
		slog.Int64("bytes_in", e.BytesIn),
		slog.Int64("bytes_out", e.BytesOut),
	)
	r.AddAttrs(attrs...)
	// A log that cannot be written must not disturb the exchange it tells of.
	_ = log.Handler().Handle(ctx, r)
}
