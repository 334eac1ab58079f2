package config

import (
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"meshd/internal/mesh"
)

func (b *builder) consul(c *Config) {
	in := b.root.only("consul")
	c.Consul = Consul{
		Address:    get[string](in, "address"),
		Datacenter: get[string](in, "datacenter"),
		TokenFile:  get[string](in, "token_file"),
	}
	if _, written := in.values["token_file"]; !written {
		c.Consul.TokenFile = b.credential(tokenCredential)
	}

	tls := in.only("tls")
	c.Consul.TLS = TLS{
		Enabled:    len(in.inner["tls"]) > 0,
		CAFile:     get[string](tls, "ca_file"),
		CertFile:   get[string](tls, "cert_file"),
		KeyFile:    get[string](tls, "key_file"),
		ServerName: get[string](tls, "server_name"),
	}
	for _, pair := range [][2]string{{"cert_file", "key_file"}, {"key_file", "cert_file"}} {
		if _, written := tls.values[pair[1]]; !written && tls.has(pair[0]) {
			b.errorf(tls.placeOf(pair[0]), "Missing argument", "%s needs a %s beside it.", pair[0], pair[1])
		}
	}

	stale := in.only("stale")
	c.Consul.Stale = Stale{
		WarnAfter:   get[time.Duration](stale, "warn_after"),
		DropAfter:   get[time.Duration](stale, "drop_after"),
		ShrinkAfter: get[time.Duration](stale, "shrink_after"),
	}
	if s := c.Consul.Stale; s.WarnAfter > s.DropAfter && !stale.values["warn_after"].wrong && !stale.values["drop_after"].wrong {
		at := stale.placeOf("drop_after")
		if stale.has("warn_after") {
			at = stale.placeOf("warn_after")
		}
		b.errorf(at, "Warning after the end", "warn_after is %s and drop_after is %s, so nobody would be warned. Set warn_after below drop_after.",
			duration(s.WarnAfter), duration(s.DropAfter))
	}
}

// keys decides where the key that seals private keys is, if any are kept.
func (b *builder) keys(c *Config) {
	in := b.root.only("agent")
	c.Agent.PersistKeys = get[bool](in, "persist_keys")
	if !c.Agent.PersistKeys {
		if in.has("key_file") {
			b.errorf(in.placeOf("key_file"), "Argument without effect", "key_file seals what persist_keys = false says not to keep.")
		}
		return
	}
	c.Agent.KeyFile = b.credential(keyCredential)
	switch {
	case c.Agent.KeyFile == "" && in.has("key_file"):
		c.Agent.KeyFile = get[string](in, "key_file")
	case c.Agent.KeyFile == "":
		c.Agent.KeyFile = filepath.Join(c.Agent.DataDir, keyFileName)
	case in.has("key_file"):
		b.warnf(in.placeOf("key_file"), "Argument not used", "The systemd credential %s wins over key_file.", keyCredential)
	}
}

func (b *builder) credential(name string) string {
	if b.host.credential == nil {
		return ""
	}
	return b.host.credential(name)
}

// healthCheck reads the block check of a service, nil when there is none.
func (b *builder) healthCheck(s *body) *mesh.Check {
	if len(s.inner["check"]) == 0 {
		return nil
	}
	in := s.only("check")
	check := &mesh.Check{
		HTTP:     get[string](in, "http"),
		TCP:      get[bool](in, "tcp"),
		GRPC:     get[string](in, "grpc"),
		Interval: get[time.Duration](in, "interval"),
		Timeout:  get[time.Duration](in, "timeout"),
		Pos:      pos(in.at),
	}
	var given []string
	for _, name := range []string{"http", "tcp", "grpc"} {
		if v, written := in.values[name]; written && (v.wrong || v.v != false) {
			given = append(given, name)
		}
	}
	switch {
	case len(given) == 0:
		b.errorf(in.at, "Missing argument", "A check says what is checked: set http = \"/PATH\", tcp = true, or grpc = \"SERVICE\".")
	case len(given) > 1:
		b.errorf(in.placeOf(given[1]), "Several checks in one", "A check is one of http, tcp and grpc, and this one has %s. Keep the one that says most about the application.", strings.Join(given, " and "))
	}
	return check
}

// adviceOnConsul warns of what works and is probably not meant.
func (b *builder) adviceOnConsul(c *Config) {
	in := b.root.only("consul")
	if in.has("token_file") && !c.Consul.TLS.Enabled && !onThisHost(c.Consul.Address) {
		b.warnf(in.placeOf("token_file"), "Token in the clear", "The Consul agent at %s is not on this host, and without a block tls {} the token travels readable.", c.Consul.Address)
	}
	if c.Consul.Enabled {
		return
	}
	for _, s := range b.services {
		if s.body.has("token_file") {
			b.warnf(s.body.placeOf("token_file"), "Argument not used", "Nothing here needs Consul, so none is asked, and nobody takes the token of %q.", s.Name)
		}
		if s.Check != nil {
			b.warnf(s.body.only("check").at, "Block not used", "Nothing here needs Consul, so none is asked, and nobody checks %q.", s.Name)
		}
	}
}

// onThisHost says whether HOST:PORT is on loopback, as far as the text says.
func onThisHost(address string) bool {
	if a, err := netip.ParseAddrPort(address); err == nil {
		return a.Addr().IsLoopback()
	}
	host, _, _ := strings.Cut(address, ":")
	return strings.EqualFold(host, "localhost")
}
