package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
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
	// under way cannot register again what leave has just removed. It guards
	// the fields up to mu.
	work sync.Mutex
	left bool // nothing is registered any more
	// tokens are those that ids were registered with: the service may have left
	// the configuration when its registration goes.
	tokens map[string]*secret
	// peers are what our peer port has been since the start.
	peers map[string]bool
	// resting are the services in maintenance, by id, with the reason; standing
	// is the status of our checks, by id. Both are of the last look, for an
	// agent that has lost them at the next.
	resting  map[string]string
	standing map[string]string

	mu     sync.Mutex // guards what follows
	st     []RegistrationStatus
	denied []Denied
	writes uint64
}

func newRegistrar(c *Client) *registrar {
	return &registrar{c: c, wake: make(chan struct{}, 1), tokens: make(map[string]*secret), peers: make(map[string]bool)}
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
	var denied []Denied
	refused := func(service, name string, err error) {
		if lacksRights(err) {
			key := watchKey{kind: KindRegistration, name: service}
			denied = append(denied, *r.c.denial(ctx, key, r.token("", service), []rule{{"service", name, "write"}}, err))
		}
	}
	has, err := r.local(ctx)
	if err != nil {
		for _, name := range offeredNames(wanted.Register) {
			refused(name, name, err)
			if token := r.token("", name); unknownToken(err) && token.gone() {
				r.c.kick(token, nil) // the watches wait with it for something that will not come
			}
		}
		r.report(waiting(wanted.Register, r.c.o.Node), denied, time.Time{}, err)
		return err
	}
	me := ownerOf(r.c.o.Node, wanted.Register)
	r.peers[me.peer] = true
	me.dead = r.dead(ctx, has, me)
	p := plan(has, wanted.Register, me)
	var errs []error
	for i := range p.entries {
		e := &p.entries[i]
		for _, reg := range e.register {
			if err := r.register(ctx, e.status.Service, reg, has); err != nil {
				refused(e.status.Service, reg.Name, err)
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
			refused(has.services[id].Service, has.services[id].Service, err)
			errs = append(errs, err)
			continue
		}
		r.c.o.Log.Info("deregistered from consul", "id", id)
	}
	for _, id := range p.drop {
		if err := r.dropCheck(ctx, id, has.checks[id].ServiceID); err != nil {
			errs = append(errs, err)
		}
	}
	r.remember(has)
	r.report(p.statuses(), denied, time.Now(), nil)
	return errors.Join(errs...)
}

func offeredNames(offered []Registration) []string {
	var names []string
	for i := range offered {
		names = append(names, offered[i].Service.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// remember keeps what the agent itself may lose.
func (r *registrar) remember(has registered) {
	resting, standing := make(map[string]string), make(map[string]string)
	for id, c := range has.checks {
		if name, ok := strings.CutPrefix(id, maintenance); ok {
			resting[name] = c.Notes
		} else if strings.HasPrefix(id, checkPrefix) {
			standing[id] = c.Status
		}
	}
	if len(has.services) > 0 { // one that lost everything is about to get it back
		r.resting, r.standing = resting, standing
	}
}

// leave removes all that is ours. What an operator put into maintenance stays,
// critical as it is: it would come back from a restart in use.
func (r *registrar) leave(ctx context.Context) error {
	r.work.Lock()
	defer r.work.Unlock()
	r.left = true
	r.c.mu.Lock()
	var offered []Registration
	if r.c.wanted != nil {
		offered = r.c.wanted.Register
	}
	r.c.mu.Unlock()
	has, err := r.local(ctx)
	if err != nil {
		return fmt.Errorf("deregister: %w", err)
	}
	var errs []error
	for _, id := range plan(has, nil, ownerOf(r.c.o.Node, offered)).deregister {
		if has.checks[maintenance+id] == nil {
			errs = append(errs, r.deregister(ctx, id))
		}
	}
	r.mu.Lock()
	r.st, r.denied = nil, nil
	r.mu.Unlock()
	return errors.Join(errs...)
}

// token returns what an id is written with: that of its service if it has one.
func (r *registrar) token(id, service string) *secret {
	if s := r.tokens[id]; s != nil {
		return s
	}
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return r.c.secretOf(service)
}

// local lists what is registered with the agent, as far as any of our tokens
// may see it.
func (r *registrar) local(ctx context.Context) (registered, error) {
	ctx, cancel := context.WithTimeout(ctx, r.c.pace.patient)
	defer cancel()
	r.c.mu.Lock()
	tokens := []*secret{r.c.via.token}
	for _, path := range slices.Sorted(maps.Keys(r.c.secrets)) {
		tokens = append(tokens, r.c.secrets[path])
	}
	r.c.mu.Unlock()
	for _, token := range r.tokens { // of services that have left the configuration
		if !slices.Contains(tokens, token) {
			tokens = append(tokens, token)
		}
	}
	all := registered{services: make(map[string]*api.AgentService), checks: make(map[string]*api.AgentCheck)}
	var errs []error
	for _, token := range tokens {
		q := (&api.QueryOptions{}).WithContext(withSecret(ctx, token))
		services, err := r.c.api.Agent().ServicesWithFilterOpts("", q)
		if err == nil && services == nil {
			err = distrust("the answer is null instead of a list")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("services of the local agent: %w", explain(err, r.c.pace.patient)))
			continue
		}
		checks, err := r.c.api.Agent().ChecksWithFilterOpts("", q)
		if err != nil {
			errs = append(errs, fmt.Errorf("checks of the local agent: %w", explain(err, r.c.pace.patient)))
			continue
		}
		maps.Copy(all.services, services)
		maps.Copy(all.checks, checks)
	}
	if len(errs) == len(tokens) {
		return all, errs[0]
	}
	return all, nil
}

// probeTimeout bounds the look whether another meshd is there.
const probeTimeout = 300 * time.Millisecond

// dead returns the peers of our node name, other than ours, where the kernel
// says that nobody listens: a meshd that was killed before its peer port was
// changed.
func (r *registrar) dead(ctx context.Context, has registered, me owner) map[string]bool {
	dead := make(map[string]bool)
	for _, s := range has.services {
		peer := s.Meta[metaPeer]
		if s.Meta[metaMark] != markValue || s.Meta[metaNode] != me.node || peer == "" || peer == me.peer || dead[peer] {
			continue
		}
		if r.peers[peer] {
			dead[peer] = true
			continue
		}
		host, port, err := net.SplitHostPort(peer)
		if err != nil {
			continue
		}
		d := net.Dialer{Timeout: probeTimeout}
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(cmp.Or(host, "127.0.0.1"), port))
		if err == nil {
			c.Close()
		}
		dead[peer] = errors.Is(err, syscall.ECONNREFUSED)
	}
	return dead
}

// register writes one entry. Checks that somebody else added, and maintenance,
// which is a check, stay because the others are not replaced.
func (r *registrar) register(ctx context.Context, name string, reg *api.AgentServiceRegistration, has registered) error {
	token := r.token("", name)
	ctx, cancel := context.WithTimeout(withSecret(ctx, token), r.c.pace.patient)
	defer cancel()
	for _, c := range reg.Checks {
		// One that was there before goes on as it stood.
		if before := r.standing[c.CheckID]; before != "" {
			c.Status = before
		}
	}
	err := r.c.api.Agent().ServiceRegisterOpts(reg, api.ServiceRegisterOpts{}.WithContext(ctx))
	if err != nil {
		return explain(err, r.c.pace.patient)
	}
	r.tokens[reg.ID] = token
	r.wrote()
	if reason, rested := r.resting[reg.ID]; rested && has.services[reg.ID] == nil {
		// The agent lost the service and the word about it.
		q := (&api.QueryOptions{}).WithContext(ctx)
		if err := r.c.api.Agent().EnableServiceMaintenanceOpts(reg.ID, reason, q); err != nil {
			return fmt.Errorf("maintenance: %w", explain(err, r.c.pace.patient))
		}
	}
	return nil
}

// deregister removes one instance. One that is gone already is what we want.
func (r *registrar) deregister(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(withSecret(ctx, r.token(id, "")), r.c.pace.patient)
	defer cancel()
	err := r.c.api.Agent().ServiceDeregisterOpts(id, (&api.QueryOptions{}).WithContext(ctx))
	if err := r.gone(err); err != nil {
		return fmt.Errorf("deregister %s: %w", id, explain(err, r.c.pace.patient))
	}
	delete(r.tokens, id)
	return nil
}

func (r *registrar) dropCheck(ctx context.Context, id, service string) error {
	ctx, cancel := context.WithTimeout(withSecret(ctx, r.token(service, "")), r.c.pace.patient)
	defer cancel()
	err := r.c.api.Agent().CheckDeregisterOpts(id, (&api.QueryOptions{}).WithContext(ctx))
	if err := r.gone(err); err != nil {
		return fmt.Errorf("remove check %s: %w", id, explain(err, r.c.pace.patient))
	}
	return nil
}

// gone is nil for something that is not there (any more).
func (r *registrar) gone(err error) error {
	var status api.StatusError
	if errors.As(err, &status) && (status.Code == http.StatusNotFound || strings.Contains(status.Body, "Unknown ")) {
		err = nil
	}
	if err == nil {
		r.wrote()
	}
	return err
}

func (r *registrar) wrote() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes++
}

// report replaces what Status shows. With an error the states of before stay
// and carry it: what is registered does not end with our view of it.
func (r *registrar) report(st []RegistrationStatus, denied []Denied, confirmed time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		st = overlay(st, r.st)
	}
	for i := range st {
		s := &st[i]
		if s.State == Failed && !slices.ContainsFunc(r.st, func(k RegistrationStatus) bool { return k.key == s.key && k.Error == s.Error }) {
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
	for i := range denied {
		// Since when, if it was so before.
		for _, d := range r.denied {
			if d.Name == denied[i].Name && d.Rule == denied[i].Rule {
				denied[i].Since = d.Since
			}
		}
	}
	r.st, r.denied = st, denied
}

// status returns what is known of the offered services, in their order.
func (r *registrar) status(offered []Registration) (st []RegistrationStatus, denied []Denied, writes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return overlay(waiting(offered, r.c.o.Node), r.st), r.denied, r.writes
}

// overlay replaces those of st that known has, too.
func overlay(st, known []RegistrationStatus) []RegistrationStatus {
	for i := range st {
		is := func(k RegistrationStatus) bool { return k.key == st[i].key }
		// Two blocks with one name and port share the key: then the place
		// decides.
		if i < len(known) && is(known[i]) {
			st[i] = known[i]
		} else if at := slices.IndexFunc(known, is); at >= 0 {
			st[i] = known[at]
		}
	}
	return st
}
