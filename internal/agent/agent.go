package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"meshd/internal/admin"
	"meshd/internal/config"
	"meshd/internal/consul"
	"meshd/internal/identity"
	"meshd/internal/mesh"
	"meshd/internal/nameserver"
	"meshd/internal/proxy"
	"meshd/internal/systemd"
	"meshd/internal/telemetry"
	"meshd/internal/wire"
)

const (
	// deregisterTimeout bounds the good-bye to Consul. What could not be
	// deregistered turns critical there by its own check.
	deregisterTimeout = 5 * time.Second
	// bindRetry is how often a port that another process holds is tried again.
	bindRetry = 2 * time.Second
	// dataDirMode: addresses.json is harmless, the throwaway CA is not.
	dataDirMode = 0o700
)

// Options are what an agent needs from its door.
type Options struct {
	// Config is the configuration to start with; it was loaded from ConfigPath.
	Config *config.Config
	// ConfigPath is read again by Reload; "" refuses reloads.
	ConfigPath string
	Log        *slog.Logger
	// Level, if set, is the level of Log; the agent sets it to log_level at the
	// start and at reloads.
	Level *slog.LevelVar
	// AccessLog gets the lines of agent { access_log = true }; nil is Log.
	AccessLog *slog.Logger
	// Version is the release of this build, "" if it is none.
	Version string
}

// Agent is one meshd.
type Agent struct {
	o       Options
	log     *slog.Logger
	boot    *config.Config // what holds until the restart
	version admin.Version
	started time.Time

	identity  *identity.Store
	dev       *identity.Dev  // nil unless the provider is dev
	consul    *consul.Client // nil when Consul is not used
	telemetry *telemetry.Registry
	proxy     *proxy.Proxy
	admin     *admin.Server
	notify    *systemd.Notifier

	catalog   catalog
	stored    stored
	publisher publisher
	rates     rates
	queries   queries
	view      atomic.Pointer[view] // nil until the first picture
	draining  atomic.Bool

	dnsMu  sync.Mutex // guards following
	dns    *nameserver.Server
	dnsErr error // why dns is nil
}

// New builds the parts and binds the peer port, the admin socket and the name
// server. An error that wraps a *config.Diagnostics is about the
// configuration. Run or Close must follow.
func New(o Options) (*Agent, error) {
	cfg := o.Config
	a := &Agent{
		o: o, log: o.Log, boot: cfg, started: time.Now(),
		version:  BuildVersion(o.Version),
		identity: identity.NewStore(),
		notify:   systemd.New(o.Log),
	}
	a.catalog.changed = make(chan struct{}, 1)
	a.setLevel(cfg)
	for _, w := range cfg.Warnings {
		a.log.Warn("configuration: " + w.String())
	}
	if err := os.MkdirAll(cfg.Agent.DataDir, dataDirMode); err != nil {
		// Everything works without it but for what must outlive a restart.
		a.log.Warn("data_dir cannot be made: addresses given to upstreams may change at a restart", "error", err)
	}
	a.stored.init(a)
	a.publisher.init(a, filepath.Join(cfg.Agent.DataDir, assignmentsFile))
	if _, err := a.publisher.compile(cfg); err != nil {
		return nil, diagnosed(err)
	}
	var err error
	if cfg.Identity.Provider == "dev" {
		if a.dev, err = identity.NewDev(cfg.Identity.DevDir, a.identity, part(a.log, "identity")); err != nil {
			return nil, err
		}
	}
	if cfg.Consul.Enabled {
		if a.consul, err = a.newConsul(); err != nil {
			return nil, err
		}
	}
	a.telemetry = telemetry.New(cfg.Agent.Loops, proxy.OutcomeNames, proxy.ClientClosed.String(), proxy.BadRequest.String())
	a.proxy, err = proxy.New(proxy.Options{
		Loops: cfg.Agent.Loops, PeerBind: cfg.Peer.Bind, Identity: a.identity, Telemetry: a.telemetry,
		Log: part(a.log, "proxy"), AccessLog: a.accessLog(cfg), DrainTimeout: cfg.Agent.DrainTimeout,
	})
	if err != nil {
		return nil, unbound(err, cfg.Peer.Bind)
	}
	a.admin, err = admin.New(admin.Options{
		Agent: a, Socket: cfg.Admin.Socket, Group: cfg.Admin.Group, HTTP: cfg.Admin.HTTP,
		Metrics: a.telemetry.Handler(a.gauges), Log: part(a.log, "admin"),
	})
	if err != nil {
		a.proxy.Close()
		return nil, err
	}
	a.bindDNS()
	return a, nil
}

