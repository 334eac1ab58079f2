package wire

import (
	"encoding/hex"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"meshd/internal/mesh"

	"github.com/google/go-cmp/cmp"
)

// block is a fenced block of docs/wire.md: the words after the fence and the text.
type block struct{ info, text string }

func document(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func blocks(t testing.TB) []block {
	t.Helper()
	var bs []block
	for _, m := range regexp.MustCompile("(?ms)^```([^\n]+)\n(.*?)^```$").FindAllStringSubmatch(document(t), -1) {
		bs = append(bs, block{m[1], m[2]})
	}
	if len(bs) == 0 {
		t.Fatal("no fenced blocks in docs/wire.md")
	}
	return bs
}

// named returns the words of the one block with that info.
func named(t testing.TB, info string) []string {
	t.Helper()
	var found []string
	for _, b := range blocks(t) {
		if b.info == info {
			found = append(found, b.text)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d blocks %q in docs/wire.md, want 1", len(found), info)
	}
	return strings.Fields(found[0])
}

// octets reads the hexadecimal of a vector, without the remarks.
func octets(t testing.TB, text string) []byte {
	t.Helper()
	var sb strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, ";")
		sb.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(sb.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rows returns the cells of the table under that header row.
func rows(t testing.TB, head string) [][]string {
	t.Helper()
	_, after, ok := strings.Cut(document(t), "\n"+head+"\n")
	if !ok {
		t.Fatalf("no table %q in docs/wire.md", head)
	}
	var out [][]string
	for line := range strings.Lines(after) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if !strings.HasPrefix(cells[0], "--") {
			out = append(out, cells)
		}
	}
	return out
}

func same(t *testing.T, what string, document, code any) {
	t.Helper()
	if d := cmp.Diff(document, code); d != "" {
		t.Errorf("%s: docs/wire.md (-) and the code (+) differ:\n%s", what, d)
	}
}

func TestDocumentIndexes(t *testing.T) {
	var fields []string
	for k := mesh.OtherField + 1; k <= lastStatic; k++ {
		fields = append(fields, strconv.Itoa(int(k)), k.String())
	}
	pairs := map[string]string{}
	for w := named(t, "fields"); len(w) > 1; w = w[2:] {
		pairs[w[0]] = w[1]
	}
	var doc []string
	for i := 1; i <= len(pairs); i++ {
		n := strconv.Itoa(i)
		doc = append(doc, n, pairs[n])
	}
	same(t, "field names", doc, fields)

	table := func(names [][]byte) (words []string) {
		for i, n := range names[1:] {
			words = append(words, strconv.Itoa(i+1), string(n))
		}
		return words
	}
	same(t, "methods", named(t, "methods"), table(methods[:]))
	same(t, "schemes", named(t, "schemes"), table(schemes[:]))
	for i, m := range methods[1:] {
		if got := methodIndex(m); int(got) != i+1 {
			t.Errorf("methodIndex(%s) = %d, want %d", m, got, i+1)
		}
	}
	for i, s := range schemes[1:] {
		if got := schemeIndex(s); int(got) != i+1 {
			t.Errorf("schemeIndex(%s) = %d, want %d", s, got, i+1)
		}
	}
}

// A number that a release sends and the one before it does not know would lose
// a field: the tables of a version are closed.
func TestIndexesAreFrozen(t *testing.T) {
	if lastStatic != 62 || lastStatic.String() != "www-authenticate" {
		t.Errorf("last index of meshd/1 is %d %s, want 62 www-authenticate", lastStatic, lastStatic)
	}
	if n := len(methods) - 1; n != 8 {
		t.Errorf("%d methods have an index, meshd/1 has 8", n)
	}
	if n := len(schemes) - 1; n != 2 {
		t.Errorf("%d schemes have an index, meshd/1 has 2", n)
	}
	if indexed(lastStatic + 1) {
		t.Error("a name after the last index would be sent as an index")
	}
}

func TestDocumentRules(t *testing.T) {
	collect := func(r rule) map[string]bool {
		m := map[string]bool{}
		for k := range mesh.KnownCount {
			if rules[k]&r != 0 {
				m[k.String()] = true
			}
		}
		return m
	}
	set := func(words []string) map[string]bool {
		m := map[string]bool{}
		for _, w := range words {
			m[w] = true
		}
		return m
	}
	same(t, "connection fields", set(named(t, "connection-fields")), collect(ruleConnection))
	same(t, "not trailers", set(named(t, "no-trailers")), collect(ruleNoTrailer))
}

func TestDocumentFrames(t *testing.T) {
	var code [][]string
	for typ := TypeOpen; typ < typeCount; typ++ {
		s := shapes[typ]
		stream := "yes"
		if s.link {
			stream = "0"
		}
		size := strconv.Itoa(int(s.min)) + " to " + strconv.Itoa(int(s.max))
		code = append(code, []string{strconv.Itoa(int(typ)), typ.String(), stream, size})
	}
	var doc [][]string
	for _, r := range rows(t, "| type | name | from | stream | payload octets | payload |") {
		size, _, _ := strings.Cut(r[4], ";")
		doc = append(doc, []string{r[0], r[1], r[3], size})
	}
	same(t, "frames", doc, code)
}

func TestDocumentCodes(t *testing.T) {
	var doc, code []string
	for _, r := range rows(t, "| code | name | means for the receiver |") {
		doc = append(doc, r[0]+" "+r[1])
	}
	for c := range codeCount {
		code = append(code, strconv.Itoa(int(c))+" "+c.String())
	}
	same(t, "codes", doc, code)
	if got := codeCount.String(); got != "unknown" {
		t.Errorf("code %d is called %q, want unknown", codeCount, got)
	}
}

func TestDocumentOptions(t *testing.T) {
	var doc []string
	for _, r := range rows(t, "| tag | option | value |") {
		doc = append(doc, r[0]+" "+r[1])
	}
	same(t, "options", doc, []string{
		strconv.Itoa(optionEndpoint) + " endpoint", strconv.Itoa(optionUnit) + " unit", strconv.Itoa(optionUpgrade) + " upgrade",
	})
}

func TestDocumentLimits(t *testing.T) {
	var doc []string
	for _, r := range rows(t, "| limit | value | of |") {
		doc = append(doc, r[0]+" "+r[1])
	}
	var code []string
	for _, l := range []struct {
		name  string
		value int
	}{
		{"HeaderLen", HeaderLen}, {"MaxHead", MaxHead}, {"MaxData", MaxData}, {"MaxControl", MaxControl},
		{"MaxFields", MaxFields}, {"MaxStreams", MaxStreams}, {"InitialCredit", InitialCredit}, {"MaxCredit", MaxCredit},
	} {
		code = append(code, l.name+" "+strconv.Itoa(l.value))
	}
	same(t, "limits", doc, code)
	if !strings.Contains(document(t), "ALPN name `"+ALPN+"`") {
		t.Errorf("docs/wire.md does not name %s", ALPN)
	}
}
