package config

import (
	"strconv"
	"strings"

	"github.com/zclconf/go-cty/cty"
)

// maxQueryName bounds the name of a prepared query, and is more than the 36
// characters of its id.
const maxQueryName = 128

// destinationName is wide enough for a prepared query, whose name becomes part
// of no host name. Whoever builds the upstream holds that of a service to
// checkName.
func destinationName() kind {
	return text("name", "as any name; of a prepared query 1 to 128 of A-Z, a-z, 0-9, . _ -", func(s string) string {
		if s != "" && len(s) <= maxQueryName && only(s, "._-", true) {
			return ""
		}
		return checkName(s)
	})
}

// checkPath is the path of an HTTP health check.
func checkPath() kind {
	return text("path", "a path that begins with /, at most 512 characters", func(s string) string {
		const rule = "a path such as \"/healthz\" is needed; host and port are those of the service."
		if _, rest, found := strings.Cut(s, "://"); found {
			if _, path, found := strings.Cut(rest, "/"); found && path != "" {
				return rule + " Did you mean " + quote("/"+path) + "?"
			}
			return rule
		}
		if s == "" || s[0] != '/' || len(s) > 512 {
			return rule
		}
		if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' }) {
			return "a path has no spaces, controls, \"#\" and letters beyond ASCII in it; write them as %20 and the like."
		}
		return ""
	})
}

// grpcService is what the gRPC health protocol calls a service.
func grpcService() kind {
	return text("name", "a service such as \"pay.v1.Payments\", or \"-\"", func(s string) string {
		if s == "-" || s != "" && len(s) <= 255 && s[0] != '-' && only(s, "._-", true) {
			return ""
		}
		return "a service of the health protocol has 1 to 255 of the characters A-Z, a-z, 0-9, \".\", \"_\" and \"-\"; \"-\" alone is the whole server."
	})
}

// socketMode is the permissions of a Unix socket, in octal as chmod has them.
func socketMode() kind {
	const allowed = "three or four octal digits, such as \"0660\""
	return kind{typ: "mode", allowed: allowed, parse: func(v cty.Value) (any, *fault) {
		s, f := asText(v)
		if f != nil {
			return nil, f
		}
		mode, err := strconv.ParseUint(s, 8, 32)
		switch {
		case err != nil || len(s) < 3 || len(s) > 4:
			return nil, faultf("Invalid mode", "is %s; %s are needed.", quote(s), allowed)
		case mode > 0o777:
			return nil, faultf("Invalid mode", "is %s; a socket has permissions only, 0777 at most.", quote(s))
		case mode&0o222 == 0:
			return nil, faultf("Invalid mode", "is %s, and nobody could connect: that takes the permission to write.", quote(s))
		}
		return uint32(mode), nil
	}}
}
