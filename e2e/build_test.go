package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// binaries is the folder with meshd and meshctl; TestMain removes it.
var binaries struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if binaries.dir != "" {
		os.RemoveAll(binaries.dir)
	}
	os.Exit(code)
}

// program returns the path of meshd or meshctl, built from this tree.
func program(t testing.TB, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and runs whole agents")
	}
	binaries.once.Do(func() { binaries.dir, binaries.err = build() })
	if binaries.err != nil {
		t.Fatal(binaries.err) // never skipped: a tree that does not build has no stories
	}
	return filepath.Join(binaries.dir, name)
}

func build() (string, error) {
	dir, err := os.MkdirTemp("", "meshd-e2e-")
	if err != nil {
		return "", err
	}
	args := []string{"build", "-buildvcs=false", "-o", dir}
	if raceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./meshd", "./meshctl")...)
	cmd.Dir = ".." // the root of the module: tests run in their own folder
	if out, err := cmd.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
}
