package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Life of what [Dev] issues.
const (
	devRootLife = 10 * 365 * 24 * time.Hour // as Consul's root: nobody renews it here
	devLeafLife = 24 * time.Hour            // short enough that renewal is exercised on any host that stays up
	devBackdate = 5 * time.Minute           // clocks of two laptops differ
	// devCheck is how often Run looks, and so when it tries again after a
	// failure. It is short because timers stand still while a laptop sleeps.
	devCheck = time.Minute
)

// DevDatacenter is the datacenter in the names that [Dev] issues.
const DevDatacenter = "dev"

// Dev is a throwaway certificate authority in a folder that several agents
// share. Whoever can read the folder can be any service: it is for a laptop
// and for tests.
type Dev struct {
	ca    *authority
	store *Store
	log   *slog.Logger
	kick  chan struct{} // capacity 1: Want changed what is due

	mu  sync.Mutex           // guards due
	due map[string]time.Time // wanted services and when each leaf is renewed
}

// NewDev reads the authority in dir, or makes it (dir too) when there is none;
// agents that start at once agree on one. It hands the root to the store.
func NewDev(dir string, store *Store, log *slog.Logger) (*Dev, error) {
	ca, err := loadAuthority(dir)
	if err != nil {
		return nil, fmt.Errorf("dev certificate authority in %s: %w", dir, err)
	}
	store.SetRoots(ca.domain, ca.roots())
	log.Info("dev certificate authority is in use: it protects nothing from whoever reads its folder",
		"dir", dir, "trust_domain", ca.domain)
	return &Dev{ca: ca, store: store, log: log, kick: make(chan struct{}, 1), due: map[string]time.Time{}}, nil
}

// Want sets the services that need a leaf and returns when each has one, or
// says which could not get one. Others are not renewed any more;
// [Store.Retain] drops them.
func (d *Dev) Want(services []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for service := range d.due {
		if !slices.Contains(services, service) {
			delete(d.due, service)
		}
	}
	var errs []error
	for _, service := range services {
		if _, ok := d.due[service]; !ok {
			errs = append(errs, d.issue(service))
		}
	}
	select {
	case d.kick <- struct{}{}:
	default:
	}
	return errors.Join(errs...)
}

// issue gives the service a new leaf. d.mu is held.
func (d *Dev) issue(service string) error {
	c, err := d.ca.issue(service, time.Now())
	if err == nil {
		err = d.store.SetLeaf(service, c)
	}
	if err != nil {
		return fmt.Errorf("issue dev certificate for service %q: %w", service, err)
	}
	leaf, _ := d.store.Leaf(service)
	d.due[service] = renewAt(leaf.Leaf.NotBefore, leaf.Leaf.NotAfter, rand.Float64())
	return nil
}

// renewAt returns when to renew a certificate of that life: at two thirds, up
// to a tenth of the life earlier by jitter in [0, 1), so that agents that
// started together do not stay together.
func renewAt(from, to time.Time, jitter float64) time.Time {
	life := to.Sub(from)
	return from.Add(life*2/3 - time.Duration(jitter*float64(life)/10))
}

// Run renews leafs until ctx is done; it then returns nil.
func (d *Dev) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.kick:
		case <-timer.C:
		}
		timer.Reset(d.renew(time.Now()))
	}
}

// renew issues what is due and returns when to look again.
func (d *Dev) renew(now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := now.Add(devCheck)
	for service, at := range d.due {
		if !at.After(now) {
			if err := d.issue(service); err != nil {
				d.log.Error("certificate not renewed, the old one stays", "service", service, "error", err)
				d.due[service] = now.Add(devCheck)
			} else {
				d.log.Info("certificate renewed", "service", service)
			}
		}
		if at = d.due[service]; at.Before(next) {
			next = at
		}
	}
	return next.Sub(now)
}
