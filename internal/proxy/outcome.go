package proxy

import "meshd/internal/wire"

// Outcome is how an exchange ended: a closed list. The same word is the metric
// label, the field of the access log and the meshd-error response header.
type Outcome uint8

// The outcomes. A new one needs a line in docs/metrics.md.
const (
	OK Outcome = iota
	// ClientClosed: the application that called went away first.
	ClientClosed
	// BadRequest: what the application sent is not HTTP we forward.
	BadRequest
	// NoEndpoints: the catalog states no healthy endpoint, or nothing at all.
	NoEndpoints
	// CircuitOpen: every endpoint's breaker refuses.
	CircuitOpen
	// Overflow: a limit of the upstream or service is reached.
	Overflow
	// ConnectFailed: no endpoint's peer port could be reached.
	ConnectFailed
	// HandshakeFailed: the peer could be reached but its identity is not the
	// one wanted, or it refused ours.
	HandshakeFailed
	// NoIdentity: this host has no certificate for the calling service yet.
	NoIdentity
	// Denied: the called service does not allow the caller.
	Denied
	// NoService: the peer does not offer the service.
	NoService
	// LocalConnectFailed: the peer's application does not accept connections.
	LocalConnectFailed
	// LocalReset: the application broke off its answer, or sent none.
	LocalReset
	// BadResponse: the application's answer is not HTTP we forward.
	BadResponse
	// LinkLost: the connection between the agents broke.
	LinkLost
	// RequestTimeout: request_timeout passed.
	RequestTimeout
	// IdleTimeout: idle_timeout passed without a byte.
	IdleTimeout
	// Draining: this agent or the peer is shutting down.
	Draining
	// ProtocolError: the peer broke the link protocol.
	ProtocolError

	outcomeCount
)

type outcomeInfo struct {
	name   string
	status int // of the answer an HTTP client gets; 0: the connection is closed
	hint   string
}

var outcomes = [outcomeCount]outcomeInfo{
	OK:                 {"ok", 0, ""},
	ClientClosed:       {"client_closed", 0, ""},
	BadRequest:         {"bad_request", 400, "the request is not valid HTTP"},
	NoEndpoints:        {"no_endpoints", 503, "no healthy endpoint is known; see meshctl status"},
	CircuitOpen:        {"circuit_open", 503, "every endpoint failed lately; see meshctl status"},
	Overflow:           {"overflow", 503, "a limit of this upstream is reached; see limits in docs/configuration.md"},
	ConnectFailed:      {"connect_failed", 503, "no peer could be reached; see meshctl status"},
	HandshakeFailed:    {"handshake_failed", 503, "the peer's identity was refused; see the log of meshd"},
	NoIdentity:         {"no_identity", 503, "no certificate for the calling service yet; see meshctl status"},
	Denied:             {"denied", 403, "the called service does not allow this caller; see its intentions and allow blocks"},
	NoService:          {"no_service", 503, "the peer does not offer this service, or with another protocol than this upstream has"},
	LocalConnectFailed: {"local_connect_failed", 503, "the application does not listen on its port on the other host"},
	LocalReset:         {"local_reset", 502, "the application broke off its answer"},
	BadResponse:        {"bad_response", 502, "the application's answer is not valid HTTP"},
	LinkLost:           {"link_lost", 502, "the connection to the other agent broke"},
	RequestTimeout:     {"request_timeout", 504, "no complete answer within request_timeout; see meshctl config explain"},
	IdleTimeout:        {"idle_timeout", 504, "no byte within idle_timeout; see meshctl config explain"},
	Draining:           {"draining", 503, "the agent is shutting down"},
	ProtocolError:      {"protocol_error", 502, "the other agent broke the link protocol"},
}

// OutcomeNames lists the words in the order of their numbers.
var OutcomeNames = func() []string {
	n := make([]string, outcomeCount)
	for i := range outcomes {
		n[i] = outcomes[i].name
	}
	return n
}()

// Blameless lists the outcomes for which nobody in the mesh can be blamed: the
// application that called went away, or did not speak HTTP. Statistics do not
// count them as failures.
var Blameless = []string{outcomes[ClientClosed].name, outcomes[BadRequest].name}

// String returns the word for o.
func (o Outcome) String() string { return outcomes[o].name }

// failure reports whether o is evidence against the endpoint: it could not be
// reached, or broke. A refusal for policy or for a limit is an answer.
func (o Outcome) failure() bool {
	switch o {
	case ConnectFailed, HandshakeFailed, NoService, LocalConnectFailed, LocalReset, BadResponse, LinkLost, RequestTimeout, ProtocolError:
		return true
	}
	return false
}

// code is what a reset on the link says for o.
func (o Outcome) code() wire.Code {
	switch o {
	case Denied:
		return wire.CodeDenied
	case NoService:
		return wire.CodeNoService
	case LocalConnectFailed:
		return wire.CodeLocalConnectFailed
	case Overflow:
		return wire.CodeOverflow
	case RequestTimeout, IdleTimeout:
		return wire.CodeTimeout
	case ProtocolError:
		return wire.CodeProtocolError
	case LocalReset:
		return wire.CodeLocalReset
	case BadResponse:
		return wire.CodeLocalProtocolError
	case Draining:
		return wire.CodeDraining
	case ClientClosed, OK, BadRequest: // of the client here: the peer is not to blame
		return wire.CodeCancelled
	}
	return wire.CodeInternal
}

// outcomeOf is what a reset from the peer means here.
func outcomeOf(c wire.Code) Outcome {
	switch c {
	case wire.CodeDenied:
		return Denied
	case wire.CodeNoService:
		return NoService
	case wire.CodeLocalConnectFailed:
		return LocalConnectFailed
	case wire.CodeOverflow:
		return Overflow
	case wire.CodeTimeout:
		return RequestTimeout
	case wire.CodeDraining, wire.CodeRefused:
		return Draining
	case wire.CodeLocalReset:
		return LocalReset
	case wire.CodeLocalProtocolError:
		return BadResponse
	case wire.CodeCancelled, wire.CodeNone:
		return ClientClosed
	}
	return ProtocolError
}
