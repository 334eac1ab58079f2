package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"meshd/internal/mesh"
)

const (
	// assignmentsFile keeps the addresses and ports of upstreams over restarts,
	// so that what applications or resolvers remember stays right.
	assignmentsFile = "addresses.json"
	// damagedSuffix marks a file that was set aside.
	damagedSuffix = ".damaged"
	// maxAssignments bounds what is read: far above a full 127.0.0.0/8 of names
	// that anybody would write.
	maxAssignments = 16 << 20
)

// readAssignments reads what an agent before this one gave out. Nothing depends
// on it but stability, so a file that is missing, unreadable or damaged is
// replaced by an empty beginning; a damaged one is set aside.
func readAssignments(path string, log *slog.Logger) mesh.Assignments {
	var got mesh.Assignments
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return got
	}
	if err != nil {
		log.Error("addresses of upstreams cannot be read: they may change", "error", err)
		return got
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAssignments))
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(b))
		if err = d.Decode(&got); err == nil && d.More() {
			err = errors.New("something follows the end")
		}
	}
	if err != nil {
		aside := path + damagedSuffix
		if e := os.Rename(path, aside); e != nil {
			err = errors.Join(err, e)
		}
		log.Error("addresses of upstreams are damaged and may change; the file was set aside", "file", aside, "error", err)
		return mesh.Assignments{}
	}
	return got
}

// writeAssignments replaces the file in one step: after a crash it is the old
// one or the new one.
func writeAssignments(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("store addresses of upstreams: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("store addresses of upstreams: %w", err)
		}
	}()
	if _, err = f.Write(content); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// encodeAssignments is the content of the file; equal assignments give equal bytes.
func encodeAssignments(a mesh.Assignments) []byte {
	b, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("assignments cannot be encoded: %v", err)) // maps of strings always can
	}
	return append(b, '\n')
}
