package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/internal/mesh"
	"meshd/internal/meshtest"
	"meshd/internal/telemetry"
)

// socketFolder is a folder with a short name: that of a test may be too long
// for a socket.
func socketFolder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func onSocket(path string, mode uint32) pairOption {
	return func(a, _ *mesh.Spec) { a.Upstreams[0].SocketPath, a.Upstreams[0].SocketMode = path, mode }
}

func dialSocket(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

// state compiles and prepares the spec of h without publishing it, and returns
// how its one socket fares.
func (h *host) state(t testing.TB) (*mesh.Snapshot, ListenerState) {
	t.Helper()
	h.gen++
	spec := h.spec
	snap, err := mesh.Compile(mesh.CompileInput{Generation: h.gen, Spec: &spec, Catalog: h.catalog})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range h.Prepare(snap) {
		if l.Path != "" {
			if l.Where() != l.Path || l.Address.IsValid() || l.Upstream != "world" {
				t.Errorf("state %+v", l)
			}
			return snap, l
		}
	}
	return snap, ListenerState{}
}

func permissions(t testing.TB, path string) fs.FileMode {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Mode()
}

func absent(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// TestSocketHTTP: an upstream's socket carries requests like its addresses do,
// on every loop, and is gone when the agent has ended.
func TestSocketHTTP(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		meshtest.Leaks(t)
		path := filepath.Join(socketFolder(t), "world.sock")
		p := newPair(t, loops, mesh.HTTP, meshtest.HTTPEcho(t, "world").Addr, onSocket(path, 0o640))
		if m := permissions(t, path); m != fs.ModeSocket|0o640 {
			t.Errorf("permissions are %v", m)
		}
		tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}
		defer tr.CloseIdleConnections()
		client := &http.Client{Transport: tr, Timeout: patience}
		const requests = 30
		for i := range requests {
			body := strings.Repeat("x", i*i*1000)
			resp, err := client.Post("http://world/", "text/plain", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || resp.Header.Get("echo-name") != "world" {
				t.Fatalf("%d by %q, %v", resp.StatusCode, resp.Header.Get("echo-name"), err)
			}
			if i%3 == 0 {
				tr.CloseIdleConnections()
			}
		}
		tr.CloseIdleConnections()
		p.a.counts(telemetry.Outbound, mesh.HTTP, fmt.Sprint("ok=", requests))
		p.calm()
		p.a.end()
		if !absent(path) {
			t.Error("the socket is left behind")
		}
	})
}

// TestSocketTCP: connections on a socket keep their half-close, and their ends
// are seen at the other side.
func TestSocketTCP(t *testing.T) {
	onLoops(t, func(t *testing.T, loops int) {
		path := filepath.Join(socketFolder(t), "world.sock")
		app := newRawApp(t)
		p := newPair(t, loops, mesh.TCP, mustAddr(app.Addr()), onSocket(path, 0o600))
		c := dialSocket(t, path)
		big := strings.Repeat("0123456789", 300_000)
		go io.WriteString(c, big)
		a := app.accept(t)
		gets(t, "app", a, big)
		go io.WriteString(a, big)
		gets(t, "client", c, big)
		c.CloseWrite()
		if _, cut := ending(t, "app", a); cut {
			t.Error("the end came as a reset")
		}
		send(t, a, "the answer")
		a.Close()
		if rest, cut := ending(t, "client", c); string(rest) != "the answer" || cut {
			t.Errorf("got %q, reset: %v", rest, cut)
		}
		// A client that goes away without reading ends it for the application.
		c = dialSocket(t, path)
		a = app.accept(t)
		send(t, a, "unread")
		gets(t, "client", c, "unread")
		c.Close()
		ending(t, "app", a)
		a.Close()
		p.calm()
	})
}

