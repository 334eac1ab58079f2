package config

import (
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"
)

// jsonSuffix ends the names of files in HCL's JSON syntax.
const jsonSuffix = ".json"

// jsonReader turns a file in HCL's JSON syntax into the tree of the native
// syntax, so that everything behind it knows one language only. In JSON a block
// looks like an argument; the table says which it is.
type jsonReader struct {
	*reporter
}

// parseJSON is parse for a file in JSON.
func (r *reporter) parseJSON(s *source, lang *block) {
	start := hcl.Pos{Line: 1, Column: 1}
	whole := hcl.Range{Filename: s.name, Start: start, End: start}
	if !utf8.Valid(s.bytes) {
		r.errorf(whole, "Invalid character encoding", "A file is text in UTF-8, and this one has other bytes in it.")
		r.incomplete = true
		return
	}
	if jsonDepth(s.bytes) > maxNesting {
		r.errorf(whole, "Nested too deeply", "There are more than %d brackets open in this file.", maxNesting)
		r.incomplete = true
		return
	}
	root, diags := hcljson.ParseExpressionWithStartPos(s.bytes, s.name, start)
	if diags.HasErrors() {
		r.hcl(plainSyntax(diags))
		r.incomplete = true
		return
	}
	j := jsonReader{r}
	objects, ok := j.objects(root)
	if !ok {
		r.errorf(root.StartRange(), "Object expected", "A configuration in JSON is an object: { \"upstream\": { \"NAME\": { … } } }.")
		r.incomplete = true
		return
	}
	s.body = j.body(lang, objects...)
}

