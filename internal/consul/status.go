package consul

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Kind says what a watch looks at.
type Kind string

// The kinds of watches.
const (
	KindService    Kind = "service"    // endpoints of an upstream
	KindQuery      Kind = "query"      // endpoints by a prepared query, polled
	KindChain      Kind = "chain"      // how a service is to be reached
	KindLeaf       Kind = "leaf"       // certificate of an identity
	KindRoots      Kind = "roots"      // what to trust
	KindIntentions Kind = "intentions" // who may call a service of this host, and what holds for others

	KindRegistration Kind = "registration" // never a watch; for Denied
)

// Status is what the client knows about itself and Consul.
type Status struct {
	Address string
	// Reachable is true when the last request that ended got an answer and at
	// least one watch, if there are any, is without trouble. It is false
	// before the first answer.
	Reachable bool
	// Contact is when Consul last answered anything; zero is never.
	Contact time.Time
	// Error says why Consul is not reachable, "" while it is.
	Error string

	Queries  uint64 // requests ended since the start
	Failures uint64 // those that failed, 4xx and unusable answers included
	Writes   uint64 // registrations, deregistrations and removed checks

	// Problems are files that cannot be used, with the reason. What was in
	// force before them still is.
	Problems []string

	// Denied is what Consul refuses for want of rights, by kind, name,
	// datacenter. It is empty again as soon as the right is there.
	Denied []Denied

	Watches       []WatchStatus        // by kind, name, datacenter
	Registrations []RegistrationStatus // in the order of Wanted.Register
}

// Denied is one thing that the token in use does not allow.
type Denied struct {
	Kind       Kind
	Name       string // of the service or prepared query
	Datacenter string

	What string // what does not work: "endpoints of api"
	Who  string // what that hurts: `upstream to api`, `service web`
	Rule string // ACL rule that would allow it: `service "api" { policy = "read" }`
	// Token says which token lacks it: the path of its file, or "the token of
	// the configuration", or "no token".
	Token string
	Error string // Consul's own words
	Since time.Time
}

// WatchStatus is one watch.
type WatchStatus struct {
	Kind       Kind
	Name       string // service or query name, "" for the roots
	Datacenter string

	Index     uint64    // of the last believed answer; 0 for what is polled
	Confirmed time.Time // last believed answer; zero is never
	Changed   time.Time // last one that differed from the one before
	Error     string    // why the last query failed or was not believed, "" if neither
	Failures  int       // in a row
	NextTry   time.Time // zero while a query is on its way

	// Behind is how long Consul's agent has had no connection to its servers
	// when it gave the last answer out of its cache; 0 is up to date.
	Behind time.Duration
	// Held is how many endpoints are still passed on as healthy although
	// their nodes are gone by Consul's own gossip (see Stale).
	Held int

	Queries uint64 // ended since the start
	Errors  uint64 // those that failed or were not believed
	Resets  uint64 // how often the index went back
}

// Age returns how long ago the watch was last confirmed. A watch whose Consul
// is fine is confirmed about once a minute. Never confirmed is a negative age.
// An answer out of the cache of an agent without servers is as old as that.
func (w *WatchStatus) Age(now time.Time) time.Duration {
	if w.Confirmed.IsZero() {
		return -1
	}
	return max(now.Sub(w.Confirmed), 0) + w.Behind
}

// RegistrationState says how an offered service stands in Consul.
type RegistrationState string

// The states of a registration.
const (
	Waiting    RegistrationState = "waiting"    // nothing known yet
	Registered RegistrationState = "registered" // service and proxy are ours
	Adopted    RegistrationState = "adopted"    // somebody registered the service; the proxy is ours
	Failed     RegistrationState = "failed"     // see Error
)

// RegistrationStatus is one offered service.
type RegistrationStatus struct {
	Service   string
	ID        string // the instance in Consul, the one somebody else gave if adopted
	ProxyID   string
	Port      uint16
	State     RegistrationState
	Error     string
	Confirmed time.Time // when Consul's agent was last seen to have it

	key string // the same whatever ids are taken
}

// Status returns a copy of the current state. What Want was given is in it
// from then on, never confirmed at first. It is cheap and may be called from
// any goroutine.
func (c *Client) Status() Status {
	s := c.via.status()
	s.Address = c.o.Address
	var offered []Registration
	c.mu.Lock()
	for _, w := range c.watches {
		st, denied := w.status()
		s.Watches = append(s.Watches, st)
		if denied != nil {
			s.Denied = append(s.Denied, *denied)
		}
	}
	for _, t := range append([]*secret{c.via.token}, slices.SortedFunc(maps.Values(c.secrets), func(a, b *secret) int { return cmp.Compare(a.path, b.path) })...) {
		if p := t.problem(); p != "" {
			s.Problems = append(s.Problems, p)
		}
	}
	if c.wanted != nil {
		offered = c.wanted.Register
	}
	c.mu.Unlock()
	if s.Reachable && len(s.Watches) > 0 {
		well := slices.ContainsFunc(s.Watches, func(w WatchStatus) bool { return w.Error == "" })
		if !well {
			s.Reachable, s.Error = false, s.Watches[0].Error
		}
	}
	slices.SortFunc(s.Watches, func(a, b WatchStatus) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Datacenter, b.Datacenter))
	})
	var denied []Denied
	s.Registrations, denied, s.Writes = c.reg.status(offered)
	s.Denied = append(s.Denied, denied...)
	slices.SortStableFunc(s.Denied, func(a, b Denied) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Datacenter, b.Datacenter))
	})
	return s
}
