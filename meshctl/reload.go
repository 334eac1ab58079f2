package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"meshd/internal/admin"
	"meshd/internal/config"
)

// defaultReloadTimeout is above what a reload of a thousand upstreams takes
// and below the time at which systemd gives up on ExecReload.
const defaultReloadTimeout = 60 * time.Second

func newReload(client func() *admin.Client) *cobra.Command {
	var (
		out     *format
		strict  bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Make meshd read its configuration again and print what changed",
		Long: `Make meshd read its configuration again, wait for the result and print what
changed. With a bad configuration the one before stays in force, traffic is not
touched, the diagnostics are printed and the exit code is 2.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			res, err := client().Reload(ctx)
			if err != nil {
				if refused := new(admin.RefusedError); errors.As(err, &refused) {
					return fail(exitUnhealthy, "meshd did not reload: %w", err)
				}
				return agentError(err)
			}
			w := cmd.OutOrStdout()
			done, err := out.document(w, res)
			if err != nil {
				return fail(exitUnhealthy, "print result: %w", err)
			}
			if !done {
				writeReload(w, cmd.ErrOrStderr(), &res)
			}
			switch {
			case !res.Applied:
				return told(exitBadInput)
			case strict && len(res.Restart)+len(res.Diagnostics) > 0:
				return told(exitWarnings)
			}
			return nil
		},
	}
	out = addFormat(cmd)
	cmd.Flags().DurationVar(&timeout, "timeout", defaultReloadTimeout, "how long to wait for the result")
	cmd.Flags().BoolVar(&strict, "strict", false, "exit 4 when there are warnings, or settings that need a restart")
	return cmd
}

// writeReload prints what changed to w and diagnostics to errw, so that the
// journal of a failed ExecReload has them as errors.
func writeReload(w, errw io.Writer, res *admin.ReloadResult) {
	s, es := styleOf(w), styleOf(errw)
	if len(res.Diagnostics) > 0 {
		config.WriteDiagnostics(errw, res.Diagnostics, es.width, es.color)
	}
	if !res.Applied {
		fmt.Fprintf(errw, "%s not reloaded: %s; generation %d stays in force\n", es.cross(), verdict(res.Diagnostics), res.Generation)
		return
	}
	if len(res.Changes) == 0 {
		fmt.Fprintf(w, "%s reloaded: nothing changed, generation %d\n", s.ok(), res.Generation)
	} else {
		fmt.Fprintf(w, "%s reloaded: %s, generation %d\n", s.ok(), count(len(res.Changes), "change"), res.Generation)
	}
	for _, c := range res.Changes {
		fmt.Fprintf(w, "  %s\n", paintChange(s, c))
	}
	if len(res.Restart) > 0 {
		fmt.Fprintf(w, "%s needs a restart to take effect: systemctl restart meshd\n", s.bang())
		for _, c := range res.Restart {
			fmt.Fprintf(w, "  %s\n", paintChange(s, c))
		}
	}
}

func paintChange(s style, c admin.Change) string {
	switch c.Kind {
	case "+":
		return s.good(c.String())
	case "-":
		return s.bad(c.String())
	}
	return s.warn(c.String())
}

// verdict counts: "2 errors, 1 warning".
func verdict(ds []config.Diagnostic) string {
	errs, warnings := 0, 0
	for _, d := range ds {
		if d.Severity == config.SeverityError {
			errs++
		} else {
			warnings++
		}
	}
	switch {
	case warnings == 0:
		return count(errs, "error")
	case errs == 0:
		return count(warnings, "warning")
	}
	return count(errs, "error") + ", " + count(warnings, "warning")
}
