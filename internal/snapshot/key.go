package snapshot

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// LoadKey returns the key that is kept in path (32 bytes), and makes one, with
// mode 0600, if there is no file. A file of another length, or that others may
// read or write, is an error that says what to do: it is not replaced, since
// what is sealed under it would be lost.
func LoadKey(path string) ([]byte, error) {
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	key = make([]byte, KeyBytes)
	rand.Read(key)
	// A link does not replace: of two agents that start at once both get the
	// key of the one that was first.
	if err := publish(path, key, os.Link); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make key file: %w", err)
	}
	return readKey(path)
}

func readKey(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("key file %s is no regular file", path)
	}
	if m := info.Mode().Perm(); tooOpen(m) {
		return nil, fmt.Errorf("key file %s has mode %04o, so others may have read it: chmod 0600 it, or remove it and get a new one", path, m)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("key file %s belongs to user %d", path, st.Uid)
	}
	key, err := io.ReadAll(io.LimitReader(f, KeyBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	if len(key) != KeyBytes {
		return nil, fmt.Errorf("key file %s has %d bytes, want %d: remove it and get a new one", path, info.Size(), KeyBytes)
	}
	return key, nil
}

// tooOpen tells whether somebody else may use a file. 0440 passes: that is how
// systemd shows a credential whose access list names the service's user only.
func tooOpen(m fs.FileMode) bool {
	return m&0o037 != 0 || m&0o040 != 0 && m&0o200 != 0
}
