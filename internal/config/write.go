package config

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Write prints the diagnostics for a person. See [WriteDiagnostics].
func (d *Diagnostics) Write(w io.Writer, width int, color bool) error {
	return WriteDiagnostics(w, d.List, width, color)
}

// WriteDiagnostics prints each diagnostic with its place, its source line and
// its detail, the detail wrapped at width characters (0: not wrapped), with
// ANSI colours if color is set.
func WriteDiagnostics(w io.Writer, list []Diagnostic, width int, color bool) error {
	p := &printer{width: width, color: color}
	for i := range list {
		if i > 0 {
			p.b.WriteByte('\n')
		}
		p.diagnostic(&list[i])
	}
	_, err := io.WriteString(w, p.b.String())
	return err
}

// ANSI sequences; see ECMA-48 section 8.3.117.
const (
	bold   = "\x1b[1m"
	red    = "\x1b[1;31m"
	yellow = "\x1b[1;33m"
	reset  = "\x1b[0m"
)

type printer struct {
	b     strings.Builder
	width int
	color bool
}

func (p *printer) diagnostic(d *Diagnostic) {
	if d.Severity == SeverityWarning {
		p.paint(yellow, "Warning: ")
	} else {
		p.paint(red, "Error: ")
	}
	p.paint(bold, printable(d.Summary))
	p.b.WriteByte('\n')
	if d.File != "" {
		p.b.WriteString("  on " + printable(d.File))
		if d.Line > 0 {
			fmt.Fprintf(&p.b, " line %d", d.Line)
		}
		if d.In != "" {
			p.b.WriteString(", in " + printable(d.In))
		}
		p.b.WriteString(":\n")
		p.source(d.Place)
	}
	p.b.WriteString(wrap(printable(d.Detail), p.width) + "\n")
	if d.Other != nil && d.Other.File != "" {
		fmt.Fprintf(&p.b, "  and %s line %d:\n", printable(d.Other.File), d.Other.Line)
		p.source(*d.Other)
	}
}

// source prints the line and marks what is meant.
func (p *printer) source(at Place) {
	if at.Line == 0 || strings.TrimSpace(at.Source) == "" {
		return
	}
	line := printable(at.Source)
	number := fmt.Sprintf("%4d: ", at.Line)
	p.b.WriteString(number + line + "\n")
	runes := []rune(line)
	before := at.Column - 1
	if before < 0 || before > len(runes) {
		return // the line is shown only in part
	}
	p.b.WriteString(strings.Repeat(" ", len(number)))
	for _, c := range runes[:before] {
		if c != '\t' { // a tab stays one, so that the marks stand below what they mean
			c = ' '
		}
		p.b.WriteRune(c)
	}
	p.paint(red, strings.Repeat("^", max(1, min(at.Length, len(runes)-before))))
	p.b.WriteByte('\n')
}

func (p *printer) paint(code, s string) {
	if !p.color {
		p.b.WriteString(s)
		return
	}
	p.b.WriteString(code + s + reset)
}

// printable takes away what would move the cursor or colour the terminal: a
// configuration may have been written by somebody else.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

// wrap breaks s between words so that no line is longer than width, if the
// words allow it. 0 does not break.
func wrap(s string, width int) string {
	if width <= 0 {
		return s
	}
	var b strings.Builder
	column := 0
	for i, word := range strings.Fields(s) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case column+1+n > width:
			b.WriteByte('\n')
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += n
	}
	return b.String()
}
