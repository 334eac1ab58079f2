package config

import (
	"encoding/json"
	"fmt"
	"strings"
)

// The severities of a diagnostic. Only errors keep a configuration from being used.
const (
	SeverityError   = "error"
	SeverityWarning = "warning"
)

// Diagnostic is one thing that is wrong, or probably not meant, with the place
// where. It carries its source line, so that it can be shown by a program that
// does not have the file.
type Diagnostic struct {
	Severity string `json:"severity"` // SeverityError or SeverityWarning
	Summary  string `json:"summary"`  // a few words
	Detail   string `json:"detail"`   // what was found, what is allowed, what to do
	Place
	// In names the enclosing blocks, such as `upstream "inventory"`; "" at the top.
	In string `json:"in,omitempty"`
	// Other is the second place of a clash, nil when there is only one.
	Other *Place `json:"other,omitempty"`
}

// Place is a stretch of a line in a file. The zero Line means the file as a
// whole, the empty File means no file at all.
type Place struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`   // from 1
	Column int    `json:"column,omitempty"` // from 1, in characters
	Length int    `json:"length,omitempty"` // characters of the line that are meant
	Source string `json:"source,omitempty"` // the line, without its end
}

// String returns FILE:LINE:COLUMN as far as it is known.
func (p Place) String() string {
	switch {
	case p.Line == 0:
		return p.File
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// String returns the diagnostic on one line, for a log.
func (d Diagnostic) String() string {
	var b strings.Builder
	if at := d.Place.String(); at != "" {
		b.WriteString(at + ": ")
	}
	if d.In != "" {
		b.WriteString("in " + d.In + ": ")
	}
	b.WriteString(d.Summary + ": " + d.Detail)
	return b.String()
}

// Diagnostics is the error of [Load] and [Parse]: everything that is wrong, by
// file in reading order and by position. It holds at least one, and no
// warnings: those are for a configuration that is used, in [Config.Warnings].
type Diagnostics struct {
	List []Diagnostic
}

// Error returns every diagnostic, one per line.
func (d *Diagnostics) Error() string {
	lines := make([]string, len(d.List))
	for i := range d.List {
		lines[i] = d.List[i].String()
	}
	return strings.Join(lines, "\n")
}

// Len returns the number of diagnostics.
func (d *Diagnostics) Len() int { return len(d.List) }

// MarshalJSON gives the list itself: {severity, summary, detail, file, line, column, …} each.
func (d *Diagnostics) MarshalJSON() ([]byte, error) { return json.Marshal(d.List) }

// UnmarshalJSON reads what MarshalJSON wrote.
func (d *Diagnostics) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, &d.List) }
