package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// Reason says why a handshake ended without a link. The list is closed: the
// words are metric labels and log fields.
type Reason string

// The reasons that a [VerifyError] carries, then those that only [ReasonOf]
// gives.
const (
	NoCertificate      Reason = "no_certificate"      // the peer presented none
	URISANCount        Reason = "uri_san_count"       // not exactly one URI SAN
	URISANForm         Reason = "uri_san_form"        // its URI is not a service's SPIFFE id
	WrongTrustDomain   Reason = "wrong_trust_domain"  // not ours
	WrongDatacenter    Reason = "wrong_datacenter"    // not the one asked for
	WrongService       Reason = "wrong_service"       // not the one asked for
	WrongUsage         Reason = "wrong_usage"         // extended key usage forbids this side of TLS
	Expired            Reason = "expired"             // leaf or a certificate above it
	NotYetValid        Reason = "not_yet_valid"       // leaf; clocks differ, mostly
	UnknownAuthority   Reason = "unknown_authority"   // no chain to our roots
	InvalidCertificate Reason = "invalid_certificate" // refused by RFC 5280 for another cause
	NoRoots            Reason = "no_roots"            // we believe nobody yet
	NoLeaf             Reason = "no_leaf"             // we cannot present ourselves yet
	NoServerName       Reason = "no_server_name"      // the peer asked for no service (SNI missing or of another form)
	UnknownService     Reason = "unknown_service"     // asked for a service that is not offered here

	RefusedByPeer   Reason = "refused_by_peer"  // the peer sent an alert
	PeerClosed      Reason = "peer_closed"      // the connection ended; health checks do that
	TimedOut        Reason = "timeout"          // a deadline passed
	HandshakeFailed Reason = "handshake_failed" // anything else
)

// Reasons returns the closed list in order of declaration.
func Reasons() []Reason {
	return []Reason{
		NoCertificate, URISANCount, URISANForm, WrongTrustDomain, WrongDatacenter, WrongService, WrongUsage,
		Expired, NotYetValid, UnknownAuthority, InvalidCertificate, NoRoots, NoLeaf, NoServerName, UnknownService,
		RefusedByPeer, PeerClosed, TimedOut, HandshakeFailed,
	}
}

// VerifyError is a refusal by this host. Handshake errors of crypto/tls wrap
// it or are it: use errors.As, or [ReasonOf].
type VerifyError struct {
	Reason Reason
	Detail string // what was found and what was wanted, for one log line
}

func (e *VerifyError) Error() string { return string(e.Reason) + ": " + e.Detail }

func refuse(r Reason, format string, args ...any) *VerifyError {
	return &VerifyError{Reason: r, Detail: fmt.Sprintf(format, args...)}
}

// noClientCertificate is crypto/tls's own refusal of a client without a
// certificate, which has no type. A test notices when the text changes.
const noClientCertificate = "tls: client didn't provide a certificate"

// ReasonOf classifies what a handshake, or the first read after it, returned:
// "" for nil, [HandshakeFailed] for what has no word of its own.
func ReasonOf(err error) Reason {
	if err == nil {
		return ""
	}
	if ve, ok := errors.AsType[*VerifyError](err); ok {
		return ve.Reason
	}
	// With TLS 1.3 a client has finished before the server looked at its
	// certificate, so this comes from the first Read rather than the handshake.
	if oe, ok := errors.AsType[*net.OpError](err); ok && oe.Op == "remote error" {
		return RefusedByPeer
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return TimedOut
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return PeerClosed
	case err.Error() == noClientCertificate:
		return NoCertificate
	}
	return HandshakeFailed
}
