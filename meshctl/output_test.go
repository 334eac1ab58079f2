package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestSpan(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s": 0, "59s": 59 * time.Second, "1m00s": time.Minute, "59m59s": time.Hour - 1,
		"1h00m": time.Hour, "47h59m": 48*time.Hour - 1, "2d0h": 48 * time.Hour, "-5s": -5 * time.Second,
	} {
		if got := span(d); got != want {
			t.Errorf("span(%s) = %s, want %s", d, got, want)
		}
	}
}

func TestLatency(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"-": 0, "0.41ms": 412 * time.Microsecond, "9.99ms": 9990 * time.Microsecond, "10.0ms": 10 * time.Millisecond,
		"120ms": 120 * time.Millisecond, "1.20s": 1200 * time.Millisecond,
	} {
		if got := latency(d); got != want {
			t.Errorf("latency(%s) = %s, want %s", d, got, want)
		}
	}
}

// One failed request in a million must not read like none.
func TestShareIsNeverRoundedToZero(t *testing.T) {
	for want, f := range map[string]float64{"0%": 0, "<0.1%": 1e-6, "1.2%": 0.012, "100%": 1} {
		if got := share(f); got != want {
			t.Errorf("share(%g) = %s, want %s", f, got, want)
		}
	}
}

// Colour must not move a column.
func TestTableAlignsPaintedCells(t *testing.T) {
	draw := func(s style) string {
		tb := &table{paint: func(_, column int, text string) string {
			if column == 0 {
				return s.bad(text)
			}
			return text
		}}
		tb.row("NAME", "STATE")
		tb.row("größe", "")
		tb.row("a", "fine")
		var b bytes.Buffer
		tb.write(&b, s)
		return b.String()
	}
	plain, painted := draw(style{}), draw(style{color: true})
	if want := "NAME   STATE\ngröße  -\na      fine\n"; plain != want {
		t.Errorf("plain table:\n%s", plain)
	}
	for _, code := range []string{"\x1b[1m", "\x1b[1;31m", "\x1b[0m"} {
		if !strings.Contains(painted, code) {
			t.Errorf("painted table has no %q", code)
		}
		painted = strings.ReplaceAll(painted, code, "")
	}
	if painted != plain {
		t.Errorf("without its colours the painted table is\n%s", painted)
	}
}

// Strings that a YAML reader could take for something else are quoted.
func TestYAML(t *testing.T) {
	v := struct {
		Empty  []string          `json:"empty"`
		None   *int              `json:"none"`
		Nested [][]int           `json:"nested"`
		Words  []string          `json:"words"`
		Map    map[string]string `json:"map"`
	}{
		Empty: []string{}, Nested: [][]int{{1, 2}, {}, {3}},
		Words: []string{"plain", "yes", "1.5", "", "a: b", "- x", "tab\t", "/etc/x.hcl", "~", "#c", "line\nbreak"},
		Map:   map[string]string{"no": "off", "key with space": "v"},
	}
	var b bytes.Buffer
	if err := writeYAML(&b, v); err != nil {
		t.Fatal(err)
	}
	want := `empty: []
none: null
nested:
  - - 1
    - 2
  - []
  - - 3
words:
  - plain
  - "yes"
  - "1.5"
  - ""
  - "a: b"
  - "- x"
  - "tab\t"
  - /etc/x.hcl
  - "~"
  - "#c"
  - "line\nbreak"
map:
  "key with space": v
  "no": "off"
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}
