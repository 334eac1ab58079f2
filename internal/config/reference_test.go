package config

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

// samples has two values for every attribute, neither of them needing
// another attribute's help. They are written here, not taken from the table,
// so that an attribute of the table without effect is found.
var samples = map[string][2]string{
	"agent.node_name":                               {`"a"`, `"b"`},
	"agent.data_dir":                                {`"/a"`, `"/b"`},
	"agent.log_level":                               {`"warn"`, `"debug"`},
	"agent.log_format":                              {`"text"`, `"json"`},
	"agent.loops":                                   {`1`, `3`},
	"agent.drain_timeout":                           {`"1s"`, `"0s"`},
	"agent.access_log":                              {`true`, `false`},
	"agent.persist_keys":                            {`false`, `true`},
	"agent.key_file":                                {`"/a"`, `"/b"`},
	"admin.socket":                                  {`"/a"`, `"/b"`},
	"admin.group":                                   {`"a"`, `"b"`},
	"admin.http":                                    {`"127.0.0.1:1"`, `""`},
	"consul.address":                                {`"a:1"`, `"127.0.0.1:1"`},
	"consul.datacenter":                             {`"a"`, `"b"`},
	"consul.token_file":                             {`"/a"`, `"/b"`},
	"consul.tls.ca_file":                            {`"/a"`, `"/b"`},
	"consul.tls.cert_file":                          {`"/a"`, `"/b"`},
	"consul.tls.key_file":                           {`"/a"`, `"/b"`},
	"consul.tls.server_name":                        {`"a.example"`, `"10.0.0.1"`},
	"consul.stale.warn_after":                       {`"2m"`, `"3m"`},
	"consul.stale.drop_after":                       {`"1h"`, `"2h"`},
	"consul.stale.shrink_after":                     {`"0s"`, `"2m"`},
	"identity.provider":                             {`"consul"`, `"dev"`},
	"identity.service":                              {`"a"`, `"b"`},
	"identity.dev.dir":                              {`"/a"`, `"/b"`},
	"dns.domain":                                    {`"a"`, `"b.c"`},
	"dns.address":                                   {`"127.0.0.1:1"`, `"[::1]:0"`},
	"dns.ttl":                                       {`"1s"`, `"1m"`},
	"loopback.cidr":                                 {`"127.78.0.0/16"`, `"127.79.1.0/24"`},
	"peer.bind":                                     {`"10.0.0.1:1"`, `"[::]:0"`},
	"peer.advertise":                                {`"10.0.0.1"`, `"2001:db8::1"`},
	"service.id":                                    {`"a"`, `"b"`},
	"service.address":                               {`"127.0.0.2"`, `"::1"`},
	"service.port":                                  {`1`, `65535`},
	"service.protocol":                              {`"tcp"`, `"http"`},
	"service.tags":                                  {`["a"]`, `["a", "b"]`},
	"service.meta":                                  {`{ a = "1" }`, `{ a = "2" }`},
	"service.connect_timeout":                       {`"2s"`, `"off"`},
	"service.request_timeout":                       {`"2s"`, `"3s"`},
	"service.idle_timeout":                          {`"2s"`, `"off"`},
	"service.token_file":                            {`"/a"`, `"/b"`},
	"service.check.http":                            {`"/a"`, `"/b?c=d"`},
	"service.check.tcp":                             {`true`, "false\nhttp = \"/a\""}, // false checks nothing by itself
	"service.check.grpc":                            {`"a.B"`, `"-"`},
	"service.check.interval":                        {`"1s"`, `"1m"`},
	"service.check.timeout":                         {`"1s"`, `"1m"`},
	"service.limits.max_connections":                {`1`, `2`},
	"service.limits.max_pending_requests":           {`1`, `2`},
	"service.limits.max_concurrent_requests":        {`1`, `2`},
	"upstream.destination_name":                     {`"a"`, `"b"`},
	"upstream.destination_type":                     {`"service"`, `"prepared_query"`},
	"upstream.datacenter":                           {`"a"`, `"b"`},
	"upstream.from":                                 {`"caller"`, `"x"`},
	"upstream.protocol":                             {`"tcp"`, `"http"`},
	"upstream.local_bind_port":                      {`1`, `2`},
	"upstream.local_bind_address":                   {`"127.0.0.2"`, `"::1"`},
	"upstream.local_bind_socket_path":               {`"/run/meshd/a"`, `"/run/meshd/b/c"`},
	"upstream.local_bind_socket_mode":               {`"0600"`, `"666"`},
	"upstream.connect_timeout":                      {`"2s"`, `"off"`},
	"upstream.request_timeout":                      {`"2s"`, `"3s"`},
	"upstream.idle_timeout":                         {`"2s"`, `"off"`},
	"upstream.circuit_breaker.consecutive_failures": {`0`, `1`},
	"upstream.circuit_breaker.open_for":             {`"2s"`, `"1m"`},
	"upstream.load_balancer.policy":                 {`"least_request"`, `"least_request"`},
	"upstream.load_balancer.least_request.choice_count": {`3`, `4`},
	"upstream.limits.max_connections":                   {`1`, `2`},
	"upstream.limits.max_pending_requests":              {`1`, `2`},
	"upstream.limits.max_concurrent_requests":           {`1`, `2`},
	"defaults.connect_timeout":                          {`"2s"`, `"off"`},
	"defaults.request_timeout":                          {`"2s"`, `"off"`},
	"defaults.idle_timeout":                             {`"2s"`, `"off"`},
	"defaults.circuit_breaker.consecutive_failures":     {`0`, `1`},
	"defaults.circuit_breaker.open_for":                 {`"2s"`, `"1m"`},
	"defaults.load_balancer.policy":                     {`"least_request"`, `"least_request"`},
	"defaults.load_balancer.least_request.choice_count": {`3`, `4`},
	"defaults.limits.max_connections":                   {`1`, `2`},
	"defaults.limits.max_pending_requests":              {`1`, `2`},
	"defaults.limits.max_concurrent_requests":           {`1`, `2`},
	"catalog.service.port":                              {`1`, `2`},
	"catalog.service.endpoint.address":                  {`"10.0.0.1:1"`, `"10.0.0.2:1"`},
	"catalog.service.endpoint.weight":                   {`2`, `3`},
	"catalog.service.endpoint.meta":                     {`{ a = "1" }`, `{ a = "2" }`},
}

