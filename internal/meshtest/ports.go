package meshtest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"
)

// The ports that FreePort hands out lie above those that Consul, its sidecars
// and meshd use by default and below the ephemeral range of Linux, so that no
// outgoing connection can take one between the look and the use. Test
// binaries that run side by side take different blocks: a block belongs to the
// process that listens on its first port.
const (
	firstBlock = 23000
	blockSize  = 100
	blocks     = 90
)

var ports struct {
	sync.Mutex              // guards the rest
	lock       net.Listener // holds the block until the process ends
	base, next int
}

// FreePort returns a port on which nothing listens, TCP or UDP, on any address.
func FreePort(t testing.TB) uint16 {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	reserve(t)
	// Three rounds: a port that a test of before still holds comes free.
	for range 3 * blockSize {
		ports.next = ports.next%(blockSize-1) + 1
		p := ports.base + ports.next
		if free(p) {
			return uint16(p)
		}
	}
	t.Fatalf("meshtest: no free port between %d and %d", ports.base+1, ports.base+blockSize-1)
	return 0
}

// FreePorts returns n different free ports.
func FreePorts(t testing.TB, n int) []uint16 {
	t.Helper()
	if n >= blockSize {
		t.Fatalf("meshtest: %d ports at once, a process has %d", n, blockSize-1)
	}
	got := make([]uint16, n)
	for i := range got {
		got[i] = FreePort(t)
	}
	return got
}

// FreeAddr returns 127.0.0.1 with a free port.
func FreeAddr(t testing.TB) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), FreePort(t))
}

// reserve takes a block for this process. ports is locked.
func reserve(t testing.TB) {
	t.Helper()
	if ports.lock != nil {
		return
	}
	start := rand.IntN(blocks)
	for i := range blocks {
		base := firstBlock + (start+i)%blocks*blockSize
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", base))
		if err == nil {
			ports.lock, ports.base = l, base
			return
		}
	}
	t.Fatalf("meshtest: every block of ports from %d on is taken", firstBlock)
}

func free(port int) bool {
	for _, host := range []string{"", "127.0.0.1"} {
		at := net.JoinHostPort(host, strconv.Itoa(port))
		l, err := net.Listen("tcp", at)
		if err != nil {
			return false
		}
		l.Close()
		p, err := net.ListenPacket("udp", at)
		if err != nil {
			return false
		}
		p.Close()
	}
	return true
}
