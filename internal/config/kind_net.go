package config

import (
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/zclconf/go-cty/cty"
)

// maxSocketPath is what a sockaddr_un of Linux holds without its final NUL.
const maxSocketPath = 107

// Consul refuses more; see its limits on service metadata.
const (
	maxMetaPairs = 64
	maxMetaKey   = 128
	maxMetaValue = 512
	maxTags      = 64
)

// serviceName is a DNS label, since a name becomes part of a host name, of an
// SNI and of a SPIFFE path.
func serviceName() kind {
	return text("name", "1 to 63 of a-z, 0-9 and -, not at the ends", checkName)
}

func checkName(s string) string {
	if isLabel(s) {
		return ""
	}
	const rule = "a name has 1 to 63 of the characters a-z, 0-9 and -, and does not begin or end with -, because it becomes part of a DNS name."
	better := strings.Trim(strings.NewReplacer("_", "-", ".", "-", " ", "-").Replace(strings.ToLower(s)), "-")
	if isLabel(better) {
		return rule + " Did you mean \"" + better + "\"?"
	}
	return rule
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return only(s, "-", false)
}

// only says whether s has just a-z, 0-9, the extra characters, and A-Z if upper.
func only(s, extra string, upper bool) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', upper && 'A' <= c && c <= 'Z', strings.IndexByte(extra, c) >= 0:
		default:
			return false
		}
	}
	return true
}

// instanceID names one instance of a service in the registry and on the wire.
func instanceID() kind {
	return text("id", "1 to 128 of A-Z, a-z, 0-9, . _ : -", checkID)
}

func checkID(s string) string {
	if s == "" || len(s) > 128 || !only(s, "._:-", true) {
		return "an id has 1 to 128 of the characters A-Z, a-z, 0-9, \".\", \"_\", \":\" and \"-\"."
	}
	return ""
}

func nodeName() kind {
	return text("name", "1 to 128 of A-Z, a-z, 0-9, . _ -", func(s string) string {
		if s == "" || len(s) > 128 || !only(s, "._-", true) {
			return "a node name has 1 to 128 of the characters A-Z, a-z, 0-9, \".\", \"_\" and \"-\"."
		}
		return ""
	})
}

func datacenterName() kind {
	return text("name", "1 to 63 of a-z, 0-9, _ and -", func(s string) string {
		if s == "" || len(s) > 63 || !only(s, "_-", false) {
			return "a datacenter has 1 to 63 of the characters a-z, 0-9, \"_\" and \"-\"."
		}
		return ""
	})
}

func groupName() kind {
	return text("name", "a group of this host", func(s string) string {
		if s == "" || len(s) > 32 || !only(s, "._-", true) {
			return "a group name has 1 to 32 of the characters A-Z, a-z, 0-9, \".\", \"_\" and \"-\"."
		}
		return ""
	})
}

// domainName is a DNS zone; a trailing dot and capitals are forgiven.
func domainName() kind {
	k := text("domain", "a DNS zone", func(s string) string {
		s = strings.ToLower(strings.TrimSuffix(s, "."))
		// 253 is the longest name (RFC 1035 section 2.3.4), 64 what a label
		// and its dot in front may take, 6 a leading "_tcp." of an SRV name.
		if s == "" || len(s) > 253-64-6 {
			return "a domain has 1 to 183 characters, such as \"mesh.internal\"."
		}
		for label := range strings.SplitSeq(s, ".") {
			if !isLabel(label) {
				return "a domain is labels of a-z, 0-9 and - with dots between them, such as \"mesh.internal\"."
			}
		}
		return ""
	})
	inner := k.parse
	k.parse = func(v cty.Value) (any, *fault) {
		got, f := inner(v)
		if f != nil {
			return nil, f
		}
		return strings.ToLower(strings.TrimSuffix(got.(string), ".")), nil
	}
	return k
}

// absolutePath is a path that does not depend on the folder the agent was
// started in. longest 0 is no bound of its own.
func absolutePath(longest int) kind {
	allowed := "absolute path"
	if longest > 0 {
		allowed += ", at most " + strconv.Itoa(longest) + " bytes"
	}
	return text("path", allowed, func(s string) string {
		switch {
		case strings.ContainsRune(s, 0):
			return "a path has no NUL in it."
		case !filepath.IsAbs(s):
			return "an absolute path is needed, because a daemon has no folder of its own."
		case longest > 0 && len(s) > longest:
			return "the path of a Unix socket has at most " + strconv.Itoa(longest) + " bytes, this one has " + strconv.Itoa(len(s)) + "."
		}
		return ""
	})
}

