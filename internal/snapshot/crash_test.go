package snapshot

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The test binary plays a part of its own when this says which.
const roleVariable = "MESHD_SNAPSHOT_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "writer":
		writer(os.Args[1])
	case "disk":
		fullDisk(os.Args[1])
	default:
		os.Exit(m.Run())
	}
}

// role starts the test binary in another part.
func role(t *testing.T, name, argument string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, argument)
	cmd.Env = append(os.Environ(), roleVariable+"="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

// generation is the state number n; two of them differ everywhere.
func generation(n int) State {
	s := big(64 << 10)
	s.Saved = at(0).Add(time.Duration(n) * time.Second)
	for k, f := range s.Catalog.Services {
		f.Port, f.Updated = uint16(n), s.Saved
		s.Catalog.Services[k] = f
	}
	return s
}

// writer saves generations until it is killed.
func writer(path string) {
	for n := 1; ; n++ {
		if err := Save(Options{Path: path, Key: testKey()}, generation(n)); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		if n == 1 {
			os.Stdout.WriteString("saved\n")
		}
	}
}

// Killed at any moment, a writer leaves a file of one generation, whole.
func TestKilledWhileSaving(t *testing.T) {
	o := options(t)
	r := rand.New(rand.NewPCG(3, 4))
	rounds := 40
	if testing.Short() {
		rounds = 5
	}
	seen, leftovers := map[time.Time]bool{}, 0
	for round := range rounds {
		cmd := role(t, "writer", o.Path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "saved\n" {
			t.Errorf("writer: %q, %v", line, err)
		}
		time.Sleep(time.Duration(r.IntN(int(60 * time.Millisecond)))) // the moment is what is tested
		cmd.Process.Kill()
		_ = cmd.Wait() // it says that it was killed
		got, err := Load(o)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		n := int(got.Saved.Sub(at(0)) / time.Second)
		if d := cmp.Diff(generation(n), got, same); d != "" {
			t.Fatalf("round %d: the file is not generation %d:\n%s", round, n, d)
		}
		seen[got.Saved] = true
	}
	for _, name := range names(t, filepath.Dir(o.Path)) {
		switch {
		case strings.Contains(name, newSuffix):
			leftovers++
		case name != "snapshot":
			t.Errorf("%s is in the folder", name)
		}
	}
	t.Logf("%d kills: %d different generations found, %d leftovers", rounds, len(seen), leftovers)
	if leftovers > rounds {
		t.Errorf("%d leftovers of %d writers", leftovers, rounds)
	}
}

// fullDisk runs in a mount namespace of its own. It reports to standard output.
func fullDisk(dir string) {
	say := func(s string) { os.Stdout.WriteString(s + "\n") }
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=128k"); err != nil {
		say("unsupported: " + err.Error())
		return
	}
	o := Options{Path: filepath.Join(dir, "snapshot"), Key: testKey()}
	if err := Save(o, story()); err != nil {
		say("first save: " + err.Error())
	}
	for range 3 {
		if err := Save(o, big(1<<20)); !errors.Is(err, syscall.ENOSPC) {
			say(fmt.Sprint("save on a full disk: ", err))
		}
		got, err := Load(o)
		if err != nil {
			say("load: " + err.Error())
		}
		if d := cmp.Diff(story(), got, same); d != "" {
			say("the file before changed: " + d)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			say("the folder has more than the file")
		}
	}
	// Room comes back: the next save is as if nothing had been.
	if err := syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT, "size=8m"); err != nil {
		say("remount: " + err.Error())
	}
	if err := Save(o, big(1<<20)); err != nil {
		say("save with room again: " + err.Error())
	}
	say("done")
}

// A full disk leaves the old file as it was, and nothing beside it.
func TestDiskFull(t *testing.T) {
	cmd := role(t, "disk", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	out, err := cmd.Output()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || strings.HasPrefix(string(out), "unsupported") {
		t.Skipf("no file system of our own here: %v %s", err, out)
	}
	if lines := strings.Fields(string(out)); err != nil || !slices.Equal(lines, []string{"done"}) {
		t.Errorf("%v\n%s", err, out)
	}
}
