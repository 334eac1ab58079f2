package config

import (
	"net/netip"
	"path/filepath"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"meshd/internal/mesh"
)

// builder turns checked bodies into a Config and looks for what only shows when
// blocks are seen together.
type builder struct {
	*reporter
	host host
	root *body

	services  []serviceBody
	upstreams []upstreamBody
}

type serviceBody struct {
	mesh.Service
	body *body
}

type upstreamBody struct {
	mesh.Upstream
	body *body
}

func newBuilder(r *reporter, h host, root *body) *builder {
	return &builder{reporter: r, host: h, root: root}
}

// only returns the one block of that name inside b, or an empty one, so that
// every default can be read.
func (b *body) only(name string) *body {
	if in := b.inner[name]; len(in) > 0 {
		return in[0]
	}
	return newBody(b.block.block(name), hcl.Range{})
}

// has says whether the attribute was written and could be understood.
func (b *body) has(name string) bool {
	v, ok := b.values[name]
	return ok && !v.wrong
}

// placeOf is where the attribute was written, else where its block begins.
func (b *body) placeOf(name string) hcl.Range {
	if v, ok := b.values[name]; ok {
		return v.at
	}
	return b.at
}

// get returns the attribute, else its default from the table, else the zero
// value of T where the default is words.
func get[T any](b *body, name string) T {
	if v, ok := b.values[name]; ok && !v.wrong {
		return v.v.(T)
	}
	var zero T
	a := b.block.attr(name)
	if a == nil {
		panic("config: block " + b.block.name + " has no attribute " + name)
	}
	if a.def == "" || a.def[0] == '(' {
		return zero
	}
	if a.value == nil {
		a.value = mustDefault(a)
	}
	return a.value.(T)
}

// mustDefault evaluates a default of the table. A test does so for all.
func mustDefault(a *attr) any {
	expr, diags := hclsyntax.ParseExpression([]byte(a.def), a.name, hcl.InitialPos)
	if diags.HasErrors() {
		panic("config: default of " + a.name + ": " + diags.Error())
	}
	v, diags := expr.Value(nil)
	if diags.HasErrors() {
		panic("config: default of " + a.name + ": " + diags.Error())
	}
	got, f := a.kind.parse(v)
	if f != nil {
		panic("config: default of " + a.name + ": " + f.detail)
	}
	return got
}

// inherit is get for what the block "defaults" may say too. path leads to the
// block inside, such as "limits".
func inherit[T any](own, defaults *body, name string, path ...string) T {
	for _, p := range path {
		own, defaults = own.only(p), defaults.only(p)
	}
	if own.has(name) {
		return get[T](own, name)
	}
	return get[T](defaults, name)
}

func (b *builder) config() *Config {
	c := &Config{Spec: &mesh.Spec{}}
	b.settings(c)
	b.consul(c)
	b.keys(c)
	b.offered(c.Spec)
	b.called(c.Spec)
	b.static(c.Spec)
	withoutRequests(c.Spec)

	written := len(b.root.inner["consul"]) > 0
	c.Consul.Enabled = written || c.Identity.Provider == "consul" || !allStatic(c.Spec)
	c.Spec.Datacenter = c.Consul.Datacenter
	c.Spec.Intentions = c.Consul.Enabled && c.Identity.Provider == "consul"

	b.check(c)
	return c
}

func (b *builder) settings(c *Config) {
	agent := b.root.only("agent")
	c.Agent = Agent{
		NodeName:     get[string](agent, "node_name"),
		DataDir:      get[string](agent, "data_dir"),
		LogLevel:     get[string](agent, "log_level"),
		LogFormat:    get[string](agent, "log_format"),
		Loops:        get[int](agent, "loops"),
		DrainTimeout: get[time.Duration](agent, "drain_timeout"),
		AccessLog:    get[bool](agent, "access_log"),
	}
	if c.Agent.Loops == 0 {
		c.Agent.Loops = max(1, min(b.host.cores, defaultMaxLoops))
	}
	if _, written := agent.values["node_name"]; !written {
		name, err := b.host.name()
		switch _, f := agent.block.attr("node_name").kind.parse(stringVal(name)); {
		case err != nil:
			b.errorf(agent.at, "No node name", "The host name cannot be read (%s): set agent { node_name = \"NAME\" }.", err)
		case f != nil:
			b.errorf(agent.at, "No node name", "The host name %s cannot be used: set agent { node_name = \"NAME\" }.", f.detail)
		}
		c.Agent.NodeName = name
	}

	admin := b.root.only("admin")
	c.Admin = Admin{Socket: get[string](admin, "socket"), Group: get[string](admin, "group")}
	if a := get[netip.AddrPort](admin, "http"); a.IsValid() {
		c.Admin.HTTP = a.String()
	}

	identity := b.root.only("identity")
	c.Identity = Identity{Provider: get[string](identity, "provider"), Service: get[string](identity, "service")}
	if c.Identity.Provider == "dev" {
		c.Identity.DevDir = get[string](identity.only("dev"), "dir")
		if c.Identity.DevDir == "" {
			c.Identity.DevDir = filepath.Join(c.Agent.DataDir, devDirName)
		}
	} else if dev := identity.inner["dev"]; len(dev) > 0 && !identity.values["provider"].wrong {
		b.errorf(dev[0].at, "Block without effect", "The block dev is for provider = \"dev\", and the provider is %q. Set the provider or remove the block.", c.Identity.Provider)
	}

	dns := b.root.only("dns")
	c.DNS = DNS{Domain: get[string](dns, "domain"), Address: get[netip.AddrPort](dns, "address"), TTL: get[time.Duration](dns, "ttl")}

	peer := b.root.only("peer")
	c.Peer = Peer{Bind: get[netip.AddrPort](peer, "bind")}
	if a := get[netip.Addr](peer, "advertise"); a.IsValid() {
		c.Peer.Advertise = a.String()
	}

	c.Spec.Node = c.Agent.NodeName
	c.Spec.Identity = c.Identity.Service
	c.Spec.Domain = c.DNS.Domain
	c.Spec.Loopback = get[netip.Prefix](b.root.only("loopback"), "cidr")
}

// allStatic says whether every upstream finds its endpoints in the catalog
// written by hand.
func allStatic(s *mesh.Spec) bool {
	known := mesh.StaticCatalog(s.Static).Services
	for i := range s.Upstreams {
		if _, ok := known[s.Upstreams[i].Key()]; !ok {
			return false
		}
	}
	return true
}
