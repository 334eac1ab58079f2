// Package house_test holds the rules of the house as tests: who may import
// whom, which foreign library lives in which room, and what nobody may call.
// The picture of the floors is in docs/architecture.md.
package house_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "meshd"

// floors lists the rooms from the ground up. A room may import rooms of lower
// floors only, never a neighbour on its own.
var floors = [][]string{
	{"mesh"},
	{"loop", "http1", "wire", "identity", "policy", "balance", "breaker", "telemetry", "config", "systemd"},
	{"proxy", "nameserver", "consul", "admin", "snapshot"},
	{"agent"},
}

// doors may import anything they need, but meshctl links no data path.
var doors = map[string][]string{
	"meshd":   {"agent", "config", "systemd"},
	"meshctl": {"admin", "config", "mesh"},
}

// libraries says in which rooms a foreign library may be imported. Whatever is
// not here may be imported nowhere.
var libraries = map[string][]string{
	"github.com/hashicorp/hcl/v2":      {"config"},
	"github.com/zclconf/go-cty":        {"config"},
	"github.com/hashicorp/consul/api":  {"consul"},
	"github.com/miekg/dns":             {"nameserver"},
	"github.com/prometheus":            {"telemetry"},
	"github.com/coreos/go-systemd/v22": {"systemd"},
	"github.com/spf13/cobra":           {"meshctl"},
	"github.com/spf13/pflag":           {"meshctl"},
	"go.yaml.in/yaml/v3":               {"meshctl"},
	"github.com/spiffe/go-spiffe/v2":   {"identity"},
	"golang.org/x/sys/unix":            {"loop"},
	"golang.org/x/term":                {"meshctl"},
	"github.com/google/go-cmp":         {}, // tests only
	"github.com/rogpeppe/go-internal":  {},
	"golang.org/x/net/http2/hpack":     {"http2"},
}

// source is one parsed Go file.
type source struct {
	path string // relative, with slashes
	room string // last element of internal/X, or the door
	test bool
	file *ast.File
	set  *token.FileSet
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "zz_") ||
			slices.Contains([]string{"testdata", "tools", "bin", "dist"}, d.Name())) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasPrefix(d.Name(), "zz_") {
			return nil
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		slash := filepath.ToSlash(path)
		parts := strings.Split(slash, "/")
		room := parts[0]
		if room == "internal" {
			room = parts[1]
		}
		all = append(all, source{slash, room, strings.HasSuffix(slash, "_test.go"), f, set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 50 {
		t.Fatalf("only %d Go files found: the walk is broken", len(all))
	}
	return all
}

func floorOf(room string) int {
	return slices.IndexFunc(floors, func(f []string) bool { return slices.Contains(f, room) })
}

// TestFloors keeps the arrows pointing down.
func TestFloors(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.room == "meshtest" || s.room == "e2e" || s.room == "bench" {
			continue // test code may look anywhere
		}
		if allowed, door := doors[s.room]; door {
			for _, room := range rooms(s) {
				if !slices.Contains(allowed, room) {
					t.Errorf("%s: the door %s may not import %s", s.path, s.room, room)
				}
			}
			continue
		}
		here := floorOf(s.room)
		if here < 0 {
			t.Errorf("%s: room %q stands on no floor; add it to the table with a reason in docs/architecture.md", s.path, s.room)
			continue
		}
		for _, room := range rooms(s) {
			if there := floorOf(room); there < 0 || there >= here {
				t.Errorf("%s: %s may not import %s: arrows point down only", s.path, s.room, room)
			}
		}
	}
}

// rooms lists the rooms that s imports.
func rooms(s source) []string {
	var out []string
	for _, imp := range s.file.Imports {
		path, _ := strconv.Unquote(imp.Path.Value)
		if rest, ok := strings.CutPrefix(path, module+"/internal/"); ok {
			out = append(out, strings.Split(rest, "/")[0])
		}
	}
	return out
}

// TestForeignLibraries keeps each in its one room.
func TestForeignLibraries(t *testing.T) {
	for _, s := range sources(t) {
		for _, imp := range s.file.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			first := strings.Split(path, "/")[0]
			if !strings.Contains(first, ".") {
				continue // the standard library and our own rooms
			}
			home, known := homeOf(path)
			switch {
			case !known:
				t.Errorf("%s imports %s, which the table of libraries does not know", s.path, path)
			case s.test || s.room == "meshtest" || s.room == "e2e":
			case !slices.Contains(home, s.room):
				t.Errorf("%s imports %s, which lives in %v only", s.path, path, home)
			}
		}
	}
}

func homeOf(path string) ([]string, bool) {
	for lib, home := range libraries {
		if path == lib || strings.HasPrefix(path, lib+"/") {
			return home, true
		}
	}
	return nil, false
}

// TestPackageComments demands one comment per package: what it does, what it
// does not, who may import it.
func TestPackageComments(t *testing.T) {
	comments := map[string]int{}
	for _, s := range sources(t) {
		dir := filepath.ToSlash(filepath.Dir(s.path))
		if s.test {
			continue
		}
		if _, ok := comments[dir]; !ok {
			comments[dir] = 0
		}
		if s.file.Doc != nil {
			comments[dir]++
		}
	}
	for dir, n := range comments {
		if n != 1 {
			t.Errorf("%s has %d package comments, want 1", dir, n)
		}
	}
}

// forbidden are calls with the reason why.
var forbidden = []struct{ pkg, name, reason string }{
	{"os", "Exit", "only a door ends the process"},
	{"log", "Fatal", "only a door ends the process"},
	{"log", "Fatalf", "only a door ends the process"},
	{"slog", "SetDefault", "two agents run in one process: loggers are passed in"},
	{"slog", "Info", "the global logger belongs to nobody: loggers are passed in"},
	{"slog", "Warn", "the global logger belongs to nobody: loggers are passed in"},
	{"slog", "Error", "the global logger belongs to nobody: loggers are passed in"},
	{"http", "Handle", "the default mux is a global"},
	{"http", "HandleFunc", "the default mux is a global"},
	{"http", "ListenAndServe", "it has no timeouts"},
	{"prometheus", "MustRegister", "the default registry is a global"},
	{"promauto", "NewCounter", "the default registry is a global"},
}

func TestForbiddenCalls(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.room == "meshtest" || s.room == "e2e" {
			continue
		}
		_, door := doors[s.room]
		ast.Inspect(s.file, func(n ast.Node) bool {
			if f, ok := n.(*ast.FuncDecl); ok && f.Name.Name == "init" && f.Recv == nil {
				t.Errorf("%s: init hides what happens at the start", s.set.Position(f.Pos()))
			}
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			for _, f := range forbidden {
				if pkg.Name == f.pkg && sel.Sel.Name == f.name && !(door && f.name == "Exit") {
					t.Errorf("%s: %s.%s: %s", s.set.Position(call.Pos()), f.pkg, f.name, f.reason)
				}
			}
			return true
		})
	}
}

// TestFileSizes asks a question of every file that holds more than one idea.
func TestFileSizes(t *testing.T) {
	for _, s := range sources(t) {
		if n := s.set.File(s.file.Pos()).LineCount(); n > 600 && !s.test {
			t.Errorf("%s has %d lines: are there two ideas in it?", s.path, n)
		}
	}
}

// TestLinks finds documents that point to files that are not there.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)`)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"testdata", "bin", "dist"}, d.Name())) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".md") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s points to %s, which is not there", path, m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
