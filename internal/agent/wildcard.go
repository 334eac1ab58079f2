package agent

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

const (
	// stateListen is TCP_LISTEN in /proc/net/tcp.
	stateListen = "0A"
	// maxListeners bounds the lines that are read of each table. The kernel
	// lists listening sockets first, so this is a bound on listeners.
	maxListeners = 65536
)

// wildcardPorts returns the ports on which some process of this host listens
// on every address. A socket that takes IPv6 only cannot be told apart in
// these tables and counts too: that costs an upstream its natural port, where
// the opposite would cost an application its start.
func wildcardPorts() (map[uint16]bool, error) {
	ports := make(map[uint16]bool)
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(path)
		if err != nil {
			if os.IsNotExist(err) {
				continue // a kernel without that family
			}
			return ports, fmt.Errorf("look for listeners on all addresses: %w", err)
		}
		err = readWildcards(f, ports)
		f.Close()
		if err != nil {
			return ports, fmt.Errorf("look for listeners on all addresses: %s: %w", path, err)
		}
	}
	return ports, nil
}

// readWildcards adds the ports of one table.
func readWildcards(r io.Reader, ports map[uint16]bool) error {
	s := bufio.NewScanner(r)
	s.Scan() // the headings
	for n := 0; n < maxListeners && s.Scan(); n++ {
		f := strings.Fields(s.Text())
		if len(f) < 4 {
			return fmt.Errorf("line %q is not understood", s.Text())
		}
		if f[3] != stateListen {
			break // connections: there may be a million of them
		}
		address, port, ok := strings.Cut(f[1], ":")
		p, err := strconv.ParseUint(port, 16, 16)
		if !ok || err != nil {
			return fmt.Errorf("address %q is not understood", f[1])
		}
		if any, err := unspecified(address); err != nil {
			return err
		} else if any {
			ports[uint16(p)] = true
		}
	}
	return s.Err()
}

// unspecified reports whether a hexadecimal address is 0.0.0.0 or ::, or
// 0.0.0.0 as an IPv6 socket holds it. Words are in host order, which zeros do
// not care about; the mark ffff is looked for in either.
func unspecified(address string) (bool, error) {
	b, err := hex.DecodeString(address)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return false, fmt.Errorf("address %q is not understood", address)
	}
	if len(b) == 16 && (b[8] == 0 && b[9] == 0 && b[10] == 0xff && b[11] == 0xff || b[8] == 0xff && b[9] == 0xff && b[10] == 0 && b[11] == 0) {
		b = append(b[:8:8], b[12:]...)
	}
	for _, v := range b {
		if v != 0 {
			return false, nil
		}
	}
	return true, nil
}
