package telemetry

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestAccessLine(t *testing.T) {
	full := Access{
		Time: start, Direction: Outbound, Name: "world", Protocol: "http",
		Client: "127.0.0.1:40000", Peer: "world", Endpoint: "world-2",
		Method: "GET", Authority: "world.mesh.internal", Path: "/a?token=secret", Status: 503,
		Outcome: "local_connect_failed", Reason: "refused", Tries: 2,
		Duration: 1234567 * time.Nanosecond, BytesIn: 3, BytesOut: 400,
	}
	tests := []struct {
		name string
		in   Access
		want string
	}{
		{
			"everything", full,
			`time=2026-01-02T03:04:05.000Z level=INFO msg=access direction=outbound name=world protocol=http client=127.0.0.1:40000 peer=world endpoint=world-2 ` +
				`method=GET authority=world.mesh.internal path=/a status=503 outcome=local_connect_failed reason=refused tries=2 duration_ms=1.234 bytes_in=3 bytes_out=400`,
		},
		{
			"a TCP connection has no head",
			Access{Time: start, Direction: Inbound, Name: "db", Protocol: "tcp", Peer: "hello", Outcome: "ok", Tries: 1, Duration: time.Hour},
			`time=2026-01-02T03:04:05.000Z level=INFO msg=access direction=inbound name=db protocol=tcp peer=hello outcome=ok tries=1 duration_ms=3.6e+06 bytes_in=0 bytes_out=0`,
		},
		{
			"what a caller sends cannot forge a line",
			Access{Time: start, Direction: Outbound, Name: "world", Method: "GET", Path: "/\nlevel=ERROR", Outcome: "ok"},
			`time=2026-01-02T03:04:05.000Z level=INFO msg=access direction=outbound name=world method=GET path="/\nlevel=ERROR" outcome=ok tries=0 duration_ms=0 bytes_in=0 bytes_out=0`,
		},
	}
	for _, tt := range tests {
		var out bytes.Buffer
		AccessLine(slog.New(slog.NewTextHandler(&out, nil)), tt.in)
		if got := strings.TrimSuffix(out.String(), "\n"); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

func TestAccessLineBoundsThePath(t *testing.T) {
	var out bytes.Buffer
	AccessLine(slog.New(slog.NewTextHandler(&out, nil)), Access{Path: "/" + strings.Repeat("a", 8000)})
	if out.Len() > maxLoggedPath+300 || !strings.Contains(out.String(), "a... ") {
		t.Errorf("%d bytes: %s", out.Len(), out.String())
	}
	if !strings.Contains(out.String(), "time=2") {
		t.Errorf("no time: %s", out.String())
	}
}

func TestAccessLineBelowTheLevel(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))
	AccessLine(log, Access{})
	if out.Len() != 0 {
		t.Errorf("wrote %s", out.String())
	}
	if n := testing.AllocsPerRun(100, func() { AccessLine(log, Access{Path: "/a?b"}) }); n != 0 {
		t.Errorf("%g allocations for a line nobody wants", n)
	}
}
