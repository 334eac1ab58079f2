package consul

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"time"
)

// pulse asks again and again whether Consul is there and has a leader, and
// kicks every watch when that turns from no to yes. A query that was lost on
// the way to or from a Consul that hung would otherwise be waited for until its
// timeout, which is above a minute. It runs until ctx is done.
func (c *Client) pulse(ctx context.Context) {
	p := &c.pace
	bad := false
	for {
		err := c.beat(ctx)
		if ctx.Err() != nil {
			return
		}
		if bad && err == nil {
			c.o.Log.Info("consul is there again, asking everything anew")
			c.kick(nil, nil)
			poke(c.reg.wake)
		}
		bad = err != nil
		pause := p.pulse
		if bad {
			pause = p.pulseBad
		}
		if !pauseFor(ctx, pause*9/10+rand.N(pause/5+1)) {
			return
		}
	}
}

// beat is nil when Consul answered in time and its servers have a leader.
func (c *Client) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.pace.pulseLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://consul/v1/status/leader", nil)
	if err != nil {
		return err
	}
	// A connection of its own says more than one that stands, and leaves none
	// for a watch to try first, and in vain, when Consul resets them.
	req.Close = true
	var leader string
	_, err = c.send(req, &leader)
	if err == nil && leader == "" {
		err = errors.New("no leader")
	}
	return err
}

// watchFiles reads token and TLS files again when they change, until ctx is
// done.
func (c *Client) watchFiles(ctx context.Context) {
	for pauseFor(ctx, c.pace.files) {
		c.mu.Lock()
		secrets := make([]*secret, 0, len(c.secrets)+1)
		secrets = append(secrets, c.via.token)
		for _, s := range c.secrets {
			secrets = append(secrets, s)
		}
		c.mu.Unlock()
		for _, s := range secrets {
			if s.refresh() {
				c.o.Log.Info("consul token replaced", "file", s.path)
				c.kick(s, nil)
				poke(c.reg.wake)
			}
		}
		if c.via.renew() {
			c.o.Log.Info("consul tls files replaced")
			c.kick(nil, nil)
			poke(c.reg.wake)
		}
	}
}

// kick makes the watches with the given token ask anew, all of them with nil;
// but not the one that says so.
func (c *Client) kick(token *secret, but *watch) {
	c.mu.Lock()
	var those []*watch
	for _, w := range c.watches {
		if w != but && (token == nil || c.secretOf(w.service) == token) {
			those = append(those, w)
		}
	}
	c.mu.Unlock()
	for _, w := range those {
		w.kick()
	}
}

// pauseFor waits, and returns false when ctx is done.
func pauseFor(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
