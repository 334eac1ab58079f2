package main

import (
	"cmp"
	"context"
	"time"

	"github.com/spf13/cobra"

	"meshd/internal/admin"
)

const (
	// askTimeout is for questions that the agent answers from memory.
	askTimeout = 10 * time.Second
	// waitPoll is how often --wait asks again.
	waitPoll = 200 * time.Millisecond
)

func newStatus(client func() *admin.Client) *cobra.Command {
	var (
		out    *format
		strict bool
		wait   time.Duration
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is wrong, then upstreams, services, certificates and catalog",
		Long: `Show the state of the agent on this host: problems first, then upstreams,
services, certificates and the catalog. -o wide adds endpoints, listeners,
watches and loops.

Exits 0 when nothing is wrong, 1 when a problem of severity error is shown,
3 when meshd cannot be reached; with --strict, 4 for warnings alone.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := fetchStatus(cmd.Context(), client(), wait)
			if err != nil {
				return agentError(err)
			}
			w := cmd.OutOrStdout()
			done, err := out.document(w, st)
			if err != nil {
				return fail(exitUnhealthy, "print status: %w", err)
			}
			if !done {
				writeStatus(w, styleOf(w), st, *out == formatWide)
			}
			errs, warnings := tally(st.Problems)
			switch {
			case errs > 0:
				return told(exitUnhealthy)
			case warnings > 0 && strict:
				return told(exitWarnings)
			}
			return nil
		},
	}
	out = addFormat(cmd)
	cmd.Flags().BoolVar(&strict, "strict", false, "exit 4 when there are warnings")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait at most this long for a state without errors")
	return cmd
}

// fetchStatus asks once, or with wait until there is no error any more. When
// the time is over it returns what was seen last.
func fetchStatus(ctx context.Context, c *admin.Client, wait time.Duration) (admin.Status, error) {
	deadline := time.Now().Add(wait)
	for {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		st, err := c.Status(ask)
		cancel()
		errs, _ := tally(st.Problems)
		if (err == nil && errs == 0) || time.Until(deadline) < waitPoll {
			return st, err
		}
		select {
		case <-ctx.Done():
			return st, cmp.Or(err, ctx.Err())
		case <-time.After(waitPoll):
		}
	}
}

func tally(ps []admin.Problem) (errs, warnings int) {
	for _, p := range ps {
		if p.Severity == admin.SeverityError {
			errs++
		} else {
			warnings++
		}
	}
	return errs, warnings
}
