package main

import (
	"io"
	"sync"
	"time"
)

const (
	// maxLines bounds what a log may wait with, in bytes: some thousand lines, a
	// second of an access log under load.
	maxLines = 1 << 20
	// linesClose is how long Close waits for a writer that takes nothing.
	linesClose = time.Second
)

// lines takes what is logged and hands it to a writer that may block, such as a
// pipe whose reader has stopped: a loop that logs must not wait for it. What
// does not fit into the bound is thrown away, line by line.
type lines struct {
	w    io.Writer
	lost func(n int)
	wake chan struct{} // capacity 1
	done chan struct{} // closed when run has returned

	mu      sync.Mutex // guards what follows
	waiting []byte
	missing int // lines thrown away since lost was told
	closed  bool
}

// newLines begins to write to w. lost is told, in a goroutine of its own, how
// many lines were thrown away, once w takes some again. Close must follow.
func newLines(w io.Writer, lost func(n int)) *lines {
	l := &lines{w: w, lost: lost, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go l.run() // ends with Close
	return l
}

// Write takes one or more whole lines. It never waits for the writer and never
// fails.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	switch {
	case l.closed:
	case len(l.waiting)+len(p) > maxLines:
		l.missing++
	default:
		l.waiting = append(l.waiting, p...)
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return len(p), nil
}

// Close writes what waits, for at most a second.
func (l *lines) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	select {
	case <-l.done:
	case <-time.After(linesClose):
	}
}

func (l *lines) run() {
	defer close(l.done)
	var spare []byte
	for range l.wake {
		l.mu.Lock()
		ready, missing, closed := l.waiting, l.missing, l.closed
		l.waiting, l.missing = spare[:0], 0
		l.mu.Unlock()
		if len(ready) > 0 {
			_, _ = l.w.Write(ready) // there is nowhere to say that the log cannot be written
		}
		spare = ready
		if missing > 0 {
			l.lost(missing)
		}
		if closed {
			return
		}
	}
}
