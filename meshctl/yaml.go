package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// writeYAML prints v as YAML with the keys and the order of its JSON. Scalars
// are written as JSON writes them, which YAML 1.2 reads the same, but for
// words that cannot be mistaken for anything else and stay bare.
func writeYAML(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out strings.Builder
	if err := yamlValue(&out, d, 0, false); err != nil {
		return err
	}
	_, err = io.WriteString(w, strings.TrimLeft(out.String(), " \n"))
	return err
}

// bareWord: letters first, nothing that YAML gives a meaning to.
var bareWord = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./-]*$`)

// ambiguous words are read as something else than a string by some YAML reader.
var ambiguous = regexp.MustCompile(`(?i)^(true|false|yes|no|on|off|null|y|n)$`)

// yamlValue reads one JSON value and writes it. inList: the value follows "- ",
// so the first key of a map stays on that line.
func yamlValue(out *strings.Builder, d *json.Decoder, depth int, inList bool) error {
	tok, err := d.Token()
	if err != nil {
		return err
	}
	indent := strings.Repeat("  ", depth)
	switch t := tok.(type) {
	case json.Delim:
		if !d.More() {
			_, err = d.Token() // the closing one
			out.WriteString(map[json.Delim]string{'{': " {}\n", '[': " []\n"}[t])
			return err
		}
		first := inList
		if !inList {
			out.WriteString("\n")
		}
		for d.More() {
			if !first {
				out.WriteString(indent)
			} else {
				out.WriteString(" ")
			}
			first = false
			if t == '{' {
				key, err := d.Token()
				if err != nil {
					return err
				}
				out.WriteString(scalar(key) + ":")
			} else {
				out.WriteString("-")
			}
			if err := yamlValue(out, d, depth+1, t == '['); err != nil {
				return err
			}
		}
		_, err = d.Token()
		return err
	default:
		out.WriteString(" " + scalar(t) + "\n")
		return nil
	}
}

func scalar(tok json.Token) string {
	s, ok := tok.(string)
	switch {
	case !ok && tok == nil:
		return "null"
	case !ok:
		return fmt.Sprint(tok)
	case bareWord.MatchString(s) && !ambiguous.MatchString(s):
		return s
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil { // a string cannot fail
		return `""`
	}
	return strings.TrimSpace(b.String())
}
