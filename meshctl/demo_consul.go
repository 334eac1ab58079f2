package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

// startConsul runs a Consul of one node in memory and returns when it has a
// leader and a certificate authority.
func (d *demo) startConsul(ctx context.Context, f *family, consul string, p demoPorts) error {
	address := fmt.Sprintf("127.0.0.1:%d", p.consulHTTP)
	port := func(name string, n int) string { return fmt.Sprintf("-%s-port=%d", name, n) }
	_, err := f.start(consulName, filepath.Join(d.dir, "consul.log"), consul, "agent", "-dev",
		"-node=demo", "-bind=127.0.0.1", "-client=127.0.0.1", "-log-level=warn", "-disable-host-node-id",
		port("http", p.consulHTTP), port("server", p.consulServer), port("serf-lan", p.consulGossip),
		port("serf-wan", -1), port("dns", -1), port("https", -1), port("grpc", -1), port("grpc-tls", -1))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, demoReadyTimeout, fmt.Errorf("consul was not ready in %s", demoReadyTimeout))
	defer cancel()
	for _, path := range []string{"/v1/status/leader", "/v1/agent/connect/ca/roots"} {
		if err := awaitAnswer(ctx, "http://"+address+path); err != nil {
			f.showLogs(d.out)
			return err
		}
	}
	d.consulAddress = address
	return nil
}

// awaitAnswer polls until url answers 200 with more than an empty string.
func awaitAnswer(ctx context.Context, url string) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		body, err := fetch(&http.Client{Timeout: demoAppTimeout}, req)
		if err == nil && strings.Trim(body, "\"\n ") != "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(demoPoll):
		}
	}
}
