package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
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
	for _, cmd := range newRoot().Commands() {
		if cmd.Hidden {
			continue
		}
		verbs++
		if !strings.Contains(manual, "meshctl "+cmd.Name()) {
			t.Errorf("docs/meshctl.md does not mention the verb %s", cmd.Name())
		}
		if cmd.Long == "" || cmd.Short == "" {
			t.Errorf("%s has no help", cmd.Name())
		}
		for _, f := range flagName.FindAllStringSubmatch(cmd.Flags().FlagUsages()+cmd.InheritedFlags().FlagUsages(), -1) {
			if f[1] != "help" && !strings.Contains(manual, "--"+f[1]) {
				t.Errorf("docs/meshctl.md does not mention --%s of %s", f[1], cmd.Name())
			}
		}
		if cmd.RunE == nil && cmd.Run == nil {
			t.Errorf("%s does nothing", cmd.Name())
		}
	}
	if verbs < 5 {
		t.Errorf("looked at %d verbs only", verbs)
	}
	for _, code := range []string{"| 0 |", "| 1 |", "| 2 |", "| 3 |", "| 4 |"} {
		if !strings.Contains(manual, code) {
			t.Errorf("docs/meshctl.md has no exit code %s", code)
		}
	}
}
