package consul

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

func TestBackoffGrowsAndIsBounded(t *testing.T) {
	p := defaultPace
	for failures := 1; failures < 100; failures++ {
		most := p.backoffMost
		if failures <= 20 {
			most = min(p.backoffFirst<<(failures-1), most)
		}
		var widest time.Duration
		for range 200 {
			d := p.backoff(failures, false)
			if d < most/2 || d > most {
				t.Fatalf("after %d failures: %s, want half of %s to all of it", failures, d, most)
			}
			widest = max(widest, d)
		}
		if widest < most*3/4 {
			t.Errorf("after %d failures 200 draws stay under three quarters of %s: that is no jitter", failures, most)
		}
	}
	long := false
	for range 200 {
		long = long || p.backoff(30, true) > p.backoffMost
	}
	if !long {
		t.Error("a refusal is asked again as soon as an outage")
	}
}

func TestBucketAllowsABurstThenOneARefill(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newBucket(now)
	asked := 0
	for end := now.Add(10 * time.Second); now.Before(end); {
		if wait := b.take(now, time.Second); wait > 0 {
			now = now.Add(wait)
			continue
		}
		asked++
	}
	if asked < burst+9 || asked > burst+10 {
		t.Errorf("%d queries in 10 s, want the burst of %d and one a second", asked, burst)
	}
	// An hour without a query earns a burst and not more.
	now = now.Add(time.Hour)
	for i := range burst {
		if wait := b.take(now, time.Second); wait != 0 {
			t.Errorf("query %d after an hour waits %s", i, wait)
		}
	}
	if b.take(now, time.Second) == 0 {
		t.Error("the bucket holds more than the burst")
	}
}

func TestNextIndex(t *testing.T) {
	for _, c := range []struct{ asked, got, want uint64 }{
		{0, 10, 10},
		{10, 11, 11},
		{10, 10, 10}, // held to the end of the wait
		{11, 10, 0},  // went back
		{0, 0, 1},    // none given: never ask with 0 for ever
		{1, 0, 0},
	} {
		if got := nextIndex(c.asked, c.got); got != c.want {
			t.Errorf("asked with %d, answer %d: next %d, want %d", c.asked, c.got, got, c.want)
		}
	}
}

func TestRefused(t *testing.T) {
	for code, want := range map[int]bool{403: true, 404: true, 429: false, 500: false, 503: false} {
		if got := refused(fmt.Errorf("health: %w", api.StatusError{Code: code})); got != want {
			t.Errorf("status %d: refused %v, want %v", code, got, want)
		}
	}
	if refused(errors.New("connection refused")) {
		t.Error("a transport error counts as refused by Consul")
	}
}

func TestNewRejectsAddresses(t *testing.T) {
	for _, a := range []string{"", "localhost", "ftp://127.0.0.1:8500", "unix://relative", "http://127.0.0.1"} {
		if _, err := New(Options{Address: a}); err == nil {
			t.Errorf("address %q was taken", a)
		}
	}
	for _, a := range []string{"127.0.0.1:8500", "[::1]:8500", "http://consul.example:80/prefix", "https://127.0.0.1:8501", "unix:///run/consul.sock"} {
		if _, err := New(Options{Address: a}); err != nil {
			t.Errorf("address %q: %v", a, err)
		}
	}
}
