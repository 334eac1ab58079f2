package nameserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"meshd/internal/mesh"
)

// serve runs a server on a free port until the test ends, and checks that it
// ends then.
func serve(t *testing.T, s func() *mesh.Snapshot) *Server {
	t.Helper()
	srv, err := New(Options{
		Address: netip.MustParseAddrPort("127.0.0.1:0"), Domain: "mesh.internal", TTL: 5 * time.Second,
		Snapshot: s, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run = %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Run did not return")
		}
		if _, err := net.Dial("tcp", srv.Addr().String()); err == nil {
			t.Error("the TCP port still answers")
		}
	})
	return srv
}

func TestOverBothTransports(t *testing.T) {
	var now atomic.Pointer[mesh.Snapshot]
	srv := serve(t, now.Load)
	for _, network := range []string{"udp", "tcp"} {
		now.Store(nil)
		client := &dns.Client{Net: network, Timeout: 5 * time.Second}
		exchange := func(name string, qtype uint16) string {
			m, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, qtype), srv.Addr().String())
			if err != nil {
				t.Fatalf("%s: %v", network, err)
			}
			return brief(m)
		}
		if got := exchange("payments.mesh.internal.", dns.TypeA); got != "SERVFAIL" {
			t.Errorf("%s before the first picture: %s", network, got)
		}
		now.Store(picture(t, "payments"))
		if got, want := exchange("payments.mesh.internal.", dns.TypeA), "NOERROR aa | an payments.mesh.internal. 5 IN A 127.77.0.10"; got != want {
			t.Errorf("%s: got %s, want %s", network, got, want)
		}
		now.Store(picture(t, "inventory", "payments"))
		if got, want := exchange("payments.mesh.internal.", dns.TypeA), "NOERROR aa | an payments.mesh.internal. 5 IN A 127.77.0.11"; got != want {
			t.Errorf("%s after a new picture: got %s, want %s", network, got, want)
		}
		if got := exchange("example.com.", dns.TypeA); got != "REFUSED" {
			t.Errorf("%s outside the zone: %s", network, got)
		}
	}
	c := srv.Counts()
	if c.ByRcode["noerror"] != 4 || c.ByRcode["servfail"] != 2 || c.ByRcode["refused"] != 2 || c.ByRcode["nxdomain"] != 0 || len(c.ByRcode) != len(rcodes) {
		t.Errorf("counts %+v", c)
	}
}

// The resolver of the standard library is what Go applications use.
func TestStandardResolver(t *testing.T) {
	srv := serve(t, func() *mesh.Snapshot { return picture(t, "payments") })
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, srv.Addr().String())
	}}
	a, err := r.LookupNetIP(t.Context(), "ip", "payments.mesh.internal.")
	if err != nil || len(a) != 1 || a[0].Unmap() != netip.MustParseAddr("127.77.0.10") {
		t.Errorf("address = %v, %v", a, err)
	}
	names, err := r.LookupAddr(t.Context(), "127.77.0.10")
	if err != nil || len(names) != 1 || names[0] != "payments.mesh.internal." {
		t.Errorf("names = %v, %v", names, err)
	}
	facts, err := r.LookupTXT(t.Context(), "payments.mesh.internal.")
	if err != nil || len(facts) != 2 || facts[0] != "protocol=tcp" || facts[1] != "port=8080" {
		t.Errorf("facts = %v, %v", facts, err)
	}
	_, srvs, err := r.LookupSRV(t.Context(), "payments", "tcp", "mesh.internal.")
	if err != nil || len(srvs) != 1 || srvs[0].Port != 8080 || srvs[0].Target != "payments.mesh.internal." {
		t.Errorf("srv = %v, %v", srvs, err)
	}
	_, err = r.LookupNetIP(t.Context(), "ip", "shop.mesh.internal.")
	if de, ok := errors.AsType[*net.DNSError](err); !ok || !de.IsNotFound {
		t.Errorf("unknown name: %v", err)
	}
}

