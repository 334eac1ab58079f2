package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Rules of everything a person sees: what is wrong comes first; columns are
// plain and aligned, no cell is empty or holds a space unless it is the last,
// so that awk works; colour repeats what a word says and is never alone.

// style decides how one stream is written.
type style struct {
	color, ascii bool
	width        int // of the terminal, 0 when it is none
}

// styleOf looks at the stream and the environment. Colour needs a terminal
// and no NO_COLOR (https://no-color.org); marks are ASCII when a locale is set
// that is not UTF-8.
func styleOf(w io.Writer) style {
	var s style
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(os.Getenv(name)); v != "" {
			s.ascii = !strings.Contains(v, "utf-8") && !strings.Contains(v, "utf8")
			break
		}
	}
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return s
	}
	s.color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	if width, _, err := term.GetSize(int(f.Fd())); err == nil {
		s.width = width
	}
	return s
}

func (s style) paint(code, text string) string {
	if !s.color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s style) bad(t string) string  { return s.paint("1;31", t) }
func (s style) warn(t string) string { return s.paint("33", t) }
func (s style) good(t string) string { return s.paint("32", t) }
func (s style) head(t string) string { return s.paint("1", t) }
func (s style) dim(t string) string  { return s.paint("2", t) }

// mark returns one of the two forms of a sign.
func (s style) mark(unicode, ascii string) string {
	if s.ascii {
		return ascii
	}
	return unicode
}

func (s style) ok() string    { return s.good(s.mark("✓", "ok")) }
func (s style) cross() string { return s.bad(s.mark("✗", "x")) }
func (s style) bang() string  { return s.warn("!") }

// table is rows of cells; a cell may be painted when it is written.
type table struct {
	rows  [][]string
	paint func(row, column int, text string) string // nil: as it is
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "-"
		}
	}
	t.rows = append(t.rows, cells)
}

// write aligns the columns by characters, two spaces apart, without trailing
// space. The first row is the heading.
func (t *table) write(w io.Writer, s style) {
	var widths []int
	for _, r := range t.rows {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for n, r := range t.rows {
		var b strings.Builder
		for i, c := range r {
			text := c
			switch {
			case n == 0:
				text = s.head(c)
			case t.paint != nil:
				text = t.paint(n, i, c)
			}
			b.WriteString(text)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
			}
		}
		fmt.Fprintln(w, b.String())
	}
}

// format is the value of -o.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

func (f *format) String() string { return string(*f) }

// Type names the values in --help.
func (f *format) Type() string { return "table|wide|json|yaml" }

// Set refuses what is no format.
func (f *format) Set(v string) error {
	switch format(v) {
	case formatTable, formatWide, formatJSON, formatYAML:
		*f = format(v)
		return nil
	}
	return fmt.Errorf("want table, wide, json or yaml")
}

// addFormat gives a reading verb -o and its alias --json.
func addFormat(cmd *cobra.Command) *format {
	f := formatTable
	cmd.Flags().VarP(&f, "output", "o", "how to print")
	cmd.Flags().BoolFunc("json", "same as -o json", func(string) error { return f.Set("json") })
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(
		[]string{"table", "wide", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return &f
}

// document prints v when f is a format for machines and says whether it did.
func (f format) document(w io.Writer, v any) (bool, error) {
	switch f {
	case formatJSON:
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return true, e.Encode(v)
	case formatYAML:
		return true, writeYAML(w, v)
	}
	return false, nil
}

// count writes a number with its noun: "1 error", "2 errors".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// indent moves all lines of text but the first.
func indent(text, by string) string { return strings.ReplaceAll(text, "\n", "\n"+by) }

// span writes a length of time with the two units that matter: 45s, 3m12s,
// 5h07m, 12d3h.
func span(d time.Duration) string {
	neg := ""
	if d < 0 {
		neg, d = "-", -d
	}
	s := int64(d / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%s%ds", neg, s)
	case s < 3600:
		return fmt.Sprintf("%s%dm%02ds", neg, s/60, s%60)
	case s < 48*3600:
		return fmt.Sprintf("%s%dh%02dm", neg, s/3600, s/60%60)
	}
	return fmt.Sprintf("%s%dd%dh", neg, s/86400, s/3600%24)
}

// latency writes three digits of milliseconds or seconds.
func latency(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case d <= 0:
		return "-"
	case ms < 10:
		return fmt.Sprintf("%.2fms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1fms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0fms", ms)
	}
	return fmt.Sprintf("%.2fs", d.Seconds())
}

func rate(perSecond float64) string {
	if perSecond > 0 && perSecond < 10 {
		return fmt.Sprintf("%.1f", perSecond)
	}
	return fmt.Sprintf("%.0f", perSecond)
}

// share writes a share as percent; a share that is not zero never reads 0%.
func share(f float64) string {
	switch p := f * 100; {
	case p == 0:
		return "0%"
	case p < 0.1:
		return "<0.1%"
	case p < 10:
		return fmt.Sprintf("%.1f%%", p)
	default:
		return fmt.Sprintf("%.0f%%", p)
	}
}
