package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"meshd/internal/admin"
)

// writeStatus prints the screen. Times are relative to the agent's own clock,
// so a status saved to a file prints the same tomorrow.
func writeStatus(w io.Writer, s style, st admin.Status, wide bool) {
	now := st.Started.Add(st.Uptime.Duration())
	errs, warnings := tally(st.Problems)
	switch {
	case errs > 0 && warnings > 0:
		fmt.Fprintf(w, "%s %s: %s, %s\n", s.cross(), st.Node, s.bad(count(errs, "error")), s.warn(count(warnings, "warning")))
	case errs > 0:
		fmt.Fprintf(w, "%s %s: %s\n", s.cross(), st.Node, s.bad(count(errs, "error")))
	case warnings > 0:
		fmt.Fprintf(w, "%s %s: %s\n", s.bang(), st.Node, s.warn(count(warnings, "warning")))
	default:
		fmt.Fprintf(w, "%s %s: %s\n", s.ok(), st.Node, s.good("healthy"))
	}
	for _, p := range st.Problems {
		mark, text := s.bang(), p.What
		if p.Severity == admin.SeverityError {
			mark, text = s.cross(), s.bad(p.What)
		}
		fmt.Fprintf(w, "\n%s %s\n", mark, text)
		if p.Why != "" {
			fmt.Fprintf(w, "  why:  %s\n", indent(p.Why, "        "))
		}
		if p.Next != "" {
			fmt.Fprintf(w, "  next: %s\n", indent(p.Next, "        "))
		}
	}

	section := func(t *table) {
		if len(t.rows) > 1 {
			fmt.Fprintln(w)
			t.write(w, s)
		}
	}
	section(upstreamTable(s, st.Upstreams, wide))
	if wide {
		section(endpointTable(s, st.Upstreams))
	}
	section(serviceTable(s, st.Services, wide))
	section(certificateTable(s, st.Certificates, wide))
	if wide {
		section(listenerTable(s, st))
		section(watchTable(s, now, st.Catalog.Watches, false))
		section(registrationTable(s, now, st.Catalog.Registrations, false))
		section(loopTable(st.Loops))
	}
	fmt.Fprintf(w, "\n%s %s\n", s.head("CATALOG "), catalogLine(s, now, &st.Catalog))
	fmt.Fprintf(w, "%s %s\n", s.head("IDENTITY"), identityLine(&st.Identity))
	fmt.Fprintf(w, "%s %s\n", s.head("AGENT   "), agentLine(now, &st))
}

func upstreamTable(s style, us []admin.Upstream, wide bool) *table {
	t := &table{paint: func(row, column int, text string) string {
		u := &us[row-1]
		switch {
		case column == 3 && (u.Healthy == 0 || u.Refused != ""):
			return s.bad(text)
		case column == 3 && (u.Healthy < len(u.Endpoints) || !u.StaleSince.IsZero()), column == 4 && text != "closed" && text != "-":
			return s.warn(text)
		}
		return text
	}}
	head := []string{"UPSTREAM", "ADDRESS", "PROTOCOL", "ENDPOINTS", "BREAKERS", "RPS", "P50", "P99", "FAILED"}
	if wide {
		head = append(head, "IN-FLIGHT", "TOTAL", "SERVICE", "CALLER", "SOURCE", "HOST", "BINDS")
	}
	t.row(head...)
	for i := range us {
		u := &us[i]
		cells := append([]string{
			u.Name, fmt.Sprintf("%s:%d", u.Address, u.Port), u.Protocol,
			endpointCount(u), breakers(u.Endpoints),
		}, rates(&u.Rates)...)
		if wide {
			dest := u.Destination
			if u.Datacenter != "" {
				dest += "@" + u.Datacenter
			}
			cells = append(cells, fmt.Sprint(u.InFlight), fmt.Sprint(u.Total), dest, u.Caller, u.Source, u.Host, binds(u.Binds))
		}
		t.row(cells...)
	}
	return t
}