// hostPort is HOST:PORT where the host may be a name.
func hostPort() kind {
	return text("address", "HOST:PORT", func(s string) string {
		const rule = "HOST:PORT is needed, such as \"127.0.0.1:8500\"."
		switch {
		case strings.HasPrefix(s, "https://"):
			return rule + " HTTPS is spoken when there is a block tls {} beside it."
		case strings.HasPrefix(s, "unix://"):
			return "a Unix socket is not supported yet. " + rule
		case strings.HasPrefix(s, "http://"):
			return rule + " Did you mean \"" + strings.TrimSuffix(strings.TrimPrefix(s, "http://"), "/") + "\"?"
		}
		if a, err := netip.ParseAddrPort(s); err == nil && a.Port() != 0 && a.Addr().Zone() == "" {
			return ""
		}
		i := strings.LastIndexByte(s, ':')
		if i <= 0 || len(s) > 255 || !only(s[:i], ".-_", true) {
			return rule
		}
		if n, err := strconv.ParseUint(s[i+1:], 10, 16); err != nil || n == 0 {
			return rule + " The port is a number from 1 to 65535."
		}
		return ""
	})
}

// hostName is what a certificate can be for.
func hostName() kind {
	return text("name", "a host name or an IP address", func(s string) string {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return ""
		}
		for label := range strings.SplitSeq(strings.ToLower(s), ".") {
			if !isLabel(label) || len(s) > 253 {
				return "a host name such as \"server.dc1.consul\", or an IP address, is needed."
			}
		}
		return ""
	})
}

// ipPort is IP:PORT. check returns what is wrong with a parsed address, or "".
func ipPort(allowed, example string, check func(netip.AddrPort) string) kind {
	return kind{typ: "address", allowed: allowed, parse: func(v cty.Value) (any, *fault) {
		s, f := asText(v)
		if f != nil {
			return nil, f
		}
		rule := "IP:PORT is needed, such as \"" + example + "\"."
		a, err := netip.ParseAddrPort(s)
		if err != nil || a.Addr().Zone() != "" || a.Addr().Is4In6() {
			if ip, err := netip.ParseAddr(s); err == nil {
				return nil, faultf("Address without a port", "is %s; %s Did you mean %q?", quote(s), rule, netip.AddrPortFrom(ip, examplePort(example)))
			}
			if strings.ContainsFunc(s, func(r rune) bool { return r >= 'g' && r <= 'z' }) {
				rule += " Names are not resolved."
			}
			return nil, faultf("Invalid address", "is %s; %s", quote(s), rule)
		}
		if wrong := check(a); wrong != "" {
			return nil, faultf("Invalid address", "is %s; %s", quote(s), wrong)
		}
		return a, nil
	}}
}

func examplePort(example string) uint16 {
	a, err := netip.ParseAddrPort(example)
	if err != nil {
		panic("config: example address " + example + " does not parse")
	}
	return a.Port()
}

// ip is an address without a port.
func ip(allowed string, check func(netip.Addr) string) kind {
	return kind{typ: "IP address", allowed: allowed, parse: func(v cty.Value) (any, *fault) {
		s, f := asText(v)
		if f != nil {
			return nil, f
		}
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" || a.Is4In6() {
			if ap, err := netip.ParseAddrPort(s); err == nil {
				return nil, faultf("Invalid IP address", "is %s; an IP address without a port is needed. Did you mean %q?", quote(s), ap.Addr())
			}
			return nil, faultf("Invalid IP address", "is %s; an IP address is needed, names are not resolved.", quote(s))
		}
		if wrong := check(a); wrong != "" {
			return nil, faultf("Invalid IP address", "is %s; %s", quote(s), wrong)
		}
		return a, nil
	}}
}

// systemLoopback is the part of 127/8 that every host already uses: 127.0.0.1,
// systemd-resolved on 127.0.0.53 and .54, the host name on 127.0.1.1.
var systemLoopback = netip.MustParsePrefix("127.0.0.0/16")

// loopbackRange is the range upstream addresses are taken from.
func loopbackRange() kind {
	const allowed = "a range inside 127.0.0.0/8, outside 127.0.0.0/16, /9 to /28"
	return kind{typ: "CIDR", allowed: allowed, parse: func(v cty.Value) (any, *fault) {
		s, f := asText(v)
		if f != nil {
			return nil, f
		}
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil || !p.Addr().Is4():
			return nil, faultf("Invalid range", "is %s; an IPv4 range such as \"127.77.0.0/16\" is needed.", quote(s))
		case p != p.Masked():
			return nil, faultf("Invalid range", "is %s, which has bits set behind the /%d. Did you mean %q?", quote(s), p.Bits(), p.Masked())
		case p.Addr().As4()[0] != 127 || p.Bits() < 8:
			return nil, faultf("Range outside loopback", "is %s; upstreams listen on loopback only, so the range is inside 127.0.0.0/8.", quote(s))
		case p.Overlaps(systemLoopback):
			return nil, faultf("Range in use by the system", "is %s; the range must stay clear of 127.0.0.0/16, where the host has 127.0.0.1, 127.0.0.53 and 127.0.1.1.", quote(s))
		case p.Bits() > 28:
			return nil, faultf("Range too small", "is %s; a range has at least 16 addresses, /28.", quote(s))
		}
		return p, nil
	}}
}
