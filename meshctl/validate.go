package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"meshd/internal/config"
)

// defaultConfig is where a packaged agent looks.
const defaultConfig = "/etc/meshd/meshd.hcl"

// validation is the document of `validate -o json`.
type validation struct {
	Valid       bool                `json:"valid"`
	Files       []string            `json:"files"`
	Services    int                 `json:"services"`
	Upstreams   int                 `json:"upstreams"`
	Diagnostics []config.Diagnostic `json:"diagnostics"`
}

func newValidate() *cobra.Command {
	var (
		out    *format
		strict bool
	)
	cmd := &cobra.Command{
		Use:   "validate [PATH]",
		Short: "Check a configuration without a running agent",
		Long: `Check the configuration at PATH (default ` + defaultConfig + `) and the files in
conf.d beside it, *.hcl and *.json, exactly as meshd does at start and reload.
All findings are printed at once. Exits 0 when it is good, 2 when it is not;
with --strict, 4 for warnings alone.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeConfig,
		RunE: func(cmd *cobra.Command, args []string) error {
			path := defaultConfig
			if len(args) == 1 {
				path = args[0]
			}
			v := validation{Files: []string{}, Diagnostics: []config.Diagnostic{}}
			cfg, err := config.Load(path)
			switch ds := new(config.Diagnostics); {
			case errors.As(err, &ds):
				v.Diagnostics = ds.List
			case err != nil:
				return fail(exitBadInput, "%w", err)
			default:
				v.Valid = true
				v.Files = append(v.Files, cfg.Files...)
				v.Services, v.Upstreams = len(cfg.Spec.Services), len(cfg.Spec.Upstreams)
				v.Diagnostics = append(v.Diagnostics, cfg.Warnings...)
			}
			w, errw := cmd.OutOrStdout(), cmd.ErrOrStderr()
			done, err := out.document(w, v)
			if err != nil {
				return fail(exitUnhealthy, "print result: %w", err)
			}
			if !done {
				es := styleOf(errw)
				if err := config.WriteDiagnostics(errw, v.Diagnostics, es.width, es.color); err != nil {
					return fail(exitUnhealthy, "print diagnostics: %w", err)
				}
				switch s := styleOf(w); {
				case !v.Valid:
					fmt.Fprintf(errw, "%s %s: %s\n", es.cross(), path, verdict(v.Diagnostics))
				case len(v.Diagnostics) > 0:
					fmt.Fprintf(w, "%s %s: good, %s; %s\n", s.bang(), path, verdict(v.Diagnostics), v.content())
				default:
					fmt.Fprintf(w, "%s %s: good; %s\n", s.ok(), path, v.content())
				}
			}
			switch {
			case !v.Valid:
				return told(exitBadInput)
			case strict && len(v.Diagnostics) > 0:
				return told(exitWarnings)
			}
			return nil
		},
	}
	out = addFormat(cmd)
	cmd.Flags().BoolVar(&strict, "strict", false, "exit 4 when there are warnings")
	return cmd
}

func (v *validation) content() string {
	return fmt.Sprintf("%s, %s in %s", count(v.Services, "service"), count(v.Upstreams, "upstream"), count(len(v.Files), "file"))
}