// company is what has to stand beside an attribute for it to be allowed or to
// have an effect, inside its block.
var company = map[string]string{
	"service":                          "port = 7\n",
	"service.request_timeout":          "protocol = \"http\"\nport = 7\n",
	"service.port":                     "",
	"upstream.request_timeout":         "protocol = \"http\"\n",
	"upstream.local_bind_address":      "local_bind_port = 7\n",
	"upstream.local_bind_socket_mode":  "local_bind_socket_path = \"/run/meshd/a\"\n",
	"consul.tls.cert_file":             "key_file = \"/k\"\n",
	"consul.tls.key_file":              "cert_file = \"/c\"\n",
	"service.check.interval":           "tcp = true\n",
	"service.check.timeout":            "tcp = true\n",
	"catalog.service.endpoint":         "address = \"10.0.0.9:9\"\n",
	"catalog.service.endpoint.address": "",
}

// fixed is what stands in every sample file beside the attribute, so that
// each block has something to act on.
func fixed(path string) string {
	switch {
	case path == "identity.dev.dir":
		return ""
	case strings.HasPrefix(path, "identity."):
		return "service \"caller\" {\n  port = 6\n}\n"
	}
	s := "identity {\n  service = \"x\"\n}\nservice \"caller\" {\n  port = 6\n}\n"
	if strings.HasPrefix(path, "defaults.") {
		s += "upstream \"heir\" {\n  protocol = \"http\"\n}\n"
	}
	return s
}

