// Command meshctl looks at a running meshd and tells it what to do, checks
// configuration files, and shows the mesh at work on one machine.
//
// Each verb has a file of its own. The exit codes are documented in
// docs/meshctl.md and are the same for every verb.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"meshd/internal/admin"
)

// Exit codes. Scripts depend on them.
const (
	exitOK          = 0
	exitUnhealthy   = 1 // something is wrong with the mesh, or a check failed
	exitBadInput    = 2 // wrong usage or a bad configuration
	exitUnreachable = 3 // no agent answers on the socket
	exitWarnings    = 4 // only with --strict: fine but for warnings
)

// exitError ends meshctl with a code. An empty message was told already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// told is an exit without a further word.
func told(code int) error { return &exitError{code: code, err: errors.New("")} }

// fail is an exit with a message.
func fail(code int, format string, args ...any) error {
	return &exitError{code: code, err: fmt.Errorf(format, args...)}
}

func main() {
	// The second Ctrl-C kills: stop puts the signals back after the first.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is meshctl without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	s := styleOf(stderr)
	if e := new(exitError); errors.As(err, &e) {
		if msg := e.Error(); msg != "" {
			fmt.Fprintf(stderr, "%s %s\n", s.bad("Error:"), msg)
		}
		return e.code
	}
	// What no verb made is cobra's: unknown verb, flag or argument.
	fmt.Fprintf(stderr, "%s %s\n", s.bad("Error:"), err)
	if cmd.HasParent() {
		fmt.Fprintf(stderr, "Usage: %s\n", cmd.UseLine())
	}
	fmt.Fprintf(stderr, "Run %s --help.\n", cmd.CommandPath())
	return exitBadInput
}

func newRoot() *cobra.Command {
	var socket string
	root := &cobra.Command{
		Use:   "meshctl",
		Short: "Look at and steer the meshd agent of this host",
		Long: `meshctl talks to the meshd agent of this host over its admin socket.

Exit codes: 0 fine; 1 unhealthy, or a check failed; 2 wrong usage or bad
configuration; 3 meshd cannot be reached; 4 warnings, with --strict.

Start here: meshctl demo runs a whole mesh on this machine, without root.`,
		Version:      cmp.Or(version, admin.BuildVersion("").Version),
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&socket, "socket", defaultSocket(), "admin socket of the agent; also $MESHD_SOCKET")
	client := func() *admin.Client { return admin.NewClient(socket) }
	root.AddCommand(
		newStatus(client), newReload(client), newCatalog(client), newConfig(client), newPolicy(client),
		newValidate(), newFmt(), newConsul(), newVersion(client), newDemo(), newDemoSweep(),
	)
	root.SetVersionTemplate("meshctl {{.Version}}\n")
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	return root
}

func defaultSocket() string {
	if s := os.Getenv("MESHD_SOCKET"); s != "" {
		return s
	}
	return admin.DefaultSocket
}

// agentError turns an error of the client into an exit with advice.
func agentError(err error) error {
	var u *admin.UnreachableError
	switch {
	case !errors.As(err, &u):
		return fail(exitUnhealthy, "%w", err)
	case errors.Is(err, os.ErrPermission):
		return fail(exitUnreachable, "%w\nOnly root and the members of the socket's group may use it: ls -l %s", err, u.Socket)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fail(exitUnreachable, "%w\nmeshd does not run, or listens elsewhere (--socket, $MESHD_SOCKET): systemctl status meshd", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fail(exitUnreachable, "meshd at %s did not answer in time; what it was asked for may still happen", u.Socket)
	}
	return fail(exitUnreachable, "%w", err)
}
