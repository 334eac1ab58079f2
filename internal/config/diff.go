package config

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"meshd/internal/mesh"
)

// Change is one difference between two configurations.
type Change struct {
	Kind      string `json:"kind"`                // "+" added, "-" removed, "~" changed
	What      string `json:"what"`                // `upstream inventory`, `agent`
	Attribute string `json:"attribute,omitempty"` // for "~": such as "circuit_breaker.open_for"
	Old       string `json:"old,omitempty"`
	New       string `json:"new,omitempty"`
}

// String returns the change as `meshctl reload` prints it:
// "~ upstream inventory: request_timeout 2s -> 5s".
func (c Change) String() string {
	if c.Kind != "~" {
		return c.Kind + " " + c.What
	}
	return c.Kind + " " + c.What + ": " + c.Attribute + " " + c.Old + " -> " + c.New
}

// Diff returns what changes in effect at a reload, and which changed settings
// wait for a restart. Both compare what holds after defaults, so an upstream
// that inherits a changed default is listed, and rewriting a default is no
// change. The order is that of the reference, then that of the names.
func Diff(old, new *Config) (changes, restart []Change) {
	a, b := flatten(old), flatten(new)
	for _, name := range order(a, b) {
		x, y := a[name], b[name]
		switch {
		case x == nil:
			changes = append(changes, Change{Kind: "+", What: y.what})
		case y == nil:
			changes = append(changes, Change{Kind: "-", What: x.what})
		default:
			for i, v := range x.values {
				w := y.values[i]
				if v == w {
					continue
				}
				c := Change{Kind: "~", What: x.what, Attribute: v.name, Old: v.text, New: w.text}
				if v.reload == OnRestart {
					restart = append(restart, c)
				} else {
					changes = append(changes, c)
				}
			}
		}
	}
	return changes, restart
}

// thing is what a change is about: a block of settings, a service, an
// upstream. Two things of the same name have the same values in the same order.
type thing struct {
	rank   int // place of its kind among the others
	what   string
	values []setting
}

type setting struct {
	name   string
	text   string
	reload Reload
}

func order(a, b map[string]*thing) []string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return slices.SortedFunc(maps.Keys(all), func(x, y string) int {
		return cmp.Or(cmp.Compare(all[x].rank, all[y].rank), strings.Compare(x, y))
	})
}

// flatten lists everything that a configuration says, as text.
func flatten(c *Config) map[string]*thing {
	f := &flattener{things: make(map[string]*thing), lang: language()}
	f.settings(c)
	s := c.Spec
	for i := range s.Services {
		f.service(&s.Services[i])
	}
	for i := range s.Upstreams {
		f.upstream(&s.Upstreams[i])
	}
	for i := range s.Static {
		f.static(&s.Static[i])
	}
	return f.things
}

type flattener struct {
	things map[string]*thing
	lang   *block
	at     *thing
	block  *block
}

// begin starts the thing of a top block, told apart by key.
func (f *flattener) begin(block, what string) {
	f.block = f.lang.block(block)
	f.at = &thing{rank: slices.Index(f.lang.blocks, f.block), what: what}
	f.things[what] = f.at
}

// set adds a value. path is that of an attribute inside the block begun, which
// says when the change takes effect.
func (f *flattener) set(path string, v any) {
	b, name := f.block, path
	for {
		outer, rest, nested := strings.Cut(name, ".")
		if !nested {
			break
		}
		b, name = b.block(outer), rest
	}
	reload := OnReload
	if a := b.attr(name); a != nil {
		reload = a.reload
	}
	f.at.values = append(f.at.values, setting{path, show(v), reload})
}

func (f *flattener) settings(c *Config) {
	f.begin("agent", "agent")
	f.set("node_name", c.Agent.NodeName)
	f.set("data_dir", c.Agent.DataDir)
	f.set("log_level", c.Agent.LogLevel)
	f.set("log_format", cmp.Or(c.Agent.LogFormat, "(detected)"))
	f.set("loops", c.Agent.Loops)
	f.set("drain_timeout", duration(c.Agent.DrainTimeout))
	f.set("access_log", c.Agent.AccessLog)
	f.set("persist_keys", c.Agent.PersistKeys)
	f.set("key_file", c.Agent.KeyFile)
	f.begin("admin", "admin")
	f.set("socket", c.Admin.Socket)
	f.set("group", c.Admin.Group)
	f.set("http", c.Admin.HTTP)
	f.begin("consul", "consul")
	f.at.values = append(f.at.values, setting{"used", show(c.Consul.Enabled), OnRestart})
	f.set("address", c.Consul.Address)
	f.set("datacenter", c.Consul.Datacenter)
	f.set("token_file", c.Consul.TokenFile)
	f.at.values = append(f.at.values, setting{"tls", show(c.Consul.TLS.Enabled), OnRestart})
	f.set("tls.ca_file", c.Consul.TLS.CAFile)
	f.set("tls.cert_file", c.Consul.TLS.CertFile)
	f.set("tls.key_file", c.Consul.TLS.KeyFile)
	f.set("tls.server_name", c.Consul.TLS.ServerName)
	f.set("stale.warn_after", duration(c.Consul.Stale.WarnAfter))
	f.set("stale.drop_after", duration(c.Consul.Stale.DropAfter))
	f.set("stale.shrink_after", duration(c.Consul.Stale.ShrinkAfter))
	f.begin("identity", "identity")
	f.set("provider", c.Identity.Provider)
	f.set("service", c.Identity.Service)
	f.set("dev.dir", c.Identity.DevDir)
	f.begin("dns", "dns")
	f.set("domain", c.DNS.Domain)
	f.set("address", c.DNS.Address)
	f.set("ttl", duration(c.DNS.TTL))
	f.begin("loopback", "loopback")
	f.set("cidr", c.Spec.Loopback)
	f.begin("peer", "peer")
	f.set("bind", c.Peer.Bind)
	f.set("advertise", c.Peer.Advertise)
}

