package admin

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Thresholds of Diagnose.
const (
	// failedWarn and failedError are shares of failed requests. One in ten is
	// above what a rolling deployment of a healthy service shows.
	failedWarn  = 0.10
	failedError = 0.50
	// failedMinRPS keeps a single failed request of a quiet service from
	// being news: below it, ten seconds hold fewer than five requests.
	failedMinRPS = 0.5
	// renewalLate is the share of a leaf's life below which renewal should
	// have happened: both providers renew with at least a third left.
	renewalLate = 0.20
	// busyLoop: above it a loop has no room for a burst.
	busyLoop = 0.95
)

// Diagnose reads out of the facts of s what is wrong, worst first. It is pure;
// s.Problems is not looked at.
func Diagnose(s *Status) []Problem {
	var d diagnosis
	d.catalog(s) // first, for it explains much of the rest
	d.agent(s)
	for i := range s.Listeners {
		d.listener(&s.Listeners[i])
	}
	d.identity(s)
	for i := range s.Certificates {
		d.certificate(&s.Certificates[i])
	}
	for i := range s.Upstreams {
		d.upstream(&s.Upstreams[i])
	}
	for i := range s.Services {
		d.service(&s.Services[i], &s.Catalog)
	}
	for _, l := range s.Loops {
		if l.Load > busyLoop {
			d.warn(fmt.Sprintf("loop %d uses %.0f%% of a core", l.Index, l.Load*100), "", "raise agent { loops } if cores are idle")
		}
	}
	return sortProblems(d.found)
}

