package snapshot

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"meshd/internal/mesh"
)

// FuzzDecode: no octets make the reader fall over, and what it believes is what
// we would write.
func FuzzDecode(f *testing.F) {
	whole := encode(f, story())
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte{})
	f.Add([]byte(magic + " 2 0 \n"))
	f.Add(framed([]byte("{}")))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Decode(b, testKey())
		if err == nil {
			believed(t, s)
		}
	})
}

// FuzzPayload is what FuzzDecode cannot reach through the checksum.
func FuzzPayload(f *testing.F) {
	whole := encode(f, story())
	f.Add(whole[bytes.IndexByte(whole, '\n')+1:])
	f.Add([]byte("{}"))
	f.Add([]byte(`{"services":[{"name":"a","updated":"2025-01-01T00:00:00Z","endpoints":[{"id":"1","service":"a","weight":1,"address":"[::1]:1"}]}]}`))
	f.Add([]byte(`{"permissions":[{"service":"a","updated":"2025-01-01T00:00:00Z","default":"deny","list":[{"source":"*","action":"allow"}]}]}`))
	f.Add([]byte(`{"chains":[{"name":"a","protocol":"http2","request_timeout":"-1ns"}],"leafs":[{"service":"a","chain":["AA=="],"sealed_key":"AA=="}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := Decode(framed(body), testKey())
		if err == nil {
			believed(t, s)
		}
	})
}

// believed checks what every state that was read must keep.
func believed(t *testing.T, s State) {
	t.Helper()
	for k, f := range s.Catalog.Services {
		if f.Source != Source || f.Updated.IsZero() || k.Name == "" {
			t.Fatalf("service %+v: %+v", k, f)
		}
	}
	for name, in := range s.Catalog.Intentions {
		if in.Updated.IsZero() || in.Default != mesh.Deny && in.Default != mesh.Allowed {
			t.Fatalf("permissions of %q: %+v", name, in)
		}
	}
	again, err := Encode(s, testKey())
	if err != nil {
		t.Fatalf("read and not written again: %v", err)
	}
	got, err := Decode(again, testKey())
	if err != nil {
		t.Fatalf("written again and not read: %v", err)
	}
	if d := cmp.Diff(s, got, same); d != "" {
		t.Fatalf("changed on the way:\n%s", d)
	}
	// A picture can be made of it, and one that is too old serves nothing.
	spec := &mesh.Spec{Intentions: true, Identity: "caller", Loopback: netip.MustParsePrefix("127.77.0.0/16")}
	for k := range s.Catalog.Services {
		spec.Upstreams = append(spec.Upstreams, mesh.Upstream{Name: "u", Destination: k.Name, Datacenter: k.Datacenter, Query: k.Query})
		break
	}
	for name := range s.Catalog.Intentions {
		spec.Services = append(spec.Services, mesh.Service{Name: name, Port: 1})
		break
	}
	snap, err := mesh.Compile(mesh.CompileInput{
		Generation: 1, Spec: spec, Catalog: s.Catalog, Now: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC).Add(48 * time.Hour), DropAfter: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range snap.Outbound {
		if len(o.Endpoints) != 0 {
			t.Fatalf("upstream %s has endpoints that are too old", o.Name)
		}
	}
	for _, in := range snap.Inbound {
		if in.Intentions != nil {
			t.Fatalf("service %s has permissions that are too old", in.Name)
		}
	}
}
