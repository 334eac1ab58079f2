package agent

import (
	"cmp"
	"slices"
	"time"

	"meshd/internal/admin"
	"meshd/internal/consul"
	"meshd/internal/mesh"
	"meshd/internal/snapshot"
)

// confirmed returns when Consul last stated the endpoints of an upstream,
// changed or not, before this start as well; false for those written by hand
// and those never stated.
func confirmed(c *consul.Status, o *mesh.Outbound) (time.Time, bool) {
	if o.Source == "static" || !o.Known {
		return time.Time{}, false
	}
	kind := consul.KindService
	if o.Query {
		kind = consul.KindQuery
	}
	at := latest(o.Updated, c, kind, o.Destination, o.Datacenter)
	return at, !at.IsZero()
}

// confirmedIntentions returns when Consul last stated who may call in.
func confirmedIntentions(c *consul.Status, in *mesh.Inbound) time.Time {
	return latest(in.Intentions.Updated, c, consul.KindIntentions, in.Name, "")
}

// latest is the later one of what the picture knows and what the watch does.
func latest(at time.Time, c *consul.Status, kind consul.Kind, name, datacenter string) time.Time {
	for i := range c.Watches {
		w := &c.Watches[i]
		if w.Kind == kind && w.Name == name && w.Datacenter == datacenter {
			if t := lastTrue(w); t.After(at) {
				return t
			}
		}
	}
	return at
}

// stale tells whether a fact is to be marked: older than warn_after, or read
// from disk and not confirmed since.
func stale(confirmed time.Time, source string, warnAfter time.Duration, now time.Time) bool {
	return source == snapshot.Source || warnAfter > 0 && now.Sub(confirmed) > warnAfter
}

// registration says how a service stands in Consul.
func registration(c *consul.Status, s *mesh.Service) (state, why string) {
	i := slices.IndexFunc(c.Registrations, func(r consul.RegistrationStatus) bool {
		return r.Service == s.Name && r.Port == s.Port
	})
	if i < 0 {
		return "no", ""
	}
	switch r := &c.Registrations[i]; r.State {
	case consul.Registered:
		return "consul", r.Error
	case consul.Adopted:
		return "other", r.Error
	default:
		return "no", r.Error
	}
}

func (a *Agent) identityStatus(v *view, c *consul.Status) admin.Identity {
	roots := a.identity.Roots()
	id := admin.Identity{
		Provider: a.boot.Identity.Provider, TrustDomain: roots.TrustDomain, Roots: len(roots.Roots), Missing: a.missing(v),
	}
	for i := range c.Watches {
		if w := &c.Watches[i]; (w.Kind == consul.KindLeaf || w.Kind == consul.KindRoots) && w.Error != "" {
			id.Error = w.Error
			break
		}
	}
	return id
}

func (a *Agent) catalogStatus(v *view, c *consul.Status, now time.Time) admin.Catalog {
	if a.consul == nil {
		return admin.Catalog{Source: "static", Reachable: true}
	}
	limits := v.cfg.Consul.Stale
	cat := admin.Catalog{
		Source: "consul", Address: c.Address, Reachable: c.Reachable, Error: c.Error,
		WarnAfter: admin.Seconds(limits.WarnAfter), DropAfter: admin.Seconds(limits.DropAfter),
	}
	cat.Stored, _ = a.storedState()
	cat.Unusable = c.Problems
	if len(v.snap.Spec.Static) > 0 {
		cat.Source = "consul, static"
	}
	if !c.Reachable {
		cat.UnreachableSince = a.lastWord(c)
	}
	age := func(at time.Time, source string) {
		cat.Age = max(cat.Age, admin.Seconds(now.Sub(at)))
		if stale(at, source, limits.WarnAfter, now) && (cat.StaleSince.IsZero() || at.Before(cat.StaleSince)) {
			cat.StaleSince = at
		}
	}
	for _, o := range v.snap.Outbound {
		if at, ok := confirmed(c, o); ok {
			age(at, o.Source)
		}
	}
	for _, in := range v.snap.Inbound {
		if in.Intentions != nil {
			age(confirmedIntentions(c, in), "")
		}
	}
	serves := servedBy(v.snap)
	for i := range c.Watches {
		cat.Watches = append(cat.Watches, watchStatus(&c.Watches[i], serves, now))
	}
	for _, r := range c.Registrations {
		cat.Registrations = append(cat.Registrations, admin.Registration{
			Service: r.Service, ID: r.ID, ProxyID: r.ProxyID, Port: r.Port, State: string(r.State),
			Confirmed: r.Confirmed, Error: r.Error,
		})
	}
	for _, d := range c.Denied {
		cat.Denied = append(cat.Denied, admin.Denied{
			Kind: string(d.Kind), Name: d.Name, Datacenter: d.Datacenter,
			What: d.What, Hurt: d.Who, Rule: d.Rule, Token: d.Token, Error: d.Error, Since: d.Since,
		})
	}
	return cat
}

// lastWord is when Consul last said something that was believed, before this
// start as well.
func (a *Agent) lastWord(c *consul.Status) time.Time {
	at := a.stored.contact
	for i := range c.Watches {
		if t := lastTrue(&c.Watches[i]); t.After(at) {
			at = t
		}
	}
	return at
}

func watchStatus(w *consul.WatchStatus, serves map[watchName][]string, now time.Time) admin.Watch {
	return admin.Watch{
		Kind: string(w.Kind), Name: w.Name, Datacenter: w.Datacenter, Index: w.Index,
		Success: w.Confirmed, Age: admin.Seconds(max(w.Age(now), 0)), Error: w.Error, Next: w.NextTry,
		Queries: w.Queries, Errors: w.Errors, Resets: w.Resets, Held: w.Held,
		Serves: serves[watchName{w.Kind, w.Name, w.Datacenter}],
	}
}

// servedBy tells for each watch what in the configuration needs it.
func servedBy(s *mesh.Snapshot) map[watchName][]string {
	m := make(map[watchName][]string)
	add := func(kind consul.Kind, name, datacenter, who string) {
		k := watchName{kind, name, datacenter}
		if !slices.Contains(m[k], who) {
			m[k] = append(m[k], who)
		}
	}
	for _, o := range s.Outbound {
		who := "upstream " + o.Name
		kind := consul.KindService
		if o.Query {
			kind = consul.KindQuery
		}
		add(kind, o.Destination, o.Datacenter, who)
		add(consul.KindChain, o.Destination, o.Datacenter, who)
		add(consul.KindLeaf, o.Caller, "", who)
	}
	for _, in := range s.Inbound {
		who := "service " + cmp.Or(in.ID, in.Name)
		add(consul.KindLeaf, in.Name, "", who)
		add(consul.KindIntentions, in.Name, "", who)
	}
	return m
}
