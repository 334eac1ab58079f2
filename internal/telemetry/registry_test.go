package telemetry

import (
	"io"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"
)

func TestTotalsAddTheShardsUp(t *testing.T) {
	r := New(3, []string{"ok", "timeout", "client_gone"}, "client_gone")
	s := r.Series(Inbound, "world", "http")
	for i := range 3 {
		sh := s.Shard(i)
		sh.ConnOpened()
		sh.ConnOpened()
		sh.ConnClosed()
		sh.Bytes(10, 100)
		sh.Attempts(2)
	}
	s.Shard(0).Exchange(0, 2, 1000)
	s.Shard(1).Exchange(0, 5, 2000) // the application failed
	s.Shard(2).Exchange(1, 0, 3000) // the mesh failed
	s.Shard(2).Exchange(2, 0, 4000) // nobody did
	got := s.Totals()
	if got.Requests != 4 || got.Failed != 2 {
		t.Errorf("%d requests, %d failed", got.Requests, got.Failed)
	}
	if !slices.Equal(got.ByOutcome, []uint64{2, 1, 1}) || got.ByClass != [6]uint64{0: 2, 2: 1, 5: 1} {
		t.Errorf("by outcome %v, by class %v", got.ByOutcome, got.ByClass)
	}
	if got.Opened != 6 || got.Active != 3 || got.Received != 30 || got.Sent != 300 || got.Attempts != 6 {
		t.Errorf("%+v", got)
	}
	if got.Latency.Count() != 4 || got.Latency.Sum() != 10000 {
		t.Errorf("%d durations, %v together", got.Latency.Count(), got.Latency.Sum())
	}
}

func TestNegativeAmountsAreNotCounted(t *testing.T) {
	s := New(1, []string{"ok"}).Series(Outbound, "x", "tcp")
	s.Shard(0).Bytes(-1, -1)
	s.Shard(0).Attempts(-1)
	if got := s.Totals(); got.Received != 0 || got.Sent != 0 || got.Attempts != 0 {
		t.Errorf("%+v", got)
	}
}

func TestOutcomeThatDoesNotExistPanics(t *testing.T) {
	s := New(1, []string{"ok"}).Series(Outbound, "x", "tcp")
	for _, bad := range []func(){
		func() { s.Shard(0).Exchange(1, 2, 0) },
		func() { s.Shard(0).Exchange(0, 6, 0) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("counted")
				}
			}()
			bad()
		}()
	}
}

func TestSeriesAreKeptUntilForgotten(t *testing.T) {
	r := New(1, []string{"ok"})
	s := r.Series(Outbound, "world", "http")
	if r.Series(Outbound, "world", "http") != s {
		t.Error("the same arguments gave another series")
	}
	for _, other := range []*Series{
		r.Series(Inbound, "world", "http"),
		r.Series(Outbound, "earth", "http"),
		r.Series(Outbound, "world", "tcp"),
	} {
		if other == s {
			t.Error("other arguments gave the same series")
		}
	}
	r.Forget(func(d Direction, name string) bool { return d == Outbound && name == "world" })
	if r.Series(Outbound, "world", "http") != s {
		t.Error("a kept series is gone")
	}
	if n := len(r.all()); n != 2 {
		t.Errorf("%d series are left, want 2", n)
	}
	r.Forget(func(Direction, string) bool { return false })
	s.Shard(0).Exchange(0, 2, 1) // a loop may still hold it
	if got := r.Series(Outbound, "world", "http").Totals().Requests; got != 0 {
		t.Errorf("a new series begins with %d requests", got)
	}
}

// Two loops must not write to one cache line, or each would wait for the other.
func TestShardsDoNotShareCacheLines(t *testing.T) {
	s := New(4, []string{"ok"}).Series(Outbound, "x", "http")
	for i := range 3 {
		a, b := s.Shard(i), s.Shard(i+1)
		last := uintptr(unsafe.Pointer(&a.buckets[bucketCount-1]))
		first := uintptr(unsafe.Pointer(&b.opened))
		if first/cacheLine == last/cacheLine {
			t.Errorf("shards %d and %d: %#x and %#x", i, i+1, last, first)
		}
		last = uintptr(unsafe.Pointer(&a.exchanges[0][classes-1]))
		first = uintptr(unsafe.Pointer(&b.exchanges[0][0]))
		if first/cacheLine == last/cacheLine {
			t.Errorf("exchanges of shards %d and %d: %#x and %#x", i, i+1, last, first)
		}
	}
}

// Loops write while /metrics and status read, and nothing is lost.
func TestReadersWhileLoopsWrite(t *testing.T) {
	const loops, rounds = 4, 5000
	r := New(loops, []string{"ok", "timeout"})
	s := r.Series(Outbound, "world", "http")
	handler := r.Handler(func() Gauges { return Gauges{} })
	done := make(chan struct{})
	var readers, writers sync.WaitGroup
	readers.Go(func() {
		var before Totals
		for {
			select {
			case <-done:
				return
			default:
			}
			now := s.Totals()
			if now.Requests < before.Requests || now.Active < 0 {
				t.Errorf("went from %d to %d requests, %d active", before.Requests, now.Requests, now.Active)
				return
			}
			before = now
		}
	})
	readers.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			rec := httptest.NewRecorder()
			handler.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
			if rec.Code != 200 {
				body, _ := io.ReadAll(rec.Body)
				t.Errorf("%d: %s", rec.Code, body)
				return
			}
			r.Series(Inbound, "other", "tcp")
			r.Forget(func(d Direction, _ string) bool { return d == Outbound })
		}
	})
	for i := range loops {
		writers.Go(func() {
			sh := s.Shard(i)
			for n := range rounds {
				sh.ConnOpened()
				sh.Exchange(uint8(n%2), 2, int64(n))
				sh.Bytes(1, 2)
				sh.Attempts(1)
				sh.ConnClosed()
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	got := s.Totals()
	if got.Requests != loops*rounds || got.Latency.Count() != loops*rounds || got.Active != 0 || got.Sent != 2*loops*rounds {
		t.Errorf("%+v", got)
	}
}

func TestExchangeDoesNotAllocate(t *testing.T) {
	sh := New(1, []string{"ok"}).Series(Outbound, "x", "http").Shard(0)
	if n := testing.AllocsPerRun(1000, func() { sh.Exchange(0, 2, int64(time.Millisecond)); sh.Bytes(1, 1) }); n != 0 {
		t.Fatalf("%g allocations", n)
	}
}

func BenchmarkExchange(b *testing.B) {
	sh := New(1, []string{"ok"}).Series(Outbound, "x", "http").Shard(0)
	b.ReportAllocs()
	var n int64
	for b.Loop() {
		n += 977
		sh.Exchange(0, 2, n&0xffffff)
	}
}

// Each goroutine stands for a loop: the time must not grow with their number.
func BenchmarkExchangePerLoop(b *testing.B) {
	s := New(64, []string{"ok"}).Series(Outbound, "x", "http")
	loop := make(chan int, 64)
	for i := range 64 {
		loop <- i
	}
	b.RunParallel(func(pb *testing.PB) {
		sh := s.Shard(<-loop)
		for pb.Next() {
			sh.Exchange(0, 2, 250_000)
		}
	})
}

func BenchmarkTotals(b *testing.B) {
	s := New(4, make([]string, 25)).Series(Outbound, "x", "http")
	b.ReportAllocs()
	for b.Loop() {
		s.Totals()
	}
}