// unbound adds the next command to the error of a peer port that is not to be had.
func unbound(err error, bind netip.AddrPort) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w; who has it: ss -Hlntp sport = :%d; another port: peer { bind }", err, bind.Port())
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w; this host does not have the address of peer { bind }: ip address", err)
	}
	return err
}

// BuildVersion describes this program; release is what the linker was told, ""
// for what the module says.
func BuildVersion(release string) admin.Version {
	v := admin.BuildVersion(wire.ALPN)
	v.Version = cmp.Or(release, v.Version)
	return v
}

func (a *Agent) newConsul() (*consul.Client, error) {
	c := a.boot.Consul
	o := consul.Options{
		Address: c.Address, Datacenter: c.Datacenter, Node: a.boot.Agent.NodeName, Log: part(a.log, "consul"),
		TokenFile: c.TokenFile, Stale: consul.Stale{ShrinkAfter: c.Stale.ShrinkAfter},
		OnService: a.catalog.put, OnChain: a.catalog.putChain, OnIntentions: a.catalog.putIntentions,
	}
	if t := c.TLS; t.Enabled {
		o.TLS = consul.TLS{CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile, ServerName: t.ServerName}
		if !strings.Contains(o.Address, "://") {
			o.Address = "https://" + o.Address // an empty block names no file
		}
	}
	if a.boot.Identity.Provider == "consul" {
		o.OnLeaf = func(service string, leaf tls.Certificate) error { return a.identity.SetLeaf(service, leaf) }
		o.OnRoots = a.stored.setRoots
	}
	return consul.New(o)
}

// part marks the lines of one room.
func part(log *slog.Logger, name string) *slog.Logger { return log.With("part", name) }

func (a *Agent) setLevel(cfg *config.Config) {
	if a.o.Level != nil {
		a.o.Level.Set(ParseLevel(cfg.Agent.LogLevel))
	}
}

// LevelTrace is the level of log_level "trace".
const LevelTrace = slog.LevelDebug - 4

// ParseLevel returns the level that a word of log_level stands for.
func ParseLevel(word string) slog.Level {
	if word == "trace" {
		return LevelTrace
	}
	var l slog.Level // info
	_ = l.UnmarshalText([]byte(word))
	return l
}

// accessLog returns where access lines go by cfg, nil for nowhere.
func (a *Agent) accessLog(cfg *config.Config) *slog.Logger {
	if !cfg.Agent.AccessLog {
		return nil
	}
	if a.o.AccessLog != nil {
		return a.o.AccessLog
	}
	return a.log
}

// bindDNS tries to open the name server once. A port that another process
// holds is no reason to keep the data path from running.
func (a *Agent) bindDNS() *nameserver.Server {
	d := a.boot.DNS
	s, err := nameserver.New(nameserver.Options{
		Address: d.Address, Domain: d.Domain, TTL: d.TTL, Snapshot: a.Snapshot, Log: part(a.log, "dns"),
	})
	a.dnsMu.Lock()
	defer a.dnsMu.Unlock()
	if err != nil {
		if a.dnsErr == nil { // once, not at every try
			a.log.Error("name server not open, will retry", "error", err)
		}
		a.dnsErr = err
		return nil
	}
	if a.dnsErr != nil {
		a.log.Info("name server open", "address", s.Addr().String())
	}
	a.dns, a.dnsErr = s, nil
	return s
}

