package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"meshd/internal/config"
	"meshd/internal/mesh"
)

// newConsul is the group of verbs that prepare Consul for this host.
func newConsul() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "consul",
		Short: "Print what Consul has to allow this host",
		Long:  "Print what Consul has to allow this host. Nothing is asked of Consul.",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newConsulPolicy())
	return cmd
}

// policies is the document of `consul policy -o json`.
type policies struct {
	Node   string        `json:"node"`
	Tokens []tokenPolicy `json:"tokens"` // the agent's first; a host has at most one per service besides
}

// tokenPolicy is what one token needs.
type tokenPolicy struct {
	TokenFile string   `json:"token_file,omitempty"` // "" is an agent without one
	Services  []string `json:"services"`             // whose own token it is; empty: the agent's
	Rules     []rule   `json:"rules"`
	Text      string   `json:"text"` // the policy, as Consul takes it
}

type rule struct {
	Kind   string   `json:"kind"`
	Name   string   `json:"name"`
	Policy string   `json:"policy"`
	For    []string `json:"for"`
}

func newConsulPolicy() *cobra.Command {
	var (
		out     *format
		service string
	)
	cmd := &cobra.Command{
		Use:   "policy [PATH]",
		Short: "Print the ACL policy that this host's token needs, and no more",
		Long: `Print the ACL policy that the token of this host needs to do what the
configuration at PATH (default ` + defaultConfig + `) says, and nothing else. It
is worked out from the configuration alone, before the first start if need be:

  meshctl consul policy | consul acl policy create -name meshd-$(hostname) -rules -

A service with a token_file has a token of its own; --service prints what that
one needs.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeConfig,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadOrTell(cmd.ErrOrStderr(), args)
			if err != nil {
				return err
			}
			if !cfg.Consul.Enabled {
				return fail(exitBadInput, "this configuration does not use Consul, so there is nothing to allow")
			}
			p := policiesOf(cfg)
			w := cmd.OutOrStdout()
			done, err := out.document(w, p)
			if err != nil {
				return fail(exitUnhealthy, "print policy: %w", err)
			}
			if done {
				return nil
			}
			i := slices.IndexFunc(p.Tokens, func(t tokenPolicy) bool {
				return (service == "" && len(t.Services) == 0) || slices.Contains(t.Services, service)
			})
			if i < 0 {
				return fail(exitBadInput, "service %q has no token_file, so the agent's token does its work: meshctl consul policy", service)
			}
			io.WriteString(w, p.Tokens[i].Text)
			return nil
		},
	}
	out = addFormat(cmd)
	cmd.Flags().StringVar(&service, "service", "", "the policy for the token of this service; -o json and yaml have all")
	return cmd
}

// loadOrTell reads the configuration named by args. What is wrong with it is
// printed as validate does.
func loadOrTell(errw io.Writer, args []string) (*config.Config, error) {
	path := defaultConfig
	if len(args) == 1 {
		path = args[0]
	}
	cfg, err := config.Load(path)
	switch ds := new(config.Diagnostics); {
	case errors.As(err, &ds):
		s := styleOf(errw)
		if err := config.WriteDiagnostics(errw, ds.List, s.width, s.color); err != nil {
			return nil, fail(exitUnhealthy, "print diagnostics: %w", err)
		}
		fmt.Fprintf(errw, "%s %s: %s\n", s.cross(), path, verdict(ds.List))
		return nil, told(exitBadInput)
	case err != nil:
		return nil, fail(exitBadInput, "%w", err)
	}
	return cfg, nil
}

func policiesOf(cfg *config.Config) policies {
	p := policies{Node: cfg.Agent.NodeName, Tokens: []tokenPolicy{{TokenFile: cfg.Consul.TokenFile}}}
	at := 0
	for _, r := range mesh.Rights(cfg.Spec) { // the agent's first, then by token
		if r.Token != "" && (at == 0 || p.Tokens[at].TokenFile != r.Token) {
			p.Tokens = append(p.Tokens, tokenPolicy{TokenFile: r.Token})
			at = len(p.Tokens) - 1
		}
		p.Tokens[at].Rules = append(p.Tokens[at].Rules, rule{r.Kind, r.Name, r.Policy, r.For})
	}
	for i := range cfg.Spec.Services {
		s := &cfg.Spec.Services[i]
		for j := range p.Tokens {
			t := &p.Tokens[j]
			if j > 0 && t.TokenFile == s.TokenFile && !slices.Contains(t.Services, s.Name) {
				t.Services = append(t.Services, s.Name)
			}
		}
	}
	for i := range p.Tokens {
		t := &p.Tokens[i]
		if t.Services == nil {
			t.Services = []string{}
		}
		if t.Rules == nil {
			t.Rules = []rule{}
		}
		t.Text = policyText(&p, t, i == 0)
	}
	return p
}

// policyText writes the policy of one token. Comments are allowed in it, so the
// text in Consul tells later readers what each rule is for.
func policyText(p *policies, t *tokenPolicy, agents bool) string {
	var b strings.Builder
	whose := "the token of meshd"
	if !agents {
		whose = "the token of service " + strings.Join(t.Services, ", ")
	}
	fmt.Fprintf(&b, "# What %s on %s needs", whose, p.Node)
	if t.TokenFile != "" {
		fmt.Fprintf(&b, " (%s)", t.TokenFile)
	}
	b.WriteString(".\n")
	if agents {
		for _, other := range p.Tokens[1:] {
			fmt.Fprintf(&b, "# %s has a token of its own: meshctl consul policy --service %s\n", strings.Join(other.Services, ", "), other.Services[0])
		}
	}
	for _, r := range t.Rules {
		fmt.Fprintf(&b, "\n# %s\n%s\n", strings.Join(r.For, "; "), mesh.Right{Kind: r.Kind, Name: r.Name, Policy: r.Policy}.Rule())
	}
	return b.String()
}
