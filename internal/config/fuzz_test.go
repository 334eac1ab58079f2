package config

import (
	"bytes"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"meshd/internal/mesh"
)

// Any bytes give either a configuration from which a picture can be made, or
// diagnostics in order. The stories and examples are seeds, besides those in
// testdata/fuzz.
func FuzzParse(f *testing.F) {
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
			if strings.HasSuffix(file.Name, ".hcl") || strings.HasSuffix(file.Name, ".json") {
				f.Add(file.Data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		half := len(src) / 2
		for _, files := range []map[string][]byte{
			{"meshd.hcl": src},
			{"meshd.hcl": src[:half], "conf.d/a.hcl": src[half:]},
			{"meshd.json": src},
		} {
			c, err := parse(files, testHost(nil))
			if err != nil {
				refused(t, err)
				continue
			}
			accepted(t, c)
		}
	})
}

func refused(t *testing.T, err error) {
	d, ok := err.(*Diagnostics)
	if !ok || d.Len() == 0 {
		t.Fatalf("an error without diagnostics: %v", err)
	}
	for i, e := range d.List {
		if e.Severity != SeverityError || e.Summary == "" || e.Detail == "" {
			t.Errorf("incomplete: %+v", e)
		}
		if i == 0 || i >= maxDiagnostics {
			continue
		}
		// "conf.d/a.hcl" comes after "meshd.hcl", as bytes it would not.
		before := d.List[i-1]
		if before.File == e.File && before.Line > e.Line || before.File > e.File && before.File != "meshd.hcl" && before.File != "meshd.json" {
			t.Errorf("%s stands behind %s", e, before)
		}
	}
	if err := d.Write(io.Discard, 80, true); err != nil {
		t.Error(err)
	}
	var plain bytes.Buffer
	if err := d.Write(&plain, 0, false); err != nil || bytes.ContainsAny(plain.Bytes(), "\x1b\r\x00") {
		t.Errorf("control characters reach the terminal: %q, %v", plain.String(), err)
	}
	if _, err := json.Marshal(d); err != nil {
		t.Error(err)
	}
}

func accepted(t *testing.T, c *Config) {
	if _, err := mesh.Compile(mesh.CompileInput{Generation: 1, Spec: c.Spec}); err != nil {
		t.Errorf("accepted, but no picture can be made of it: %v", err)
	}
	if changes, restart := Diff(c, c); len(changes)+len(restart) > 0 {
		t.Errorf("differs from itself: %v %v", changes, restart)
	}
	for _, w := range c.Warnings {
		if w.Severity != SeverityWarning {
			t.Errorf("used with an error: %s", w)
		}
	}
}
