package agent

import (
	"context"
	"errors"
	"time"

	"meshd/internal/admin"
	"meshd/internal/config"
	"meshd/internal/mesh"
)

// reloadRequest hands a loaded configuration to the publishing goroutine.
type reloadRequest struct {
	cfg    *config.Config
	err    error // of loading; then cfg is nil
	answer chan admin.ReloadResult
}

// Reload reads the configuration again and puts it in force, or keeps the old
// picture and says why. It is safe for concurrent use.
func (a *Agent) Reload(ctx context.Context) (admin.ReloadResult, error) {
	if a.o.ConfigPath == "" {
		return admin.ReloadResult{}, errors.New("this agent was started without a configuration file")
	}
	if a.draining.Load() {
		return admin.ReloadResult{}, errEnded
	}
	a.notify.Reloading()
	// Also when it failed: the agent serves as before.
	defer a.notify.Ready()
	// The disk may be slow; pictures go on being published meanwhile.
	cfg, err := config.Load(a.o.ConfigPath)
	r := reloadRequest{cfg: cfg, err: err, answer: make(chan admin.ReloadResult, 1)}
	select {
	case a.publisher.reloads <- r:
		return <-r.answer, nil
	case <-a.publisher.ended:
		return admin.ReloadResult{}, errEnded
	case <-ctx.Done():
		return admin.ReloadResult{}, ctx.Err()
	}
}

// reload puts cfg in force. It runs on the publishing goroutine.
func (p *publisher) reload(ctx context.Context, cfg *config.Config, err error) admin.ReloadResult {
	var snap *mesh.Snapshot
	if err == nil {
		snap, err = p.prepare(ctx, cfg)
	}
	if err != nil {
		return p.refuse(err)
	}
	// Nothing fails from here on.
	a := p.a
	changes, _ := config.Diff(p.next.cfg, cfg)
	// Against the start, not against the reload before: what waits for a
	// restart waits until there is one.
	_, restart := config.Diff(a.boot, cfg)
	p.next.cfg, p.next.loaded, p.next.restart = cfg, time.Now(), restart
	p.next.reload = &admin.Reload{At: time.Now(), Success: true}
	p.publish(snap)
	a.setLevel(cfg)
	a.proxy.Configure(a.accessLog(cfg), cfg.Agent.DrainTimeout)
	a.log.Info("configuration reloaded", "generation", snap.Generation, "changes", len(changes), "need_restart", len(restart))
	return admin.ReloadResult{
		Applied: true, Generation: snap.Generation, Changes: changes, Restart: restart, Diagnostics: cfg.Warnings,
	}
}

// prepare compiles cfg and sees to it that the picture has its certificates
// and, if Consul answers, its endpoints before it is published.
func (p *publisher) prepare(ctx context.Context, cfg *config.Config) (*mesh.Snapshot, error) {
	if _, err := p.compile(cfg); err != nil {
		return nil, diagnosed(err)
	}
	p.want(cfg)
	if p.a.consul != nil && p.a.consul.Status().Reachable {
		p.awaitCatalog(ctx, cfg)
	}
	snap, err := p.compile(cfg)
	if err != nil { // what the catalog added cannot be expressed
		p.want(p.next.cfg)
		return nil, diagnosed(err)
	}
	return snap, nil
}

// refuse keeps the old picture and says why.
func (p *publisher) refuse(err error) admin.ReloadResult {
	var d *config.Diagnostics
	if !errors.As(err, &d) {
		d = diagnosed(err)
	}
	res := admin.ReloadResult{Diagnostics: d.List}
	if p.next.snap != nil {
		res.Generation = p.next.snap.Generation
	}
	p.next.reload = &admin.Reload{At: time.Now(), Error: d.List[0].String()}
	p.store()
	p.a.log.Error("configuration not reloaded, the old one stays in force", "errors", len(d.List), "first", p.next.reload.Error)
	return res
}
