package proxy

import (
	"testing"

	"meshd/internal/mesh"
	"meshd/internal/telemetry"
	"meshd/internal/wire"
)

// What a peer with a certificate of the mesh, or anybody who can reach the peer
// port, may do without harm to others.

// TestPeerAsksForTunnel: a connection of the application on which CONNECT was
// answered would carry the next requests, of whomever, to where the first caller
// likes.
func TestPeerAsksForTunnel(t *testing.T) {
	app := newRawApp(t)
	p := newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()))
	l := dialLink(t, p)
	for i, method := range []string{"CONNECT", "Connect"} {
		o := httpOpen("/")
		o.Method = []byte(method)
		id := wire.StreamID(i, 1)
		l.write(open(id, o, true))
		l.wantsReset(id, wire.CodeProtocolError, false)
	}
	select {
	case <-app.conns:
		t.Error("the application was asked for a tunnel")
	default:
	}
	p.b.counts(telemetry.Inbound, mesh.HTTP, "protocol_error=2")
}
