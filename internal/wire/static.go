package wire

import "meshd/internal/mesh"

// lastStatic is the last well-known field name with an index in meshd/1. It is
// frozen with the version: a name that mesh.Known gains later travels as
// octets, since an agent of today could not look its number up.
const lastStatic = mesh.WWWAuthenticate

// literal in the place of an index: a length and octets follow.
const literal = 0

// Methods and schemes with an index of their own; index 0 is literal. Frozen
// with the version, as lastStatic.
var (
	methods = [...][]byte{
		nil, []byte("GET"), []byte("HEAD"), []byte("POST"), []byte("PUT"), []byte("DELETE"),
		[]byte("PATCH"), []byte("OPTIONS"), []byte("TRACE"),
	}
	schemes = [...][]byte{nil, []byte("http"), []byte("https")}
)

const (
	methodOptions = 7
	schemeHTTP    = 1
)

func methodIndex(m []byte) byte {
	switch string(m) {
	case "GET":
		return 1
	case "HEAD":
		return 2
	case "POST":
		return 3
	case "PUT":
		return 4
	case "DELETE":
		return 5
	case "PATCH":
		return 6
	case "OPTIONS":
		return methodOptions
	case "TRACE":
		return 8
	}
	return literal
}

// schemeIndex takes no scheme as http, as mesh.Head does.
func schemeIndex(s []byte) byte {
	switch string(s) {
	case "", "http":
		return schemeHTTP
	case "https":
		return 2
	}
	return literal
}

// staticNames are the field names by index.
var staticNames = func() (n [lastStatic + 1][]byte) {
	for k := range n {
		n[k] = mesh.Known(k).Bytes()
	}
	return n
}()

// rule marks field names that need more than a look at their octets.
type rule uint8

const (
	// ruleConnection: concerns one connection, or says twice what the head says
	// elsewhere. From a peer it could make our next hop frame a message wrongly.
	ruleConnection rule = 1 << iota
	// ruleTE: only "te: trailers" concerns the far end (RFC 9110 section 10.1.4).
	ruleTE
	// ruleUpgrade: only in the head that accepts an upgrade.
	ruleUpgrade
	// ruleLength: decides the framing of the next hop.
	ruleLength
	// ruleNoTrailer: framing, routing or a claim about the caller; an
	// application that merges trailers into its headers would believe it
	// (RFC 9110 section 6.5.1).
	ruleNoTrailer
)

var rules = [256]rule{
	mesh.Host:                 ruleConnection,
	mesh.Connection:           ruleConnection,
	mesh.KeepAlive:            ruleConnection,
	mesh.ProxyConnection:      ruleConnection,
	mesh.TransferEncoding:     ruleConnection,
	mesh.HTTP2Settings:        ruleConnection,
	mesh.TE:                   ruleTE | ruleNoTrailer,
	mesh.Upgrade:              ruleUpgrade | ruleNoTrailer,
	mesh.ContentLength:        ruleLength | ruleNoTrailer,
	mesh.Trailer:              ruleNoTrailer,
	mesh.Expect:               ruleNoTrailer,
	mesh.Authorization:        ruleNoTrailer,
	mesh.ProxyAuthorization:   ruleNoTrailer,
	mesh.Forwarded:            ruleNoTrailer,
	mesh.XForwardedFor:        ruleNoTrailer,
	mesh.XForwardedProto:      ruleNoTrailer,
	mesh.XForwardedHost:       ruleNoTrailer,
	mesh.XForwardedClientCert: ruleNoTrailer,
	mesh.MeshdError:           ruleNoTrailer,
}