// endpointCount sums up: healthy/all, whether the answer is old, or that none of
// them is used.
func endpointCount(u *admin.Upstream) string {
	switch n := fmt.Sprintf("%d/%d", u.Healthy, len(u.Endpoints)); {
	case u.Refused != "":
		return "refused"
	case !u.StaleSince.IsZero():
		return n + "(stale)"
	default:
		return n
	}
}

// breakers sums up: closed, or how many are not.
func breakers(es []admin.Endpoint) string {
	if len(es) == 0 {
		return "-"
	}
	open, half := 0, 0
	for _, e := range es {
		switch e.Breaker {
		case "open":
			open++
		case "half-open":
			half++
		}
	}
	var parts []string
	if open > 0 {
		parts = append(parts, fmt.Sprintf("open:%d", open))
	}
	if half > 0 {
		parts = append(parts, fmt.Sprintf("half-open:%d", half))
	}
	return cmp.Or(strings.Join(parts, ","), "closed")
}

func binds(bs []admin.Bind) string {
	parts := make([]string, len(bs))
	for i, b := range bs {
		parts[i] = b.Address
		if b.State == admin.BindFailed {
			parts[i] += "(failed)"
		}
	}
	return strings.Join(parts, ",")
}

func rates(r *admin.Rates) []string {
	failed := "-"
	if r.RPS > 0 {
		failed = share(r.FailedShare)
	}
	return []string{rate(r.RPS), latency(r.P50.Duration()), latency(r.P99.Duration()), failed}
}

func endpointTable(s style, us []admin.Upstream) *table {
	t := &table{paint: func(_, column int, text string) string {
		switch {
		case column == 3 && text == "unhealthy", column == 4 && text == "open":
			return s.bad(text)
		case column == 4 && text == "half-open":
			return s.warn(text)
		}
		return text
	}}
	t.row("ENDPOINT", "UPSTREAM", "PEER", "HEALTH", "BREAKER", "LINKS", "IN-FLIGHT", "WEIGHT", "OPENED-BY")
	for i := range us {
		for _, e := range us[i].Endpoints {
			health := "healthy"
			if !e.Healthy {
				health = "unhealthy"
			}
			t.row(e.ID, us[i].Name, e.Address, health, e.Breaker, fmt.Sprint(e.Links), fmt.Sprint(e.InFlight), fmt.Sprint(e.Weight), cmp.Or(e.OpenedBy, "-"))
		}
	}
	return t
}

// allowed sums up who may call: the callers of allow blocks, intentions alone,
// or both, of which each has to allow.
func allowed(v *admin.Service) string {
	callers := strings.Join(v.Allow, ",")
	switch {
	case v.Intentions == "":
		return cmp.Or(callers, "nobody")
	case v.Intentions == admin.IntentionsUnknown:
		return "nobody"
	case callers == "":
		return "intentions"
	}
	return callers + "+intentions"
}

func serviceTable(s style, svcs []admin.Service, wide bool) *table {
	t := &table{paint: func(_, column int, text string) string {
		if column == 3 && text == "nobody" {
			return s.bad(text)
		}
		return text
	}}
	head := []string{"SERVICE", "ADDRESS", "PROTOCOL", "ALLOW", "REGISTERED", "RPS", "P50", "P99", "FAILED"}
	if wide {
		head = append(head, "IN-FLIGHT", "TOTAL", "ID", "DEFINED")
	}
	t.row(head...)
	for i := range svcs {
		v := &svcs[i]
		name := v.Name
		if v.ID != v.Name && !wide { // several instances would look the same
			name += "(" + v.ID + ")"
		}
		cells := append([]string{
			name, v.Address, v.Protocol, allowed(v), v.Registered,
		}, rates(&v.Rates)...)
		if wide {
			cells = append(cells, fmt.Sprint(v.InFlight), fmt.Sprint(v.Total), v.ID, v.Defined)
		}
		t.row(cells...)
	}
	return t
}

