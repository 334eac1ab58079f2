package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	demoAppTimeout = 5 * time.Second
	// demoBodyLimit is far above any answer of the two applications.
	demoBodyLimit = 64 << 10
)

// demoApp is an application of the demo; it knows nothing of the mesh.
type demoApp struct {
	server  *http.Server
	address string // IP:PORT
	done    chan struct{}
}

func serveDemoApp(port int, h http.Handler) (demoApp, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return demoApp{}, err
	}
	a := demoApp{
		server:  &http.Server{Handler: h, ReadHeaderTimeout: demoAppTimeout},
		address: l.Addr().String(), done: make(chan struct{}),
	}
	go func() { // ends with close, which waits for it
		defer close(a.done)
		a.server.Serve(l)
	}()
	return a, nil
}

func (a *demoApp) close() {
	if a.server == nil {
		return
	}
	a.server.Close()
	<-a.done
}

func worldApp() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "world\n")
	})
}

// helloApp asks world by plain HTTP on the upstream's address.
func helloApp(upstream string) http.Handler {
	client := &http.Client{Timeout: demoAppTimeout, Transport: &http.Transport{}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "http://"+upstream+"/", nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		body, err := fetch(client, req)
		if err != nil {
			http.Error(w, "world did not answer: "+err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, "Hello %s!\n", strings.TrimSpace(body))
	})
}

// fetch returns the body of a 200.
func fetch(c *http.Client, req *http.Request) (string, error) {
	res, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, demoBodyLimit))
	if err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusOK {
		why := strings.TrimSpace(string(b))
		if e := res.Header.Get("meshd-error"); e != "" {
			why = "meshd-error: " + e
		}
		return "", fmt.Errorf("status %s: %.200s", res.Status, why)
	}
	return string(b), nil
}
