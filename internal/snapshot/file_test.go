package snapshot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"meshd/internal/mesh"
)

func TestSaveAndLoad(t *testing.T) {
	o := options(t)
	if _, err := Load(o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file yet: %v", err)
	}
	for minute := range 3 {
		s := story()
		s.Saved = at(minute)
		if err := Save(o, s); err != nil {
			t.Fatal(err)
		}
		got, err := Load(o)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, got, same); d != "" {
			t.Errorf("changed on the way:\n%s", d)
		}
	}
	info, err := os.Stat(o.Path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if got, want := names(t, filepath.Dir(o.Path)), []string{"snapshot"}; !slices.Equal(got, want) {
		t.Errorf("the folder has %q, want %q", got, want)
	}
}

// An old umask or an old file does not loosen the mode.
func TestSaveReplacesTheMode(t *testing.T) {
	o := options(t)
	if err := os.WriteFile(o.Path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	old := syscall.Umask(0)
	err := Save(o, story())
	syscall.Umask(old)
	info, statErr := os.Stat(o.Path)
	if err != nil || statErr != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v, %v", info.Mode(), err, statErr)
	}
}

// A state that cannot be written leaves the file before alone.
func TestFailedSaveKeepsTheFile(t *testing.T) {
	o := options(t)
	if err := Save(o, story()); err != nil {
		t.Fatal(err)
	}
	bad := story()
	bad.Catalog.Intentions["x"] = mesh.Intentions{}
	if err := Save(o, bad); err == nil || !strings.HasPrefix(err.Error(), `save snapshot: permissions of "x": `) {
		t.Errorf("error %v", err)
	}
	if _, err := Load(o); err != nil {
		t.Errorf("the file before: %v", err)
	}
	gone := Options{Path: filepath.Join(t.TempDir(), "no", "such", "folder")}
	if err := Save(gone, story()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into a folder that is not there: %v", err)
	}
}

// What was set aside is kept, the newest as number 1, and never more than a few.
func TestSetAside(t *testing.T) {
	o := options(t)
	for n := range byte(keepDamaged + 2) {
		if err := os.WriteFile(o.Path, []byte{'0' + n}, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(o)
		var d *DamagedError
		if !errors.As(err, &d) || d.Aside != o.Path+".damaged-1" {
			t.Fatalf("file %d: %v", n, err)
		}
		if !strings.Contains(err.Error(), d.Aside) || !strings.Contains(err.Error(), "first line") {
			t.Errorf("error %q does not say what and where", err)
		}
		if _, err := Load(o); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after it was set aside: %v", err)
		}
	}
	for n, want := range []string{"4", "3", "2"} {
		b, err := os.ReadFile(o.Path + ".damaged-" + string(rune('1'+n)))
		if err != nil || string(b) != want {
			t.Errorf("damaged-%d holds %q, want %q: %v", n+1, b, want, err)
		}
	}
	if got := names(t, filepath.Dir(o.Path)); len(got) != keepDamaged {
		t.Errorf("the folder has %q", got)
	}
	if err := Save(o, story()); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(o); err != nil {
		t.Error(err)
	}
}

// A file that somebody else could have made is not believed, whatever its
// checksum says.
func TestSuspiciousFiles(t *testing.T) {
	good := encode(t, story())
	for name, make := range map[string]func(path string) error{
		"writable by the group": func(p string) error { return errors.Join(os.WriteFile(p, good, 0o600), os.Chmod(p, 0o620)) },
		"writable by all":       func(p string) error { return errors.Join(os.WriteFile(p, good, 0o600), os.Chmod(p, 0o602)) },
		"a link": func(p string) error {
			return errors.Join(os.WriteFile(p+"-real", good, 0o600), os.Symlink(p+"-real", p))
		},
		"a folder": func(p string) error { return os.Mkdir(p, 0o700) },
		"a pipe":   func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"too long": func(p string) error {
			return errors.Join(os.WriteFile(p, good, 0o600), os.Truncate(p, MaxBytes+1))
		},
		"somebody else's": func(p string) error {
			if os.Geteuid() != 0 {
				return errors.ErrUnsupported
			}
			return errors.Join(os.WriteFile(p, good, 0o600), os.Chown(p, 12345, 12345))
		},
	} {
		o := options(t)
		if err := make(o.Path); errors.Is(err, errors.ErrUnsupported) {
			t.Logf("%s: only root can make that", name)
			continue
		} else if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var d *DamagedError
		if s, err := Load(o); !errors.As(err, &d) || s.Catalog != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Readable by others is harmless: keys are sealed.
	o := options(t)
	if err := errors.Join(os.WriteFile(o.Path, good, 0o600), os.Chmod(o.Path, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(o); err != nil {
		t.Errorf("mode 0644: %v", err)
	}
}

// Leftovers of processes that were killed go, those of one that may still be
// writing stay.
func TestSweep(t *testing.T) {
	o := options(t)
	dir := filepath.Dir(o.Path)
	for _, name := range []string{"snapshot.new-1", "snapshot.new-2", "snapshot.key", "other.new-1"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-2 * leftover)
		if name == "snapshot.new-2" {
			old = time.Now()
		}
		if err := os.Chtimes(filepath.Join(dir, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("leftovers were read: %v", err)
	}
	if got, want := names(t, dir), []string{"other.new-1", "snapshot.key", "snapshot.new-2"}; !slices.Equal(got, want) {
		t.Errorf("the folder has %q, want %q", got, want)
	}
}

func TestLoadKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	key, err := LoadKey(path)
	if err != nil || len(key) != KeyBytes || bytes.Equal(key, make([]byte, KeyBytes)) {
		t.Fatalf("made %x, %v", key, err)
	}
	again, err := LoadKey(path)
	if err != nil || !bytes.Equal(key, again) {
		t.Errorf("read %x, %v; made %x", again, err, key)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if got, want := names(t, filepath.Dir(path)), []string{"key"}; !slices.Equal(got, want) {
		t.Errorf("the folder has %q, want %q", got, want)
	}
	for mode, good := range map[fs.FileMode]bool{
		0o600: true, 0o400: true, 0o700: true, 0o440: true, // 0440: a credential of systemd
		0o640: false, 0o620: false, 0o604: false, 0o666: false, 0o444: false, 0o460: false,
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKey(path); (err == nil) != good {
			t.Errorf("mode %04o: %v", mode, err)
		} else if !good && !strings.Contains(err.Error(), "chmod 0600") {
			t.Errorf("mode %04o: error %q does not say what to do", mode, err)
		}
	}
	for _, n := range []int{0, 31, 33, 64} {
		if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, make([]byte, n), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKey(path); err == nil {
			t.Errorf("a key of %d bytes was taken", n)
		}
		if b, err := os.ReadFile(path); err != nil || len(b) != n {
			t.Errorf("a key of %d bytes was replaced", n)
		}
	}
	if _, err := LoadKey(filepath.Join(t.TempDir(), "no", "key")); err == nil {
		t.Error("a key in a folder that is not there")
	}
	if _, err := LoadKey(t.TempDir()); err == nil {
		t.Error("a folder is a key")
	}
}

// Agents that start at the same time on one folder get the same key.
func TestLoadKeyTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	keys := make(chan []byte)
	for range 16 {
		go func() { // the loop below waits for it
			key, err := LoadKey(path)
			if err != nil {
				t.Error(err)
			}
			keys <- key
		}()
	}
	first := <-keys
	for range 15 {
		if key := <-keys; !bytes.Equal(first, key) {
			t.Errorf("keys %x and %x", first, key)
		}
	}
}
