package config

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestWrite(t *testing.T) {
	d := &Diagnostics{List: []Diagnostic{{
		Severity: SeverityError,
		Summary:  "Port clash",
		Detail:   "The upstream wants what the service has.",
		Place:    Place{File: "a.hcl", Line: 12, Column: 4, Length: 4, Source: "\tä = 8080 \x1b[31m"},
		In:       `upstream "x"`,
		Other:    &Place{File: "b.hcl", Line: 3, Column: 1, Length: 400, Source: "port = 8080"},
	}, {
		Severity: SeverityWarning,
		Summary:  "Nobody may call",
		Detail:   "Add a caller.",
	}}}
	for name, c := range map[string]struct {
		width int
		color bool
		want  string
	}{
		"plain": {0, false, `Error: Port clash
  on a.hcl line 12, in upstream "x":
  12: 	ä = 8080 ` + "\uFFFD" + `[31m
      	  ^^^^
The upstream wants what the service has.
  and b.hcl line 3:
   3: port = 8080
      ^^^^^^^^^^^

Warning: Nobody may call
Add a caller.
`},
		"narrow and coloured": {20, true, "\x1b[1;31mError: \x1b[0m\x1b[1mPort clash\x1b[0m" + `
  on a.hcl line 12, in upstream "x":
  12: 	ä = 8080 ` + "\uFFFD" + `[31m
      	  ` + "\x1b[1;31m^^^^\x1b[0m" + `
The upstream wants
what the service
has.
  and b.hcl line 3:
   3: port = 8080
      ` + "\x1b[1;31m^^^^^^^^^^^\x1b[0m" + `

` + "\x1b[1;33mWarning: \x1b[0m\x1b[1mNobody may call\x1b[0m" + `
Add a caller.
`},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := d.Write(&b, c.width, c.color); err != nil {
				t.Fatal(err)
			}
			if b.String() != c.want {
				t.Errorf("got\n%s\nwant\n%s", b.String(), c.want)
			}
		})
	}
}

// What the agent found travels to meshctl as JSON and is shown there.
func TestDiagnosticsTravel(t *testing.T) {
	_, err := Parse(map[string][]byte{"meshd.hcl": []byte("upstream \"a\" {}\nupstream \"a\" {}\n")})
	sent := err.(*Diagnostics)
	b, err := json.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{`"severity":"error"`, `"summary":`, `"detail":`, `"file":"meshd.hcl"`, `"line":2`, `"column":1`} {
		if !strings.Contains(string(b), key) {
			t.Errorf("no %s in %s", key, b)
		}
	}
	var got Diagnostics
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	var want, have strings.Builder
	sent.Write(&want, 80, false)
	got.Write(&have, 80, false)
	if want.String() != have.String() || sent.Error() != got.Error() {
		t.Errorf("sent\n%s\ngot\n%s", want.String(), have.String())
	}
}

func TestSuggest(t *testing.T) {
	names := []string{"connect_timeout", "port", "warn", "id", "data_dir"}
	for given, want := range map[string]string{
		"conect_timeout":                 "connect_timeout",
		"connectTimeout":                 "connect_timeout",
		"connect-timeout":                "connect_timeout",
		"prot":                           "port",
		"warning":                        "warn",
		"ip":                             "id",
		"dta_dri":                        "data_dir",
		"tempo":                          "",
		strings.Repeat("connect", 1_000): "",
	} {
		if got := suggest(given, names, maxTypos); got != want {
			t.Errorf("suggest(%.20q) = %q, want %q", given, got, want)
		}
	}
}

func TestDiff(t *testing.T) {
	load := func(text string) *Config {
		t.Helper()
		c, err := parse(map[string][]byte{"meshd.hcl": []byte(text)}, testHost(nil))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	old := load(`
agent { loops = 1 }
service "web" {
  port = 8080
  allow "edge" {}
}
upstream "gone" {}
upstream "inventory" {
  protocol        = "http"
  request_timeout = "2s"
}
upstream "heir" { protocol = "http" }
`)
	new := load(`
# Written anew, in another order, with a default spelled out: no change by itself.
upstream "heir" { protocol = "http" }
upstream "inventory" {
  protocol        = "http"
  request_timeout = "5s"
  connect_timeout = "1000ms"
}
upstream "added" {}
service "web" {
  port = 8080
  allow "edge" {}
  allow "console" {}
}
defaults {
  request_timeout = "off"

  limits {
    max_connections = 5
  }
}
agent { loops = 2 }
`)
	text := func(list []Change) []string {
		var s []string
		for _, c := range list {
			s = append(s, c.String())
		}
		return s
	}
	changes, restart := Diff(old, new)
	want := []string{
		"~ service web: allow [edge] -> [console edge]",
		"+ upstream added",
		"- upstream gone",
		"~ upstream heir: request_timeout 15s -> off",
		"~ upstream heir: limits.max_connections 1024 -> 5",
		"~ upstream inventory: request_timeout 2s -> 5s",
		"~ upstream inventory: limits.max_connections 1024 -> 5",
	}
	if got := text(changes); !reflect.DeepEqual(got, want) {
		t.Errorf("changes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := text(restart); !reflect.DeepEqual(got, []string{"~ agent: loops 1 -> 2"}) {
		t.Errorf("restart %v", got)
	}
}
