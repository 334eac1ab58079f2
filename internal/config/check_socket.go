package config

import (
	"path/filepath"
	"strings"

	"github.com/hashicorp/hcl/v2"
)

// socketFile is a Unix socket that meshd makes.
type socketFile struct {
	what string // for messages: `the upstream "x"`
	path string
	at   hcl.Range // empty: a default, not written anywhere
}

// socketFiles finds Unix sockets that are outside the folders meshd may write,
// and those that are in each other's way.
func (b *builder) socketFiles(c *Config) {
	admin := b.root.only("admin")
	taken := make(map[string]socketFile)
	if v := admin.values["socket"]; !v.wrong {
		path := filepath.Clean(c.Admin.Socket)
		taken[path] = socketFile{"the admin listener (admin.socket)", path, v.at}
	}
	folders := []string{runDir}
	if dir := filepath.Dir(filepath.Clean(c.Admin.Socket)); dir != runDir && dir != "/" && dir != "." {
		folders = append(folders, dir)
	}
	var list []socketFile
	for _, u := range b.upstreams {
		if u.SocketPath == "" {
			continue
		}
		s := socketFile{`the upstream "` + u.Name + `"`, u.SocketPath, u.body.placeOf("local_bind_socket_path")}
		if clean := filepath.Clean(s.path); clean != s.path {
			better := ""
			if inside(clean, folders) {
				better = " Did you mean " + quote(clean) + "?"
			}
			b.errorf(s.at, "Invalid path", "local_bind_socket_path is %s; a path without detours is needed.%s", quote(s.path), better)
			continue
		}
		if !inside(s.path, folders) {
			b.errorf(s.at, "Path outside the folder for sockets", "local_bind_socket_path is %s; the service unit lets meshd write to its own folders only, so sockets stand under %s.", quote(s.path), strings.Join(folders, " or "))
			continue
		}
		if had, clash := taken[s.path]; clash {
			b.pathClash(s, had, "both are %s", quote(s.path))
			continue
		}
		taken[s.path] = s
		list = append(list, s)
	}
	for _, s := range list {
		for dir := filepath.Dir(s.path); len(dir) > 1; dir = filepath.Dir(dir) {
			if had, clash := taken[dir]; clash {
				b.pathClash(s, had, "%s cannot be a socket and the folder of %s", quote(dir), quote(s.path))
				break
			}
		}
	}
}

func inside(path string, folders []string) bool {
	for _, dir := range folders {
		if strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}

func (b *builder) pathClash(s, o socketFile, format string, args ...any) {
	if o.at.Filename == "" { // the default of admin.socket
		b.errorf(s.at, "Path clash", "The sockets of %s and of %s, where that is by default, are in each other's way: "+format+".", append([]any{s.what, o.what}, args...)...)
		return
	}
	b.clashf(s.at, o.at, "Path clash", "The sockets of %s and of %s (%s) are in each other's way: "+format+".", append([]any{s.what, o.what, short(o.at)}, args...)...)
}
