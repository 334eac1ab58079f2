// Package systemd tells the service manager how the agent is: ready,
// reloading, stopping, a line of status, and that it is still alive.
//
// It knows nothing of the agent and decides nothing. Without a service manager
// (NOTIFY_SOCKET is not set) every call does nothing. It is the only room that
// imports go-systemd; agent imports it.
package systemd

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// maxStatus bounds the line that systemctl status shows; the manager refuses
// datagrams that are much larger.
const maxStatus = 1024

// Notifier sends to the service manager that started this process. Its methods
// may be called from any goroutine; failures are logged, since nothing in the
// agent depends on being heard.
type Notifier struct {
	log *slog.Logger
}

// New returns a notifier. The process environment decides where it sends to.
func New(log *slog.Logger) *Notifier { return &Notifier{log: log} }

// Ready tells that the start or a reload is over.
func (n *Notifier) Ready() { n.send(daemon.SdNotifyReady) }

// Reloading tells that a reload has begun; Ready must follow, also when it
// fails. The time stamp is what Type=notify-reload asks for (systemd 253).
func (n *Notifier) Reloading() {
	n.send(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
}

// Stopping tells that the shutdown has begun.
func (n *Notifier) Stopping() { n.send(daemon.SdNotifyStopping) }

// Status sets the line that systemctl status shows.
func (n *Notifier) Status(format string, args ...any) {
	line := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " ")
	if len(line) > maxStatus {
		line = strings.ToValidUTF8(line[:maxStatus], "")
	}
	n.send("STATUS=" + line)
}

// Alive answers the watchdog.
func (n *Notifier) Alive() { n.send(daemon.SdNotifyWatchdog) }

// Watchdog returns how often Alive must be called: a third of what the manager
// waits for, so that one late call is no death. 0 means that nobody waits.
func (n *Notifier) Watchdog() time.Duration {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		n.log.Error("cannot read the watchdog interval of the service manager", "error", err)
		return 0
	}
	return limit / 3
}

func (n *Notifier) send(state string) {
	// false: what this process starts inherits the variable, and NotifyAccess=
	// of the unit decides whether it is heard. Two agents in one process share it.
	if _, err := daemon.SdNotify(false, strings.TrimSpace(state)); err != nil {
		n.log.Error("cannot tell the service manager", "error", err)
	}
}
