package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// fences returns the fenced blocks of a document in that language.
func fences(t *testing.T, document, language string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", document))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

// What the README tells to type exists: targets of make, verbs of meshctl,
// flags of meshd.
func TestReadmeCommandsExist(t *testing.T) {
	_, help, _ := execute(t, "meshctl", "--help")
	targets := makeTargets(t)
	_, _, flags := execute(t, "meshd", "-h")
	lines := strings.Split(strings.Join(fences(t, "README.md", "sh"), "\n"), "\n")
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`((?:make|bin/meshd|bin/meshctl|meshctl) [^`]+)`").FindAllStringSubmatch(string(text), -1) {
		lines = append(lines, m[1])
	}
	known := 0
	for _, line := range lines {
		command, _, _ := strings.Cut(line, "#")
		words := strings.Fields(command)
		if len(words) == 0 {
			continue
		}
		known++
		ok := false
		switch words[0] {
		case "make":
			ok = len(words) > 1 && regexp.MustCompile(`(?m)^\s+make `+regexp.QuoteMeta(words[1])+`\s`).MatchString(targets)
		case "bin/meshctl", "meshctl":
			verb := words[slices.IndexFunc(words[1:], func(w string) bool { return !strings.HasPrefix(w, "-") })+1]
			ok = regexp.MustCompile(`(?m)^\s+` + regexp.QuoteMeta(verb) + `\s`).MatchString(help)
		case "bin/meshd", "meshd":
			ok = len(words) > 1 && strings.Contains(flags, "  -"+strings.TrimLeft(words[1], "-")+" ")
		}
		if !ok {
			t.Errorf("README.md tells to type %q, which does not exist", strings.TrimSpace(command))
		}
	}
	if known < 4 {
		t.Errorf("only %d commands found in README.md: is the test blind?", known)
	}
}

// The configurations in the README are good.
func TestReadmeExamplesAreGood(t *testing.T) {
	examples := fences(t, "README.md", "hcl")
	if len(examples) < 2 {
		t.Fatalf("%d examples in README.md", len(examples))
	}
	for i, text := range examples {
		path := filepath.Join(t.TempDir(), "meshd.hcl")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := execute(t, "meshctl", "validate", path)
		if code != 0 {
			t.Errorf("example %d: exit %d\n%s%s", i+1, code, stdout, stderr)
		}
		t.Log(fmt.Sprintf("example %d: ", i+1) + strings.TrimSpace(stdout))
	}
}
