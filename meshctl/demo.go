package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"meshd/internal/admin"
)

const (
	// demoReadyTimeout is for two agents to start on a slow, busy machine.
	demoReadyTimeout = 30 * time.Second
	// demoConsulTimeout is for Consul to elect itself, make its CA and pass
	// the first checks of what was registered.
	demoConsulTimeout = 90 * time.Second
	demoPoll          = 100 * time.Millisecond
)

func newDemo() *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a whole mesh on this machine: two agents, two applications, no root",
		Long: `Start two agents, "host-a" and "host-b", in a temporary folder, with an
application beside each: hello (host-a) calls world (host-b) through its
upstream, over mTLS. Prints what is running and the lines to try. Ctrl-C stops
everything and leaves nothing behind. No root needed.

With --check the lines are tried at once, each is printed with its result, and
the exit code is 0 when all worked, else 1. With --consul a real Consul
(consul agent -dev; from $MESHD_TEST_CONSUL or PATH) is the catalog and the
certificate authority; without it, a file and a throwaway CA are.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.out = cmd.OutOrStdout()
			return runDemo(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVar(&o.check, "check", false, "try every line, print the results and exit")
	cmd.Flags().BoolVar(&o.consul, "consul", false, "use a real Consul as catalog and certificate authority")
	cmd.Flags().StringVar(&o.meshd, "meshd", "", "meshd binary (default: beside meshctl, then in PATH)")
	return cmd
}

type demoOptions struct {
	check, consul bool
	meshd         string
	out           io.Writer
}

// demo is a mesh on one machine.
type demo struct {
	demoOptions
	s             style
	dir           string
	hosts         [2]demoHost // host-a, host-b
	world         demoApp
	hello         demoApp
	consulAddress string // HTTP API of Consul, "" without
	// upstream is where host-a offers world to its applications, IP:PORT.
	upstream string
}

// runDemo starts everything, shows or checks it, and stops everything, in an
// order that leaves nothing behind whatever fails in between.
func runDemo(ctx context.Context, o demoOptions) (err error) {
	d := &demo{demoOptions: o, s: styleOf(o.out)}
	meshd, err := findMeshd(o.meshd)
	if err != nil {
		return &exitError{exitUnhealthy, err}
	}
	consul := ""
	if o.consul {
		if consul, err = findConsul(); err != nil {
			return &exitError{exitUnhealthy, err}
		}
	}
	sweep, err := newDemoFolder()
	if err != nil {
		return fail(exitUnhealthy, "demo: %w", err)
	}
	d.dir = sweep.dir
	defer func() {
		if e := sweep.end(); e != nil && err == nil {
			err = fail(exitUnhealthy, "demo: clean up: %w", e)
		}
	}()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	family := &family{died: func(err error) { cancel(err) }}
	defer family.stop()
	defer d.stopApps()

	if err := d.start(ctx, family, meshd, consul); err != nil {
		if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
			return told(exitUnhealthy) // Ctrl-C while starting
		}
		return fail(exitUnhealthy, "demo: %w", cmp.Or(causeOf(ctx), err))
	}
	d.describe()
	if o.check {
		if !d.runChecks(ctx) {
			family.showLogs(d.out)
			return told(exitUnhealthy)
		}
		return nil
	}
	d.showLines()
	<-ctx.Done()
	if err := causeOf(ctx); err != nil {
		return fail(exitUnhealthy, "demo: %w", err)
	}
	fmt.Fprintln(d.out, "\nStopping: applications, agents, folder.")
	return nil
}

// causeOf returns why ctx ended, nil if it did not or a signal ended it.
func causeOf(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// start brings everything up and returns when a request would go through.
func (d *demo) start(ctx context.Context, f *family, meshd, consul string) error {
	ports, err := d.choosePorts()
	if err != nil {
		return err
	}
	if consul != "" {
		if err := d.startConsul(ctx, f, consul, ports); err != nil {
			return err
		}
	}
	if d.world, err = serveDemoApp(ports.world, worldApp()); err != nil {
		return fmt.Errorf("application world: %w", err)
	}
	for i := range d.hosts {
		h := &d.hosts[i]
		if err := os.MkdirAll(h.dir(), 0o700); err != nil {
			return fmt.Errorf("folder of %s: %w", h.name, err)
		}
		if err := os.WriteFile(h.config(), d.configuration(h, ports), 0o600); err != nil {
			return fmt.Errorf("configuration of %s: %w", h.name, err)
		}
		if h.process, err = f.start(h.name, filepath.Join(h.dir(), "meshd.log"), meshd, "--config", h.config()); err != nil {
			return err
		}
	}
	timeout := demoReadyTimeout
	if d.consulAddress != "" {
		timeout = demoConsulTimeout
	}
	wait, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the agents were not ready in %s", timeout))
	defer cancel()
	if err := d.await(wait); err != nil {
		if ctx.Err() == nil { // else it was told already which child ended
			f.showLogs(d.out)
		}
		return err
	}
	if d.hello, err = serveDemoApp(ports.hello, helloApp(d.upstream)); err != nil {
		return fmt.Errorf("application hello: %w", err)
	}
	return nil
}

// await returns when both agents are ready and host-a has world.
func (d *demo) await(ctx context.Context) error {
	last := errors.New("no answer yet")
	for {
		done := true
		for i := range d.hosts {
			st, err := admin.NewClient(d.hosts[i].socket()).Status(ctx)
			switch errs, _ := tally(st.Problems); {
			case err != nil:
				last, done = fmt.Errorf("%s: %w", d.hosts[i].name, err), false
			case errs > 0:
				last, done = fmt.Errorf("%s: %s", d.hosts[i].name, st.Problems[0].What), false
			case i == 0:
				if d.upstream = upstreamAddress(st, "world"); d.upstream == "" {
					last, done = errors.New("host-a: upstream world has no address"), false
				}
			}
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		case <-time.After(demoPoll):
		}
	}
}

func upstreamAddress(st admin.Status, name string) string {
	for i := range st.Upstreams {
		if u := &st.Upstreams[i]; u.Name == name && u.Healthy > 0 && u.Port != 0 {
			return fmt.Sprintf("%s:%d", u.Address, u.Port)
		}
	}
	return ""
}

// stopApps closes what start opened, also when it got half way.
func (d *demo) stopApps() {
	d.hello.close()
	d.world.close()
}
