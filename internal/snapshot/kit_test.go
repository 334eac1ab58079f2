package snapshot

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"meshd/internal/mesh"
)

// at is a moment as a file can hold it.
func at(minute int) time.Time { return time.Date(2025, 3, 1, 12, minute, 7, 123456789, time.UTC) }

// testKey is 32 bytes that everybody knows.
func testKey() []byte { return bytes.Repeat([]byte{7}, KeyBytes) }

// story is a state with one of everything that a file can hold.
func story() State {
	return State{
		Saved: at(30), Contact: at(29), TrustDomain: "8a2c.consul",
		Roots: [][]byte{[]byte("root one, in truth DER"), []byte("root two")},
		Leafs: []Leaf{
			{Service: "payments", Chain: [][]byte{[]byte("leaf of payments")}, Key: []byte("private key of payments")},
			{Service: "web", Chain: [][]byte{[]byte("leaf of web"), []byte("intermediate")}, Key: []byte("private key of web")},
		},
		Catalog: &mesh.Catalog{
			Services: map[mesh.ServiceKey]mesh.CatalogService{
				{Name: "orders"}: {Port: 8080, Source: Source, Updated: at(28), Endpoints: []mesh.Endpoint{
					{ID: "orders-1", Address: netip.MustParseAddrPort("10.0.0.4:21900"), Service: "orders", Datacenter: "dc1", Weight: 1, Healthy: true},
					{ID: "orders-2", Address: netip.MustParseAddrPort("[2001:db8::5]:21900"), Service: "orders", Weight: 128, Meta: map[string]string{"zone": "b", "<&>": "ü"}},
				}},
				{Name: "orders", Datacenter: "dc2"}: {Source: Source, Updated: at(27), Endpoints: []mesh.Endpoint{}},
				{Name: "nearest", Query: true}:      {Source: Source, Updated: at(26), Endpoints: []mesh.Endpoint{}},
			},
			Chains: map[mesh.ServiceKey]mesh.Chain{
				{Name: "orders"}: {Protocol: mesh.HTTP, ConnectTimeout: 5 * time.Second, RequestTimeout: -1, Updated: at(28)},
				{Name: "split"}:  {Protocol: mesh.GRPC, RequestTimeout: 1500 * time.Millisecond, Refused: "splitter", Updated: at(20)},
			},
			Intentions: map[string]mesh.Intentions{
				"web": {Updated: at(25), List: []mesh.Intention{
					{Source: "admin", Precedence: 9, Action: mesh.Allowed},
					{Source: "shop", Precedence: 9, Action: mesh.Allowed, HTTP: true},
					{Source: "*", Precedence: 8, Action: mesh.Deny},
				}},
				"payments": {Default: mesh.Allowed, Updated: at(24), List: []mesh.Intention{}},
			},
		},
	}
}

// big is a state whose file is larger than that much.
func big(size int) State {
	s := story()
	eps := make([]mesh.Endpoint, size/100)
	for i := range eps {
		eps[i] = mesh.Endpoint{
			ID: fmt.Sprintf("instance-%06d", i), Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 21900),
			Service: "big", Weight: 1, Healthy: true,
		}
	}
	s.Catalog.Services[mesh.ServiceKey{Name: "big"}] = mesh.CatalogService{Source: Source, Updated: at(1), Endpoints: eps}
	return s
}

func encode(t testing.TB, s State) []byte {
	t.Helper()
	b, err := Encode(s, testKey())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// options are those of a file in a folder of its own.
func options(t testing.TB) Options {
	return Options{Path: filepath.Join(t.TempDir(), "snapshot"), Key: testKey()}
}

// names lists a folder.
func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}
