package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"text/template"
)

// Ports that the documentation shows. When one is taken, another is chosen
// and the demo says so.
const (
	demoDNSPort  = 8653
	demoHTTPPort = 9900
)

// Other ports come from a range below the ephemeral ports of Linux (32768 and
// up), where an outgoing connection could take one between our look and the
// bind, and below those that meshd and Consul assign (21000 and up).
const (
	demoFirstPort = 15000
	demoLastPort  = 20999
)

// demoHost is one of the two agents.
type demoHost struct {
	name            string
	folder          string // of the demo
	peer, dns, http int    // ports on 127.0.0.1
	process         *child
}

func (h *demoHost) dir() string    { return filepath.Join(h.folder, h.name) }
func (h *demoHost) config() string { return filepath.Join(h.dir(), "meshd.hcl") }
func (h *demoHost) socket() string { return filepath.Join(h.dir(), "meshd.sock") }

// demoPorts are the ports that belong to no agent.
type demoPorts struct {
	world, hello                           int
	consulHTTP, consulServer, consulGossip int
}

// choosePorts fills the hosts' ports and returns the others.
func (d *demo) choosePorts() (demoPorts, error) {
	c := portChooser{next: demoFirstPort + rand.IntN(demoLastPort-demoFirstPort), taken: map[int]bool{}}
	for i, name := range []string{"host-a", "host-b"} {
		d.hosts[i] = demoHost{name: name, folder: d.dir, peer: c.free()}
	}
	d.hosts[0].dns, d.hosts[0].http = c.preferred(demoDNSPort), c.preferred(demoHTTPPort)
	d.hosts[1].dns, d.hosts[1].http = c.free(), c.free()
	p := demoPorts{world: c.free(), hello: c.free(), consulHTTP: c.free(), consulServer: c.free(), consulGossip: c.free()}
	for _, n := range c.moved {
		fmt.Fprintf(d.out, "%s %s\n", d.s.bang(), n)
	}
	return p, c.err
}

// portChooser finds ports on which nothing listens on 127.0.0.1, over TCP and
// UDP, and gives none out twice.
type portChooser struct {
	next  int
	taken map[int]bool
	moved []string // what to tell about preferred ports
	err   error
}

func (c *portChooser) preferred(port int) int {
	if !c.taken[port] && portFree(port) {
		c.taken[port] = true
		return port
	}
	p := c.free()
	c.moved = append(c.moved, fmt.Sprintf("port %d is taken on this machine, the demo uses %d instead", port, p))
	return p
}

func (c *portChooser) free() int {
	for range demoLastPort - demoFirstPort + 1 {
		p := c.next
		if c.next++; c.next > demoLastPort {
			c.next = demoFirstPort
		}
		if !c.taken[p] && portFree(p) {
			c.taken[p] = true
			return p
		}
	}
	c.err = fmt.Errorf("no free port between %d and %d on 127.0.0.1", demoFirstPort, demoLastPort)
	return 0
}

func portFree(port int) bool {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	t, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	defer t.Close()
	u, err := net.ListenPacket("udp", address)
	if err != nil {
		return false
	}
	u.Close()
	return true
}

// demoTemplate is what a user would write on each host, but that both live on
// one machine: ports differ, peers are on loopback, and every path is in the
// demo's folder.
var demoTemplate = template.Must(template.New("meshd.hcl").Parse(`# {{.Host.Name}} of meshctl demo.

agent {
  node_name     = "{{.Host.Name}}"
  data_dir      = {{.Host.Data}}
  log_format    = "text"
  loops         = 1
  drain_timeout = "2s"
}

admin {
  socket = {{.Host.Socket}}
  http   = "127.0.0.1:{{.Host.HTTP}}"
}
{{if .Consul}}
consul {
  address = "{{.Consul}}"
}

identity {
  provider = "consul"
}
{{else}}
identity {
  provider = "dev"

  # A throwaway CA. Agents that share this folder trust each other.
  dev {
    dir = {{.CA}}
  }
}
{{end}}
dns {
  address = "127.0.0.1:{{.Host.DNS}}"
}

peer {
  bind      = "127.0.0.1:{{.Host.Peer}}"
  advertise = "127.0.0.1"
}
{{if eq .Host.Name "host-a"}}
# What this host offers. Nobody on host-b calls it, but world could.
service "hello" {
  port     = {{.Hello}}
  protocol = "http"

  allow "world" {}
}

# What applications on this host call.
upstream "world" {
  protocol = "http"
}
{{if not .Consul}}
# Who exists, written by hand: the address is host-b's peer port.
catalog "static" {
  service "world" {
    port = {{.World}}

    endpoint "world" {
      address = "127.0.0.1:{{.PeerB}}"
    }
  }
}
{{end}}{{else}}
# What this host offers, and to whom.
service "world" {
  port     = {{.World}}
  protocol = "http"

  allow "hello" {}
}
{{end}}`))

// configuration returns the file of h.
func (d *demo) configuration(h *demoHost, p demoPorts) []byte {
	type host struct {
		Name, Data, Socket string
		HTTP, DNS, Peer    int
	}
	var b bytes.Buffer
	err := demoTemplate.Execute(&b, struct {
		Host                host
		CA, Consul          string
		Hello, World, PeerB int
	}{
		Host: host{
			Name: h.name, Data: strconv.Quote(filepath.Join(h.dir(), "data")), Socket: strconv.Quote(h.socket()),
			HTTP: h.http, DNS: h.dns, Peer: h.peer,
		},
		CA: strconv.Quote(filepath.Join(d.dir, "ca")), Consul: d.consulAddress,
		Hello: p.hello, World: p.world, PeerB: d.hosts[1].peer,
	})
	if err != nil {
		panic("demo template does not fit its data: " + err.Error())
	}
	return b.Bytes()
}

// findMeshd returns the binary to run.
func findMeshd(given string) (string, error) {
	if given != "" {
		return exec.LookPath(given)
	}
	if self, err := os.Executable(); err == nil {
		if p := filepath.Join(filepath.Dir(self), "meshd"); executable(p) {
			return p, nil
		}
	}
	if p, err := exec.LookPath("meshd"); err == nil {
		return p, nil
	}
	return "", errors.New("there is no meshd beside meshctl and none in PATH: build it (make build), or say --meshd PATH")
}

func findConsul() (string, error) {
	if p := os.Getenv("MESHD_TEST_CONSUL"); p != "" {
		return exec.LookPath(p)
	}
	if p, err := exec.LookPath("consul"); err == nil {
		return p, nil
	}
	return "", errors.New("there is no consul in PATH: install it, or set MESHD_TEST_CONSUL to a binary; in the source tree, hack/consul.sh builds one")
}

func executable(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

// ownPath is how the user would call this meshctl again.
func ownPath() string {
	if p := os.Args[0]; filepath.Base(p) != p {
		return p
	}
	return cmp.Or(filepath.Base(os.Args[0]), "meshctl")
}
