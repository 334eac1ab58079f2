package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
)

func TestReasonOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Reason
	}{
		{nil, ""},
		{refuse(Expired, "x"), Expired},
		{fmt.Errorf("link to x: %w", refuse(WrongService, "x")), WrongService},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, RefusedByPeer},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, PeerClosed},
		{io.EOF, PeerClosed},
		{fmt.Errorf("x: %w", io.ErrUnexpectedEOF), PeerClosed},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, TimedOut},
		{context.DeadlineExceeded, TimedOut},
		{errors.New("tls: something else"), HandshakeFailed},
	} {
		got := ReasonOf(c.err)
		if got != c.want {
			t.Errorf("ReasonOf(%v) = %q, want %q", c.err, got, c.want)
		}
		if got != "" && !slices.Contains(Reasons(), got) {
			t.Errorf("%q is not in the list", got)
		}
	}
}
