#!/usr/bin/env bash
# Prints the path of a consul binary of the given version, building it when it is not here yet.
#
#   hack/consul.sh [--find] VERSION        for example: hack/consul.sh 1.20.1
#
# With --find nothing is built: exit 1 when there is none yet.
#
# Looked for in this order: $MESHD_TEST_CONSUL (taken as it is, must be this version), `consul` in PATH when it
# is this version, the cache, and at last a build from source with the Go toolchain through the ordinary module
# proxy. The build happens in a module that is thrown away, so this tree's go.mod never hears of Consul's server.
#
# stdout: the path, nothing else. stderr: progress. Safe to start several times at once: one builds, the others wait.
set -euo pipefail

say() { printf 'consul.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

find=
if [[ ${1:-} == --find ]]; then
    find=1
    shift
fi
[[ $# -eq 1 ]] || die "usage: hack/consul.sh [--find] VERSION"
version=${1#v}
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || die "not a version: $1"

# matches is true when the binary says that it is this version; a vendor's suffix (+ent) is no match, since its
# behaviour differs.
matches() {
    local first
    # All of it is read before the first line is taken: a reader that goes early would make consul fail.
    first=$("$1" version 2>/dev/null) || return 1
    first=${first%%$'\n'*}
    [[ $first == "Consul v$version" || $first == "Consul v$version "* ]]
}

if [[ -n ${MESHD_TEST_CONSUL:-} ]]; then
    matches "$MESHD_TEST_CONSUL" || die "MESHD_TEST_CONSUL=$MESHD_TEST_CONSUL is not consul $version"
    echo "$MESHD_TEST_CONSUL"
    exit 0
fi
if found=$(command -v consul) && matches "$found"; then
    echo "$found"
    exit 0
fi

cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/meshd/consul-$version
binary=$cache/consul
if [[ -x $binary ]] && matches "$binary"; then
    echo "$binary"
    exit 0
fi
[[ -z $find ]] || die "not in MESHD_TEST_CONSUL, PATH or $cache"
mkdir -p "$cache"

command -v go >/dev/null || die "no consul $version, and no go to build it with"
command -v flock >/dev/null || die "flock is missing (package util-linux)"
exec 9>"$cache/lock"
flock -n 9 || { say "another process builds consul $version, waiting for it"; flock 9; }
if [[ -x $binary ]] && matches "$binary"; then
    echo "$binary"
    exit 0
fi

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

cat >go.mod <<MOD
module throwaway

go 1.22
MOD
# The import only makes the module's own packages and their dependencies known, so that the checksums of all of
# them are recorded; what is built is Consul's own main package.
cat >import.go <<'GO'
package throwaway

import _ "github.com/hashicorp/consul"
GO

# Nothing of the caller's workspace or flags may leak into this build.
export GOWORK=off GOFLAGS=-mod=mod CGO_ENABLED=0
say "downloading consul v$version and what it needs (about two minutes)"
go get "github.com/hashicorp/consul@v$version" >&2
say "compiling (about five minutes)"
# Built outside a checkout the version stays at a development mark, so it is told to the linker, as a release does.
go build -trimpath -o "$work/consul" -ldflags "-s -w
    -X github.com/hashicorp/consul/version.GitDescribe=v$version
    -X github.com/hashicorp/consul/version.VersionPrerelease=" github.com/hashicorp/consul >&2

matches "$work/consul" || die "built a binary that says: $("$work/consul" version 2>&1)"
mv -f "$work/consul" "$binary"
say "done"
echo "$binary"
