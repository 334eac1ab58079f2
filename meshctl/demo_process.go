package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

const (
	demoPrefix = "meshd-demo-"
	consulName = "consul"
	// demoMarker lies in every folder that the sweeper may remove.
	demoMarker = ".meshctl-demo"
	// stopTimeout is above the agents' drain_timeout of the demo.
	stopTimeout = 5 * time.Second
	// sweepTimeout bounds the removal after a killed meshctl, while the last
	// process may still be writing.
	sweepTimeout = 10 * time.Second
	logTail      = 2 << 10 // bytes of a log shown when something failed
	// socketRoom is what a socket path needs after the folder's name; with it
	// the path must stay below the 108 bytes of sun_path.
	socketRoom = len("/host-a/meshd.sock")
	socketMax  = 107
)

// family is the processes of the demo. They are in groups of their own, so
// that Ctrl-C reaches only meshctl, which stops them in order; should meshctl
// be killed, the kernel kills them.
type family struct {
	died func(error) // called when a child ends before stop

	mu       sync.Mutex // guards following
	children []*child
}

type child struct {
	name, log string
	pid       int
	stopping  atomic.Bool
	ended     chan struct{}
}

// start runs a program with its output in a file.
func (f *family) start(name, log, program string, args ...string) (*child, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", name, err)
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	// SIGKILL: nobody would be left to follow up on anything milder.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	c := &child{name: name, log: log, ended: make(chan struct{})}
	started := make(chan error)
	go func() { // ends with the process; stop waits for it
		defer close(c.ended)
		// The kernel sends Pdeathsig when the starting thread ends, not the
		// process: this thread must live as long as the child.
		runtime.LockOSThread()
		err := cmd.Start()
		if err == nil {
			c.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		if !c.stopping.Load() {
			if err == nil {
				err = errors.New("exit status 0")
			}
			f.died(fmt.Errorf("%s ended by itself: %w\n%s", name, err, tail(log)))
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	f.mu.Lock()
	f.children = append(f.children, c)
	f.mu.Unlock()
	return c, nil
}

// stop ends all children: first the agents, which deregister, then Consul.
func (f *family) stop() {
	f.mu.Lock()
	children := f.children
	f.mu.Unlock()
	var agents, consul []*child
	for _, c := range children {
		c.stopping.Store(true)
		if c.name == consulName {
			consul = append(consul, c)
		} else {
			agents = append(agents, c)
		}
	}
	end(agents)
	end(consul)
}

// end asks all to stop and kills those that have not after stopTimeout.
func end(children []*child) {
	for _, c := range children {
		syscall.Kill(-c.pid, syscall.SIGTERM)
	}
	late := time.After(stopTimeout)
	for _, c := range children {
		select {
		case <-c.ended:
			continue
		case <-late:
			late = nil // over for the others too: they are killed below
		}
		for _, c := range children {
			select {
			case <-c.ended: // its number may belong to somebody else by now
			default:
				syscall.Kill(-c.pid, syscall.SIGKILL)
			}
		}
		<-c.ended
	}
}

// showLogs prints the end of every log, for a demo that failed.
func (f *family) showLogs(w io.Writer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.children {
		fmt.Fprintf(w, "\n--- end of the log of %s\n%s", c.name, tail(c.log))
	}
}

func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error() + "\n"
	}
	if len(b) > logTail {
		b = b[len(b)-logTail:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return string(b)
}

// sweeper removes the demo's folder, at the latest when meshctl has died: a
// second meshctl waits for the end of a pipe that only the first one holds.
type sweeper struct {
	dir  string
	pipe io.Closer
	cmd  *exec.Cmd
}

// newDemoFolder makes the folder and its sweeper.
func newDemoFolder() (*sweeper, error) {
	base := os.TempDir()
	if len(base)+len("/"+demoPrefix)+10+socketRoom > socketMax {
		base = "/tmp" // a long $TMPDIR would not leave room for a socket's name
	}
	dir, err := os.MkdirTemp(base, demoPrefix)
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	s := &sweeper{dir: dir}
	if err := s.launch(); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("start the process that cleans up: %w", err)
	}
	return s, nil
}

func (s *sweeper) launch() error {
	if err := os.WriteFile(filepath.Join(s.dir, demoMarker), nil, 0o600); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	s.cmd = exec.Command(self, "demo-sweep", s.dir)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal's signal reaches it
	pipe, err := s.cmd.StdinPipe()
	if err != nil {
		return err
	}
	s.pipe = pipe
	return s.cmd.Start()
}

// end removes the folder and waits for the sweeper.
func (s *sweeper) end() error {
	err := os.RemoveAll(s.dir)
	s.pipe.Close()
	return errors.Join(err, s.cmd.Wait())
}

// newDemoSweep is the verb behind sweeper.
func newDemoSweep() *cobra.Command {
	return &cobra.Command{
		Use: "demo-sweep FOLDER", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			io.Copy(io.Discard, os.Stdin) // until meshctl closes it, or is no more
			ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), sweepTimeout)
			defer cancel()
			if err := sweep(ctx, args[0]); err != nil {
				return &exitError{exitUnhealthy, err}
			}
			return nil
		},
	}
}

// sweep removes a demo's folder and nothing else.
func sweep(ctx context.Context, dir string) error {
	if !strings.HasPrefix(filepath.Base(dir), demoPrefix) {
		return fmt.Errorf("%s is no folder of a demo", dir)
	}
	if _, err := os.Lstat(filepath.Join(dir, demoMarker)); err != nil {
		if _, gone := os.Lstat(dir); errors.Is(gone, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("%s is no folder of a demo: %w", dir, err)
	}
	for {
		err := os.RemoveAll(dir)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(demoPoll): // a dying process may make it again
		}
		if _, gone := os.Lstat(dir); err == nil && errors.Is(gone, fs.ErrNotExist) {
			return nil
		}
	}
}
