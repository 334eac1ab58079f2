package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"meshd/internal/admin"
)

func TestMain(m *testing.M) {
	time.Local = time.UTC // the agents of the scripts run in here and print times of day
	testscript.Main(m, map[string]func(){"meshctl": main})
}

// The scripts tell how meshctl looks from outside: output, exit code, streams.
// Two words are ours:
//
//	agent FILE   runs an agent whose status, reload result and so on are those
//	             of the JSON file; $MESHD_SOCKET points at it
//	exits N COMMAND...   runs and wants this exit code
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(e *testscript.Env) error {
			e.Values[runningKey{}] = &running{end: func() {}}
			e.Setenv("MESHD_SOCKET", filepath.Join(e.WorkDir, "meshd.sock"))
			meshctl, err := exec.LookPath("meshctl") // for scripts that change PATH
			if err != nil {
				return err
			}
			e.Setenv("MESHCTL", meshctl)
			// A race-enabled meshctl would otherwise wait a second at its end.
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"agent": runAgent,
			"exits": exits,
		},
	})
}

// exits runs a command and compares its exit code. It leaves stdout and stderr
// for cmp and stdout as exec does.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args[0]) != 1 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want := int(args[0][0] - '0')
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var e interface{ ExitCode() int }
	switch {
	case errors.As(err, &e):
		got = e.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// scripted is the fake agent.
type scripted struct {
	State  admin.Status       `json:"status"`
	Result admin.ReloadResult `json:"reload"`
	Refuse string             `json:"refuse"` // error of Reload

	Explained map[string]admin.Explanation `json:"explained"` // by upstream
	Policy    admin.PolicyTest             `json:"policy"`
}

func (s *scripted) Status() admin.Status { return s.State }
func (s *scripted) Reload(context.Context) (admin.ReloadResult, error) {
	if s.Refuse != "" {
		return admin.ReloadResult{}, errors.New(s.Refuse)
	}
	return s.Result, nil
}
func (s *scripted) Ready() (bool, []string) { return s.State.Ready, s.State.Waiting }
func (s *scripted) Version() admin.Version  { return s.State.Version }
func (s *scripted) Catalog() admin.Catalog  { return s.State.Catalog }
func (s *scripted) Explain(upstream string) (admin.Explanation, error) {
	e, ok := s.Explained[upstream]
	if !ok {
		return e, &admin.NotFoundError{Message: "there is no upstream " + upstream}
	}
	return e, nil
}
func (s *scripted) TestPolicy(from, to string) (admin.PolicyTest, error) {
	if s.Policy.From != from || s.Policy.To != to {
		return admin.PolicyTest{}, &admin.NotFoundError{Message: "service " + to + " is not offered here"}
	}
	return s.Policy, nil
}

// runAgent starts the fake agent for the rest of the script, in place of the
// one before.
func runAgent(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: agent FILE")
	}
	a := new(scripted)
	d := json.NewDecoder(bytes.NewReader([]byte(ts.ReadFile(args[0]))))
	d.DisallowUnknownFields()
	ts.Check(d.Decode(a))
	running := ts.Value(runningKey{}).(*running)
	running.end()
	socket := ts.Getenv("MESHD_SOCKET")
	s, err := admin.New(admin.Options{Agent: a, Socket: socket})
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	running.end = func() {
		cancel()
		if err := <-done; err != nil {
			ts.Logf("agent: %v", err)
		}
		running.end = func() {}
	}
	ts.Defer(func() { running.end() })
}

// running is the fake agent of one script.
type running struct{ end func() }

type runningKey struct{}
