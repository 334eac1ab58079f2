package proxy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"meshd/internal/meshtest"
)

// TestHTTPStories tells the scripts of testdata/http: a file is a subject, a
// story begins with a line "# name".
func TestHTTPStories(t *testing.T) {
	files, err := filepath.Glob("testdata/http/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			meshtest.Leaks(t)
			for _, s := range strings.Split("\n"+string(text), "\n# ")[1:] {
				name, script, _ := strings.Cut(s, "\n")
				t.Run(name, func(t *testing.T) { story(t, strings.TrimRight(script, "\n")) })
			}
		})
	}
}