func certificateTable(s style, cs []admin.Certificate, wide bool) *table {
	t := &table{paint: func(row, column int, text string) string {
		if column == 1 && cs[row-1].Remaining <= 0 {
			return s.bad(text)
		}
		return text
	}}
	head := []string{"CERTIFICATE", "EXPIRES-IN", "IDENTITY"}
	if wide {
		head = append(head, "NOT-AFTER", "ISSUER")
	}
	t.row(head...)
	for _, c := range cs {
		left := span(c.Remaining.Duration())
		if c.Remaining <= 0 {
			left = "expired"
		}
		cells := []string{c.Service, left, c.SPIFFE}
		if wide {
			cells = append(cells, c.NotAfter.UTC().Format(time.RFC3339), c.Issuer)
		}
		t.row(cells...)
	}
	return t
}

func listenerTable(s style, st admin.Status) *table {
	t := &table{paint: func(_, column int, text string) string {
		if column == 2 && text != "listening" {
			return s.bad(text)
		}
		return text
	}}
	t.row("LISTENER", "ADDRESS", "STATE")
	state := func(err string) string {
		if err != "" {
			return "failed: " + err
		}
		return string(admin.BindListening)
	}
	for _, l := range st.Listeners {
		t.row(l.Name, l.Address, state(l.Error))
	}
	for i := range st.Upstreams {
		for _, b := range st.Upstreams[i].Binds {
			t.row(st.Upstreams[i].Name, b.Address, state(b.Error))
		}
	}
	return t
}

func loopTable(ls []admin.Loop) *table {
	t := &table{}
	t.row("LOOP", "LOAD", "CONNECTIONS")
	for _, l := range ls {
		t.row(fmt.Sprint(l.Index), share(l.Load), fmt.Sprint(l.Connections))
	}
	return t
}

// catalogLine says where the facts come from and how old they are.
func catalogLine(s style, now time.Time, c *admin.Catalog) string {
	if c.Source == "" || c.Source == "static" {
		return cmp.Or(c.Source, "none")
	}
	line := c.Source
	if c.Address != "" {
		line += " at " + c.Address
	}
	switch {
	case c.Reachable:
		line += ", reachable"
	case c.UnreachableSince.IsZero():
		line += ", " + s.bad("not reachable")
	default:
		line += ", " + s.bad("not reachable since "+span(now.Sub(c.UnreachableSince)))
	}
	if !c.Reachable && c.Age == 0 && c.UnreachableSince.IsZero() {
		return line + ", no answer yet"
	}
	line += ", oldest answer " + span(c.Age.Duration())
	if !c.StaleSince.IsZero() {
		line += ", " + s.warn("stale since "+span(now.Sub(c.StaleSince)))
		if c.DropAfter > 0 {
			line += s.warn(", dropped in " + span(max(c.StaleSince.Add(c.DropAfter.Duration()).Sub(now), 0)))
		}
	}
	return line
}

func identityLine(id *admin.Identity) string {
	line := cmp.Or(id.Provider, "none")
	if id.TrustDomain != "" {
		line += ", trust domain " + id.TrustDomain
	}
	return line + ", " + count(id.Roots, "root")
}

func agentLine(now time.Time, st *admin.Status) string {
	line := fmt.Sprintf("meshd %s, pid %d, up %s, generation %d", st.Version.Version, st.PID, span(st.Uptime.Duration()), st.Generation)
	if !st.Published.IsZero() {
		line += " published " + span(now.Sub(st.Published)) + " ago"
	}
	if r := st.LastReload; r != nil {
		how := "succeeded"
		if !r.Success {
			how = "failed"
		}
		line += fmt.Sprintf(", last reload %s %s ago", how, span(now.Sub(r.At)))
	}
	return line
}
