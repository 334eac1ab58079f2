package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"
)

// load sends requests at a steady rate whether or not answers come (an open
// loop): what waits shows as failed or late, never as fewer requests.
type load struct {
	t      testing.TB
	stop   context.CancelFunc
	all    sync.WaitGroup // finish waits for the sender and every request
	client *http.Client

	mu      sync.Mutex // guards following
	sent    int
	served  map[string]int // by the header echo-name
	last    map[string]time.Time
	failed  []string
	slowest time.Duration
}

// startLoad sends to url until finish. Each request takes at most patience.
func startLoad(t testing.TB, url string, rps int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{
		t: t, stop: cancel, served: make(map[string]int), last: make(map[string]time.Time),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: patience},
	}
	l.all.Go(func() {
		begin := time.Now()
		for n := 0; ; n++ {
			// From the plan, not from the request before: the rate holds.
			due := begin.Add(time.Duration(n) * time.Second / time.Duration(rps))
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Until(due)):
			}
			l.all.Go(func() { l.one(url) })
		}
	})
	t.Cleanup(func() { cancel(); l.all.Wait(); l.client.CloseIdleConnections() })
	return l
}

func (l *load) one(url string) {
	begin := time.Now()
	res, err := l.client.Get(url)
	name, wrong := "", ""
	if err != nil {
		wrong = err.Error()
	} else {
		_, err = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		name = res.Header.Get("Echo-Name")
		if err != nil || res.StatusCode != 200 {
			wrong = fmt.Sprintf("status %d, meshd-error %q, %v", res.StatusCode, res.Header.Get("meshd-error"), err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent++
	l.slowest = max(l.slowest, time.Since(begin))
	if wrong != "" {
		l.failed = append(l.failed, fmt.Sprintf("%s: %s", begin.Format("05.000"), wrong))
		return
	}
	l.served[name]++
	// When it was sent: an answer that was on its way is no new request.
	if begin.After(l.last[name]) {
		l.last[name] = begin
	}
}

// lastTo is when the last request was sent that the application answered.
func (l *load) lastTo(app string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last[app]
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent
}

// await returns when n more requests have been answered.
func (l *load) await(n int) {
	l.t.Helper()
	from := l.count()
	for end := time.Now().Add(patience); l.count() < from+n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("%d requests in %s, waited for %d", l.count()-from, patience, n)
		}
	}
}

// finish ends the load and wants that none failed.
func (l *load) finish() {
	l.t.Helper()
	l.stop()
	l.all.Wait()
	l.client.CloseIdleConnections()
	if n := len(l.failed); n > 0 {
		l.t.Errorf("%d of %d requests failed, among them: %q", n, l.sent, l.failed[:min(n, 5)])
	}
	l.t.Logf("load: %d requests, %d failed, slowest %s, answered by %v", l.sent, len(l.failed), l.slowest.Round(time.Millisecond), l.served)
}