// sortProblems puts errors before warnings and keeps the order otherwise.
func sortProblems(ps []Problem) []Problem {
	rank := func(p Problem) int {
		if p.Severity == SeverityError {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(ps, func(a, b Problem) int { return cmp.Compare(rank(a), rank(b)) })
	return ps
}

type diagnosis struct{ found []Problem }

func (d *diagnosis) err(what, why, next string) {
	d.found = append(d.found, Problem{SeverityError, what, why, next})
}

func (d *diagnosis) warn(what, why, next string) {
	d.found = append(d.found, Problem{SeverityWarning, what, why, next})
}

func (d *diagnosis) agent(s *Status) {
	if s.Draining {
		d.warn("the agent is draining", "it was told to stop and takes nothing new", "")
	} else if !s.Ready {
		d.err("the agent is not ready", "waiting for "+cmp.Or(strings.Join(s.Waiting, ", "), "its first picture"), "")
	}
	if r := s.LastReload; r != nil && !r.Success {
		d.warn("the last reload failed, the configuration before it is in force", r.Error,
			"meshctl validate, then meshctl reload; a restart would fail as well")
	}
}

func (d *diagnosis) listener(l *Listener) {
	if l.Error == "" {
		return
	}
	what := fmt.Sprintf("listener %s on %s is not open", l.Name, l.Address)
	if l.Name == "http" { // no traffic passes here
		d.warn(what, l.Error, portHolder(l.Address))
		return
	}
	d.err(what, l.Error, portHolder(l.Address))
}

// portHolder is the command that names who holds an address.
func portHolder(address string) string {
	if i := strings.LastIndexByte(address, ':'); i >= 0 && i+1 < len(address) {
		return "ss -Hlntup sport = :" + address[i+1:]
	}
	return ""
}

func (d *diagnosis) identity(s *Status) {
	id := &s.Identity
	next, why := "", id.Error
	switch {
	case id.Provider == "consul" && s.Catalog.away():
		why = "Consul cannot be reached"
	case id.Provider == "consul":
		next = "is Connect enabled in Consul, and may the token read and write these services? consul connect ca get-config"
	}
	if id.Provider != "" && id.Roots == 0 {
		d.err("there are no trusted roots, every handshake is refused", why, next)
	}
	for _, m := range id.Missing {
		d.err(fmt.Sprintf("service %q has no certificate", m), why, next)
	}
	told := s.Catalog.denies("leaf", "") || s.Catalog.denies("roots", "") || s.Catalog.away()
	if id.Error != "" && id.Roots > 0 && len(id.Missing) == 0 && !told {
		d.warn("certificates cannot be renewed", id.Error, next)
	}
}

func (d *diagnosis) certificate(c *Certificate) {
	life := c.NotAfter.Sub(c.NotBefore)
	switch left := c.Remaining.Duration(); {
	case left <= 0:
		d.err(fmt.Sprintf("the certificate of %q has expired", c.Service),
			fmt.Sprintf("%s ago", -left.Round(time.Second)), "is the clock right? date; timedatectl")
	case life > 0 && float64(left) < renewalLate*float64(life):
		d.warn(fmt.Sprintf("the certificate of %q was not renewed in time", c.Service),
			fmt.Sprintf("%s left of %s", left.Round(time.Second), life.Round(time.Second)), "")
	}
}

func (d *diagnosis) catalog(s *Status) {
	c := &s.Catalog
	if c.Source == "" || c.Source == "static" {
		return
	}
	for _, u := range c.Unusable {
		d.warn("a file that the consul block names cannot be used", u, "mend it, it is read again by itself")
	}
	for i := range c.Denied {
		d.denied(&c.Denied[i])
	}
	if !c.Reachable {
		d.unreachable(c, s.Ready || s.Draining)
		return // every watch would say the same again
	}
	for _, w := range c.Watches {
		if w.Error != "" && !c.denies(w.Kind, w.Name) {
			d.warn(strings.TrimSpace(fmt.Sprintf("watch of %s %s", w.Kind, w.Name))+" gets errors from Consul", w.Error, "meshctl catalog")
		}
	}
	if !c.StaleSince.IsZero() {
		d.warn("what Consul says is stale since "+moment(c.StaleSince), c.old(), "meshctl catalog")
	}
}

// unreachable is an error where the agent cannot do without, as at a first start.
func (d *diagnosis) unreachable(c *Catalog, ready bool) {
	what := fmt.Sprintf("Consul at %s cannot be reached", c.Address)
	if len(c.Denied) > 0 { // perhaps it does nothing but refuse
		what = fmt.Sprintf("Consul at %s says nothing that helps", c.Address)
	}
	if !c.UnreachableSince.IsZero() {
		what += " since " + moment(c.UnreachableSince)
	}
	why := c.Error
	if c.Age > 0 {
		why = strings.TrimPrefix(why+"; "+c.old(), "; ")
	}
	next := "systemctl status consul; meshctl catalog"
	if !strings.Contains(c.Address, "/") {
		next = "systemctl status consul; curl http://" + c.Address + "/v1/status/leader"
	}
	if ready {
		d.warn(what, why, next)
	} else {
		d.err(what, why, next)
	}
}

// away is true when Consul is needed and does not answer: that is told once,
// and not again by everything that waits for it.
func (c *Catalog) away() bool {
	return c.Source != "" && c.Source != "static" && !c.Reachable && len(c.Denied) == 0
}

// old says how old the facts in use are, and for how long they will be used.
func (c *Catalog) old() string {
	s := fmt.Sprintf("what is in use was confirmed %s ago", short(c.Age.Duration().Round(time.Second)))
	if c.DropAfter > 0 {
		s += " and is dropped after " + short(c.DropAfter.Duration())
	}
	return s
}

// short writes a duration as the configuration has it: 24h, not 24h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// denies tells whether a missing right explains why there is trouble with what
// is asked for; name "" is any.
func (c *Catalog) denies(kind, name string) bool {
	return slices.ContainsFunc(c.Denied, func(r Denied) bool { return r.Kind == kind && (name == "" || r.Name == name) })
}

func (d *diagnosis) denied(r *Denied) {
	var why []string
	add := func(intro, text string) {
		if text != "" {
			why = append(why, intro+text)
		}
	}
	add("it hurts ", r.Hurt)
	add("needed: ", strings.ReplaceAll(r.Rule, "\n", ", "))
	add("asked with ", r.Token)
	add("Consul says: ", r.Error)
	d.err("Consul denies "+r.What, strings.Join(why, "; "), "meshctl consul policy")
}

// moment writes a time as the journal does, so that both can be compared.
func moment(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func (d *diagnosis) upstream(u *Upstream) {
	name := fmt.Sprintf("upstream %q", u.Name)
	for _, b := range u.Binds {
		if b.State == BindFailed {
			d.err(fmt.Sprintf("%s does not listen on %s", name, b.Address), b.Error, portHolder(b.Address))
		}
	}
	if u.Refused != "" {
		next := "meshctl config explain " + u.Name
		if !u.StaleSince.IsZero() {
			next = "meshctl catalog"
		}
		d.err(name+" is refused, nothing is forwarded", u.Refused, next)
		return
	}
	open, usable, opened, again := 0, 0, "", ""
	for _, e := range u.Endpoints {
		switch {
		case e.Breaker == "open":
			open++
			if opened == "" && e.OpenedBy != "" {
				opened = fmt.Sprintf("%s at %s: %s", e.ID, e.Address, e.OpenedBy)
				again = lookAfter(e.OpenedBy, u)
			}
		case e.Healthy:
			usable++
		}
	}
	defined := ""
	if u.Defined != "" {
		defined = "; the upstream is defined at " + u.Defined
	}
	switch {
	case !u.Known:
		d.err(fmt.Sprintf("%s waits for the catalog", name), fmt.Sprintf("nothing is known of service %q yet", u.Destination), "")
	case len(u.Endpoints) == 0:
		d.err(fmt.Sprintf("%s has no endpoint", name), fmt.Sprintf("%s lists no instance of service %q", cmp.Or(u.Source, "the catalog"), u.Destination),
			"is the service registered, and is the name right?"+defined)
	case u.Healthy == 0:
		d.err(fmt.Sprintf("%s has no healthy endpoint", name),
			fmt.Sprintf("%s lists instances of service %q, but all %d are unhealthy", cmp.Or(u.Source, "the catalog"), u.Destination, len(u.Endpoints)), "look at the checks of the service"+defined)
	case usable == 0:
		d.err(fmt.Sprintf("%s has no usable endpoint: breakers are open", name), opened,
			cmp.Or(again, "meshctl status -o wide")+"; it is tried again by itself, see open_for")
	case open > 0:
		d.warn(fmt.Sprintf("%s has %d of %d breakers open", name, open, len(u.Endpoints)), opened, "meshctl status -o wide")
	}
	d.rates(name, &u.Rates)
}

// lookAfter says where to look when a breaker was opened by an outcome.
func lookAfter(openedBy string, u *Upstream) string {
	switch outcome, _, _ := strings.Cut(openedBy, ":"); outcome {
	case "no_service":
		return fmt.Sprintf("does that host offer %q, and with protocol = %q as here? meshctl status there", u.Destination, u.Protocol)
	case "connect_failed":
		return "does meshd run there, and does a firewall let its peer port through?"
	case "handshake_failed":
		return "meshctl status here and there: are certificates valid, and the trust domains the same?"
	}
	return "look at the application there"
}

func (d *diagnosis) service(s *Service, c *Catalog) {
	name := fmt.Sprintf("service %q", s.ID)
	if s.Error != "" && !c.denies("registration", s.Name) && !c.away() {
		d.warn(name+" is not registered as it should be", s.Error, "")
	}
	switch {
	case s.Intentions == IntentionsUnknown:
		if !c.denies("intentions", s.Name) {
			d.err(name+" lets nobody in", "Consul has not said who may call it", "meshctl catalog")
		}
	case s.Intentions == "" && len(s.Allow) == 0:
		where := ""
		if s.Defined != "" {
			where = " at " + s.Defined
		}
		d.warn(name+" allows nobody, every caller is refused", "", fmt.Sprintf(`add allow "CALLER" {} to it%s, then meshctl reload`, where))
	}
	d.rates(name, &s.Rates)
}

func (d *diagnosis) rates(name string, r *Rates) {
	if r.RPS < failedMinRPS || math.IsNaN(r.FailedShare) || r.FailedShare < failedWarn {
		return
	}
	what := fmt.Sprintf("%s fails %.0f%% of its requests", name, r.FailedShare*100)
	why, next := "", "the metric meshd_requests_total, and agent { access_log }, name the outcomes"
	if r.FailedBy != "" {
		why = "mostly " + r.FailedBy
	}
	if r.FailedShare >= failedError {
		d.err(what, why, next)
	} else {
		d.warn(what, why, next)
	}
}

// fill makes every list of s a list in JSON, never null.
func (s *Status) fill() {
	s.Problems = orEmpty(s.Problems)
	s.Upstreams = orEmpty(s.Upstreams)
	s.Services = orEmpty(s.Services)
	s.Certificates = orEmpty(s.Certificates)
	s.Listeners = orEmpty(s.Listeners)
	s.Loops = orEmpty(s.Loops)
	s.Upstreams = slices.Clone(s.Upstreams) // the agent may share its slices
	for i := range s.Upstreams {
		s.Upstreams[i].Binds = orEmpty(s.Upstreams[i].Binds)
		s.Upstreams[i].Endpoints = orEmpty(s.Upstreams[i].Endpoints)
	}
	s.Services = slices.Clone(s.Services)
	for i := range s.Services {
		s.Services[i].Allow = orEmpty(s.Services[i].Allow)
	}
}

func orEmpty[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