// DNS returns the name server, nil while its port cannot be had, and then why.
func (a *Agent) DNS() (*nameserver.Server, error) {
	a.dnsMu.Lock()
	defer a.dnsMu.Unlock()
	return a.dns, a.dnsErr
}

// Proxy returns the data path.
func (a *Agent) Proxy() *proxy.Proxy { return a.proxy }

// Snapshot returns the picture in force, nil before the first.
func (a *Agent) Snapshot() *mesh.Snapshot {
	if v := a.view.Load(); v != nil {
		return v.snap
	}
	return nil
}

// Close frees an agent that will never Run.
func (a *Agent) Close() {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	// A server that is run with a context that is done closes what it bound.
	_ = a.admin.Run(ended)
	if dns, _ := a.DNS(); dns != nil {
		_ = dns.Run(ended)
	}
	a.proxy.Close()
}

// Run serves until ctx is done, then drains: it takes nothing new, leaves
// Consul, lets what runs finish for at most drain_timeout, and returns nil when
// everything it started has ended. When a part fails, the same happens and Run
// returns why.
func (a *Agent) Run(ctx context.Context) error {
	// Three lives: the publishing goroutine and the data path end with ctx, the
	// rest when the data path has drained, so that status can show it.
	rest, endRest := context.WithCancel(context.WithoutCancel(ctx))
	defer endRest()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var failures failures
	var running sync.WaitGroup // Run waits for everything below
	serve := func(name string, ctx context.Context, run func(context.Context) error) {
		running.Go(func() {
			if err := run(ctx); err != nil {
				failures.add(fmt.Errorf("%s: %w", name, err))
				cancel()
			}
		})
	}

	serve("admin", rest, a.admin.Run)
	serve("dns", rest, a.runDNS)
	if a.dev != nil {
		serve("identity", rest, a.dev.Run)
	}
	if a.consul != nil {
		serve("consul", rest, a.consul.Run)
	}
	running.Go(func() { a.rates.run(rest, a) })
	running.Go(func() { a.runWatchdog(rest) })
	running.Go(func() { a.publisher.run(ctx) })
	running.Go(func() { a.stored.run(ctx) })
	running.Go(func() {
		<-ctx.Done()
		a.beginDrain()
		a.leave() // at once, so that peers stop coming while the rest finishes
	})
	a.log.Info("meshd is running", "version", a.version.Version, "node", a.boot.Agent.NodeName,
		"peer", a.proxy.PeerAddr().String(), "socket", a.boot.Admin.Socket)

	// The proxy drains by itself when ctx ends.
	if err := a.proxy.Run(ctx); err != nil {
		failures.add(fmt.Errorf("proxy: %w", err))
		cancel()
	}
	<-a.publisher.ended
	endRest()
	running.Wait()
	err := failures.err()
	if err == nil {
		a.log.Info("meshd has ended")
	}
	return err
}

// beginDrain says that the end has come.
func (a *Agent) beginDrain() {
	a.draining.Store(true)
	a.notify.Stopping()
	limit := a.boot.Agent.DrainTimeout
	if v := a.view.Load(); v != nil {
		limit = v.cfg.Agent.DrainTimeout
	}
	a.notify.Status("draining, at most %s", limit)
	a.log.Info("draining", "at_most", limit.String())
}

// runDNS serves names as soon as the port can be had.
func (a *Agent) runDNS(ctx context.Context) error {
	s, _ := a.DNS()
	for s == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(bindRetry):
			s = a.bindDNS()
		}
	}
	return s.Run(ctx)
}

// runWatchdog tells systemd that the agent is alive as long as its loops turn
// and pictures can be published. A loop that hangs lets it fall silent.
func (a *Agent) runWatchdog(ctx context.Context) {
	every := a.notify.Watchdog()
	if every <= 0 {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		a.proxy.Counts() // asks every loop
		if a.publisher.ping(ctx) {
			a.notify.Alive()
		}
	}
}

// failures collects why parts ended.
type failures struct {
	mu   sync.Mutex
	list []error
}

func (f *failures) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, err)
}

func (f *failures) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.list...)
}
