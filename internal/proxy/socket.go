package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"meshd/internal/loop"
)

// bindKey is what a listener is bound to: a TCP address or the path of a Unix
// socket.
type bindKey struct {
	addr netip.AddrPort
	path string
}

func (k bindKey) String() string {
	if k.path != "" {
		return k.path
	}
	return k.addr.String()
}

// socketFile tells our socket from what somebody else may have put in its place.
type socketFile struct{ dev, ino uint64 }

const (
	// socketBacklog is that of TCP listeners; the kernel cuts it to
	// net.core.somaxconn.
	socketBacklog = 4096
	// folderMode is for folders above a socket that do not exist: whoever may
	// use a socket has to reach it. The socket's own mode decides who that is.
	folderMode = 0o755
	// bindTries is how often a stale file is removed to bind again. More than
	// one means that somebody else binds the same path.
	bindTries = 3
)

// listenSocket binds the Unix socket at path and sets its permissions before
// anybody can connect: the kernel refuses connections until listen. A file that
// a dead process left is replaced; a live one is an error, and so is anything
// that is no socket.
func listenSocket(path string, mode uint32) (fd int, file socketFile, err error) {
	if err := makeFolders(filepath.Dir(path)); err != nil {
		return -1, file, fmt.Errorf("make folder of socket: %w", err)
	}
	fd, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, file, fmt.Errorf("listen on %s: %w", path, err)
	}
	err = bindSocket(fd, path)
	if err == nil {
		if file, err = socketAt(path); err == nil {
			err = os.Chmod(path, fs.FileMode(mode))
		}
		if err == nil {
			err = syscall.Listen(fd, socketBacklog)
		}
		if err != nil {
			removeSocket(path, file)
		}
	}
	if err != nil {
		loop.Close(fd)
		return -1, file, fmt.Errorf("listen on %s: %w", path, err)
	}
	return fd, file, nil
}

func bindSocket(fd int, path string) error {
	for try := 1; ; try++ {
		err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path})
		if err != syscall.EADDRINUSE || try == bindTries {
			return err
		}
		if err := removeStale(path); err != nil {
			return err
		}
	}
}

var (
	errNoSocket   = errors.New("a file that is no socket is in the way")
	errSocketUsed = errors.New("another process listens there")
)

// removeStale removes the socket of a process that is no more. Between its look
// and the removal somebody else may bind the path; two agents that are told the
// same path are a mistake that both notice at the next try.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode().Type() != fs.ModeSocket:
		return errNoSocket
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer loop.Close(fd)
	// Only a refusal says that nobody is there: a full backlog says EAGAIN, a
	// socket of another type EPROTOTYPE, one that is not ours to open EACCES.
	switch err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err {
	case syscall.ECONNREFUSED:
	case syscall.ENOENT:
		return nil
	case nil, syscall.EAGAIN, syscall.EPROTOTYPE:
		return errSocketUsed
	default:
		return fmt.Errorf("look who listens there: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// makeFolders is os.MkdirAll for modes that no umask may narrow. Folders that
// exist stay as they are; those it makes are not removed again.
func makeFolders(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeFolders(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, folderMode); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return os.Chmod(dir, folderMode)
}

// socketAt identifies the socket at path.
func socketAt(path string) (socketFile, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return socketFile{}, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || fi.Mode().Type() != fs.ModeSocket {
		return socketFile{}, errNoSocket
	}
	return socketFile{dev: st.Dev, ino: st.Ino}, nil
}

// removeSocket removes the file if it is still the one that was bound.
func removeSocket(path string, file socketFile) {
	if now, err := socketAt(path); err == nil && now == file {
		_ = os.Remove(path) // what stays is found stale at the next start
	}
}

// keepSocket looks after a socket that is bound already: its permissions
// may have changed, and somebody may have removed or replaced the file, which
// leaves a listener that nobody can reach. p.mu is held.
func (p *Proxy) keepSocket(key bindKey, a *acceptor, mode uint32) error {
	if p.draining {
		return errDraining
	}
	if now, err := socketAt(key.path); err != nil || now != a.file {
		delete(p.listeners, key)
		p.shut(key, a)
		return p.listen(key, mode)
	}
	if a.mode == mode {
		return nil
	}
	if err := os.Chmod(key.path, fs.FileMode(mode)); err != nil {
		return err
	}
	a.mode = mode
	return nil
}

// Where is the address or the path.
func (s ListenerState) Where() string { return bindKey{s.Address, s.Path}.String() }
