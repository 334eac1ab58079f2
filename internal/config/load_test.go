package config

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// folder writes files into a new folder and returns its path.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// summaries returns FILE: SUMMARY of each diagnostic, the folder taken away.
func summaries(t *testing.T, dir string, err error) []string {
	t.Helper()
	d, ok := err.(*Diagnostics)
	if !ok {
		t.Fatalf("got %v, want diagnostics", err)
	}
	var list []string
	for _, e := range d.List {
		list = append(list, strings.TrimPrefix(e.File, dir+"/")+": "+e.Summary)
	}
	return list
}

func TestLoadReadsFilesInOrderAndLeavesLeftoversAlone(t *testing.T) {
	dir := folder(t, map[string]string{
		"meshd.hcl":                 "agent {\n  node_name = file(\"name\")\n}\n",
		"name":                      "  from-a-file\n",
		"conf.d/b.hcl":              "service \"b\" {\n  port = 2\n  allow \"x\" {}\n}\n",
		"conf.d/a.hcl":              "service \"a\" {\n  port = 1\n  allow \"x\" {}\n}\n",
		"conf.d/a.hcl~":             "syntax error",
		"conf.d/.a.hcl":             "syntax error",
		"conf.d/a.hcl.dpkg-old":     "syntax error",
		"conf.d/a.hcl.rpmsave":      "syntax error",
		"conf.d/README":             "syntax error",
		"conf.d/sub/meshd.hcl":      "syntax error",
		"conf.d/a.hcl.rpmnew":       "syntax error",
		"conf.d/#a.hcl#":            "syntax error",
		"conf.d/a.hcl.ucf-dist.bak": "syntax error",
	})
	for _, path := range []string{dir, filepath.Join(dir, "meshd.hcl")} {
		c, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Files) != 3 || c.Spec.Services[0].Name != "a" || c.Spec.Services[1].Name != "b" {
			t.Errorf("files %v, services %v", c.Files, c.Spec.ServiceNames())
		}
		if c.Agent.NodeName != "from-a-file" {
			t.Errorf("node name %q", c.Agent.NodeName)
		}
	}
}

func TestLoadReportsWhatCannotBeRead(t *testing.T) {
	dir := folder(t, map[string]string{
		"conf.d/a.hcl": "upstraem \"a\" {}\n",
		"conf.d/c.hcl": strings.Repeat("# a backup of something\n", 60_000),
		"conf.d/d.hcl": "upstream \"not-reported-since-the-service-may-be-elsewhere\" {}\n",
	})
	if err := os.Mkdir(filepath.Join(dir, "conf.d/b.hcl"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "conf.d/e.hcl"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Load(filepath.Join(dir, "meshd.hcl"))
	got := strings.Join(summaries(t, dir, err), "\n")
	want := strings.Join([]string{
		"meshd.hcl: Unreadable file",
		"conf.d/a.hcl: Unexpected block",
		"conf.d/b.hcl: Unreadable file",
		"conf.d/c.hcl: Unreadable file",
		"conf.d/e.hcl: Unreadable file",
	}, "\n")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// What looks like an attack, or a wrong path: it ends soon, with diagnostics,
// and within the stack.
func TestParseIsBounded(t *testing.T) {
	const most = maxFileBytes - 100
	fill := func(s string) string { return strings.Repeat(s, most/8/len(s)) }
	full := func(s string) string { return strings.Repeat(s, most/len(s)) } // where the stack is at stake
	for name, text := range map[string]string{
		"brackets":           "agent {\n  loops = " + full("["),
		"braces":             fill("a{\n"),
		"parentheses":        "a = " + fill("("),
		"objects":            "a = " + fill("{a="),
		"templates":          "a = " + fill("\"${"),
		"not":                "a = " + full("!") + "true",
		"minus":              "a = " + fill("-") + "1",
		"conditions":         "a = " + fill("true?1:") + "1",
		"indexes":            "a = b" + full("[0]"),
		"calculated indexes": "a = b" + full("[c]"),
		"traversals":         "a = b" + fill(".c"),
		"just allowed":       "a = 1" + strings.Repeat("+1", maxOperators),
		"calls":              "a = " + fill("f("),
		"sums":               "a = 1" + full("+1"),
		"blocks":             full("a {}\n"),
		"arguments":          "agent {\n" + fill("x=1\n") + "}\n",
		"upstreams":          fill("upstream \"a\" {}\n"),
		"numbers":            "agent {\n  loops = 1" + fill("0") + "\n}\n",
		"exponent":           "agent {\n  data_dir = 1e600000000\n}\n",
		"exponent in a text": "agent {\n  data_dir = \"/${1e600000000}\"\n}\n",
		"one long line":      "# " + fill("x") + "\nagent {\n  loops = \"" + strings.Repeat("y", 90) + "\"\n}\n",
		"zeros":              fill("\x00"),
		"not text":           fill("\xff\xfe"),
		"heredoc":            "a = <<" + fill("E"),
		"too large":          full("#") + full("#"),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := parse(map[string][]byte{"meshd.hcl": []byte(text)}, testHost(nil))
			if err == nil {
				t.Fatal("accepted")
			}
			d := err.(*Diagnostics)
			if d.Len() > maxDiagnostics+1 {
				t.Errorf("%d diagnostics", d.Len())
			}
			if n := len(err.Error()); n > 200<<10 {
				t.Errorf("a message of %d bytes", n)
			}
			t.Log(time.Since(start))
			if since := time.Since(start); since > 20*time.Second { // far above what it takes, race detector included
				t.Errorf("took %s", since)
			}
		})
	}
}
