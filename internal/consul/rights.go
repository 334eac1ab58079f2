package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// rule is one line of an ACL policy.
type rule struct{ resource, name, access string }

// String returns the rule as HCL.
func (r rule) String() string {
	return fmt.Sprintf("%s %q { policy = %q }", r.resource, r.name, r.access)
}

func ruleText(rules []rule) string {
	text := make([]string, len(rules))
	for i, r := range rules {
		text[i] = r.String()
	}
	return strings.Join(text, "\n")
}

// sidecarName is what Consul and meshd call the proxy of a service.
func sidecarName(service string) string { return service + "-sidecar-proxy" }

// The rules that each purpose needs. Endpoints are proxies: Consul filters them
// by the proxy's own name and by the node they are on.
func endpointRules(service string) []rule {
	return []rule{
		{"service", service, "read"},
		{"service", sidecarName(service), "read"},
		anyNode,
	}
}

func queryRules() []rule { return []rule{anyService, anyNode} }

var (
	anyNode    = rule{"node_prefix", "", "read"}
	anyService = rule{"service_prefix", "", "read"}
)

// offerRules: write also lets sign a leaf and read intentions.
func offerRules(service string) []rule {
	return []rule{{"service", service, "write"}, {"service", sidecarName(service), "write"}}
}

// deniedError is an answer that Consul kept back or shortened for want of
// rights. It says so itself only for a part of them.
type deniedError struct{ err error }

func (e *deniedError) Error() string { return e.err.Error() }
func (e *deniedError) Unwrap() error { return e.err }

// lacksRights is true when Consul refused for want of rights.
func lacksRights(err error) bool {
	var status api.StatusError
	var denied *deniedError
	return errors.As(err, &denied) ||
		errors.As(err, &status) && (status.Code == http.StatusForbidden || status.Code == http.StatusUnauthorized)
}

// unknownToken is true when Consul has no such token (any more).
func unknownToken(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code == http.StatusForbidden && strings.Contains(status.Body, "ACL not found")
}

// missing returns those of rules that the token does not have, as far as Consul
// tells; the first one when it does not. The endpoint is the one that Consul's
// own UI asks what it may show.
func (c *Client) missing(ctx context.Context, token *secret, rules []rule) []rule {
	type ask struct {
		Resource, Segment, Access string
		// Consul refuses the question if the field is in it.
		Allow bool `json:",omitempty"`
	}
	asks := make([]ask, len(rules))
	for i, r := range rules {
		resource, prefix := strings.CutSuffix(r.resource, "_prefix")
		asks[i] = ask{Resource: resource, Segment: r.name, Access: r.access}
		if prefix {
			// Nothing has this name, so only a prefix can allow it.
			asks[i].Segment = r.name + "meshd.any"
		}
	}
	body, err := json.Marshal(asks)
	if err != nil {
		return rules[:1]
	}
	ctx, cancel := context.WithTimeout(withSecret(ctx, token), c.pace.answer)
	defer cancel()
	var answers []ask
	_, err = c.do(ctx, http.MethodPost, "http://consul/v1/internal/acl/authorize", bytes.NewReader(body), &answers)
	if err != nil || len(answers) != len(rules) {
		return rules[:1]
	}
	var lacking []rule
	for i := range answers {
		if !answers[i].Allow {
			lacking = append(lacking, rules[i])
		}
	}
	if len(lacking) == 0 {
		return rules[:1] // it came in between; the next try will show
	}
	return lacking
}

// denial describes what a refused query hurts.
func (c *Client) denial(ctx context.Context, key watchKey, token *secret, rules []rule, err error) *Denied {
	d := &Denied{
		Kind: key.kind, Name: key.name, Datacenter: key.datacenter, Token: token.String(),
		Error: err.Error(), Since: time.Now(),
	}
	switch key.kind {
	case KindService:
		d.What, d.Who = "endpoints of "+key.name, "upstream to "+key.name
	case KindQuery:
		d.What, d.Who = "endpoints by the prepared query "+key.name, "upstream to "+key.name
	case KindChain:
		d.What, d.Who = "discovery chain of "+key.name, "upstream to "+key.name
	case KindLeaf:
		d.What, d.Who = "certificate of "+key.name, "service "+key.name
	case KindIntentions:
		d.What, d.Who = "intentions of "+key.name, "service "+key.name
	case KindRegistration:
		d.What, d.Who = "registration of "+key.name, "service "+key.name
	default:
		d.What, d.Who = string(key.kind), "every service of this host"
	}
	if len(rules) > 0 {
		if unknownToken(err) {
			d.Rule = ruleText(rules)
		} else {
			d.Rule = ruleText(c.missing(ctx, token, rules))
		}
	}
	return d
}

// statusError makes of an answer what the library would.
func statusError(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return err
	}
	return api.StatusError{Code: resp.StatusCode, Body: string(body)}
}

func decode(body io.Reader, out any) error { return json.NewDecoder(body).Decode(out) }
