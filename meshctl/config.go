package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"meshd/internal/admin"
)

// newConfig is the group of verbs about the configuration in force.
func newConfig(client func() *admin.Client) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Ask what is in force, and why",
		Long:  "Ask the agent what is in force, which is the files and what Consul says besides.",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newExplain(client))
	return cmd
}

func newExplain(client func() *admin.Client) *cobra.Command {
	var out *format
	cmd := &cobra.Command{
		Use:   "explain UPSTREAM",
		Short: "Show every value of an upstream and where it comes from",
		Long: `Show every value of an upstream that is in force and where it comes from: the
line of the upstream's own block, the line of the block defaults, the entry in
Consul, what the agent assigned, or nowhere because it is built in.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeUpstream(client),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			e, err := client().Explain(ctx, args[0])
			if err != nil {
				return questionError(err)
			}
			w := cmd.OutOrStdout()
			done, err := out.document(w, e)
			if err != nil {
				return fail(exitUnhealthy, "print explanation: %w", err)
			}
			if !done {
				writeExplanation(w, styleOf(w), &e)
			}
			return nil
		},
	}
	out = addFormat(cmd)
	return cmd
}

func writeExplanation(w io.Writer, s style, e *admin.Explanation) {
	if e.Refused != "" {
		fmt.Fprintf(w, "%s %s\n", s.cross(), s.bad(fmt.Sprintf("upstream %q is refused: %s", e.Upstream, e.Refused)))
		fmt.Fprintln(w)
	}
	t := &table{paint: func(_, column int, text string) string {
		if column == 2 && text == string(admin.OriginBuiltIn) {
			return s.dim(text)
		}
		return text
	}}
	t.row("ATTRIBUTE", "VALUE", "FROM", "WHERE")
	for _, v := range e.Values {
		t.row(v.Attribute, v.Value, string(v.Origin), v.Where)
	}
	t.write(w, s)
}

// questionError is agentError, but for a question about what this host does not
// have: that is wrong input.
func questionError(err error) error {
	var refused *admin.RefusedError
	if errors.As(err, &refused) && (refused.Code == 404 || refused.Code == 400) {
		return fail(exitBadInput, "%w", err)
	}
	return agentError(err)
}
