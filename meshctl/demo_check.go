package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"meshd/internal/admin"
)

// demoCheckTimeout bounds one check.
const demoCheckTimeout = 10 * time.Second

// describe prints what is running.
func (d *demo) describe() {
	w := d.out
	catalog := "a static catalog and a throwaway CA"
	if d.consulAddress != "" {
		catalog = "Consul at http://" + d.consulAddress + " as catalog and CA"
	}
	fmt.Fprintf(w, "\n%s two agents on this machine, with %s\n\n", d.s.head("meshd demo:"), catalog)
	fmt.Fprintf(w, "  hello %s host-a %s host-b %s world\n\n", d.s.mark("─▶", "->"), d.s.mark("══ mTLS ══▶", "== mTLS ==>"), d.s.mark("─▶", "->"))
	t := &table{}
	t.row("PART", "PID", "LISTENS-ON", "WHAT")
	for i := range d.hosts {
		h := &d.hosts[i]
		t.row(h.name, fmt.Sprint(h.process.pid), fmt.Sprintf("127.0.0.1:%d", h.peer),
			fmt.Sprintf("agent; dns 127.0.0.1:%d, http 127.0.0.1:%d", h.dns, h.http))
	}
	t.row("world", "meshctl", d.world.address, "application beside host-b, answers \"world\"")
	t.row("hello", "meshctl", d.hello.address, "application beside host-a, calls world through "+d.upstream)
	t.row("files", "-", "-", d.dir)
	t.write(w, d.s)
}

// demoCheck is one line to try, with the code that tries it.
type demoCheck struct {
	line string // as a user would type it
	what string
	try  func(ctx context.Context) (result string, err error)
}

// checks are the lines of the demo, in the order in which they are shown.
func (d *demo) checks() []demoCheck {
	a := &d.hosts[0]
	metrics := fmt.Sprintf("http://127.0.0.1:%d/metrics", a.http)
	return []demoCheck{
		{"curl http://" + d.upstream + "/", "world, through both agents",
			func(ctx context.Context) (string, error) { return expectBody(ctx, "http://"+d.upstream+"/", "world") }},
		{"curl http://" + d.hello.address + "/", "hello, which calls world",
			func(ctx context.Context) (string, error) {
				return expectBody(ctx, "http://"+d.hello.address+"/", "Hello world!")
			}},
		{fmt.Sprintf("dig @127.0.0.1 -p %d world.mesh.internal", a.dns), "the name of the upstream",
			func(ctx context.Context) (string, error) { return d.checkName(ctx, a.dns) }},
		{"curl " + metrics, "what host-a counted",
			func(ctx context.Context) (string, error) { return checkMetrics(ctx, metrics) }},
		{ownPath() + " --socket " + a.socket() + " status", "how host-a is",
			func(ctx context.Context) (string, error) { return checkStatus(ctx, a.socket()) }},
	}
}

func (d *demo) showLines() {
	fmt.Fprintf(d.out, "\n%s\n", d.s.head("Try:"))
	for _, c := range d.checks() {
		fmt.Fprintf(d.out, "  %s\n  %s\n", d.s.dim("# "+c.what), c.line)
	}
	fmt.Fprintf(d.out, "\nCtrl-C stops everything and leaves nothing behind.\n")
}

// runChecks tries every line and says whether all worked.
func (d *demo) runChecks(ctx context.Context) bool {
	fmt.Fprintln(d.out)
	failed := 0
	checks := d.checks()
	for _, c := range checks {
		one, cancel := context.WithTimeout(ctx, demoCheckTimeout)
		result, err := c.try(one)
		cancel()
		if err != nil {
			failed++
			fmt.Fprintf(d.out, "%s %s\n    %s\n", d.s.cross(), c.line, d.s.bad(err.Error()))
			continue
		}
		fmt.Fprintf(d.out, "%s %s\n    %s\n", d.s.ok(), c.line, result)
	}
	if failed > 0 {
		fmt.Fprintf(d.out, "\n%s %d of %d checks failed\n", d.s.cross(), failed, len(checks))
		return false
	}
	fmt.Fprintf(d.out, "\n%s all %d checks passed\n", d.s.ok(), len(checks))
	return true
}

func expectBody(ctx context.Context, url, want string) (string, error) {
	body, err := get(ctx, url)
	if err != nil {
		return "", err
	}
	if body = strings.TrimSpace(body); body != want {
		return "", fmt.Errorf("answered %q, want %q", body, want)
	}
	return body, nil
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	return fetch(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, req)
}

// checkName asks host-a's name server, not the system's.
func (d *demo) checkName(ctx context.Context, port int) (string, error) {
	server := fmt.Sprintf("127.0.0.1:%d", port)
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, network, server)
	}}
	got, err := r.LookupNetIP(ctx, "ip4", "world.mesh.internal.")
	if err != nil {
		return "", err
	}
	want, err := netip.ParseAddrPort(d.upstream)
	if err != nil {
		return "", err
	}
	if len(got) != 1 || got[0].Unmap() != want.Addr() {
		return "", fmt.Errorf("answered %v, want %s", got, want.Addr())
	}
	return "world.mesh.internal is " + got[0].Unmap().String(), nil
}

func checkMetrics(ctx context.Context, url string) (string, error) {
	body, err := get(ctx, url)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "meshd_requests_total{") && strings.Contains(line, `name="world"`) {
			return strings.TrimSpace(line), nil
		}
	}
	return "", errors.New("no meshd_requests_total of upstream world among the metrics")
}

func checkStatus(ctx context.Context, socket string) (string, error) {
	st, err := admin.NewClient(socket).Status(ctx)
	if err != nil {
		return "", err
	}
	for _, p := range st.Problems {
		if p.Severity == admin.SeverityError {
			return "", fmt.Errorf("%s: %s", p.What, p.Why)
		}
	}
	for i := range st.Upstreams {
		if u := &st.Upstreams[i]; u.Name == "world" {
			return fmt.Sprintf("%s: healthy, upstream world has %d of %d endpoints, generation %d", st.Node, u.Healthy, len(u.Endpoints), st.Generation), nil
		}
	}
	return "", errors.New("upstream world is missing")
}
