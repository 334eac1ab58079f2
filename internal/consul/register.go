package consul

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// registrar keeps the local agent's services in step with what this host
// offers. The agent's list of its own services cannot be watched, so it is
// read every few seconds; a registration that vanished comes back with that.
type registrar struct {
	c    *Client
	wake chan struct{} // capacity 1: look at once

	// work is held while Consul is read and written, so that a pass which is
	// under way cannot register again what leave has just removed.
	work sync.Mutex
	left bool // guarded by work: nothing is registered any more

	mu sync.Mutex // guards st
	st []RegistrationStatus
}

func (r *registrar) run(ctx context.Context) {
	p := &r.c.pace
	failures := 0
	for {
		err := r.pass(ctx)
		pause := p.poll*9/10 + rand.N(p.poll/5+1)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			failures++
			r.c.via.failed(err)
			if failures == 1 {
				r.c.o.Log.Warn("consul registration failed", "error", err)
			}
			// Never quicker than a tenth of the poll: unlike a watch, a pass
			// writes.
			pause = max(p.backoff(failures, refused(err)), p.poll/10)
		case failures > 0:
			failures = 0
			r.c.o.Log.Info("consul registration works again")
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-r.wake:
			t.Stop()
		case <-t.C:
		}
	}
}

// pass reads what the agent has, works out what it should have, and makes up
// the difference.
func (r *registrar) pass(ctx context.Context) error {
	r.work.Lock()
	defer r.work.Unlock()
	r.c.mu.Lock()
	wanted := r.c.wanted
	r.c.mu.Unlock()
	if wanted == nil || r.left {
		return nil
	}
	local, err := r.local(ctx)
	if err != nil {
		r.report(waiting(wanted.Register, r.c.o.Node), time.Time{}, err)
		return err
	}
	p := plan(local, wanted.Register, r.c.o.Node)
	var errs []error
	for i := range p.entries {
		e := &p.entries[i]
		for _, reg := range e.register {
			if err := r.register(ctx, reg); err != nil {
				err = fmt.Errorf("register %s: %w", reg.ID, err)
				e.status.State, e.status.Error = Failed, err.Error()
				errs = append(errs, err)
				break
			}
			r.c.o.Log.Info("registered in consul", "id", reg.ID, "service", reg.Name, "port", reg.Port)
		}
	}
	for _, id := range p.deregister {
		if err := r.deregister(ctx, id); err != nil {
			errs = append(errs, err)
			continue
		}
		r.c.o.Log.Info("deregistered from consul", "id", id)
	}
	r.report(p.statuses(), time.Now(), nil)
	return errors.Join(errs...)
}

// leave removes all that is ours.
func (r *registrar) leave(ctx context.Context) error {
	r.work.Lock()
	defer r.work.Unlock()
	r.left = true
	local, err := r.local(ctx)
	if err != nil {
		return fmt.Errorf("deregister: %w", err)
	}
	var errs []error
	for _, id := range plan(local, nil, r.c.o.Node).deregister {
		errs = append(errs, r.deregister(ctx, id))
	}
	r.mu.Lock()
	r.st = nil
	r.mu.Unlock()
	return errors.Join(errs...)
}

// local lists what is registered with the agent.
func (r *registrar) local(ctx context.Context) (map[string]*api.AgentService, error) {
	ctx, cancel := context.WithTimeout(ctx, r.c.pace.answer)
	defer cancel()
	local, err := r.c.api.Agent().ServicesWithFilterOpts("", (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("services of the local agent: %w", explain(err, r.c.pace.answer))
	}
	if local == nil {
		return nil, fmt.Errorf("services of the local agent: %w", distrust("the answer is null instead of a list"))
	}
	return local, nil
}

func (r *registrar) register(ctx context.Context, reg *api.AgentServiceRegistration) error {
	ctx, cancel := context.WithTimeout(ctx, r.c.pace.answer)
	defer cancel()
	opts := api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)
	return explain(r.c.api.Agent().ServiceRegisterOpts(reg, opts), r.c.pace.answer)
}

// deregister removes one instance. One that is gone already is what we want.
func (r *registrar) deregister(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, r.c.pace.answer)
	defer cancel()
	err := r.c.api.Agent().ServiceDeregisterOpts(id, (&api.QueryOptions{}).WithContext(ctx))
	var status api.StatusError
	if errors.As(err, &status) && (status.Code == http.StatusNotFound || strings.Contains(status.Body, "Unknown service")) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("deregister %s: %w", id, explain(err, r.c.pace.answer))
	}
	return nil
}

// report replaces what Status shows. With an error the states of before stay
// and carry it: what is registered does not end with our view of it.
func (r *registrar) report(st []RegistrationStatus, confirmed time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		st = overlay(st, r.st)
	}
	for i := range st {
		s := &st[i]
		if s.State == Failed && !slices.ContainsFunc(r.st, func(k RegistrationStatus) bool { return k.ProxyID == s.ProxyID && k.Error == s.Error }) {
			r.c.o.Log.Warn("service is not registered in consul", "service", s.Service, "id", s.ID, "error", s.Error)
		}
	}
	for i := range st {
		switch s := &st[i]; {
		case err != nil:
			s.Error = err.Error()
		case s.State != Failed:
			s.Confirmed = confirmed
		}
	}
	r.st = st
}

// status returns what is known of the offered services, in their order.
func (r *registrar) status(offered []Registration) []RegistrationStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return overlay(waiting(offered, r.c.o.Node), r.st)
}

// overlay replaces those of st that known has, too.
func overlay(st, known []RegistrationStatus) []RegistrationStatus {
	for i := range st {
		is := func(k RegistrationStatus) bool { return k.ProxyID == st[i].ProxyID }
		// Two blocks with one name and port share the id of their proxy: then
		// the place decides.
		if i < len(known) && is(known[i]) {
			st[i] = known[i]
		} else if at := slices.IndexFunc(known, is); at >= 0 {
			st[i] = known[at]
		}
	}
	return st
}
