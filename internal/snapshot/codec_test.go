package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"meshd/internal/mesh"
)

// same compares states; addresses have no exported fields.
var same = cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()}

func TestRoundTrip(t *testing.T) {
	for name, s := range map[string]State{
		"everything": story(),
		"nothing":    {Saved: at(1), Catalog: &mesh.Catalog{}},
		"large":      big(1 << 20),
	} {
		got, err := Decode(encode(t, s), testKey())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(s, got, same); d != "" {
			t.Errorf("%s changed on the way:\n%s", name, d)
		}
	}
}

// The monotonic part of a time and its zone are of this process only.
func TestTimesAreWallTimes(t *testing.T) {
	s := story()
	s.Saved = time.Now().In(time.FixedZone("somewhere", 3600))
	got, err := Decode(encode(t, s), nil)
	if err != nil || !got.Saved.Equal(s.Saved) || got.Saved.Location() != time.UTC || got.Saved != got.Saved.Round(0) {
		t.Errorf("%v became %v, %v", s.Saved, got.Saved, err)
	}
}

var update = flag.Bool("update", false, "write the file of a new version")

// A file of this version that some meshd wrote once is read by all that know
// the version. When this test fails, version must change and the old file stay.
func TestFormatIsPinned(t *testing.T) {
	const path = "testdata/version-1.snapshot"
	if *update {
		if err := os.WriteFile(path, encode(t, story()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b, testKey())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(story(), got, same); d != "" {
		t.Errorf("read differently than it was written:\n%s", d)
	}
	// And the other way round: without keys, which are sealed anew each time,
	// the bytes are the same.
	s := story()
	for i := range s.Leafs {
		s.Leafs[i].Key = nil
	}
	body := encode(t, s)
	body = body[bytes.IndexByte(body, '\n')+1:]
	for i, line := range strings.Split(string(body), "\n") {
		if !strings.Contains(string(b), strings.TrimRight(line, ",")) {
			t.Errorf("line %d is not in the file: %s", i+1, line)
		}
	}
}

func TestKeysAreSealed(t *testing.T) {
	s := story()
	b := encode(t, s)
	for _, l := range s.Leafs {
		if bytes.Contains(b, l.Key) || bytes.Contains(b, []byte(base64.StdEncoding.EncodeToString(l.Key))) {
			t.Errorf("the key of %s can be read", l.Service)
		}
	}
	without := func(s State) State {
		s.Leafs = append([]Leaf(nil), s.Leafs...)
		for i := range s.Leafs {
			s.Leafs[i].Key = nil
		}
		return s
	}
	// Another key, or none, finds everything but the keys.
	other := bytes.Repeat([]byte{8}, KeyBytes)
	for name, key := range map[string][]byte{"another key": other, "no key": nil, "a key of a wrong length": other[:5]} {
		got, err := Decode(b, key)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := cmp.Diff(without(s), got, same); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
	// Without a key they are not even written.
	b, err := Encode(s, nil)
	if err != nil || bytes.Contains(b, []byte("sealed_key")) {
		t.Errorf("written without a key to seal with: %v", err)
	}
	if _, err := Encode(s, other[:31]); err == nil {
		t.Error("a short key seals")
	}
	// What was sealed for one service is nothing for another, even with a
	// checksum that is right.
	sealed, err := seal(testKey(), "web", []byte("k"))
	if err != nil || unseal(testKey(), "web", sealed) == nil || unseal(testKey(), "payments", sealed) != nil {
		t.Errorf("sealed for web: %v", err)
	}
	again, _ := seal(testKey(), "web", []byte("k"))
	if bytes.Equal(sealed, again) {
		t.Error("a nonce was used twice")
	}
}

// What is written can be read: a fact that no reader would believe is refused
// by the writer, which then leaves the file before alone.
func TestUnbelievable(t *testing.T) {
	for name, spoil := range map[string]func(s *State){
		"endpoint without address": func(s *State) {
			s.Catalog.Services[mesh.ServiceKey{Name: "x"}] = mesh.CatalogService{Updated: at(1), Endpoints: []mesh.Endpoint{{ID: "x", Service: "x", Weight: 1}}}
		},
		"endpoint without identity": func(s *State) {
			e := s.Catalog.Services[mesh.ServiceKey{Name: "orders"}].Endpoints
			e[0].Service = ""
		},
		"weight nought": func(s *State) { s.Catalog.Services[mesh.ServiceKey{Name: "orders"}].Endpoints[0].Weight = 0 },
		"weight huge":   func(s *State) { s.Catalog.Services[mesh.ServiceKey{Name: "orders"}].Endpoints[0].Weight = 1 << 40 },
		"service without time": func(s *State) {
			s.Catalog.Services[mesh.ServiceKey{Name: "x"}] = mesh.CatalogService{}
		},
		"service without name": func(s *State) {
			s.Catalog.Services[mesh.ServiceKey{}] = mesh.CatalogService{Updated: at(1)}
		},
		"permissions without time": func(s *State) { s.Catalog.Intentions["x"] = mesh.Intentions{} },
		"permissions of nobody":    func(s *State) { s.Catalog.Intentions[""] = mesh.Intentions{Updated: at(1)} },
		"permission without source": func(s *State) {
			s.Catalog.Intentions["x"] = mesh.Intentions{Updated: at(1), List: []mesh.Intention{{Action: mesh.Allowed}}}
		},
		"unknown protocol":         func(s *State) { s.Catalog.Chains[mesh.ServiceKey{Name: "x"}] = mesh.Chain{Protocol: 77} },
		"negative connect timeout": func(s *State) { s.Catalog.Chains[mesh.ServiceKey{Name: "x"}] = mesh.Chain{ConnectTimeout: -1} },
		"empty root":               func(s *State) { s.Roots = append(s.Roots, nil) },
		"leaf without certificate": func(s *State) { s.Leafs[0].Chain = nil },
		"leaf twice":               func(s *State) { s.Leafs[0].Service = s.Leafs[1].Service },
		"year 10000":               func(s *State) { s.Saved = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		s := story()
		spoil(&s)
		if b, err := Encode(s, testKey()); err == nil {
			t.Errorf("%s: was written\n%s", name, b)
		}
	}
	// An action that is none of ours never comes out as a permission.
	s := story()
	s.Catalog.Intentions["web"].List[2].Action = 200
	got, err := Decode(encode(t, s), nil)
	if err != nil || got.Catalog.Intentions["web"].List[2].Action != mesh.Deny {
		t.Errorf("action 200 became %v, %v", got.Catalog.Intentions["web"].List[2].Action, err)
	}
}

// framed makes a file of any payload, with all that Decode checks before it.
func framed(body []byte) []byte { return append(header(body), body...) }

// Even with the right checksum nothing is believed that we would not write.
func TestPayloadIsStrict(t *testing.T) {
	if _, err := Decode(framed([]byte(`{}`)), nil); err != nil {
		t.Fatalf("the smallest payload: %v", err) // or the cases below prove nothing
	}
	for _, body := range []string{
		``, `null x`, `[]`, `1`, `{} {}`, `{"saved":"yesterday"}`, `{"future":1}`, `{"trust_domain":7}`, "\xff",
		`{"services":[{"name":"a","updated":"2025-01-01T00:00:00Z","endpoints":[]},{"name":"a","updated":"2025-01-01T00:00:00Z","endpoints":[]}]}`,
		`{"services":[{"name":"a","updated":"2025-01-01T00:00:00Z","port":65536}]}`,
		`{"services":[{"name":"a","updated":"2025-01-01T00:00:00Z","endpoints":[{"service":"a","weight":1,"address":"nowhere:1"}]}]}`,
		`{"services":[{"name":"a","updated":"2025-01-01T00:00:00Z","endpoints":[{"service":"a","weight":1,"address":"0.0.0.0:1"}]}]}`,
		`{"services":[{"name":"a","updated":"2025-01-01T00:00:00Z","endpoints":[{"service":"a","weight":1,"address":"1.2.3.4:0"}]}]}`,
		`{"permissions":[{"service":"a","updated":"2025-01-01T00:00:00Z","default":"ALLOW"}]}`,
		`{"permissions":[{"service":"a","updated":"2025-01-01T00:00:00Z"}]}`,
		`{"permissions":[{"service":"a","updated":"2025-01-01T00:00:00Z","default":"deny","list":[{"source":"b","action":""}]}]}`,
		`{"chains":[{"name":"a","protocol":"tcp","connect_timeout":"soon"}]}`,
		`{"chains":[{"name":"a","protocol":"tcp"},{"name":"a","protocol":"tcp"}]}`,
	} {
		if s, err := Decode(framed([]byte(body)), testKey()); err == nil {
			t.Errorf("believed: %s\n%+v", body, s)
		}
	}
}

func TestFutureVersion(t *testing.T) {
	b := encode(t, story())
	future := append([]byte(magic+" 2 something else entirely\n"), b...)
	_, err := Decode(future, testKey())
	if err == nil || !strings.Contains(err.Error(), `version "2"`) || !strings.Contains(err.Error(), "version 1") {
		t.Errorf("error %v must name both versions", err)
	}
}

// mutate spoils b in one of the ways in which files are found spoiled.
func mutate(r *rand.Rand, b []byte) (kind string, m []byte) {
	m = bytes.Clone(b)
	i := r.IntN(len(m))
	switch r.IntN(11) {
	case 0:
		m[i] ^= 1 << r.IntN(8)
		return "bit", m
	case 1:
		m[i] = byte(r.Uint32())
		return "byte", m
	case 2: // where a reader decides
		m[r.IntN(bytes.IndexByte(m, '\n')+1)] ^= 1 << r.IntN(8)
		return "bit of the first line", m
	case 3:
		return "cut", m[:i]
	case 4:
		return "emptied", nil
	case 5:
		j := i + r.IntN(len(m)-i)
		clear(m[i : j+1])
		return "zeroed", m // as some filesystems leave it after a power cut
	case 6:
		return "piece lost", append(m[:i], m[min(i+1+r.IntN(512), len(m)):]...)
	case 7:
		return "piece twice", append(m[:i:i], b[r.IntN(i+1):]...)
	case 8:
		return "longer", append(m, b[i:]...)
	case 9:
		n := 2 + r.IntN(1000)
		return "future version", bytes.Replace(m, []byte(magic+" 1 "), []byte(fmt.Sprintf("%s %d ", magic, n)), 1)
	default:
		// Whoever meant to help: a word changed, the length made to fit.
		body := bytes.Replace(m[bytes.IndexByte(m, '\n')+1:], []byte(`"deny"`), []byte(`"allow"`), 1)
		sum := sha256.Sum256(body)
		return "edited", append([]byte(fmt.Sprintf("%s 1 %s %x\n", magic, strconv.Itoa(len(body)), sum)), body...)
	}
}

// mutations is the number that the promise names.
const mutations = 10_000

// throughDisk is how many go the whole way over the disk: one of so many.
const throughDisk = 10

// No spoiled file is believed, and none makes the reader fall over.
func TestMutations(t *testing.T) {
	o := options(t)
	whole := encode(t, story())
	r := rand.New(rand.NewPCG(1, 2))
	kinds := map[string]int{}
	for n := range mutations {
		kind, m := mutate(r, whole)
		if bytes.Equal(m, whole) {
			continue
		}
		kinds[kind]++
		if s, err := Decode(m, testKey()); err == nil || s.Catalog != nil {
			t.Fatalf("mutation %d (%s): believed: %v, %+v\n%q", n, kind, err, s, m)
		}
		if n%throughDisk != 0 {
			continue
		}
		if err := os.WriteFile(o.Path, m, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Load(o)
		d, damaged := err.(*DamagedError)
		if !damaged || s.Catalog != nil || s.Roots != nil || s.Leafs != nil || s.TrustDomain != "" {
			t.Fatalf("mutation %d (%s): loaded: %v, %+v\n%q", n, kind, err, s, m)
		}
		if kept, err := os.ReadFile(d.Aside); err != nil || !bytes.Equal(kept, m) {
			t.Fatalf("mutation %d (%s): set aside as %q: %v", n, kind, d.Aside, err)
		}
	}
	if len(kinds) != 11 {
		t.Errorf("kinds %v, want 11", kinds)
	}
	if list := names(t, filepath.Dir(o.Path)); len(list) != keepDamaged {
		t.Errorf("the folder has %q, want %d files that were set aside", list, keepDamaged)
	}
	t.Logf("%d mutations of a file of %d bytes: %v", mutations, len(whole), kinds)
}

func BenchmarkEncode(b *testing.B) {
	s := big(512 << 10)
	for b.Loop() {
		encode(b, s)
	}
}

func BenchmarkDecode(b *testing.B) {
	f := encode(b, big(512<<10))
	b.SetBytes(int64(len(f)))
	for b.Loop() {
		if _, err := Decode(f, testKey()); err != nil {
			b.Fatal(err)
		}
	}
}
