package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshd/internal/admin"
)

// newPolicy is the group of verbs about who may call whom.
func newPolicy(client func() *admin.Client) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Ask who may call",
		Long:  "Ask the agent who may call the services of this host.",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPolicyTest(client))
	return cmd
}

func newPolicyTest(client func() *admin.Client) *cobra.Command {
	var (
		out      *format
		from, to string
	)
	cmd := &cobra.Command{
		Use:   "test --from CALLER --to SERVICE",
		Short: "Say whether a service may call one of this host, and what decides",
		Long: `Say whether the service CALLER may call SERVICE, and which allow block or which
intention decides. The called side decides, so ask on a host that offers
SERVICE; nothing is sent to anybody.

Exits 0 when it may, 1 when it may not, 2 when this host does not offer it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			t, err := client().TestPolicy(ctx, from, to)
			if err != nil {
				return questionError(err)
			}
			w := cmd.OutOrStdout()
			done, err := out.document(w, t)
			if err != nil {
				return fail(exitUnhealthy, "print answer: %w", err)
			}
			if !done {
				writePolicyTest(w, styleOf(w), &t, *out == formatWide)
			}
			if !t.Allowed {
				return told(exitUnhealthy)
			}
			return nil
		},
	}
	out = addFormat(cmd)
	cmd.Flags().StringVar(&from, "from", "", "name of the service that calls")
	cmd.Flags().StringVar(&to, "to", "", "name of a service of this host")
	cmd.MarkFlagRequired("from")
	cmd.MarkFlagRequired("to")
	cmd.RegisterFlagCompletionFunc("from", completeCaller(client))
	cmd.RegisterFlagCompletionFunc("to", completeService(client))
	return cmd
}

func writePolicyTest(w io.Writer, s style, t *admin.PolicyTest, wide bool) {
	if t.Allowed {
		fmt.Fprintf(w, "%s %s may call %s\n", s.ok(), t.From, t.To)
	} else {
		fmt.Fprintf(w, "%s %s\n", s.cross(), s.bad(fmt.Sprintf("%s may not call %s", t.From, t.To)))
	}
	for i := range t.Instances {
		d := &t.Instances[i]
		name := "" // of the only instance, which bears the service's name
		if len(t.Instances) > 1 || d.ID != t.To {
			name = "instance " + d.ID + ": "
			if !d.Allowed && len(t.Instances) > 1 {
				name += "no: "
			}
		}
		fmt.Fprintf(w, "  why:  %s%s\n", name, because(t, d))
		if wide && !d.IntentionsUpdated.IsZero() {
			fmt.Fprintf(w, "        intentions confirmed %s\n", d.IntentionsUpdated.UTC().Format(time.RFC3339))
		}
		if next := policyNext(t, d); next != "" {
			fmt.Fprintf(w, "  next: %s\n", next)
		}
	}
}

const noIntention = "no intention matches, and the default policy denies"

// because puts the decision of one instance into a sentence.
func because(t *admin.PolicyTest, d *admin.PolicyDecision) string {
	var parts []string
	switch d.Reason {
	case "allowed":
		if d.Line != "" {
			parts = append(parts, fmt.Sprintf("allow %q at %s", t.From, d.Line))
		}
	case "not_listed":
		parts = append(parts, fmt.Sprintf("no allow block names %q%s", t.From, at(d.Line)))
	case "no_allow_block":
		parts = append(parts, "the service has no allow block"+at(d.Line))
	case "default_denies":
		if d.Intention == nil {
			parts = append(parts, noIntention)
		}
	case "no_information":
		parts = append(parts, "Consul has not said yet who may call, and what is not known is not allowed")
	case "l7_intention_not_supported":
		parts = append(parts, "the intention decides by the request, which is not supported yet")
	default:
		if d.Intention == nil { // which else says it better
			parts = append(parts, strings.ReplaceAll(d.Reason, "_", " ")+at(d.Line))
		}
	}
	if n := d.Intention; n != nil {
		parts = append(parts, intentionText(n))
	}
	if len(parts) == 0 {
		return strings.ReplaceAll(d.Reason, "_", " ")
	}
	return strings.Join(parts, "; ")
}

func at(line string) string {
	if line == "" {
		return ""
	}
	return " at " + line
}

func intentionText(n *admin.Intention) string {
	action := n.Action
	if n.HTTP {
		action = "by request"
	}
	if n.Source == "" {
		if n.Action == "allow" {
			return "no intention matches, and the default policy allows"
		}
		return noIntention
	}
	return fmt.Sprintf("intention %s -> %s: %s (precedence %d)", n.Source, n.Destination, action, n.Precedence)
}

// policyNext is what would change the answer.
func policyNext(t *admin.PolicyTest, d *admin.PolicyDecision) string {
	switch {
	case d.Allowed:
		return ""
	case d.Reason == "not_listed" || d.Reason == "no_allow_block":
		return fmt.Sprintf("if it should: add allow %q {} to the service%s, then meshctl reload", t.From, at(d.Line))
	case d.Reason == "no_information":
		return "meshctl catalog"
	case d.Intention != nil && d.Intention.HTTP:
		return fmt.Sprintf("if it should: give the intention an action instead of permissions: consul intention create -replace -allow %s %s", t.From, t.To)
	case d.Intention != nil || d.Reason == "default_denies" || d.Reason == "intention_denies":
		return fmt.Sprintf("if it should: consul intention create -replace -allow %s %s", t.From, t.To)
	}
	return ""
}
