package admin_test

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"meshd/internal/admin"
	"meshd/internal/meshtest"
)

type idle struct{}

func (idle) Status() admin.Status { return admin.Status{} }
func (idle) Reload(context.Context) (admin.ReloadResult, error) {
	return admin.ReloadResult{Applied: true}, nil
}
func (idle) Ready() (bool, []string) { return true, nil }
func (idle) Version() admin.Version  { return admin.Version{} }
func (idle) Catalog() admin.Catalog  { return admin.Catalog{} }
func (idle) Explain(string) (admin.Explanation, error) {
	return admin.Explanation{}, nil
}
func (idle) TestPolicy(string, string) (admin.PolicyTest, error) {
	return admin.PolicyTest{}, nil
}

// Run waits for all it started: with a client that holds a connection and one
// that never finishes its request, with a free TCP port and with a taken one.
func TestRunLeavesNothingBehind(t *testing.T) {
	meshtest.Leaks(t)
	for _, taken := range []bool{false, true} {
		address := "127.0.0.1:0"
		if taken {
			holder, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Close()
			address = holder.Addr().String()
		}
		socket := filepath.Join(t.TempDir(), "meshd.sock")
		s, err := admin.New(admin.Options{Agent: idle{}, Socket: socket, HTTP: address})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		if _, err := admin.NewClient(socket).Reload(t.Context()); err != nil {
			t.Error(err)
		}
		slow, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		slow.Write([]byte("GET /v1/status HTTP/1.1\r\nHost: loc"))
		if !taken {
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			res, err := (&http.Client{Transport: tr}).Get("http://" + s.Listeners()[1].Address + "/ready")
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	}
}

// New without Run after a failure elsewhere in the agent's start.
func TestNewAloneCanBeUndone(t *testing.T) {
	meshtest.Leaks(t)
	s, err := admin.New(admin.Options{Agent: idle{}, Socket: filepath.Join(t.TempDir(), "s"), HTTP: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Errorf("Run with an ended context = %v", err)
	}
}
