package main

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// gate is a writer that blocks until it is opened.
type gate struct {
	open chan struct{}
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.Write(p)
}

func TestLines(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	lost := make(chan int, 10)
	l := newLines(g, func(n int) { lost <- n })
	line := strings.Repeat("x", 99) + "\n"
	written := make(chan struct{})
	go func() {
		defer close(written)
		for range 3 * maxLines / len(line) {
			fmt.Fprint(l, line)
		}
	}()
	select {
	case <-written:
	case <-time.After(10 * time.Second):
		t.Fatal("a log that nobody reads holds up who logs")
	}
	close(g.open)
	n := <-lost
	fmt.Fprint(l, "last\n")
	l.Close()
	fmt.Fprint(l, "too late\n")
	got := g.text.String()
	if !strings.HasSuffix(got, line+"last\n") || strings.Count(got, "\n") != 3*maxLines/len(line)-n+1 {
		t.Errorf("%d lines were written and %d lost, the end is %q", strings.Count(got, "\n"), n, got[len(got)-20:])
	}
	if len(got) > 2*maxLines+len(line) {
		t.Errorf("%d bytes waited", len(got))
	}
}

func TestLinesCloseDoesNotWaitForEver(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	defer close(g.open)
	l := newLines(g, func(int) {})
	fmt.Fprintln(l, "one")
	began := time.Now()
	l.Close()
	if d := time.Since(began); d < linesClose || d > 5*linesClose {
		t.Errorf("Close took %v", d)
	}
}
