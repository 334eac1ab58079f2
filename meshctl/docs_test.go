package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// flagName finds the long names in cobra's own list of flags.
var flagName = regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z-]+)`)

// A verb or flag that is not in the manual does not exist for a user.
func TestManualHasEveryVerbAndFlag(t *testing.T) {
	b, err := os.ReadFile("../docs/meshctl.md")
	if err != nil {
		t.Fatal(err)
	}
	manual := string(b)
	verbs := 0
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		verbs++
		name := cmd.CommandPath()
		if !strings.Contains(manual, name) {
			t.Errorf("docs/meshctl.md does not mention %s", name)
		}
		if cmd.Long == "" || cmd.Short == "" {
			t.Errorf("%s has no help", name)
		}
		for _, f := range flagName.FindAllStringSubmatch(cmd.Flags().FlagUsages()+cmd.InheritedFlags().FlagUsages(), -1) {
			if f[1] != "help" && !strings.Contains(manual, "--"+f[1]) {
				t.Errorf("docs/meshctl.md does not mention --%s of %s", f[1], name)
			}
		}
		if cmd.RunE == nil && cmd.Run == nil {
			t.Errorf("%s does nothing", name)
		}
		for _, sub := range cmd.Commands() {
			if !sub.Hidden {
				walk(sub)
			}
		}
	}
	walk(newRoot())
	if verbs < 14 {
		t.Errorf("looked at %d verbs only", verbs)
	}
	for _, code := range []string{"| 0 |", "| 1 |", "| 2 |", "| 3 |", "| 4 |"} {
		if !strings.Contains(manual, code) {
			t.Errorf("docs/meshctl.md has no exit code %s", code)
		}
	}
}
