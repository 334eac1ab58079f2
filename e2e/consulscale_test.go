package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/admin"
	"meshd/internal/meshtest"
)

// A registry of the size of a company, of which a host uses a fifth: what that
// costs, and how soon a change is in force.
func TestRegistryOfFiveHundredServices(t *testing.T) {
	const services, each, batch = 500, 10, 60 // operations in one transaction; Consul takes 128
	used, changes := 40, 40
	if long() {
		used, changes = 100, 300
	}
	r := secured(t, meshtest.ConsulOptions{})
	name := func(i int) string { return fmt.Sprintf("svc-%03d", i) }
	sidecar := func(i, n int) api.AgentService {
		id := fmt.Sprintf("%s-%d", name(i), n)
		return api.AgentService{
			Kind: api.ServiceKindConnectProxy, ID: id + "-sidecar-proxy", Service: name(i) + "-sidecar-proxy",
			// Nobody is there: nobody calls in this story.
			Address: fmt.Sprintf("10.%d.%d.%d", 1+n, i/250, 1+i%250), Port: 21900, Weights: api.AgentWeights{Passing: 1, Warning: 1},
			Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: name(i), DestinationServiceID: id, LocalServicePort: 8080},
		}
	}
	apply := func(ops api.TxnOps) {
		if ok, res, _, err := r.Client.Txn().Txn(ops, nil); err != nil || !ok {
			t.Fatal(err, res)
		}
	}
	node := func(n int) string { return fmt.Sprintf("node-%d", n) }
	set := func(i, n int) *api.TxnOp {
		return &api.TxnOp{Service: &api.ServiceTxnOp{Verb: api.ServiceSet, Node: node(n), Service: sidecar(i, n)}}
	}
	var ops api.TxnOps
	for n := range each {
		ops = append(ops, &api.TxnOp{Node: &api.NodeTxnOp{Verb: api.NodeSet, Node: api.Node{Node: node(n), Address: fmt.Sprintf("10.%d.0.1", 1+n)}}})
	}
	for i := range services {
		for n := range each {
			ops = append(ops, set(i, n))
		}
	}
	filled := time.Now()
	for group := range slices.Chunk(ops, batch) {
		apply(group)
	}
	t.Logf("filled with %d × %d instances in %s", services, each, time.Since(filled).Round(time.Millisecond))

	web := meshtest.HTTPEcho(t, "web")
	r.intend("web", "web", api.IntentionActionAllow)
	body := offer("web", web.Port(), "http", "") + call("web", "http", "")
	for i := range used - 1 {
		body += call(name(i), "http", "")
	}
	a, _ := r.host("host-a", r.Address, "", body)
	began := time.Now()
	a.start(body)
	a.awaitReady()
	ready := time.Since(began)
	a.awaitCalm()

	watches := len(a.status().Catalog.Watches)
	if most := 2*used + 2*1 + 5; watches > most {
		t.Errorf("%d watches for %d upstreams and a service, want at most %d", watches, used, most)
	}

	// Idle: nothing but what the watches do by themselves, and no questions of
	// this story.
	idle := atLeast(10*time.Second, 65*time.Second)
	lastUntil(time.Now().Add(2 * time.Second))
	cpu, from := a.cpu(), time.Now()
	lastUntil(from.Add(idle))
	share := float64(a.cpu()-cpu) / float64(time.Since(from))
	if most := 0.02; share > most {
		t.Errorf("idle it takes %.1f %% of a core", 100*share)
	}
	rss, connections := a.resident(), a.connectionsTo(r.Address)

	// One change after the other, in ever another service, while requests run.
	a.awaitServed("web")
	l := startLoad(t, a.url("web"), faultRPS)
	l.await(faultRPS / 2)
	client := admin.NewClient(a.socket())
	var took []time.Duration
	gone := make(map[int]bool)
	for c := range changes {
		i := c % (used - 1)
		want := each
		op := set(i, 0)
		if gone[i] = !gone[i]; gone[i] {
			want--
			op.Service.Verb = api.ServiceDelete
		}
		answered := make(chan time.Time, 1) // the goroutine below sends it
		_, meta, err := r.Client.Health().Connect(name(i), "", false, nil)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			q := &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: patience}
			for {
				entries, meta, err := r.Client.Health().Connect(name(i), "", false, q)
				if err != nil || len(entries) == want {
					answered <- time.Now()
					return
				}
				q.WaitIndex = meta.LastIndex
			}
		}()
		apply(api.TxnOps{op})
		said := <-answered
		a.eventually("in force", func() error {
			lastUntil(time.Now().Add(20 * time.Millisecond)) // to look is work, too
			s, err := client.Status(context.Background())
			if err != nil {
				return err
			}
			for _, u := range s.Upstreams {
				if u.Name == name(i) && u.Healthy == want {
					// By the agent's clock, which is this one: looking takes longer.
					took = append(took, max(s.Published.Sub(said), 0))
					return nil
				}
			}
			return fmt.Errorf("%s does not have %d", name(i), want)
		})
	}
	l.finish()
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	// The races that the detector looks for take CPU, which the other tests want
	// as well.
	if limit := 100 * time.Millisecond; p99 > limit && !raceEnabled {
		t.Errorf("a change was in force %s after Consul's answer, p99", p99)
	}
	t.Logf("%d × %d instances, %d upstreams used: ready %s after the start; %d watches on %d connections; idle %.2f %% of a core, %d MiB resident; "+
		"%d changes in force after Consul's answer: p50 %s, p99 %s, worst %s (race detector: %t)",
		services, each, used, ready.Round(time.Millisecond), watches, connections, 100*share, rss,
		len(took), took[len(took)/2].Round(100*time.Microsecond), p99.Round(100*time.Microsecond), took[len(took)-1].Round(100*time.Microsecond), raceEnabled)
}

// cpu is what the process has used so far.
func (p *process) cpu() time.Duration {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	const perSecond = 100 // USER_HZ of every Linux that Go runs on
	ticks := 0
	for _, field := range f[11:13] { // utime and stime
		n, err := strconv.Atoi(field)
		if err != nil {
			p.t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / perSecond
}

// connectionsTo counts the process's TCP connections to an IPv4 HOST:PORT.
func (p *process) connectionsTo(address string) (n int) {
	p.t.Helper()
	_, text, _ := strings.Cut(address, ":")
	port, err := strconv.Atoi(text)
	if err != nil {
		p.t.Fatal(err)
	}
	own := make(map[string]bool)
	for _, target := range p.opened() {
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid), "net", table))
		if err != nil {
			continue // no IPv6 here
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			const established = "01"
			if len(f) > 9 && f[3] == established && strings.HasSuffix(f[2], fmt.Sprintf(":%04X", port)) && own[f[9]] {
				n++
			}
		}
	}
	return n
}
