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

// meshd.json stands in for meshd.hcl, also where the latter is asked for, and
// never beside it: one of them would be ignored.
func TestLoadJSON(t *testing.T) {
	const text = `{"service": {"a": {"port": 1}}}`
	dir := folder(t, map[string]string{
		"meshd.json":           text,
		"conf.d/b.json":        `{"service": {"b": {"port": 2}}}`,
		"conf.d/a.hcl":         "service \"c\" {\n  port = 3\n}\n",
		"conf.d/a.json.rpmnew": "syntax error",
		"conf.d/.a.json":       "syntax error",
	})
	for _, path := range []string{dir, filepath.Join(dir, "meshd.hcl"), filepath.Join(dir, "meshd.json")} {
		c, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(c.Spec.ServiceNames(), " "); len(c.Files) != 3 || got != "a c b" {
			t.Errorf("%s: files %v, services %s", path, c.Files, got)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "meshd.hcl"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "meshd.json")} {
		_, err := Load(path)
		if got := strings.Join(summaries(t, dir, err), " "); !strings.HasSuffix(got, ": Two main files") {
			t.Errorf("%s: %s", path, got)
		}
	}
	if _, err := Load(filepath.Join(folder(t, map[string]string{"meshd.hcl": ""}), "meshd.json")); err == nil {
		t.Error("a file that does not exist was loaded by the name of another")
	}
}

// Only a credential that is there is used, and only by Load: what is parsed
// may be meant for another host.
func TestLoadFindsCredentials(t *testing.T) {
	dir := folder(t, map[string]string{"meshd.hcl": "", "credentials/consul-token": "secret"})
	credentials := filepath.Join(dir, "credentials")
	load := func() Config {
		t.Helper()
		c, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		return *c
	}
	const made = "/var/lib/meshd/snapshot.key"
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	if c := load(); c.Consul.TokenFile != filepath.Join(credentials, "consul-token") || c.Agent.KeyFile != made {
		t.Errorf("token file %q, key file %q", c.Consul.TokenFile, c.Agent.KeyFile)
	}
	if c, err := Parse(map[string][]byte{"meshd.hcl": nil}); err != nil || c.Consul.TokenFile != "" || c.Agent.KeyFile != made {
		t.Errorf("parsed: %v, %v", c, err)
	}
	if err := os.WriteFile(filepath.Join(credentials, "meshd-snapshot-key"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if c := load(); c.Agent.KeyFile != filepath.Join(credentials, "meshd-snapshot-key") {
		t.Errorf("key file %q", c.Agent.KeyFile)
	}
	for _, elsewhere := range []string{"", "credentials", dir} {
		t.Setenv("CREDENTIALS_DIRECTORY", elsewhere)
		if c := load(); c.Consul.TokenFile != "" || c.Agent.KeyFile != made {
			t.Errorf("in %q: token file %q, key file %q", elsewhere, c.Consul.TokenFile, c.Agent.KeyFile)
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
			bounded(t, "meshd.hcl", text)
		})
	}
}

// The same for JSON.
func TestParseJSONIsBounded(t *testing.T) {
	const most = maxFileBytes - 100
	fill := func(s string) string { return strings.Repeat(s, most/8/len(s)) }
	full := func(s string) string { return strings.Repeat(s, most/len(s)) }
	for name, text := range map[string]string{
		"lists":                `{"agent": {"loops": ` + full("["),
		"objects":              full(`{"a":`),
		"lists in a text":      `{"agent": {"data_dir": "${` + full("[") + `"}}`,
		"not in a text":        `{"agent": {"data_dir": "${` + full("!") + `true}"}}`,
		"sums in a text":       `{"agent": {"data_dir": "${1` + full("+1") + `}"}}`,
		"templates":            `{"agent": {"data_dir": "` + fill("${") + `"}}`,
		"brackets in a text":   `{"agent": {"data_dir": "` + full("[") + `"}}`,
		"escapes":              `{"agent": {"data_dir": "` + full(`\u0020`) + `"}}`,
		"values":               `{"service": {"a": {"tags": [` + fill(`"a",`) + `"a"]}}}`,
		"wide":                 `[` + fill("{},") + `5]`,
		"blocks":               `{"service": [` + fill(`{"a":{}},`) + `{}]}`,
		"names":                `{` + fill(`"a":{},`) + `"b":{}}`,
		"exponent":             `{"agent": {"data_dir": 1e600000000}}`,
		"larger exponent":      `{"agent": {"loops": 1e6000000000000}}`,
		"exponent in a text":   `{"agent": {"data_dir": "/${1e600000000}"}}`,
		"numbers":              `{"agent": {"loops": 1` + fill("0") + `}}`,
		"one text":             `"` + fill("x") + `"`,
		"open text":            `{"a": "` + fill("x"),
		"zeros":                fill("\x00"),
		"not text":             `{"agent": {"data_dir": "` + fill("\xff\xfe") + `"}}`,
		"byte order mark":      "\ufeff{}",
		"nothing":              "",
		"several documents":    "{}{}",
		"backslash at its end": `{"a\`,
	} {
		t.Run(name, func(t *testing.T) {
			bounded(t, "meshd.json", text)
		})
	}
}

func bounded(t *testing.T, file, text string) {
	start := time.Now()
	_, err := parse(map[string][]byte{file: []byte(text)}, testHost(nil))
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
}
