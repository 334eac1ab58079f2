package agent

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"meshd/internal/admin"
	"meshd/internal/mesh"
)

// Every value of an upstream, each from another place.
func TestExplain(t *testing.T) {
	at := func(line int) mesh.Pos { return mesh.Pos{File: "meshd.hcl", Line: line} }
	o := &mesh.Outbound{
		Upstream: mesh.Upstream{
			Name: "api", Destination: "api-v2", Protocol: mesh.HTTP,
			SocketPath: "/run/meshd/api.sock", SocketMode: 0o660,
			ConnectTimeout: 1500 * time.Millisecond, RequestTimeout: 2 * time.Hour, IdleTimeout: 0,
			Breaker: mesh.Breaker{ConsecutiveFailures: 5, OpenFor: 90 * time.Second}, ChoiceCount: 2,
			Limits: mesh.Limits{MaxConnections: 1, MaxPendingRequests: 2, MaxConcurrentRequests: 3},
			Pos:    at(4),
			Origins: map[string]mesh.Provenance{
				"destination_name":         {Kind: "upstream", Pos: at(5)},
				"protocol":                 {Kind: "discovery-chain"},
				"connect_timeout":          {Kind: "discovery-chain"},
				"idle_timeout":             {Kind: "defaults", Pos: at(2)},
				"circuit_breaker.open_for": {Kind: "upstream", Pos: at(7)},
			},
		},
		Caller: "web", Address: netip.MustParseAddr("127.77.1.2"), Port: 8080, Source: "consul",
	}
	got := explain(o, 8080)
	value := func(attribute, text string, origin admin.Origin, where string) admin.Value {
		return admin.Value{Attribute: attribute, Value: text, Origin: origin, Where: where}
	}
	want := []admin.Value{
		value("destination_name", "api-v2", admin.OriginUpstream, "meshd.hcl:5"),
		value("destination_type", "service", admin.OriginBuiltIn, ""),
		value("from", "web", admin.OriginBuiltIn, ""),
		value("protocol", "http", admin.OriginConsul, "discovery-chain/api-v2"),
		value("address", "127.77.1.2", admin.OriginAssigned, ""),
		value("port", "8080", admin.OriginConsul, ""),
		value("local_bind_socket_path", "/run/meshd/api.sock", admin.OriginBuiltIn, ""),
		value("local_bind_socket_mode", "0660", admin.OriginBuiltIn, ""),
		value("connect_timeout", "1.5s", admin.OriginConsul, "discovery-chain/api-v2"),
		value("request_timeout", "2h", admin.OriginBuiltIn, ""),
		value("idle_timeout", "off", admin.OriginDefaults, "meshd.hcl:2"),
		value("circuit_breaker.consecutive_failures", "5", admin.OriginBuiltIn, ""),
		value("circuit_breaker.open_for", "1m30s", admin.OriginUpstream, "meshd.hcl:7"),
		value("load_balancer.policy", "least_request", admin.OriginBuiltIn, ""),
		value("load_balancer.least_request.choice_count", "2", admin.OriginBuiltIn, ""),
		value("limits.max_connections", "1", admin.OriginBuiltIn, ""),
		value("limits.max_pending_requests", "2", admin.OriginBuiltIn, ""),
		value("limits.max_concurrent_requests", "3", admin.OriginBuiltIn, ""),
	}
	for i := range max(len(got.Values), len(want)) {
		var g, w admin.Value
		if i < len(got.Values) {
			g = got.Values[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("value %d is %+v, want %+v", i, g, w)
		}
	}
	if got.Upstream != "api" || got.Defined != "meshd.hcl:4" {
		t.Errorf("explained is %q of %q", got.Upstream, got.Defined)
	}

	// What differs for TCP, a fixed port, another datacenter, a prepared query.
	o.Protocol, o.Query, o.Datacenter = mesh.TCP, true, "dc2"
	o.LocalBindAddress, o.LocalBindPort = netip.MustParseAddr("127.0.0.1"), 5432
	var names []string
	for _, v := range explain(o, 0).Values {
		names = append(names, v.Attribute)
		if v.Attribute == "destination_type" && v.Value != "prepared_query" {
			t.Errorf("destination_type is %s", v.Value)
		}
	}
	for name, there := range map[string]bool{
		"datacenter": true, "local_bind_address": true, "local_bind_port": true, "port": false, "request_timeout": false,
	} {
		if slices.Contains(names, name) != there {
			t.Errorf("%s among %q: want %v", name, names, there)
		}
	}

	for _, c := range []struct {
		port, stated uint16
		source       string
		want         admin.Origin
	}{
		{27017, 27017, "consul", admin.OriginConsul}, // natural, although it lies in the range of assigned ones
		{27017, 27017, "static", admin.OriginStatic},
		{27017, 8080, "consul", admin.OriginAssigned},
		{21300, 0, "", admin.OriginAssigned},
	} {
		o := &mesh.Outbound{Port: c.port, Source: c.source}
		if got := portOrigin(o, c.stated); got != c.want {
			t.Errorf("port %d where %d is stated by %q is %s, want %s", c.port, c.stated, c.source, got, c.want)
		}
	}
}