func (f *flattener) service(s *mesh.Service) {
	what := "service " + s.Name
	if s.ID != s.Name {
		what += " (id " + s.ID + ")"
	}
	f.begin("service", what)
	f.set("id", s.ID)
	f.set("address", s.Address)
	f.set("port", s.Port)
	f.set("protocol", s.Protocol)
	f.set("tags", s.Tags)
	f.set("meta", s.Meta)
	callers := make([]string, len(s.Allow))
	for i, a := range s.Allow {
		callers[i] = a.Caller
	}
	slices.Sort(callers)
	f.set("allow", callers)
	f.set("connect_timeout", timeoutText(s.ConnectTimeout))
	f.set("request_timeout", timeoutText(s.RequestTimeout))
	f.set("idle_timeout", timeoutText(s.IdleTimeout))
	f.set("token_file", s.TokenFile)
	f.check(s.Check)
	f.limits(s.Limits)
}

func (f *flattener) check(c *mesh.Check) {
	if c == nil {
		c = &mesh.Check{}
	}
	f.set("check.http", c.HTTP)
	f.set("check.tcp", c.TCP)
	f.set("check.grpc", c.GRPC)
	f.set("check.interval", duration(c.Interval))
	f.set("check.timeout", duration(c.Timeout))
}

func (f *flattener) upstream(u *mesh.Upstream) {
	f.begin("upstream", "upstream "+u.Name)
	f.set("destination_name", u.Destination)
	f.set("destination_type", destinationType(u))
	f.set("datacenter", u.Datacenter)
	f.set("from", u.From)
	f.set("protocol", u.Protocol)
	f.set("local_bind_port", u.LocalBindPort)
	f.set("local_bind_address", u.LocalBindAddress)
	f.set("local_bind_socket_path", u.SocketPath)
	f.set("local_bind_socket_mode", modeText(u.SocketMode))
	f.set("connect_timeout", timeoutText(u.ConnectTimeout))
	f.set("request_timeout", timeoutText(u.RequestTimeout))
	f.set("idle_timeout", timeoutText(u.IdleTimeout))
	f.set("circuit_breaker.consecutive_failures", u.Breaker.ConsecutiveFailures)
	f.set("circuit_breaker.open_for", duration(u.Breaker.OpenFor))
	f.set("load_balancer.least_request.choice_count", u.ChoiceCount)
	f.limits(u.Limits)
}

// modeText writes permissions as chmod takes them; 0 is without a socket.
func modeText(mode uint32) string {
	if mode == 0 {
		return ""
	}
	return fmt.Sprintf("%04o", mode)
}

func destinationType(u *mesh.Upstream) string {
	if u.Query {
		return "prepared_query"
	}
	return "service"
}

func (f *flattener) limits(l mesh.Limits) {
	f.set("limits.max_connections", l.MaxConnections)
	f.set("limits.max_pending_requests", l.MaxPendingRequests)
	f.set("limits.max_concurrent_requests", l.MaxConcurrentRequests)
}

func (f *flattener) static(s *mesh.StaticService) {
	f.begin("catalog", "static service "+s.Name)
	f.block = f.block.block("service")
	f.set("port", s.Port)
	endpoints := make([]string, len(s.Endpoints))
	for i, e := range s.Endpoints {
		endpoints[i] = e.ID + "=" + e.Address.String()
		if e.Weight != 1 {
			endpoints[i] += "*" + strconv.Itoa(e.Weight)
		}
		if len(e.Meta) > 0 {
			endpoints[i] += show(e.Meta)
		}
	}
	slices.Sort(endpoints)
	f.set("endpoint", endpoints)
}

// show writes a value on one line; what is not set is "(none)".
func show(v any) string {
	switch v := v.(type) {
	case string:
		return cmp.Or(v, "(none)")
	case uint16:
		if v == 0 {
			return "(none)"
		}
	case []string:
		return "[" + strings.Join(v, " ") + "]"
	case map[string]string:
		pairs := make([]string, 0, len(v))
		for _, k := range slices.Sorted(maps.Keys(v)) {
			pairs = append(pairs, k+"="+v[k])
		}
		return "{" + strings.Join(pairs, " ") + "}"
	}
	return fmt.Sprint(v)
}
