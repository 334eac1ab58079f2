package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"meshd/internal/mesh"
)

const (
	// maxDiagnostics keeps the answer to a binary file readable.
	maxDiagnostics = 100
	// maxSourceRunes is how much of a source line is shown.
	maxSourceRunes = 160
)

// source is a file as it was read.
type source struct {
	name  string
	bytes []byte
	order int
	body  *hclsyntax.Body // nil if it could not be parsed
}

// finding is a diagnostic before its places are looked up, which is only done
// for those that are shown.
type finding struct {
	severity        string
	summary, detail string
	at              hcl.Range
	other           *hcl.Range
}

// reporter collects findings over all files.
type reporter struct {
	sources []*source
	byName  map[string]*source
	list    []finding
	errors  int
	// incomplete is set when something could not be read that may have held
	// a service or an identity: then what is missing is no finding.
	incomplete bool
}

func (r *reporter) add(f finding) {
	if f.severity == SeverityError {
		r.errors++
	}
	r.list = append(r.list, f)
}

func (r *reporter) errorf(at hcl.Range, summary, format string, args ...any) {
	r.add(finding{severity: SeverityError, summary: summary, detail: fmt.Sprintf(format, args...), at: at})
}

func (r *reporter) warnf(at hcl.Range, summary, format string, args ...any) {
	r.add(finding{severity: SeverityWarning, summary: summary, detail: fmt.Sprintf(format, args...), at: at})
}

// clashf reports something that two places cause together. The later one is
// where the operator looks first, the earlier one is shown with it.
func (r *reporter) clashf(a, b hcl.Range, summary, format string, args ...any) {
	if r.compare(a, b) < 0 {
		a, b = b, a
	}
	r.add(finding{severity: SeverityError, summary: summary, detail: fmt.Sprintf(format, args...), at: a, other: &b})
}

// hcl takes over what the HCL library found.
func (r *reporter) hcl(diags hcl.Diagnostics) {
	for _, d := range diags {
		f := finding{severity: SeverityError, summary: d.Summary, detail: d.Detail}
		if d.Severity == hcl.DiagWarning {
			f.severity = SeverityWarning
		}
		if d.Subject != nil {
			f.at = *d.Subject
		}
		r.add(f)
	}
}

func (r *reporter) source(name string) *source {
	if len(r.byName) != len(r.sources) {
		r.byName = make(map[string]*source, len(r.sources))
		for _, s := range r.sources {
			r.byName[s.name] = s
		}
	}
	return r.byName[name]
}

// compare orders two places by file in reading order, then by position.
func (r *reporter) compare(a, b hcl.Range) int {
	order := func(name string) int {
		if s := r.source(name); s != nil {
			return s.order
		}
		return -1
	}
	if c := cmp.Compare(order(a.Filename), order(b.Filename)); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.Start.Byte, b.Start.Byte), cmp.Compare(a.End.Byte, b.End.Byte))
}

// diagnostics returns what was found, sorted and without repetition.
func (r *reporter) diagnostics() []Diagnostic {
	slices.SortStableFunc(r.list, func(a, b finding) int {
		return cmp.Or(r.compare(a.at, b.at), cmp.Compare(a.severity, b.severity), strings.Compare(a.summary, b.summary), strings.Compare(a.detail, b.detail))
	})
	list := slices.CompactFunc(r.list, func(a, b finding) bool {
		return a.at == b.at && a.summary == b.summary && a.detail == b.detail
	})
	more := 0
	if len(list) > maxDiagnostics {
		more = len(list) - maxDiagnostics
		list = list[:maxDiagnostics]
	}
	out := make([]Diagnostic, 0, len(list)+1)
	for _, f := range list {
		d := Diagnostic{Severity: f.severity, Summary: f.summary, Detail: f.detail, Place: r.place(f.at), In: r.context(f.at)}
		if f.other != nil {
			p := r.place(*f.other)
			d.Other = &p
		}
		out = append(out, d)
	}
	if more > 0 {
		out = append(out, Diagnostic{Severity: SeverityError, Summary: "Too many errors", Detail: fmt.Sprintf("%d more are not shown.", more)})
	}
	return out
}

// place looks up the line of a range. A range over several lines ends with its
// first one.
func (r *reporter) place(at hcl.Range) Place {
	p := Place{File: at.Filename}
	s := r.source(at.Filename)
	if s == nil || at.Start.Line == 0 {
		return p
	}
	p.Line, p.Column = at.Start.Line, at.Start.Column
	start := min(at.Start.Byte, len(s.bytes))
	begin := strings.LastIndexByte(string(s.bytes[max(0, start-longLine):start]), '\n')
	if begin < 0 {
		if start > longLine {
			return p // a line so long is not text
		}
		begin = 0
	} else {
		begin += max(0, start-longLine) + 1
	}
	line := string(s.bytes[begin:min(len(s.bytes), start+longLine)])
	if end := strings.IndexByte(line, '\n'); end >= 0 {
		line = line[:end]
	}
	line = strings.TrimSuffix(line, "\r")
	before := line[:min(start-begin, len(line))]
	p.Column = utf8.RuneCountInString(before) + 1
	meant := line[len(before):]
	if n := at.End.Byte - start; n >= 0 && n < len(meant) {
		meant = meant[:n]
	}
	p.Length = max(1, utf8.RuneCountInString(strings.TrimRight(meant, " \t")))
	if runes := []rune(line); len(runes) > maxSourceRunes {
		line = string(runes[:maxSourceRunes]) + "…"
	}
	p.Source = line
	return p
}

// longLine bounds the search for the ends of a line, in bytes.
const longLine = 4096

// context names the blocks around a place: `upstream "inventory"`.
func (r *reporter) context(at hcl.Range) string {
	s := r.source(at.Filename)
	if s == nil || s.body == nil {
		return ""
	}
	var names []string
	body := s.body
	for {
		inner := blockAt(body, at.Start.Byte)
		if inner == nil {
			return strings.Join(names, ", ")
		}
		names = append(names, title(inner))
		body = inner.Body
	}
}

// blockAt returns the block whose braces hold the offset.
func blockAt(body *hclsyntax.Body, offset int) *hclsyntax.Block {
	for _, b := range body.Blocks {
		if b.OpenBraceRange.Start.Byte < offset && offset < b.CloseBraceRange.End.Byte {
			return b
		}
	}
	return nil
}

func title(b *hclsyntax.Block) string {
	t := b.Type
	for _, l := range b.Labels {
		t += " " + quote(l)
	}
	return t
}

func pos(at hcl.Range) mesh.Pos {
	return mesh.Pos{File: at.Filename, Line: at.Start.Line, Column: at.Start.Column}
}

// short names a place inside a message.
func short(at hcl.Range) string {
	return fmt.Sprintf("%s:%d", at.Filename, at.Start.Line)
}