// write puts text into the block at path, its labels filled in.
func write(path, text string) string {
	b := language()
	var open, shut string
	for name := range strings.SplitSeq(path, ".") {
		b = b.block(name)
		open += b.name
		if b.label != nil && b.name == "catalog" {
			open += ` "static"`
		} else if b.label != nil {
			open += ` "sample"`
		}
		open += " {\n"
		shut += "}\n"
	}
	switch path { // what the outer block needs for the inner one
	case "identity.dev":
		open = strings.Replace(open, "identity {\n", "identity {\nprovider = \"dev\"\n", 1)
	case "service.limits", "service.check":
		open = strings.Replace(open, "{\n", "{\nport = 7\n", 1)
	}
	return open + text + shut
}

// Every attribute of the reference is accepted, has an effect, and that effect
// comes when the reference says.
func TestReferenceHasEffect(t *testing.T) {
	seen := make(map[string]bool)
	for _, a := range Reference() {
		path := a.Path()
		seen[path] = true
		if a.IsBlock {
			continue
		}
		values, ok := samples[path]
		if !ok {
			t.Errorf("%s has no sample", path)
			continue
		}
		t.Run(path, func(t *testing.T) {
			beside, ok := company[path]
			if !ok {
				beside = company[a.Block]
			}
			var configs [2]*Config
			for i, v := range values {
				text := fixed(path) + write(a.Block, beside+a.Name+" = "+v+"\n")
				c, err := parse(map[string][]byte{"meshd.hcl": []byte(text)}, testHost(nil))
				if err != nil {
					t.Fatalf("%s\n%v", text, err)
				}
				configs[i] = c
			}
			changes, restart := Diff(configs[0], configs[1])
			if strings.HasSuffix(path, "load_balancer.policy") {
				return // one policy, nothing to change
			}
			got, other := changes, restart
			if a.Reload == OnRestart {
				got, other = restart, changes
			}
			if len(other) > 0 {
				t.Errorf("takes effect at %s, but: %v", a.Reload, other)
			}
			if len(got) == 0 {
				t.Fatalf("%v make no difference", values)
			}
			if self, _ := Diff(configs[0], configs[0]); len(self) > 0 {
				t.Errorf("differs from itself: %v", self)
			}
		})
	}
	for path := range samples {
		if !seen[path] {
			t.Errorf("a sample for %s, which the reference does not have", path)
		}
	}
}

// The decoder accepts a name in a block exactly if the reference has it there.
// Every name of the language is tried in every block.
func TestReferenceIsAllThatIsAccepted(t *testing.T) {
	attributes, blocks := make(map[string]bool), make(map[string]bool)
	names, paths := map[string]bool{"surprise": true}, []string{""}
	for _, a := range Reference() {
		names[a.Name] = true
		if a.IsBlock {
			blocks[a.Path()] = true
			paths = append(paths, a.Path())
		} else {
			attributes[a.Path()] = true
		}
	}
	for _, name := range language().names() {
		names[name] = true // those that are not supported yet, too
	}
	for _, path := range paths {
		for name := range names {
			for _, try := range []struct {
				text     string
				accepted map[string]bool
			}{{name + " = null\n", attributes}, {name + " \"static\" {}\n", blocks}} {
				text := try.text
				if path != "" {
					text = write(path, text)
				}
				_, err := parse(map[string][]byte{"meshd.hcl": []byte(text)}, testHost(nil))
				refused := err != nil && slices.ContainsFunc(err.(*Diagnostics).List, func(d Diagnostic) bool {
					switch d.Summary {
					case "Unexpected argument", "Unexpected block", "Not supported yet", "Block expected", "Argument expected":
						return true
					}
					return false
				})
				if want := try.accepted[join(path, name)]; refused == want {
					t.Errorf("in %q, %q: in the reference %v, refused %v", path, strings.TrimSpace(try.text), want, refused)
				}
			}
		}
	}
}

