package loop

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The helpers below are plain system calls on non-blocking descriptors. Read,
// Write, Writev and Accept cannot block, so they skip the scheduler's
// hand-off. An Errno of 0 means success.

// backlog is how many connections the kernel completes ahead of accept. The
// kernel cuts it to net.core.somaxconn, 4096 by default.
const backlog = 4096

// maxWritev bounds one Writev: the kernel takes no more than 1024.
const maxWritev = 64

// Read reads into p. 0 bytes without an error is the end of the stream, unless
// p is empty.
func Read(fd int, p []byte) (int, syscall.Errno) {
	return transfer(unix.SYS_READ, fd, p)
}

// Write writes as much of p as the socket takes. Go has the runtime ignore
// SIGPIPE on all descriptors but standard output and error.
func Write(fd int, p []byte) (int, syscall.Errno) {
	return transfer(unix.SYS_WRITE, fd, p)
}

func transfer(call uintptr, fd int, p []byte) (int, syscall.Errno) {
	if len(p) == 0 {
		return 0, 0
	}
	for {
		n, _, errno := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// Writev writes the buffers in order as one call and returns how many bytes
// the socket took. It looks at the first 64 buffers only.
func Writev(fd int, bufs ...[]byte) (int, syscall.Errno) {
	var vec [maxWritev]unix.Iovec
	k := 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		if k == len(vec) {
			break
		}
		vec[k].Base = unsafe.SliceData(b)
		vec[k].SetLen(len(b))
		k++
	}
	if k == 0 {
		return 0, 0
	}
	for {
		n, _, errno := syscall.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&vec[0])), uintptr(k))
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// Accept takes one connection: non-blocking, closed on exec, without Nagle's
// algorithm (inherited from Listen). An address of a dual-stack socket comes
// as IPv4 where it is one.
func Accept(fd int) (int, netip.AddrPort, syscall.Errno) {
	for {
		var sa unix.RawSockaddrAny
		size := uint32(unix.SizeofSockaddrAny)
		nfd, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa)),
			uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return -1, netip.AddrPort{}, errno
		}
		return int(nfd), rawAddrPort(&sa), 0
	}
}

// Listen opens a listening TCP socket and returns it with the address it got
// (port 0 asks for any). An unspecified IPv6 address takes IPv4 connections
// too; on a kernel without IPv6 it listens on all IPv4 addresses.
func Listen(a netip.AddrPort) (fd int, bound netip.AddrPort, err error) {
	fd, err = listen(a)
	if errors.Is(err, unix.EAFNOSUPPORT) && a.Addr() == netip.IPv6Unspecified() {
		fd, err = listen(netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port()))
	}
	if err != nil {
		return -1, netip.AddrPort{}, fmt.Errorf("listen on %s: %w", a, err)
	}
	return fd, LocalAddr(fd), nil
}

func listen(a netip.AddrPort) (fd int, err error) {
	fd, sa, err := open(a)
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	// A restart must not wait for connections of the process before.
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fd, err
	}
	if a.Addr() == netip.IPv6Unspecified() {
		if err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return fd, err
		}
	}
	if err = unix.Bind(fd, sa); err != nil {
		return fd, err
	}
	return fd, unix.Listen(fd, backlog)
}

// Connect begins a TCP connection. done reports that it is established
// already; else the descriptor becomes writable when it is decided, and
// SocketError tells how.
func Connect(a netip.AddrPort) (fd int, done bool, err error) {
	fd, sa, err := open(a)
	if err != nil {
		return -1, false, fmt.Errorf("connect to %s: %w", a, err)
	}
	// A non-blocking connect that a signal interrupts goes on by itself.
	switch err := unix.Connect(fd, sa); err {
	case nil:
		return fd, true, nil
	case unix.EINPROGRESS, unix.EINTR:
		return fd, false, nil
	default:
		unix.Close(fd)
		return -1, false, fmt.Errorf("connect to %s: %w", a, err)
	}
}

// open makes a non-blocking TCP socket for the family of a.
func open(a netip.AddrPort) (int, unix.Sockaddr, error) {
	ip := a.Addr()
	var family int
	var sa unix.Sockaddr
	switch {
	case ip.Is4() || ip.Is4In6():
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.Unmap().As4()}
	case ip.Is6():
		zone, err := zoneIndex(ip.Zone())
		if err != nil {
			return -1, nil, err
		}
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: ip.As16(), ZoneId: zone}
	default:
		return -1, nil, unix.EDESTADDRREQ
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, nil, err
	}
	// What is written here was gathered before; waiting for more only delays.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		unix.Close(fd)
		return -1, nil, err
	}
	return fd, sa, nil
}

func zoneIndex(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", zone, err)
	}
	return uint32(i.Index), nil
}

// SocketError returns and clears the pending error of a socket, such as the
// outcome of Connect.
func SocketError(fd int) syscall.Errno {
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		var errno syscall.Errno
		if errors.As(err, &errno) {
			return errno
		}
		return unix.EIO
	}
	return syscall.Errno(v)
}

// ShutdownWrite sends the end of our direction and keeps reading open.
func ShutdownWrite(fd int) syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return errno
}

// Close closes fd. The kernel goes on sending what was written.
func Close(fd int) {
	// Linux frees the number whatever close answers.
	_ = unix.Close(fd)
}

// Abort closes fd by a reset: the other side learns that bytes may be missing.
func Abort(fd int) {
	// Without the option this is an ordinary close, the best that is left.
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	Close(fd)
}

// LocalAddr returns the address fd is bound to, the zero AddrPort if that
// cannot be told.
func LocalAddr(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// Unacked returns how many bytes that were written the other side has not
// acknowledged, 0 if that cannot be told.
func Unacked(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// SetUserTimeout has the kernel give the connection up when written bytes stay
// unacknowledged for ms milliseconds; 0 is the kernel's own rule, many minutes.
func SetUserTimeout(fd, ms int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, ms); err != nil {
		return fmt.Errorf("set user timeout: %w", err)
	}
	return nil
}

func rawAddrPort(sa *unix.RawSockaddrAny) netip.AddrPort {
	port := func(p uint16) uint16 { // network order in memory
		b := (*[2]byte)(unsafe.Pointer(&p))
		return uint16(b[0])<<8 | uint16(b[1])
	}
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port(in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), port(in.Port))
	}
	return netip.AddrPort{}
}
