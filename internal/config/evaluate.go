package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

// maxExponent is far above any number of the language. Without it 1e600000000
// would be turned into 600 MB of digits where a text is wanted.
const maxExponent = 256

func stringVal(s string) cty.Value { return cty.StringVal(s) }

// evalContext offers the functions env and file and nothing else.
func evalContext(h host) *hcl.EvalContext {
	one := func(name string, f func(string) (string, error)) function.Function {
		return function.New(&function.Spec{
			Params: []function.Parameter{{Name: name, Type: cty.String}},
			Type:   function.StaticReturnType(cty.String),
			Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
				s, err := f(args[0].AsString())
				if err != nil {
					return cty.NilVal, err
				}
				return cty.StringVal(s), nil
			},
		})
	}
	return &hcl.EvalContext{Functions: map[string]function.Function{
		"env": one("name", func(name string) (string, error) {
			if s, ok := h.env(name); ok {
				return s, nil
			}
			return "", fmt.Errorf("the environment of this process has no variable %q", name)
		}),
		"file": one("path", func(path string) (string, error) {
			if h.read == nil {
				return "", errors.New("files cannot be read here")
			}
			b, err := h.read(path)
			return strings.TrimSpace(string(b)), err
		}),
	}}
}

// evaluate computes the value of an argument, which is written down rather than
// calculated: loops and conditions are refused, so the work is bounded by the
// length of the text.
func (d *decoder) evaluate(a *hclsyntax.Attribute) (cty.Value, bool) {
	w := &walker{d: d, name: a.Name}
	if hclsyntax.Walk(a.Expr, w); w.refused {
		return cty.NilVal, false
	}
	v, diags := a.Expr.Value(d.eval)
	if diags.HasErrors() {
		d.hcl(diags)
		return cty.NilVal, false
	}
	if !v.IsWhollyKnown() {
		d.errorf(a.Expr.Range(), "Unknown value", "%s has no value that is known now.", a.Name)
		return cty.NilVal, false
	}
	return v, true
}

// walker refuses what is more than a value. It reports the first of an expression.
type walker struct {
	d       *decoder
	name    string
	refused bool
	key     int // depth inside keys of maps, where a bare word is a text
}

func (w *walker) Enter(n hclsyntax.Node) hcl.Diagnostics {
	if _, ok := n.(*hclsyntax.ObjectConsKeyExpr); ok {
		w.key++
	}
	if w.refused {
		return nil
	}
	switch n := n.(type) {
	case *hclsyntax.LiteralValueExpr:
		if n.Val.Type() == cty.Number && !n.Val.IsNull() {
			if e := n.Val.AsBigFloat().MantExp(nil); e > maxExponent || e < -maxExponent {
				w.refuse(n.Range(), "Number out of range", "%s is a number that nothing here takes.", w.name)
			}
		}
	case *hclsyntax.ScopeTraversalExpr:
		if w.key > 0 {
			return nil
		}
		if word := hcl.ExprAsKeyword(n); word != "" {
			w.refuse(n.Range(), "Text without quotes", "%s = %s: a text stands in quotes: %q.", w.name, word, word)
			return nil
		}
		w.refuse(n.Range(), "No variables here", "%s: there are no variables; a text stands in quotes.", w.name)
	case *hclsyntax.FunctionCallExpr:
		if _, known := w.d.eval.Functions[n.Name]; !known {
			w.refuse(n.NameRange, "Unknown function", "There is no function %q.%s The functions are env(\"NAME\") and file(\"/PATH\").", n.Name, didYouMean(n.Name, []string{"env", "file"}))
		}
	case hclsyntax.ChildScope, *hclsyntax.ForExpr, *hclsyntax.ConditionalExpr, *hclsyntax.BinaryOpExpr, *hclsyntax.SplatExpr, *hclsyntax.AnonSymbolExpr,
		*hclsyntax.IndexExpr, *hclsyntax.RelativeTraversalExpr, *hclsyntax.TemplateJoinExpr:
		w.refuse(n.Range(), "Calculation not allowed", "%s is calculated; here stand plain values, lists, maps and the functions env(\"NAME\") and file(\"/PATH\").", w.name)
	}
	return nil
}

func (w *walker) Exit(n hclsyntax.Node) hcl.Diagnostics {
	if _, ok := n.(*hclsyntax.ObjectConsKeyExpr); ok {
		w.key--
	}
	return nil
}

func (w *walker) refuse(at hcl.Range, summary, format string, args ...any) {
	w.refused = true
	w.d.errorf(at, summary, format, args...)
}
