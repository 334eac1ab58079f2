package loop

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// waitFor blocks until fd is ready for what poll(2) calls events.
func waitFor(t *testing.T, fd int, events int16) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(fds, int(patience/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("descriptor %d not ready: %v", fd, err)
		}
		return
	}
}

func TestListenConnectAccept(t *testing.T) {
	for _, tc := range []struct{ listen, connect string }{
		{"127.0.0.1:0", "127.0.0.1"},
		{"127.77.3.4:0", "127.77.3.4"},
		{"0.0.0.0:0", "127.0.0.1"},
		{"[::1]:0", "::1"},
		{"[::]:0", "127.0.0.1"},
		{"[::]:0", "::1"},
	} {
		t.Run(tc.listen+" "+tc.connect, func(t *testing.T) {
			ln, bound, err := Listen(netip.MustParseAddrPort(tc.listen))
			if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
				t.Skipf("this machine has no such address: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer Close(ln)
			if _, _, errno := Accept(ln); errno != syscall.EAGAIN {
				t.Fatalf("accept with nobody there: %v", errno)
			}
			to := netip.AddrPortFrom(netip.MustParseAddr(tc.connect), bound.Port())
			fd, done, err := Connect(to)
			if err != nil {
				t.Fatal(err)
			}
			defer Close(fd)
			if !done {
				waitFor(t, fd, unix.POLLOUT)
			}
			if errno := SocketError(fd); errno != 0 {
				t.Fatal(errno)
			}
			waitFor(t, ln, unix.POLLIN)
			c, from, errno := Accept(ln)
			if errno != 0 {
				t.Fatal(errno)
			}
			defer Close(c)
			if want := LocalAddr(fd); from != want {
				t.Errorf("accepted from %v, want %v", from, want)
			}
			if LocalAddr(c) != to {
				t.Errorf("accepted on %v, want %v", LocalAddr(c), to)
			}
			for _, fd := range []int{c, fd} {
				if v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); err != nil || v == 0 {
					t.Errorf("TCP_NODELAY is %d, %v", v, err)
				}
				if fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || fl&unix.O_NONBLOCK == 0 {
					t.Errorf("descriptor may block: %x, %v", fl, err)
				}
				if fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || fl&unix.FD_CLOEXEC == 0 {
					t.Errorf("descriptor survives exec: %x, %v", fl, err)
				}
			}
			if err := SetUserTimeout(c, 5000); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestListenNamesTheTakenAddress(t *testing.T) {
	fd, bound, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { Close(fd) }()
	_, _, err = Listen(bound)
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("second Listen: %v", err)
	}
	if want := "listen on " + bound.String() + ": address already in use"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	// Freed, it can be taken again at once although connections were there.
	c, err := net.Dial("tcp", bound.String())
	if err != nil {
		t.Fatal(err)
	}
	Close(fd)
	c.Close()
	if fd, _, err = Listen(bound); err != nil {
		t.Fatal(err)
	}
}

func TestConnectRefused(t *testing.T) {
	ln, bound, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	Close(ln)
	fd, done, err := Connect(bound)
	if err != nil {
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
		return
	}
	defer Close(fd)
	if done {
		t.Fatal("connected to nobody")
	}
	waitFor(t, fd, unix.POLLOUT)
	if errno := SocketError(fd); errno != syscall.ECONNREFUSED {
		t.Errorf("socket error %v, want connection refused", errno)
	}
}

func TestBadAddresses(t *testing.T) {
	for _, a := range []netip.AddrPort{{}, netip.MustParseAddrPort("[fe80::1%nosuchnic0]:80"), netip.MustParseAddrPort("192.0.2.1:0")} {
		if fd, _, err := Listen(a); err == nil {
			t.Errorf("Listen(%v) succeeded", a)
			Close(fd)
		}
	}
	if _, _, err := Connect(netip.AddrPort{}); err == nil {
		t.Error("Connect to no address succeeded")
	}
}

func TestHalfCloseAndAbort(t *testing.T) {
	ln, bound, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer Close(ln)
	dial := func() (*net.TCPConn, int) {
		c, err := net.Dial("tcp", bound.String())
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, ln, unix.POLLIN)
		fd, _, errno := Accept(ln)
		if errno != 0 {
			t.Fatal(errno)
		}
		return c.(*net.TCPConn), fd
	}

	c, fd := dial()
	if n, errno := Writev(fd, []byte("over"), nil, []byte(" and "), []byte("out")); n != 12 || errno != 0 {
		t.Fatalf("Writev: %d, %v", n, errno)
	}
	if errno := ShutdownWrite(fd); errno != 0 {
		t.Fatal(errno)
	}
	if b, err := io.ReadAll(c); string(b) != "over and out" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	c.Write([]byte("still here"))
	waitFor(t, fd, unix.POLLIN)
	buf := make([]byte, 64)
	if n, errno := Read(fd, buf); string(buf[:n]) != "still here" || errno != 0 {
		t.Errorf("read %q, %v after half-close", buf[:n], errno)
	}
	if n, errno := Read(fd, buf); n != 0 || errno != syscall.EAGAIN {
		t.Errorf("read of nothing: %d, %v", n, errno)
	}
	Close(fd)
	c.Close()

	c, fd = dial()
	Abort(fd)
	if _, err := c.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read after abort: %v, want a reset", err)
	}
	c.Close()

	if n, errno := Writev(fd); n != 0 || errno != 0 {
		t.Errorf("Writev of nothing: %d, %v", n, errno)
	}
	if n, errno := Read(-1, buf); n != 0 || errno != syscall.EBADF {
		t.Errorf("read of a bad descriptor: %d, %v", n, errno)
	}
}
