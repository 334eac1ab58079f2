// Package breaker decides whether an endpoint may be tried. It counts
// consecutive failures, refuses for a while once there were too many, and then
// lets exactly one attempt find out whether the endpoint works again.
//
//	         failures reach ConsecutiveFailures
//	┌────────┐ ────────────────────────────────> ┌──────┐ <───────────────┐
//	│ closed │                                   │ open │                 │
//	└────────┘                                   └──────┘                 │
//	     ^                                          │  OpenFor has passed:│
//	     │ probe succeeds                           v  one caller probes  │
//	     │                                    ┌───────────┐  probe fails  │
//	     └─────────────────────────────────── │ half-open │ ──────────────┘
//	                                          └───────────┘  or is cancelled
//
// A failed probe makes the endpoint wait OpenFor again. A cancelled one proved
// nothing, so the next caller may probe at once. What attempts report that
// began before the breaker opened changes nothing any more: only the probe
// decides then.
//
// The package is pure: it reads no clock, starts no goroutine and knows neither
// endpoints nor outcomes. What counts as a failure is its caller's business. It
// imports the standard library only; proxy may import it.
package breaker

import (
	"sync/atomic"
	"time"
)

// Policy is when to open and for how long. It is passed with every call, so
// that a reload takes effect without touching the state. A [mesh.Breaker]
// converts to it.
type Policy struct {
	// ConsecutiveFailures opens the breaker; 0 or less turns it off: every
	// attempt is granted and nothing is counted.
	ConsecutiveFailures int
	// OpenFor is how long an open breaker refuses, counted from the failure
	// that opened it.
	OpenFor time.Duration
}

func (p Policy) off() bool { return p.ConsecutiveFailures <= 0 }

// State is where a breaker is in the picture above.
type State uint8

// The states. The zero Breaker is Closed.
const (
	Closed State = iota
	Open
	HalfOpen
)

// String returns the word used in status and metrics.
func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case Open:
		return "open"
	case HalfOpen:
		return "half-open"
	}
	return "unknown"
}

// Permit is the answer to one attempt. Whoever got Granted or Probe hands it
// back exactly once, by Success, Failure or Cancel; a Probe that is never
// handed back keeps the endpoint half-open for ever.
type Permit uint8

// The answers of Allow.
const (
	Refused Permit = iota
	Granted        // an ordinary attempt
	Probe          // the only attempt at a half-open endpoint
)

// cacheLine is the size of the unit that cores fight over, on amd64 and on the
// arm64 servers that Debian runs on.
const cacheLine = 64

// Breaker is the state of one endpoint. The zero value is closed. All loops of
// an agent share it; it fills a cache line of its own, so that a success on one
// endpoint never slows one on its neighbour. A Breaker must not be copied.
type Breaker struct {
	// word is the whole state. The low stateBits hold the State. The rest is
	// the number of consecutive failures when closed, and the time of the
	// opening failure (monotonic ns) when open or half-open: a half-open
	// breaker keeps it for the case that its probe is cancelled.
	word atomic.Uint64
	_    [cacheLine - 8]byte
}

// stateBits leaves 62 bits for nanoseconds since boot: 146 years.
const stateBits = 2

func pack(s State, rest uint64) uint64 { return rest<<stateBits | uint64(s) }

func state(w uint64) State { return State(w & (1<<stateBits - 1)) }

func failures(w uint64) int { return int(w >> stateBits) }

func openedAt(w uint64) int64 { return int64(w >> stateBits) }

// passed tells whether an opening lies OpenFor back. Loops read their clocks at
// different moments, so now may lie before the opening: then it has not passed.
func passed(w uint64, p Policy, now int64) bool {
	return now-openedAt(w) >= int64(p.OpenFor)
}

// Allow asks for an attempt at now (monotonic ns, not negative). In the closed
// state it costs one atomic load.
func (b *Breaker) Allow(p Policy, now int64) Permit {
	for {
		w := b.word.Load()
		switch {
		case state(w) == Closed:
			return Granted
		case p.off():
			// Somebody else's probe is left alone: it will hand itself back.
			if state(w) == Open && !b.word.CompareAndSwap(w, pack(Closed, 0)) {
				continue
			}
			return Granted
		case state(w) == HalfOpen || !passed(w, p, now):
			return Refused
		case b.word.CompareAndSwap(w, pack(HalfOpen, uint64(openedAt(w)))):
			return Probe
		}
	}
}

// Peek tells whether Allow would grant something, and changes nothing. The
// answer may be outdated when Allow is called: two callers can both see true
// for the one probe.
func (b *Breaker) Peek(p Policy, now int64) bool {
	w := b.word.Load()
	return state(w) == Closed || p.off() || state(w) == Open && passed(w, p, now)
}

// Success reports that the attempt worked. A closed breaker without failures is
// only read.
func (b *Breaker) Success(permit Permit) {
	for {
		w := b.word.Load()
		if w == pack(Closed, 0) || !concerns(w, permit) {
			return
		}
		if b.word.CompareAndSwap(w, pack(Closed, 0)) {
			return
		}
	}
}

// Failure reports that the attempt failed at now (monotonic ns, not negative).
// It returns true to exactly one caller per opening: the one whose failure
// opened the breaker or opened it again.
func (b *Breaker) Failure(p Policy, permit Permit, now int64) (opened bool) {
	for {
		w := b.word.Load()
		if !concerns(w, permit) {
			return false
		}
		next := pack(Closed, 0)
		switch {
		case p.off():
		case state(w) == HalfOpen || failures(w)+1 >= p.ConsecutiveFailures:
			next = pack(Open, uint64(max(now, 0)))
		default:
			next = pack(Closed, uint64(failures(w)+1))
		}
		if w == next {
			return false
		}
		if b.word.CompareAndSwap(w, next) {
			return state(next) == Open
		}
	}
}

// Cancel reports that the attempt ended without evidence, such as a caller that
// went away. A probe becomes available again.
func (b *Breaker) Cancel(permit Permit) {
	for permit == Probe {
		w := b.word.Load()
		if state(w) != HalfOpen || b.word.CompareAndSwap(w, pack(Open, uint64(openedAt(w)))) {
			return
		}
	}
}

// State returns the state at this moment. A breaker stays Open after OpenFor
// has passed, until somebody asks for an attempt.
func (b *Breaker) State() State { return state(b.word.Load()) }

// concerns tells whether the end of an attempt with this permit is evidence in
// the state w: ordinary attempts while closed, the probe while half-open.
func concerns(w uint64, permit Permit) bool {
	switch state(w) {
	case Closed:
		return permit == Granted
	case HalfOpen:
		return permit == Probe
	}
	return false
}