// Whatever is thrown at it, the next proper query is answered.
func TestHostilePacketsOverTheWire(t *testing.T) {
	s := picture(t, "payments")
	srv := serve(t, func() *mesh.Snapshot { return s })
	udp, err := net.Dial("udp", srv.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	want := uint64(0)
	for name, c := range hostile(t) {
		if c.want == dropped {
			want++
		}
		if _, err := udp.Write(c.packet); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if c.want != dropped {
			udp.SetReadDeadline(time.Now().Add(5 * time.Second))
			var b [maxQuery]byte
			n, err := udp.Read(b[:])
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			checkReply(t, c.packet, b[:n], maxQuery)
		}

		tcp, err := net.Dial("tcp", srv.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		tcp.SetDeadline(time.Now().Add(5 * time.Second))
		tcp.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(c.packet))), c.packet...))
		if c.want == dropped {
			want++
			// The rest of the packet may be unread then, which makes the end a reset.
			if b, err := io.ReadAll(tcp); len(b) != 0 {
				t.Errorf("%s over TCP: %d octets, %v, want the end", name, len(b), err)
			}
		}
		tcp.Close()
	}
	m, err := dns.Exchange(new(dns.Msg).SetQuestion("payments.mesh.internal.", dns.TypeA), srv.Addr().String())
	if err != nil || len(m.Answer) != 1 {
		t.Errorf("afterwards: %v, %v", m, err)
	}
	if got := srv.Counts().Dropped; got != want {
		t.Errorf("dropped %d, want %d", got, want)
	}
}

func TestPipelinedTCP(t *testing.T) {
	s := picture(t, "payments")
	srv := serve(t, func() *mesh.Snapshot { return s })
	c, err := net.Dial("tcp", srv.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	const n = 50
	var all bytes.Buffer
	for i := range n {
		q := new(dns.Msg).SetQuestion("payments.mesh.internal.", dns.TypeA)
		q.Id = uint16(i)
		p := pack(t, q)
		all.Write(binary.BigEndian.AppendUint16(nil, uint16(len(p))))
		all.Write(p)
	}
	// In two pieces that cut a message.
	cut := all.Len()/2 + 3
	c.Write(all.Bytes()[:cut])
	c.Write(all.Bytes()[cut:])
	conn := dns.Conn{Conn: c}
	for i := range n {
		m, err := conn.ReadMsg()
		if err != nil || m.Id != uint16(i) || len(m.Answer) != 1 {
			t.Fatalf("answer %d: %v, %v", i, m, err)
		}
	}
}

func TestTCPConnectionsAreBounded(t *testing.T) {
	s := picture(t, "payments")
	srv := serve(t, func() *mesh.Snapshot { return s })
	exchange := func(c net.Conn) error {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		conn := &dns.Conn{Conn: c}
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion("payments.mesh.internal.", dns.TypeA)); err != nil {
			return err
		}
		_, err := conn.ReadMsg()
		return err
	}
	dial := func() net.Conn {
		c, err := net.Dial("tcp", srv.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	held := make([]net.Conn, maxConns)
	for i := range held {
		held[i] = dial()
		if err := exchange(held[i]); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if err := exchange(dial()); err == nil {
		t.Error("a connection over the limit was served")
	}
	if got := srv.Counts().Refused; got != 1 {
		t.Errorf("refused %d, want 1", got)
	}
	held[0].Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		if err := exchange(dial()); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("no place after one was left: %v", err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	srv := serve(t, func() *mesh.Snapshot { return nil })
	for name, o := range map[string]Options{
		"taken":        {Address: srv.Addr(), Domain: "mesh.internal"},
		"not loopback": {Address: netip.MustParseAddrPort("0.0.0.0:0"), Domain: "mesh.internal"},
		"no address":   {Domain: "mesh.internal"},
		"bad domain":   {Address: netip.MustParseAddrPort("127.0.0.1:0"), Domain: "mesh..internal"},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: New succeeded", name)
		} else {
			t.Log(err)
		}
	}
}

// A TCP client has so long for a query, however it spreads the octets.
func TestSlowTCPClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &Server{zone: testZone(t), o: Options{Snapshot: func() *mesh.Snapshot { return nil }}}
		client, server := net.Pipe()
		defer client.Close()
		start := time.Now()
		held := make(chan time.Duration, 1)
		go func() {
			srv.serveConn(server)
			held <- time.Since(start)
			server.Close() // its caller does
		}()
		q := pack(t, new(dns.Msg).SetQuestion("mesh.internal.", dns.TypeSOA))
		q = append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
		for i := range q {
			if _, err := client.Write(q[i : i+1]); err != nil {
				break
			}
			time.Sleep(700 * time.Millisecond) // of the bubble's clock
		}
		if took := <-held; took != connIdle {
			t.Errorf("held for %v, want %v", took, connIdle)
		}
	})
}
