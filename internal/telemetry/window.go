package telemetry

import "time"

const (
	// sampleEvery is how far apart samples are. A ticker of one second may be
	// early by its jitter, hence the slack.
	sampleEvery = time.Second
	sampleSlack = 100 * time.Millisecond
	// windowLength is how far back a Summary looks: long enough for a p99 of a
	// few requests a second, short enough to show what is the case now.
	windowLength = 10 * time.Second
	// windowSamples covers windowLength: ten differences need eleven moments.
	windowSamples = int(windowLength/sampleEvery) + 1
)

// Window keeps the Totals of one series over the last ten seconds and tells
// what happened meanwhile. Time is passed in. The zero value is empty; one
// goroutine at a time may use it.
type Window struct {
	samples [windowSamples]sample // ascending
	n       int
}

type sample struct {
	at     time.Time
	totals Totals
}

// Add takes a sample, if the last one is about a second old; more frequent ones
// are left out. A series that began anew empties the window.
func (w *Window) Add(at time.Time, t Totals) {
	if w.n > 0 {
		last := w.samples[w.n-1]
		if at.Sub(last.at) < sampleEvery-sampleSlack {
			return
		}
		if t.Requests < last.totals.Requests {
			w.n = 0
			w.samples = [windowSamples]sample{}
		} else if t.Requests == last.totals.Requests {
			// Most series of a large host are idle: their samples share memory.
			t.ByOutcome, t.exchanges, t.Latency = last.totals.ByOutcome, last.totals.exchanges, last.totals.Latency
			t.failedBy = last.totals.failedBy
		}
	}
	if w.n == windowSamples {
		copy(w.samples[:], w.samples[1:])
		w.n--
	}
	w.samples[w.n] = sample{at, t}
	w.n++
}

// Summary is what happened within a Window. All zero means nothing did, or that
// the window is too young to tell.
type Summary struct {
	Over     time.Duration // the time that the rest speaks about
	Requests uint64        // exchanges that ended
	RPS      float64       // of these, per second
	P50, P99 time.Duration // of their durations
	// FailedShare is the share (0 to 1) of Requests that failed; see Totals.
	FailedShare float64
	// Worst is the outcome that most of the failed ones had, if any failed.
	Worst int
}

// Summary compares the newest sample with the oldest that is not more than ten
// seconds (and some slack) older.
func (w *Window) Summary() Summary {
	if w.n < 2 {
		return Summary{}
	}
	last := w.samples[w.n-1]
	first := last
	for _, s := range w.samples[:w.n-1] {
		if last.at.Sub(s.at) <= windowLength+sampleSlack {
			first = s
			break
		}
	}
	over := last.at.Sub(first.at)
	if over <= 0 {
		return Summary{}
	}
	s := Summary{Over: over, Requests: last.totals.Requests - first.totals.Requests}
	if s.Requests == 0 {
		return s
	}
	s.RPS = float64(s.Requests) / over.Seconds()
	s.FailedShare = float64(last.totals.Failed-min(first.totals.Failed, last.totals.Failed)) / float64(s.Requests)
	most := uint64(0)
	for o, v := range last.totals.failedBy {
		if o < len(first.totals.failedBy) {
			v -= min(first.totals.failedBy[o], v)
		}
		if v > most {
			most, s.Worst = v, o
		}
	}
	latency := last.totals.Latency.Sub(first.totals.Latency)
	s.P50, s.P99 = latency.Quantile(0.50), latency.Quantile(0.99)
	return s
}
