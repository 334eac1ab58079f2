package config

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"meshd/internal/mesh"
)

var update = flag.Bool("update", false, "write what came out as what is wanted")

// testHost is a machine on which every test runs.
func testHost(env map[string]string) host {
	return host{
		name:  func() (string, error) { return "host-a", nil },
		cores: 8,
		env:   func(name string) (string, bool) { v, ok := env[name]; return v, ok },
	}
}

// Each file of testdata/golden is a story: prose, the configuration files, and
// in "want" either the diagnostics as a person sees them or the resulting
// Config. "show" lists which parts of the Config matter to the story (all
// without it), "env" the environment, "credentials" the names of systemd
// credentials.
func TestGolden(t *testing.T) {
	stories, err := filepath.Glob("testdata/golden/*.txtar")
	if err != nil || len(stories) == 0 {
		t.Fatalf("no stories found: %v", err)
	}
	for _, path := range stories {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			story, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if len(bytes.TrimSpace(story.Comment)) == 0 {
				t.Error("the story is not told: no prose before the first file")
			}
			files, env := make(map[string][]byte), make(map[string]string)
			var show, credentials []string
			var want string
			for _, f := range story.Files {
				switch f.Name {
				case "want":
					want = string(f.Data)
				case "show":
					show = strings.Fields(string(f.Data))
				case "credentials":
					credentials = strings.Fields(string(f.Data))
				case "env":
					for line := range strings.Lines(string(f.Data)) {
						name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
						env[name] = value
					}
				default:
					files[f.Name] = f.Data
				}
			}
			var got strings.Builder
			h := testHost(env)
			h.credential = func(name string) string {
				if slices.Contains(credentials, name) {
					return "/run/credentials/meshd.service/" + name
				}
				return ""
			}
			c, err := parse(files, h)
			if err != nil {
				if err := err.(*Diagnostics).Write(&got, 100, false); err != nil {
					t.Fatal(err)
				}
			} else {
				if err := WriteDiagnostics(&got, c.Warnings, 100, false); err != nil {
					t.Fatal(err)
				}
				for _, line := range dump(c) {
					if mentioned(line, show) {
						got.WriteString(line + "\n")
					}
				}
				if _, err := mesh.Compile(mesh.CompileInput{Generation: 1, Spec: c.Spec}); err != nil {
					t.Errorf("accepted, but no picture can be made of it: %v", err)
				}
			}
			if *update {
				files := story.Files[:0]
				for _, f := range story.Files {
					if f.Name != "want" {
						files = append(files, f)
					}
				}
				story.Files = append(files, txtar.File{Name: "want", Data: []byte(got.String())})
				if err := os.WriteFile(path, txtar.Format(story), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got.String()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func mentioned(line string, show []string) bool {
	for _, prefix := range show {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return len(show) == 0
}

// dump writes every field of c that is not zero on a line of its own.
func dump(c *Config) []string {
	var lines []string
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		switch {
		case v.IsZero():
		case v.Kind() == reflect.Pointer:
			walk(path, v.Elem())
		case v.Type() == reflect.TypeFor[mesh.Pos]():
			lines = append(lines, path+" = "+v.Interface().(mesh.Pos).String())
		case v.Type() == reflect.TypeFor[map[string]mesh.Provenance]():
			m := v.Interface().(map[string]mesh.Provenance)
			for _, k := range slices.Sorted(maps.Keys(m)) {
				lines = append(lines, fmt.Sprintf("%s[%s] = %s, %s", path, k, m[k].Kind, m[k].Pos))
			}
		case v.Kind() == reflect.Slice:
			for i := range v.Len() {
				walk(fmt.Sprintf("%s[%d]", path, i), v.Index(i))
			}
		case v.Kind() == reflect.Struct && v.Type().NumMethod() == 0 && path == "Config":
			for i := range v.NumField() {
				if name := v.Type().Field(i).Name; name != "Warnings" {
					walk(name, v.Field(i))
				}
			}
		case v.Kind() == reflect.Struct && !v.Type().Implements(reflect.TypeFor[fmt.Stringer]()):
			for i := range v.NumField() {
				walk(path+"."+v.Type().Field(i).Name, v.Field(i))
			}
		default:
			lines = append(lines, fmt.Sprintf("%s = %v", path, v.Interface()))
		}
	}
	walk("Config", reflect.ValueOf(*c))
	return lines
}
