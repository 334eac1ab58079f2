package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	// socketMode: whoever may write the socket may reload, so not the world.
	socketMode = 0o660
	// socketDirMode is for a runtime directory that systemd did not make.
	socketDirMode = 0o755
	// probeTimeout is how long a socket that exists may take to accept. A
	// living agent accepts at once; its backlog alone does it.
	probeTimeout = time.Second
)

// listenSocket binds the Unix socket at path. A file left by a crashed agent
// is replaced; one that a living agent answers on is an error.
func listenSocket(path, group string) (net.Listener, error) {
	if err := os.Mkdir(filepath.Dir(path), socketDirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make folder of the admin socket: %w", err)
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("admin socket %s: a file that is no socket is in the way", path)
		}
		if c, err := net.DialTimeout("unix", path, probeTimeout); err == nil {
			c.Close()
			return nil, fmt.Errorf("admin socket %s: another meshd answers on it", path)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove stale admin socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		if errors.Is(err, syscall.EINVAL) {
			return nil, fmt.Errorf("admin socket %s: the path is longer than the 107 bytes Linux allows", path)
		}
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	// The group before the mode: the other way round, the group the file had
	// by chance could connect for a moment.
	if err := setGroup(path, group); err != nil {
		l.Close()
		return nil, err
	}
	if err := os.Chmod(path, socketMode); err != nil {
		l.Close()
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	return l, nil
}

func setGroup(path, group string) error {
	if group == "" {
		return nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return fmt.Errorf("admin socket: group %q: %w", group, err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("admin socket: group %q has id %q: %w", group, g.Gid, err)
	}
	if err := os.Chown(path, -1, gid); err != nil {
		return fmt.Errorf("admin socket: give it to group %q: %w", group, err)
	}
	return nil
}

// peerKey is the context key of the uid at the other end of the socket.
type peerKey struct{}

// withPeer notes who connected, for the log line of a reload.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if l, ok := c.(*limitedConn); ok {
		c = l.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *syscall.Ucred
	raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, *cred)
}

// limit returns l with at most most connections accepted at a time. The slot
// is taken before Accept, so that what exceeds it waits in the kernel's
// backlog and costs no descriptor.
func limit(l net.Listener, most int) net.Listener {
	return &limitedListener{Listener: l, slots: make(chan struct{}, most), closed: make(chan struct{})}
}

type limitedListener struct {
	net.Listener
	slots  chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close also frees an Accept that waits for a slot.
func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
