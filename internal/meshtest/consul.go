package meshtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// ConsulVersion is the Consul that the tests run against.
const ConsulVersion = "1.20.1"

// startPatience is how long a Consul may take to elect itself and to make its
// CA: about a second alone, much longer beside a compiler on two cores.
const startPatience = 60 * time.Second

// ConsulOptions changes what ConsulWith starts.
type ConsulOptions struct {
	// HCL is more agent configuration; it wins over ours.
	HCL string
	// Persistent keeps catalog and CA over Restart. A development server,
	// which is the default, comes back empty, with another CA and a smaller
	// index. It starts a little slower.
	Persistent bool
}

// ConsulServer is a running Consul agent on ports of its own.
type ConsulServer struct {
	Address    string // of the HTTP API, HOST:PORT
	Datacenter string // "dc1"
	Client     *api.Client

	t       testing.TB
	binary  string
	dir     string
	dev     bool   // comes back empty
	serf    uint16 // where others join
	process *consulProcess
}

// ConsulBinary returns the path of a consul of version ConsulVersion. Without
// one the test is skipped, or fails if the environment says CI=true: a skipped
// test must not look like a passed one there.
func ConsulBinary(t testing.TB) string {
	t.Helper()
	path, err := findConsul()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no consul %s: %v", ConsulVersion, err)
		}
		t.Skipf("no consul %s, build one with: hack/consul.sh %s (%v)", ConsulVersion, ConsulVersion, err)
	}
	return path
}

// findConsul asks hack/consul.sh, which knows where binaries are kept, once.
var findConsul = sync.OnceValues(func() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		script := filepath.Join(dir, "hack", "consul.sh")
		if _, err := os.Stat(script); err == nil {
			var stderr bytes.Buffer
			cmd := exec.Command("bash", script, "--find", ConsulVersion)
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				return "", errors.New(strings.TrimSpace(stderr.String()))
			}
			return strings.TrimSpace(string(out)), nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("hack/consul.sh is not above the working directory")
		}
		dir = up
	}
})

// Consul starts a real Consul for the test and ends it with the test.
func Consul(t testing.TB) *ConsulServer {
	t.Helper()
	return ConsulWith(t, ConsulOptions{})
}

// ConsulWith is Consul with options.
func ConsulWith(t testing.TB, o ConsulOptions) *ConsulServer {
	t.Helper()
	server := ""
	if o.Persistent {
		server = "server = true\nbootstrap_expect = 1\n"
	}
	s := newConsul(t, "meshtest", !o.Persistent, nil)
	s.write("20-extra.hcl", server+o.HCL)
	s.start()
	return s
}

// newConsul makes an agent that is not started and has the basic configuration
// only. Whoever calls it writes 20-extra.hcl. With keys it serves and is asked
// by HTTPS.
func newConsul(t testing.TB, node string, dev bool, keys *credentials) *ConsulServer {
	t.Helper()
	p := FreePorts(t, 3)
	s := &ConsulServer{t: t, binary: ConsulBinary(t), dir: t.TempDir(), dev: dev, Datacenter: "dc1", serf: p[1]}
	s.Address = fmt.Sprintf("127.0.0.1:%d", p[0])
	plain, secured := int(p[0]), -1
	// The library would take address and token from the environment.
	transport := &http.Transport{}
	config := &api.Config{Address: s.Address, Scheme: "http", HttpClient: &http.Client{Transport: transport}}
	if keys != nil {
		plain, secured = secured, plain
		transport.TLSClientConfig = keys.tls
		config.Scheme, config.Token = "https", ManagementToken
	}
	hcl := fmt.Sprintf(`
		node_name = %q
		bind_addr = "127.0.0.1"
		client_addr = "127.0.0.1"
		log_level = "warn"
		disable_update_check = true
		connect { enabled = true }
		ports { http = %d https = %d dns = -1 grpc = -1 grpc_tls = -1 serf_lan = %d serf_wan = -1 server = %d }
	`, node, plain, secured, p[1], p[2])
	if !dev {
		hcl += fmt.Sprintf(`
		performance { raft_multiplier = 1 }
		data_dir = %q
		`, filepath.Join(s.dir, "data"))
	}
	s.write("10-base.hcl", hcl)
	client, err := api.NewClient(config)
	if err != nil {
		t.Fatalf("meshtest: consul client: %v", err)
	}
	s.Client = client
	t.Cleanup(func() {
		s.Kill()
		transport.CloseIdleConnections()
		if t.Failed() {
			s.showLog()
		}
	})
	return s
}

