package admin

import (
	"runtime"
	"runtime/debug"
)

// BuildVersion reads what the linker knows about this program. protocol is
// the link protocol it speaks, "" for a program that speaks none.
func BuildVersion(protocol string) Version {
	v := Version{Version: "dev", Go: runtime.Version(), Protocol: protocol}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if m := info.Main.Version; m != "" && m != "(devel)" {
		v.Version = m
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.time":
			v.Built = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty && v.Revision != "" {
		v.Revision += "-dirty"
	}
	return v
}
