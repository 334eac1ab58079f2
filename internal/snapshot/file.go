package snapshot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// newSuffix marks a file that is being written.
	newSuffix = ".new-"
	// damagedSuffix and a number mark files that were set aside; 1 is the newest.
	damagedSuffix = ".damaged-"
	// keepDamaged bounds them: one to look at, and whether it was the first.
	keepDamaged = 3
	// leftover is how old a file that is being written must be to be nobody's:
	// writing takes milliseconds, and seconds on a disk in trouble.
	leftover = 10 * time.Minute
	// fileMode lets nobody else read who talks to whom.
	fileMode = 0o600
	// writableByOthers are the permissions with which a file is not ours alone.
	writableByOthers = 0o022
)

// Save replaces the file with s, whole or not at all. It returns when the disk
// has it. An error leaves the file before as it was.
func Save(o Options, s State) error {
	b, err := Encode(s, o.Key)
	if err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	if err := replace(o.Path, b); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	return nil
}

// Load returns what Save stored last. [fs.ErrNotExist] is none yet; a
// [*DamagedError] is one that was set aside; any other error is about a file
// that could not be read and is left where it is. The State is empty then, and
// a caller that goes on without one does right.
func Load(o Options) (State, error) {
	sweep(o.Path)
	b, reason, err := read(o.Path)
	if err != nil {
		return State{}, fmt.Errorf("load snapshot: %w", err)
	}
	if reason == "" {
		s, err := Decode(b, o.Key)
		if err == nil {
			return s, nil
		}
		reason = err.Error()
	}
	d := &DamagedError{Reason: reason}
	if d.Aside, err = setAside(o.Path); err != nil {
		d.Reason += "; " + err.Error()
	}
	return State{}, d
}

// read returns the content, or the reason why there is none to be believed, or
// that it cannot be read.
func read(path string) (content []byte, reason string, err error) {
	// A pipe must not hold the start up, a link lead elsewhere.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, "it is a symbolic link", nil
	}
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, "", err
	}
	if reason := suspicious(info); reason != "" {
		return nil, reason, nil
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	return b, "", err
}

// suspicious says why what is in a file may not be what we wrote. The checksum
// finds accidents; whoever may write the file can make another.
func suspicious(info fs.FileInfo) string {
	if !info.Mode().IsRegular() {
		return "it is no regular file"
	}
	if m := info.Mode().Perm(); m&writableByOthers != 0 {
		return fmt.Sprintf("its mode %04o lets others write it", m)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Sprintf("it belongs to user %d", st.Uid)
	}
	if info.Size() > MaxBytes {
		return fmt.Sprintf("%d bytes, more than %d", info.Size(), MaxBytes)
	}
	return ""
}

// replace makes content appear under path in one step. Killed at any moment it
// leaves the old file or the new one, and at most one leftover for sweep.
func replace(path string, content []byte) error {
	return publish(path, content, os.Rename)
}

// publish writes a file beside path, makes the disk have it, and gives it its
// name with place.
func publish(path string, content []byte, place func(from, to string) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+newSuffix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close() // again at worst: what it says is known
		}
		// After a rename there is nothing under this name any more.
		if e := os.Remove(f.Name()); err == nil && e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}()
	if err = f.Chmod(fileMode); err != nil {
		return err
	}
	if _, err = f.Write(content); err != nil {
		return err
	}
	// Before the name: or a power cut could leave the name without the content.
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = place(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// setAside moves path out of the way and returns where to. Those set aside
// before move up by one, the oldest goes.
func setAside(path string) (string, error) {
	name := func(n int) string { return path + damagedSuffix + strconv.Itoa(n) }
	for n := keepDamaged - 1; n >= 1; n-- {
		if err := os.Rename(name(n), name(n+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	if err := os.Rename(path, name(1)); err != nil {
		return "", err
	}
	return name(1), nil
}

// sweep removes what a process that was killed while writing left behind. What
// fails here is tried at the next start.
func sweep(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), filepath.Base(path)+newSuffix) {
			continue
		}
		// An agent that is about to end may be writing beside us.
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > leftover {
			os.Remove(filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
}
