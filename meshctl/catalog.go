package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshd/internal/admin"
)

func newCatalog(client func() *admin.Client) *cobra.Command {
	var out *format
	cmd := &cobra.Command{
		Use:   "catalog",
		Short: "Show what meshd asks Consul, and how fresh the answers are",
		Long: `Show every question that meshd asks Consul: the index and the age of the last
answer, the last error, when it is asked again; what the token may not do, and
how this host's services are registered. What is wrong comes first. -o wide adds
counts, and whom each answer serves.

Exits 0 also when Consul is away: whether that hurts is what status says.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			c, err := client().Catalog(ctx)
			if err != nil {
				return agentError(err)
			}
			w := cmd.OutOrStdout()
			done, err := out.document(w, c)
			if err != nil {
				return fail(exitUnhealthy, "print catalog: %w", err)
			}
			if !done {
				writeCatalog(w, styleOf(w), &c, *out == formatWide)
			}
			return nil
		},
	}
	out = addFormat(cmd)
	return cmd
}

func writeCatalog(w io.Writer, s style, c *admin.Catalog, wide bool) {
	now := catalogClock(c)
	fmt.Fprintf(w, "%s %s\n", s.head("CATALOG"), catalogLine(s, now, c))
	if c.Error != "" {
		fmt.Fprintf(w, "  why:  %s\n", c.Error)
	}
	if !c.Stored.IsZero() {
		fmt.Fprintf(w, "  disk: last good picture written %s ago\n", span(max(now.Sub(c.Stored), 0)))
	}
	for _, u := range c.Unusable {
		fmt.Fprintf(w, "\n%s unusable file: %s\n", s.bang(), u)
	}
	for _, d := range byRule(c.Denied) {
		fmt.Fprintf(w, "\n%s %s\n", s.cross(), s.bad("Consul denies: "+d.What))
		if d.Hurt != "" {
			fmt.Fprintf(w, "  hurts: %s\n", d.Hurt)
		}
		if d.Rule != "" {
			fmt.Fprintf(w, "  rule:  %s\n", indent(d.Rule, "         "))
		}
		if d.Token != "" {
			fmt.Fprintf(w, "  token: %s\n", d.Token)
		}
	}
	if len(c.Denied) > 0 {
		fmt.Fprintf(w, "\n  next: meshctl consul policy prints all rules that this host needs\n")
	}
	for _, t := range []*table{watchTable(s, now, c.Watches, wide), registrationTable(s, now, c.Registrations, wide)} {
		if len(t.rows) > 1 {
			fmt.Fprintln(w)
			t.write(w, s)
		}
	}
}

// byRule puts together what one rule for one token would allow.
func byRule(all []admin.Denied) (list []admin.Denied) {
	for _, d := range all {
		i := slices.IndexFunc(list, func(o admin.Denied) bool { return d.Rule != "" && o.Rule == d.Rule && o.Token == d.Token })
		if i < 0 {
			list = append(list, d)
			continue
		}
		list[i].What += ", " + d.What
		if d.Hurt != "" && !slices.Contains(strings.Split(list[i].Hurt, ", "), d.Hurt) {
			list[i].Hurt = strings.TrimPrefix(list[i].Hurt+", "+d.Hurt, ", ")
		}
	}
	return list
}

// catalogClock is the agent's clock at the time of the answer, as far as a
// watch tells it, so that ages and times of one answer fit together.
func catalogClock(c *admin.Catalog) time.Time {
	for _, w := range c.Watches {
		if !w.Success.IsZero() && w.Age >= 0 {
			return w.Success.Add(w.Age.Duration())
		}
	}
	return time.Now()
}

// watchTable puts those in trouble first.
func watchTable(s style, now time.Time, ws []admin.Watch, wide bool) *table {
	ws = slices.Clone(ws)
	slices.SortStableFunc(ws, func(a, b admin.Watch) int { return cmp.Compare(trouble(a.Error), trouble(b.Error)) })
	head := []string{"WATCH", "NAME", "INDEX", "AGE", "NEXT-TRY"}
	if wide {
		head = append(head, "QUERIES", "ERRORS", "RESETS", "SERVES")
	}
	head = append(head, "ERROR")
	t := &table{paint: func(row, column int, text string) string {
		switch {
		case column != len(head)-1 || text == "-":
			return text
		case ws[row-1].Error == "":
			return s.warn(text)
		}
		return s.bad(text)
	}}
	t.row(head...)
	for _, w := range ws {
		next, age := "-", "never"
		if !w.Next.IsZero() {
			next = span(max(w.Next.Sub(now), 0))
		}
		if !w.Success.IsZero() {
			age = span(w.Age.Duration())
		}
		name := w.Name
		if w.Datacenter != "" {
			name += "@" + w.Datacenter
		}
		cells := []string{w.Kind, name, fmt.Sprint(w.Index), age, next}
		if wide {
			serves := strings.ReplaceAll(strings.Join(w.Serves, ","), " ", "/") // a cell without spaces
			cells = append(cells, fmt.Sprint(w.Queries), fmt.Sprint(w.Errors), fmt.Sprint(w.Resets), serves)
		}
		t.row(append(cells, strings.Join(remarks(&w), "; "))...)
	}
	return t
}

// remarks are the error of a watch and what else is not as usual with it.
func remarks(w *admin.Watch) (list []string) {
	if w.Error != "" {
		list = append(list, w.Error)
	}
	if w.Held > 0 {
		list = append(list, fmt.Sprintf("%s still used although Consul calls the nodes failed", count(w.Held, "endpoint")))
	}
	return list
}

// registrationTable puts those in trouble first.
func registrationTable(s style, now time.Time, rs []admin.Registration, wide bool) *table {
	rs = slices.Clone(rs)
	slices.SortStableFunc(rs, func(a, b admin.Registration) int { return cmp.Compare(trouble(a.Error), trouble(b.Error)) })
	head := []string{"REGISTRATION", "PORT", "STATE", "AGE"}
	if wide {
		head = append(head, "ID", "PROXY-ID")
	}
	head = append(head, "ERROR")
	t := &table{paint: func(_, column int, text string) string {
		if column == len(head)-1 && text != "-" {
			return s.bad(text)
		}
		return text
	}}
	t.row(head...)
	for _, r := range rs {
		age := "never"
		if !r.Confirmed.IsZero() {
			age = span(max(now.Sub(r.Confirmed), 0))
		}
		cells := []string{r.Service, fmt.Sprint(r.Port), r.State, age}
		if wide {
			cells = append(cells, r.ID, r.ProxyID)
		}
		t.row(append(cells, r.Error)...)
	}
	return t
}

// trouble ranks what has an error before what has none.
func trouble(err string) int {
	if err != "" {
		return 0
	}
	return 1
}