func (s *ConsulServer) write(name, text string) {
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatalf("meshtest: consul: %v", err)
	}
}

func (s *ConsulServer) start() {
	s.t.Helper()
	s.launch()
	s.await()
}

// launch starts the process without waiting for it.
func (s *ConsulServer) launch() {
	s.t.Helper()
	args := []string{"agent", "-config-file", filepath.Join(s.dir, "10-base.hcl"), "-config-file", filepath.Join(s.dir, "20-extra.hcl")}
	if s.dev {
		args = append(args, "-dev")
	}
	p, err := startConsul(s.binary, filepath.Join(s.dir, "log"), args)
	if err != nil {
		s.t.Fatalf("meshtest: start consul: %v", err)
	}
	s.process = p
}

// await returns when the agent has a leader, a CA and a catalog to talk about.
func (s *ConsulServer) await() {
	s.t.Helper()
	p := s.process
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.ready(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil || !p.alive() {
			s.Kill()
			s.showLog()
			s.t.Fatalf("meshtest: consul did not come up: %v", err)
		}
		<-tick.C
	}
}

// ready reports whether there is a leader, a CA, and the server itself in the
// catalog, since a registration before that waits for it.
func (s *ConsulServer) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	q := (&api.QueryOptions{}).WithContext(ctx)
	nodes, _, err := s.Client.Catalog().Nodes(q)
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		return errors.New("no node in the catalog yet")
	}
	roots, _, err := s.Client.Agent().ConnectCARoots(q)
	if err != nil {
		return err
	}
	if len(roots.Roots) == 0 {
		return errors.New("no CA yet")
	}
	return nil
}

// Stop ends Consul in good order.
func (s *ConsulServer) Stop() {
	if s.process != nil {
		s.process.interrupt()
		s.process = nil
	}
}

// Kill ends Consul at once. It may be called when it is not running.
func (s *ConsulServer) Kill() {
	if s.process != nil {
		s.process.kill()
		s.process = nil
	}
}

// Restart starts Consul again on the same ports; one that runs is killed first.
func (s *ConsulServer) Restart() {
	s.t.Helper()
	s.Kill()
	s.start()
}

// Pause stops Consul in its tracks: connections stay, nothing is answered.
func (s *ConsulServer) Pause() { s.process.signal(s.t, syscall.SIGSTOP) }

// Resume lets a paused Consul go on.
func (s *ConsulServer) Resume() { s.process.signal(s.t, syscall.SIGCONT) }

// logTail is how much of Consul's log a failed test shows.
const logTail = 8 << 10

func (s *ConsulServer) showLog() {
	text, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err == nil {
		s.t.Logf("end of consul's log:\n%s", text[max(0, len(text)-logTail):])
	}
}

// consulProcess is a consul below a shell that kills it when its input ends,
// so that it dies with the test binary however that ends.
type consulProcess struct {
	shell *exec.Cmd
	input io.Closer
	pid   int
}

const keeper = `"$@" </dev/null >>"$LOG" 2>&1 & p=$!; echo $p; read -r _; kill -9 $p 2>/dev/null; wait $p 2>/dev/null; true`

func startConsul(binary, log string, args []string) (*consulProcess, error) {
	cmd := exec.Command("sh", append([]string{"-c", keeper, "sh", binary}, args...)...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "CONSUL_") }), "LOG="+log)
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &consulProcess{shell: cmd, input: input}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err == nil {
		p.pid, err = strconv.Atoi(strings.TrimSpace(line))
	}
	if err != nil {
		p.kill()
		return nil, fmt.Errorf("process id: %w", err)
	}
	return p, nil
}

func (p *consulProcess) kill() {
	p.input.Close()
	p.shell.Wait()
}

// stopPatience is how long Consul may take to leave before it is killed.
const stopPatience = 10 * time.Second

func (p *consulProcess) interrupt() {
	syscall.Kill(p.pid, syscall.SIGINT)
	for end := time.Now().Add(stopPatience); p.alive() && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	p.kill()
}

// alive is false for a process that has ended and was not waited for yet.
func (p *consulProcess) alive() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return false
	}
	_, after, ok := bytes.Cut(stat, []byte(") "))
	return ok && len(after) > 0 && after[0] != 'Z'
}

func (p *consulProcess) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if p == nil {
		t.Fatal("meshtest: consul is not running")
	}
	if err := syscall.Kill(p.pid, sig); err != nil {
		t.Fatalf("meshtest: consul: %v", err)
	}
}