// TestSocketOfTheDead: the file of a process that is no more is replaced. One
// that somebody listens on is theirs, and so is a file that is no socket.
func TestSocketOfTheDead(t *testing.T) {
	app := meshtest.HTTPEcho(t, "world")
	works := func(t *testing.T, path string) {
		t.Helper()
		c := dialSocket(t, path)
		send(t, c, plainGet)
		gets(t, "client", c, "HTTP/1.1 200 OK\r\n")
	}
	// leftover makes a socket file and closes the socket without removing it.
	leftover := func(t *testing.T, path string) {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	t.Run("dead", func(t *testing.T) {
		path := filepath.Join(socketFolder(t), "world.sock")
		leftover(t, path)
		newPair(t, 1, mesh.HTTP, app.Addr, onSocket(path, 0o660))
		works(t, path)
		if m := permissions(t, path); m != fs.ModeSocket|0o660 {
			t.Errorf("permissions are %v", m)
		}
	})
	for _, c := range []struct {
		name  string
		block func(t *testing.T, path string) (clear func())
		want  string
	}{
		{"live", func(t *testing.T, path string) func() {
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			return func() { l.Close() }
		}, "another process listens there"},
		{"live and busy", func(t *testing.T, path string) func() {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if err == nil {
				err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: path})
			}
			if err == nil {
				err = syscall.Listen(fd, 0) // room for one connection
			}
			if err != nil {
				t.Fatal(err)
			}
			dialSocket(t, path)
			return func() { syscall.Close(fd) }
		}, "another process listens there"},
		{"live with datagrams", func(t *testing.T, path string) func() {
			l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			return func() { l.Close() }
		}, "another process listens there"},
		{"file", func(t *testing.T, path string) func() {
			if err := os.WriteFile(path, []byte("dear"), 0o600); err != nil {
				t.Fatal(err)
			}
			return func() {
				if b, _ := os.ReadFile(path); string(b) != "dear" {
					t.Errorf("the file is %q now", b)
				}
				os.Remove(path)
			}
		}, "no socket is in the way"},
		{"link to a dead socket", func(t *testing.T, path string) func() {
			leftover(t, path+"-")
			if err := os.Symlink(path+"-", path); err != nil {
				t.Fatal(err)
			}
			return func() { os.Remove(path) }
		}, "no socket is in the way"},
		{"folder is a file", func(t *testing.T, path string) func() {
			dir := filepath.Dir(path)
			os.Remove(dir)
			if err := os.WriteFile(dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { os.Remove(dir) }
		}, "not a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(socketFolder(t), "sub", "world.sock")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			p := newPair(t, 1, mesh.HTTP, app.Addr)
			clear := c.block(t, path)
			onSocket(path, 0o660)(&p.a.spec, nil)
			for range 2 { // trying again does no harm
				snap, s := p.a.state(t)
				if s.Err == nil || !strings.Contains(s.Err.Error(), c.want) || !strings.Contains(s.Err.Error(), path) {
					t.Fatalf("got %v, want %q", s.Err, c.want)
				}
				p.a.Publish(snap)
			}
			if code, _, _ := get(t, "http://"+p.addr+"/"); code != 200 {
				t.Errorf("the other listener of the upstream answers %d", code)
			}
			clear()
			snap, s := p.a.state(t)
			if s.Err != nil {
				t.Fatal(s.Err)
			}
			p.a.Publish(snap)
			works(t, path)
		})
	}
}

// TestSocketReload: pictures move, change and remove sockets. Connections go on.
func TestSocketReload(t *testing.T) {
	meshtest.Leaks(t)
	dir := socketFolder(t)
	one, two := filepath.Join(dir, "one.sock"), filepath.Join(dir, "deep", "er", "two.sock")
	app := meshtest.TCPEcho(t, "world")
	p := newPair(t, 2, mesh.TCP, app.Addr, onSocket(one, 0o660))
	c := dialSocket(t, one)
	echo(t, c, "one")
	put := func(path string, mode uint32) {
		t.Helper()
		onSocket(path, mode)(&p.a.spec, nil)
		p.a.put()
	}
	put(one, 0o606)
	if m := permissions(t, one); m != fs.ModeSocket|0o606 {
		t.Errorf("permissions are %v after a change", m)
	}
	echo(t, dialSocket(t, one), "same socket")

	// Folders that were missing let everybody reach the socket, whatever the umask.
	old := syscall.Umask(0o077)
	put(two, 0o666)
	syscall.Umask(old)
	if !absent(one) {
		t.Error("the first path is still there")
	}
	for path, want := range map[string]fs.FileMode{filepath.Dir(two): fs.ModeDir | 0o755, filepath.Dir(filepath.Dir(two)): fs.ModeDir | 0o755, two: fs.ModeSocket | 0o666} {
		if m := permissions(t, path); m != want {
			t.Errorf("%s: permissions are %v, want %v", path, m, want)
		}
	}
	echo(t, dialSocket(t, two), "two")

	// Somebody removes the file: the next picture has it again.
	os.Remove(two)
	put(two, 0o666)
	echo(t, dialSocket(t, two), "removed")
	// Somebody puts another in its place: it is not ours to touch.
	os.Remove(two)
	l, err := net.Listen("unix", two)
	if err != nil {
		t.Fatal(err)
	}
	if _, s := p.a.state(t); s.Err == nil {
		t.Error("took a socket that somebody listens on")
	}
	put("", 0)
	if absent(two) {
		t.Error("removed a socket that is somebody else's")
	}
	l.Close()

	for range 20 { // away and back at once
		put(one, 0o660)
		echo(t, dialSocket(t, one), "back")
		put("", 0)
		if !absent(one) {
			t.Fatal("the path is still there")
		}
	}
	echo(t, c, "all the time")
}

