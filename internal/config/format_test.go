package config

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/rogpeppe/go-internal/txtar"
)

func TestFormat(t *testing.T) {
	for name, c := range map[string]struct{ src, want string }{
		"columns and indentation": {`
service "web" {
port=8080 # its own
      protocol = "http"   # what it speaks
  allow "edge" {}

    limits   {
  max_connections=1
 }
}`, `
service "web" {
  port     = 8080   # its own
  protocol = "http" # what it speaks
  allow "edge" {}

  limits {
    max_connections = 1
  }
}`},
		"nothing":       {"", ""},
		"what is wrong": {"upstraem \"a\" {\nx=1\n}\n", "upstraem \"a\" {\n  x = 1\n}\n"}, // no business of a formatter
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Format([]byte(c.src))
			if err != nil || string(got) != c.want {
				t.Errorf("got\n%s\n%v", got, err)
			}
		})
	}
	_, err := Format([]byte("agent {}\n\nservice \"a\" {\n  port =\n}\n"))
	d, ok := err.(*Diagnostics)
	if !ok || d.Len() != 1 || d.List[0].Line != 4 || d.List[0].File != "" || d.List[0].Source != "  port =" {
		t.Errorf("got %+v", err)
	}
}

// What is formatted says the same as before, and is not changed by formatting
// it again.
func FuzzFormat(f *testing.F) {
	stories, err := filepath.Glob("testdata/golden/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range stories {
		story, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range story.Files {
			if strings.HasSuffix(file.Name, ".hcl") {
				f.Add(file.Data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		once, err := Format(src)
		if err != nil {
			return
		}
		if diff := cmp.Diff(words(src), words(once)); diff != "" {
			t.Errorf("says something else (-before +after)\n%s", diff)
		}
		twice, err := Format(once)
		if err != nil {
			t.Fatalf("cannot be read any more: %v", err)
		}
		if !bytes.Equal(once, twice) {
			t.Errorf("not settled: %q, then %q", once, twice)
		}
	})
}

// words lists the tokens of src without what is between them.
func words(src []byte) []string {
	tokens, _ := hclsyntax.LexConfig(src, "", hcl.InitialPos)
	var list []string
	for _, t := range tokens {
		list = append(list, strings.TrimRight(string(t.Bytes), " \t\r\n"))
	}
	return list
}
