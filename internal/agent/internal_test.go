package agent

import (
	"bytes"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"meshd/internal/mesh"
)

func TestReadWildcards(t *testing.T) {
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	for _, tc := range []struct {
		name, table string
		want        []uint16
		fails       bool
	}{
		{name: "empty", table: ""},
		{name: "headings only", table: head},
		{"loopback and all, v4", head +
			"   0: 0100007F:0277 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n" +
			"   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1\n" +
			"   2: 00000000:01BB 00000000:0000 0A\n", []uint16{8080, 443}, false},
		{"all, v6 and v4 in v6", head +
			"   0: 00000000000000000000000000000000:5588 00000000000000000000000000000000:0000 0A\n" +
			"   1: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 0A\n" +
			"   2: 0000000000000000FFFF000000000000:0050 00000000000000000000000000000000:0000 0A\n" +
			"   3: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A\n", []uint16{21896, 80}, false},
		{"connections end the list", head +
			"   0: 00000000:0050 00000000:0000 0A\n" +
			"   1: 00000000:0051 0100007F:1234 01\n" +
			"   2: 00000000:0052 00000000:0000 0A\n", []uint16{80}, false},
		{name: "another format", table: head + "tcp LISTEN 0\n", fails: true},
		{name: "no port", table: head + "   0: 00000000 00000000:0000 0A\n", fails: true},
		{name: "no address", table: head + "   0: 0000000:0050 00000000:0000 0A\n", fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := make(map[uint16]bool)
			err := readWildcards(strings.NewReader(tc.table), got)
			if (err != nil) != tc.fails {
				t.Fatalf("error %v", err)
			}
			want := make(map[uint16]bool)
			for _, p := range tc.want {
				want[p] = true
			}
			if !tc.fails && !maps.Equal(got, want) {
				t.Errorf("ports %v, want %v", got, want)
			}
		})
	}
}

// The tables above are made up; this is the kernel's.
func TestWildcardPortsOfThisHost(t *testing.T) {
	all, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	one, err := net.Listen("tcp", "127.77.1.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	got, err := wildcardPorts()
	if err != nil {
		t.Fatal(err)
	}
	port := func(l net.Listener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }
	if !got[port(all)] {
		t.Errorf("%s is not found among %d ports", all.Addr(), len(got))
	}
	if port(one) != port(all) && got[port(one)] {
		t.Errorf("%s counts as listening on every address", one.Addr())
	}
}

func TestAssignmentsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), assignmentsFile)
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	if got := readAssignments(path, logger); len(got.Addresses) != 0 || log.Len() != 0 {
		t.Errorf("read %v of nothing, logged %q", got, log.String())
	}
	want := mesh.Assignments{
		Addresses: map[string]netip.Addr{"api": netip.MustParseAddr("127.77.1.2")},
		Ports:     map[string]uint16{"api": 21300},
	}
	for range 2 { // the second replaces the first
		if err := writeAssignments(path, encodeAssignments(want)); err != nil {
			t.Fatal(err)
		}
	}
	got := readAssignments(path, logger)
	if !maps.Equal(got.Addresses, want.Addresses) || !maps.Equal(got.Ports, want.Ports) || log.Len() != 0 {
		t.Errorf("read %v, want %v; logged %q", got, want, log.String())
	}
	if files, _ := filepath.Glob(path + "*"); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}

	for _, damaged := range []string{"", "{", "[]", `{"addresses":{"api":"nowhere"}}`, `{"ports":{"api":70000}}`, "{} {}"} {
		log.Reset()
		if err := os.WriteFile(path, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		got := readAssignments(path, logger)
		if len(got.Addresses) != 0 || len(got.Ports) != 0 || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("%q: read %v, logged %q", damaged, got, log.String())
		}
		if aside, err := os.ReadFile(path + damagedSuffix); err != nil || string(aside) != damaged {
			t.Errorf("%q: set aside %q, %v", damaged, aside, err)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%q is still in the way", damaged)
		}
	}

	if err := writeAssignments(filepath.Join(path, "no", "folder"), nil); err == nil {
		t.Error("no error for a folder that is not there")
	}
}