// jsonDepth counts how many brackets are open at most, so that the recursive
// parser is only given what it can hold.
func jsonDepth(b []byte) int {
	depth, most, text := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case text && c == '\\':
			i++
		case c == '"':
			text = !text
		case text:
		case c == '{' || c == '[':
			depth++
			most = max(most, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return most
}

// objects returns the object that e is, or those in the list that e is. A null
// is as if nothing were written.
func (j jsonReader) objects(e hcl.Expression) ([]hcl.Expression, bool) {
	if isObject(e) {
		return []hcl.Expression{e}, true
	}
	if isNull(e) {
		return nil, true
	}
	list, diags := hcl.ExprList(e)
	if diags.HasErrors() {
		return nil, false
	}
	for _, in := range list {
		if !isObject(in) {
			return nil, false
		}
	}
	return list, true
}

func isObject(e hcl.Expression) bool {
	_, diags := hcl.ExprMap(e)
	return !diags.HasErrors()
}

func isList(e hcl.Expression) bool {
	_, diags := hcl.ExprList(e)
	return !diags.HasErrors()
}

func isNull(e hcl.Expression) bool {
	v, _ := e.Value(nil)
	return v.IsNull()
}

// body puts the members of objects into one body of block b.
func (j jsonReader) body(b *block, objects ...hcl.Expression) *hclsyntax.Body {
	out := &hclsyntax.Body{Attributes: make(hclsyntax.Attributes)}
	for _, object := range objects {
		out.SrcRange, out.EndRange = object.Range(), object.Range()
		members, _ := hcl.ExprMap(object)
		for _, m := range members {
			name, at := key(m)
			switch inner := b.block(name); {
			case name == "//": // a comment, by HCL's rules for JSON
			case inner != nil:
				j.blocks(out, inner, at, m.Value)
			case b.attr(name) == nil && (isObject(m.Value) || isList(m.Value)):
				out.Blocks = append(out.Blocks, j.one(&block{}, name, at, nil, m.Value)) // unknown, and probably meant as a block
			case out.Attributes[name] != nil:
				j.errorf(at, "Attribute redefined", "The argument %q was already set at %s. Each argument may be set only once.", name, short(out.Attributes[name].NameRange))
			default:
				out.Attributes[name] = &hclsyntax.Attribute{
					Name: name, Expr: j.expression(m.Value), NameRange: at,
					SrcRange: hcl.RangeBetween(at, m.Value.Range()), EqualsRange: at,
				}
			}
		}
	}
	return out
}

func key(m hcl.KeyValuePair) (string, hcl.Range) {
	v, _ := m.Key.Value(nil)
	return v.AsString(), m.Key.Range()
}

// blocks adds the blocks of kind b that e holds: an object or a list of them,
// below the labels where the kind has one.
func (j jsonReader) blocks(out *hclsyntax.Body, b *block, at hcl.Range, e hcl.Expression) {
	objects, ok := j.objects(e)
	if !ok {
		j.errorf(e.StartRange(), "Object expected", "%s is a block, which in JSON is an object, or a list of them.", b.name)
		j.incomplete = true
		return
	}
	for _, object := range objects {
		if b.label == nil {
			out.Blocks = append(out.Blocks, j.one(b, b.name, at, nil, object))
			continue
		}
		members, _ := hcl.ExprMap(object)
		for _, m := range members {
			label, labelAt := key(m)
			same, ok := j.objects(m.Value)
			if !ok {
				j.errorf(m.Value.StartRange(), "Object expected", "%s is a block with a label, which in JSON is { \"%s\": { … } }.", b.name, b.label.is)
				j.incomplete = true
				continue
			}
			for _, in := range same {
				// Its place is that of the label: the name stands once for all.
				out.Blocks = append(out.Blocks, j.one(b, b.name, labelAt, &label, in))
			}
		}
	}
}

func (j jsonReader) one(b *block, name string, at hcl.Range, label *string, object hcl.Expression) *hclsyntax.Block {
	all := object.Range()
	shut := all
	shut.Start = shut.End
	out := &hclsyntax.Block{Type: name, TypeRange: at, OpenBraceRange: object.StartRange(), CloseBraceRange: shut}
	if label != nil {
		out.Labels, out.LabelRanges = []string{*label}, []hcl.Range{at}
	}
	if len(b.attrs)+len(b.blocks)+len(b.later) == 0 && b.name == "" { // unknown: what is inside does not matter
		out.Body = &hclsyntax.Body{SrcRange: all, EndRange: all}
	} else {
		out.Body = j.body(b, object)
	}
	return out
}

// expression is a JSON value as the native syntax has it. A text may hold
// ${…} there as here.
func (j jsonReader) expression(e hcl.Expression) hclsyntax.Expression {
	if members, diags := hcl.ExprMap(e); !diags.HasErrors() {
		out := &hclsyntax.ObjectConsExpr{SrcRange: e.Range(), OpenRange: e.StartRange()}
		for _, m := range members {
			name, at := key(m)
			out.Items = append(out.Items, hclsyntax.ObjectConsItem{
				KeyExpr:   &hclsyntax.ObjectConsKeyExpr{Wrapped: literal(cty.StringVal(name), at)},
				ValueExpr: j.expression(m.Value),
			})
		}
		return out
	}
	if list, diags := hcl.ExprList(e); !diags.HasErrors() {
		out := &hclsyntax.TupleConsExpr{SrcRange: e.Range(), OpenRange: e.StartRange()}
		for _, in := range list {
			out.Exprs = append(out.Exprs, j.expression(in))
		}
		return out
	}
	v, _ := e.Value(nil)
	if v.Type() == cty.String && !v.IsNull() && (strings.Contains(v.AsString(), "${") || strings.Contains(v.AsString(), "%{")) {
		return j.template(v.AsString(), e.Range())
	}
	return literal(v, e.Range())
}

func literal(v cty.Value, at hcl.Range) hclsyntax.Expression {
	return &hclsyntax.LiteralValueExpr{Val: v, SrcRange: at}
}

// template reads a text with ${…} in it. Places inside are those of the text,
// roughly: escapes of JSON are longer than what they stand for. That is why
// such a text has no line ends, which would move the places behind it.
func (j jsonReader) template(text string, at hcl.Range) hclsyntax.Expression {
	wrong := func(summary, detail string) hclsyntax.Expression {
		j.errorf(at, summary, "%s", detail)
		return literal(cty.NullVal(cty.String), at)
	}
	if strings.ContainsAny(text, "\r\n") {
		return wrong("Text over several lines", "A text with ${…} in it stands on one line.")
	}
	start := hcl.Pos{Line: at.Start.Line, Column: at.Start.Column + 1, Byte: at.Start.Byte + 1}
	tokens, diags := hclsyntax.LexTemplate([]byte(text), at.Filename, start)
	if !diags.HasErrors() {
		if _, what := tooDeep(tokens); what != "" {
			return wrong("Nested too deeply", what)
		}
	}
	expr, diags := hclsyntax.ParseTemplate([]byte(text), at.Filename, start)
	if diags.HasErrors() {
		for _, d := range diags {
			d.Subject = &at
		}
		j.hcl(plainSyntax(diags))
		return literal(cty.NullVal(cty.String), at)
	}
	return expr
}
