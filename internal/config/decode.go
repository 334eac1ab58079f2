package config

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// body is a block as it was written, checked against the table: every value
// has its Go type, and what is not in the table is not in here.
type body struct {
	block  *block
	label  string
	at     hcl.Range // of the block's name and label
	values map[string]value
	inner  map[string][]*body // by name, in the order of appearance
}

type value struct {
	v     any
	at    hcl.Range // of the expression
	wrong bool      // already reported; v is nil
}

func newBody(b *block, at hcl.Range) *body {
	return &body{block: b, at: at, values: make(map[string]value), inner: make(map[string][]*body)}
}

// decoder walks files along the table.
type decoder struct {
	*reporter
	eval *hcl.EvalContext
	lang *block
}

// decode adds what in holds to out. path is that of out's block.
func (d *decoder) decode(in *hclsyntax.Body, out *body, path string) {
	b := out.block
	for _, a := range slices.SortedFunc(maps.Values(in.Attributes), func(a, b *hclsyntax.Attribute) int {
		return cmp.Compare(a.NameRange.Start.Byte, b.NameRange.Start.Byte)
	}) {
		if s := b.attr(a.Name); s != nil {
			d.attribute(s, a, out)
		} else {
			d.unknownAttribute(a, b, path)
		}
	}
	for _, in := range in.Blocks {
		s := b.block(in.Type)
		if s == nil {
			d.unknownBlock(in, b, path)
			continue
		}
		inner := newBody(s, hcl.RangeBetween(in.TypeRange, lastLabel(in)))
		labelled := d.label(in, inner)
		d.decode(in.Body, inner, join(path, s.name))
		if !labelled {
			d.incomplete = true
			continue
		}
		if had := out.inner[s.name]; len(had) > 0 && !s.many {
			d.clashf(inner.at, had[0].at, "Duplicate block", "The block %s may be given once%s, and is already at %s. Put everything into one of them.",
				s.name, within(path), short(had[0].at))
			continue
		}
		out.inner[s.name] = append(out.inner[s.name], inner)
	}
	for i := range b.attrs {
		if _, given := out.values[b.attrs[i].name]; b.attrs[i].required && !given {
			d.errorf(out.at, "Missing argument", "The argument %q is required: %s.", b.attrs[i].name, b.attrs[i].meaning)
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func within(path string) string {
	if path == "" {
		return ""
	}
	return " in " + path
}

func lastLabel(b *hclsyntax.Block) hcl.Range {
	if n := len(b.LabelRanges); n > 0 {
		return b.LabelRanges[n-1]
	}
	return b.TypeRange
}

// attribute evaluates one argument. A null is as if it were not written.
func (d *decoder) attribute(s *attr, a *hclsyntax.Attribute, out *body) {
	at := a.Expr.Range()
	v, ok := d.evaluate(a)
	if !ok {
		out.values[s.name] = value{at: at, wrong: true}
		return
	}
	if v.IsNull() {
		return
	}
	got, f := s.kind.parse(v)
	if f != nil {
		d.errorf(at, f.summary, "%s %s", s.name, f.detail)
		out.values[s.name] = value{at: at, wrong: true}
		return
	}
	out.values[s.name] = value{v: got, at: at}
}

// label checks the text after a block's name.
func (d *decoder) label(in *hclsyntax.Block, out *body) bool {
	want := out.block.label
	switch {
	case want == nil && len(in.Labels) > 0:
		d.errorf(in.LabelRanges[0], "Unexpected label", "A block %s has no label: write %s … }.", in.Type, out.block.usage())
		return true
	case want == nil:
		return true
	case len(in.Labels) == 0:
		d.errorf(in.TypeRange, "Missing label", "A block %s needs a label: write %s … }.", in.Type, out.block.usage())
		return false
	case len(in.Labels) > 1:
		d.errorf(in.LabelRanges[1], "Unexpected label", "A block %s has one label: write %s … }.", in.Type, out.block.usage())
	}
	out.label = in.Labels[0]
	if _, f := want.kind.parse(stringVal(out.label)); f != nil {
		d.errorf(in.LabelRanges[0], f.summary, "The label of %s %s", in.Type, f.detail)
		return false
	}
	return true
}

func (d *decoder) unknownAttribute(a *hclsyntax.Attribute, b *block, path string) {
	at := a.NameRange
	switch {
	case slices.Contains(b.later, a.Name):
		d.notYet(at, a.Name, path)
	case b.block(a.Name) != nil:
		d.errorf(at, "Block expected", "%s is a block: write %s … } without \"=\".", a.Name, b.block(a.Name).usage())
		d.incomplete = true
	case len(b.attrs) == 0 && path == "":
		d.errorf(at, "Unexpected argument", "There are no arguments outside blocks.%s Blocks that may stand here: %s.",
			d.hint(a.Name, b), strings.Join(b.blockNames(), ", "))
	default:
		d.errorf(at, "Unexpected argument", "There is no argument %q in %s.%s%s", a.Name, path, d.hint(a.Name, b), allowedArguments(b))
	}
}

func (d *decoder) unknownBlock(in *hclsyntax.Block, b *block, path string) {
	at := in.TypeRange
	switch {
	case slices.Contains(b.later, in.Type):
		d.notYet(at, in.Type, path)
	case b.attr(in.Type) != nil:
		d.errorf(at, "Argument expected", "%s is an argument: write %s = … instead of a block.", in.Type, in.Type)
	case path == "":
		d.errorf(at, "Unexpected block", "There is no block %q.%s Blocks that may stand here: %s.", in.Type, d.hint(in.Type, b), strings.Join(b.blockNames(), ", "))
		d.incomplete = true
	default:
		allowed := allowedArguments(b)
		if names := b.blockNames(); len(names) > 0 {
			allowed = " Blocks that may stand here: " + strings.Join(names, ", ") + "."
		}
		d.errorf(at, "Unexpected block", "There is no block %q in %s.%s%s", in.Type, path, d.hint(in.Type, b), allowed)
	}
}

// notYet refuses what a later version will do: to ignore it would be to do
// something else than the file says.
func (d *decoder) notYet(at hcl.Range, name, path string) {
	d.errorf(at, "Not supported yet", "%q%s is not supported yet by this version of meshd. Remove it.", name, within(path))
}

// maxHints is how many findings get a suggestion. There is a reader for
// maxDiagnostics of them only, and comparing with every name takes its time.
const maxHints = 10 * maxDiagnostics

// hint suggests a near name of this block, else the block that has the name.
func (d *decoder) hint(name string, b *block) string {
	if len(d.list) > maxHints {
		return ""
	}
	here := slices.Concat(b.attrNames(), b.blockNames(), b.later)
	if s := suggest(name, here, maxTypos); slices.Contains(b.later, s) {
		return " Did you mean \"" + s + "\"? It is not supported yet."
	} else if s != "" {
		return " Did you mean \"" + s + "\"?"
	}
	meant := ""
	now, later := d.lang.where(name, "")
	if len(now)+len(later) == 0 {
		if name = suggest(name, d.lang.names(), 1); name == "" {
			return ""
		}
		meant = " Did you mean \"" + name + "\"?"
		now, later = d.lang.where(name, "")
	}
	switch {
	case len(now) > 0:
		return meant + " \"" + name + "\" belongs " + strings.Join(now, " or ") + "."
	case len(later) > 0:
		return meant + " \"" + name + "\" belongs " + strings.Join(later, " or ") + ", and is not supported yet."
	}
	return meant
}

func allowedArguments(b *block) string {
	if len(b.attrs) == 0 {
		if len(b.blocks) > 0 {
			return " Blocks that may stand here: " + strings.Join(b.blockNames(), ", ") + "."
		}
		return " Nothing stands in this block."
	}
	return " Arguments that may stand here: " + strings.Join(b.attrNames(), ", ") + "."
}
