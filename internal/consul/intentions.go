package consul

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
)

// probeSource is a service that nobody has. What Consul says about it to a
// destination is what it says where no intention decides.
const probeSource = "meshd-default-probe"

// intentionSource watches who may call one service of this host.
type intentionSource struct {
	c       *Client
	service string

	last  mesh.Intentions
	known bool
	seen  memory
}

func (s *intentionSource) source() source {
	return source{fetch: s.fetch, service: s.service, rules: offerRules(s.service)[:1]}
}

// intention is as much of one as meshd looks at. The library's own type does
// not have JWT.
type intention struct {
	SourceNS, SourceName                             string
	DestinationNS, DestinationName                   string
	SourcePartition, SourcePeer, SourceSamenessGroup string
	SourceType                                       string
	Action                                           string
	Permissions                                      []json.RawMessage
	JWT                                              json.RawMessage
	Precedence                                       int
}

func (s *intentionSource) fetch(ctx context.Context, q *api.QueryOptions) (answer, error) {
	var n notes
	ctx = context.WithValue(ctx, notesKey{}, &n)
	var out map[string][]*intention
	index, err := s.c.get(ctx, query{
		path:  "/v1/connect/intentions/match",
		more:  url.Values{"by": {"destination"}, "name": {s.service}},
		index: q.WaitIndex, wait: q.WaitTime,
	}, &out)
	if err != nil {
		return answer{}, err
	}
	matched, ok := out[s.service]
	if !ok {
		return answer{}, distrust("the answer says nothing about %s", s.service)
	}
	policy, leaderless := n.policy, n.leaderless
	now := mesh.Intentions{List: list(matched, s.service)}
	if now.Default, err = s.probe(ctx, now.List, policy); err != nil {
		return answer{}, err
	}
	now.Updated = s.last.Updated
	changed := !s.known || !reflect.DeepEqual(now, s.last)
	at := time.Now()
	if len(matched) == 0 && (index < 1 || leaderless) {
		return answer{}, distrust("no intentions at all, from a server without index or leader, is not believed")
	}
	if changed && s.known {
		// What a server says that lost its memory may allow as well as deny.
		if err := s.seen.doubt(index, leaderless, at, s.c.pace.settle); err != nil {
			return answer{}, err
		}
	}
	now.Updated = at
	s.last, s.known = now, true
	s.seen.believed(index)
	if changed && s.c.o.OnIntentions != nil {
		now.List = slices.Clone(now.List)
		s.c.o.OnIntentions(s.service, now)
	}
	return answer{index: index, changed: changed}, nil
}

// list takes those that can decide about a caller of this mesh, highest
// precedence first. Consul gives them in that order; it is made sure of because
// a wrong one would allow.
func list(matched []*intention, service string) []mesh.Intention {
	all := make([]mesh.Intention, 0, len(matched))
	for _, m := range matched {
		if m == nil || m.SourcePeer != "" || m.SourceSamenessGroup != "" ||
			m.SourceType != "" && m.SourceType != string(api.IntentionSourceConsul) ||
			!home(m.SourceNS) || !home(m.SourcePartition) || !home(m.DestinationNS) ||
			m.DestinationName != service && m.DestinationName != "*" {
			continue
		}
		in := mesh.Intention{Source: m.SourceName, Precedence: m.Precedence, HTTP: len(m.Permissions) > 0 || wants(m.JWT)}
		if m.Action == string(api.IntentionActionAllow) {
			in.Action = mesh.Allowed // every other word denies
		}
		all = append(all, in)
	}
	slices.SortStableFunc(all, func(a, b mesh.Intention) int { return cmp.Compare(b.Precedence, a.Precedence) })
	return all
}

// home is true for the namespace and partition that services without one are in.
func home(name string) bool { return name == "" || name == "default" || name == "*" }

// wants is true when a JWT is asked for, which is decided by the request.
func wants(jwt json.RawMessage) bool { return len(jwt) > 0 && string(jwt) != "null" }

// probe returns what holds for callers that no intention names. Consul's header
// says what ACLs do by default; default_intention_policy does something else
// with intentions, and then only a question shows it. Consul 1.20 knows of it
// where the agent authorizes a caller, but not where its servers check a pair;
// that is asked where the first is not to be had.
func (s *intentionSource) probe(ctx context.Context, in []mesh.Intention, policy string) (mesh.Action, error) {
	for i := range in {
		if in[i].Source == "*" || in[i].Source == probeSource {
			// Everybody is named, so the default decides nothing, and the
			// question would be answered by that intention.
			return mesh.Deny, nil
		}
	}
	action := func(allowed bool) mesh.Action {
		if allowed {
			return mesh.Allowed
		}
		return mesh.Deny
	}
	ask, err := json.Marshal(map[string]string{
		"Target": s.service, "ClientCertSerial": "00",
		// Neither the trust domain nor the datacenter decides anything.
		"ClientCertURI": "spiffe://probe.consul/ns/default/dc/" + cmp.Or(s.c.o.Datacenter, "dc1") + "/svc/" + probeSource,
	})
	if err != nil {
		return mesh.Deny, err
	}
	decided, err := s.authorize(ctx, ask)
	if err == nil && decided != nil {
		return action(*decided), nil
	}
	if err != nil && (!refused(err) || lacksRights(err)) {
		return mesh.Deny, err
	}
	var checked struct{ Allowed *bool }
	_, err = s.c.get(ctx, query{
		path: "/v1/connect/intentions/check",
		more: url.Values{"source": {probeSource}, "destination": {s.service}},
	}, &checked)
	switch {
	case err == nil && checked.Allowed != nil:
		return action(*checked.Allowed), nil
	case err != nil && (!refused(err) || lacksRights(err)):
		return mesh.Deny, err
	}
	return action(policy == "allow"), nil
}

const (
	// probeAgain is how often the agent is asked once more, and probePause the
	// pause in between, when it answers from an intention that is gone: its own
	// cache hears of a change a moment after we do.
	probeAgain = 20
	probePause = 50 * time.Millisecond
	// probeMatched begins the reason of an answer that an intention has given
	// (Consul 1.20, POST /v1/agent/connect/authorize).
	probeMatched = "Matched"
)

// authorize has the agent decide about a caller that no intention names, so
// that only the default can decide. An answer by an intention all the same is
// not believed: it would make what somebody was allowed a moment ago the
// default for everybody. It returns nil if the agent does not say.
func (s *intentionSource) authorize(ctx context.Context, ask []byte) (*bool, error) {
	for range probeAgain {
		var out struct {
			Authorized *bool
			Reason     string
		}
		_, err := s.c.do(ctx, http.MethodPost, "http://consul/v1/agent/connect/authorize", bytes.NewReader(ask), &out)
		if err != nil || !strings.HasPrefix(out.Reason, probeMatched) {
			return out.Authorized, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(probePause):
		}
	}
	return nil, distrust("the agent decides about %s by an intention that is gone", s.service)
}
