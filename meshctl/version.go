package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"meshd/internal/admin"
)

// version is the release, set by the linker.
var version string

// versions is the document of `version -o json`.
type versions struct {
	Meshctl admin.Version  `json:"meshctl"`
	Meshd   *admin.Version `json:"meshd"` // null: not reachable, or not asked
}

func newVersion(client func() *admin.Client) *cobra.Command {
	var (
		out   *format
		local bool
	)
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of meshctl and of the running meshd",
		Long: `Print the versions of meshctl and of the meshd that runs on this host. An
agent that does not run is shown as such and is no failure.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Meshctl: admin.BuildVersion("")}
			v.Meshctl.Version = cmp.Or(version, v.Meshctl.Version)
			why := "not asked"
			if !local {
				ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
				defer cancel()
				agent, err := client().Version(ctx)
				var u *admin.UnreachableError
				switch {
				case err == nil:
					v.Meshd = &agent
				case errors.As(err, &u):
					why = "not reachable at " + u.Socket
				default:
					return agentError(err)
				}
			}
			w := cmd.OutOrStdout()
			done, err := out.document(w, v)
			if err != nil {
				return fail(exitUnhealthy, "print versions: %w", err)
			}
			if done {
				return nil
			}
			t := &table{}
			t.row("PROGRAM", "VERSION", "REVISION", "GO", "PROTOCOL")
			t.row("meshctl", v.Meshctl.Version, short(v.Meshctl.Revision), v.Meshctl.Go, v.Meshctl.Protocol)
			if v.Meshd != nil {
				t.row("meshd", v.Meshd.Version, short(v.Meshd.Revision), v.Meshd.Go, v.Meshd.Protocol)
			}
			t.write(w, styleOf(w))
			if v.Meshd == nil && !local {
				fmt.Fprintf(w, "meshd    %s\n", why)
			}
			return nil
		},
	}
	out = addFormat(cmd)
	cmd.Flags().BoolVar(&local, "client", false, "do not ask the agent")
	return cmd
}

// short cuts a revision to what people quote.
func short(rev string) string {
	if len(rev) > 12 {
		return rev[:12]
	}
	return cmp.Or(rev, "-")
}