// TestSocketNames: 107 octets fit, be the last element of one octet or of a
// hundred; one more is an error of its own.
func TestSocketNames(t *testing.T) {
	dir := socketFolder(t)
	app := meshtest.HTTPEcho(t, "world")
	p := newPair(t, 1, mesh.HTTP, app.Addr)
	deep := filepath.Join(dir, strings.Repeat("d", 105-len(dir)-1))
	for _, path := range []string{
		filepath.Join(dir, strings.Repeat("n", 107-len(dir)-1)),
		filepath.Join(deep, "n"),
	} {
		if len(path) != 107 {
			t.Fatalf("%d octets", len(path))
		}
		for range 2 { // the second replaces what the first leaves
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
			if err == nil {
				l.SetUnlinkOnClose(false)
				l.Close()
			}
			onSocket(path, 0o660)(&p.a.spec, nil)
			p.a.put()
			c := dialSocket(t, path)
			send(t, c, plainGet)
			gets(t, "client", c, "HTTP/1.1 200 OK\r\n")
			onSocket("", 0)(&p.a.spec, nil)
			p.a.put()
		}
	}
	onSocket(filepath.Join(dir, strings.Repeat("n", 108-len(dir)-1)), 0o660)(&p.a.spec, nil)
	if _, s := p.a.state(t); !errors.Is(s.Err, syscall.EINVAL) {
		t.Errorf("108 octets: %v", s.Err)
	}
}

// TestSocketLimits: a connection that is one too many is closed.
func TestSocketLimits(t *testing.T) {
	path := filepath.Join(socketFolder(t), "world.sock")
	p := newPair(t, 1, mesh.TCP, meshtest.TCPEcho(t, "world").Addr, onSocket(path, 0o660), func(a, _ *mesh.Spec) {
		a.Upstreams[0].Limits.MaxConnections = 2
	})
	one, two := dialSocket(t, path), dialSocket(t, path)
	echo(t, one, "one")
	echo(t, two, "two")
	three := dialSocket(t, path)
	ending(t, "client", three)
	p.a.counts(telemetry.Outbound, mesh.TCP, "overflow=1")
}

// TestSocketDeny: who was connected when a permission is taken away is cut here
// too. A Unix socket knows no reset: the end looks like any other.
func TestSocketDeny(t *testing.T) {
	path := filepath.Join(socketFolder(t), "world.sock")
	p := newPair(t, 1, mesh.TCP, meshtest.TCPEcho(t, "world").Addr, onSocket(path, 0o660))
	c := dialSocket(t, path)
	echo(t, c, "before")
	start := time.Now()
	p.b.intend(mesh.Deny)
	p.b.put()
	if rest, _ := ending(t, "client", c); len(rest) > 0 {
		t.Errorf("got %q", rest)
	}
	inTime(t, "cut", start)
	p.a.counts(telemetry.Outbound, mesh.TCP, "denied=1")
}

// TestIPv6: applications, listeners and peers on ::1.
func TestIPv6(t *testing.T) {
	local := netip.IPv6Loopback()
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skip("no IPv6 here: ", err)
	} else {
		l.Close()
	}
	onLoops(t, func(t *testing.T, loops int) {
		for _, protocol := range []mesh.Protocol{mesh.HTTP, mesh.TCP} {
			t.Run(protocol.String(), func(t *testing.T) {
				meshtest.Leaks(t)
				app := meshtest.HTTPEchoAt(t, "world", "[::1]:0")
				port := meshtest.FreePort(t)
				p := newPairAt(t, loops, protocol, app.Addr, netip.AddrPortFrom(local, 0), func(a, _ *mesh.Spec) {
					a.Upstreams[0].LocalBindAddress, a.Upstreams[0].LocalBindPort = local, port
				})
				if at := p.b.PeerAddr(); at.Addr() != local {
					t.Fatalf("the peer listens on %s", at)
				}
				want := netip.AddrPortFrom(local, port)
				for _, addr := range []string{want.String(), p.addr} { // its IPv4 address works beside it
					code, _, h := get(t, "http://"+addr+"/")
					if code != 200 || h.Get("echo-name") != "world" {
						t.Errorf("%s: %d by %q", addr, code, h.Get("echo-name"))
					}
				}
				if s := p.a.Upstreams()[0].Endpoints[0]; s.Address != p.b.PeerAddr() || s.Links == 0 {
					t.Errorf("%+v", s)
				}
				p.b.intend(mesh.Deny)
				p.b.put()
				if protocol == mesh.HTTP {
					if code, _, _ := get(t, "http://"+want.String()+"/"); code != 403 {
						t.Errorf("a denied caller got %d", code)
					}
				}
				p.calm()
			})
		}
	})
}