// The table itself: defaults are values that are allowed, nothing is left out.
func TestReferenceIsComplete(t *testing.T) {
	var walk func(b *block, path string)
	walk = func(b *block, path string) {
		for i := range b.attrs {
			a := &b.attrs[i]
			if a.meaning == "" || a.kind.typ == "" || a.reload == "" {
				t.Errorf("%s.%s lacks its meaning, type or reload behaviour", path, a.name)
			}
			if a.required == (a.def != "") {
				t.Errorf("%s.%s: required %v and default %q", path, a.name, a.required, a.def)
			}
			if a.def != "" && a.def[0] != '(' {
				mustDefault(a)
			}
		}
		for _, c := range b.blocks {
			if c.meaning == "" {
				t.Errorf("%s.%s lacks its meaning", path, c.name)
			}
			walk(c, join(path, c.name))
		}
	}
	walk(language(), "")
}

const manual = "../../docs/configuration.md"

// docs/configuration.md has, between marks, what the reference says about
// every block: no more, no less. Run with -update to write it anew.
func TestReferenceIsDocumented(t *testing.T) {
	text, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(text)
	want := make(map[string]string)
	for path, rows := range chapters() {
		want[path] = rows
	}
	const begin, end = "<!-- reference: ", "<!-- end -->\n"
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(doc, begin)
		out.WriteString(before)
		if !found {
			break
		}
		path, rest, ok := strings.Cut(rest, " -->\n")
		got, after, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("a mark in %s is not closed near %q", manual, rest[:min(len(rest), 40)])
		}
		rows, known := want[path]
		if !known {
			t.Errorf("%s documents %q, which does not exist or is there twice", manual, path)
		}
		delete(want, path)
		if diff := cmp.Diff(rows, got); diff != "" && !*update {
			t.Errorf("%s (-code +document)\n%s", path, diff)
		}
		out.WriteString(begin + path + " -->\n" + rows + end)
		doc = after
	}
	for path := range want {
		t.Errorf("%s does not document %q", manual, path)
	}
	if *update {
		if err := os.WriteFile(manual, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// chapters returns what the manual says between the marks, by path of the block.
func chapters() map[string]string {
	m := make(map[string]string)
	var b strings.Builder
	for _, a := range Reference() {
		if !a.IsBlock {
			continue
		}
		b.Reset()
		head := a.Name
		if a.Label != "" {
			head += " \"" + a.Label + "\""
		}
		fmt.Fprintf(&b, "`%s { … }`: %s.", head, a.Meaning)
		if a.Many {
			b.WriteString(" May be given more than once.")
		}
		if a.Label != "" {
			fmt.Fprintf(&b, " The label: %s.", a.Allowed)
		}
		b.WriteString("\n")
		first := true
		for _, in := range Reference() {
			if in.IsBlock || in.Block != a.Path() {
				continue
			}
			if first {
				b.WriteString("\n| attribute | type | default | allowed | takes effect at | meaning |\n|---|---|---|---|---|---|\n")
				first = false
			}
			typ, def := in.Type, "`"+in.Default+"`"
			if in.Unit != "" {
				typ += ", " + in.Unit
			}
			switch {
			case in.Required:
				def = "required"
			case strings.HasPrefix(in.Default, "("):
				def = strings.Trim(in.Default, "()")
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", in.Name, typ, def, in.Allowed, in.Reload, in.Meaning)
		}
		m[a.Path()] = b.String()
	}
	return m
}

// The examples that are shipped load, use every argument or name it in a
// comment, and give no warnings.
func TestExamples(t *testing.T) {
	const dir = "../../configs"
	c, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range c.Warnings {
		t.Errorf("warning: %s", w)
	}
	var all strings.Builder
	for _, name := range c.Files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
		if want := hclwrite.Format(b); !bytes.Equal(want, b) {
			t.Errorf("%s is not in the usual format (-usual +file)\n%s", name, cmp.Diff(string(want), string(b)))
		}
	}
	on, err := filepath.Glob(dir + "/conf.d/*.hcl")
	if err != nil || len(on)+1 != len(c.Files) {
		t.Errorf("loaded %v, found %v, %v", c.Files, on, err)
	}
	for _, a := range Reference() {
		if !strings.Contains(all.String(), a.Name) {
			t.Errorf("no example shows %s", a.Path())
		}
	}
}
