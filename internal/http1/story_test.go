package http1

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"meshd/internal/mesh"
)

var update = flag.Bool("update", false, "write what the codec does now into testdata/cases")

// A story file is prose with cases between. A case is a line "request",
// "response" or "response METHOD", then indented lines with the bytes on the
// connection (joined; escapes as in Go strings, "\xNN*COUNT" repeats), a line
// "----", and what is expected up to an empty line.
type storyCase struct {
	what  string // first line
	line  int
	input []byte
	want  string
}

func readStory(t testing.TB, file string) []storyCase {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var cases []storyCase
	lines := strings.Split(string(text), "\n")
	for i := 0; i < len(lines); i++ {
		word, _, _ := strings.Cut(lines[i], " ")
		if word != "request" && word != "response" || i+1 == len(lines) || !strings.HasPrefix(lines[i+1], "    ") {
			continue
		}
		c := storyCase{what: lines[i], line: i + 1}
		for i++; strings.HasPrefix(lines[i], "    "); i++ {
			c.input = append(c.input, unescape(t, lines[i][4:])...)
		}
		if lines[i] != "----" {
			t.Fatalf("%s:%d: want ----", file, i+1)
		}
		for i++; i < len(lines) && lines[i] != ""; i++ {
			c.want += lines[i] + "\n"
		}
		cases = append(cases, c)
	}
	return cases
}

// unescape reads one line of input. A line "TEXT *N" stands for TEXT N times.
func unescape(t testing.TB, line string) string {
	t.Helper()
	times := 1
	if at := strings.LastIndex(line, " *"); at >= 0 {
		if n, err := strconv.Atoi(line[at+2:]); err == nil {
			line, times = line[:at], n
		}
	}
	s, err := strconv.Unquote(`"` + strings.ReplaceAll(line, `"`, `\"`) + `"`)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return strings.Repeat(s, times)
}

func TestStories(t *testing.T) {
	files, _ := filepath.Glob("testdata/cases/*.txt")
	if len(files) == 0 {
		t.Fatal("no stories in testdata/cases")
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			cases := readStory(t, file)
			if len(cases) == 0 {
				t.Fatal("no cases")
			}
			for _, c := range cases {
				got := tell(c.what, c.input)
				if got != c.want && !*update {
					t.Errorf("%s:%d: %s\n%q\ngot:\n%swant:\n%s", file, c.line, c.what, c.input, got, c.want)
				}
				// Every place, but for the few large inputs, where each costs a copy.
				for at := 0; at < len(c.input); at += 1 + len(c.input)/400 {
					if again := tell(c.what, c.input[:at], c.input[at:]); again != got {
						t.Fatalf("%s:%d: split at %d\ngot:\n%sin one piece:\n%s", file, c.line, at, again, got)
					}
				}
				if len(c.input) > 4096 {
					continue // the next one is quadratic in the printing, not in the codec
				}
				if again := tell(c.what, bytewise(c.input)...); again != got {
					t.Fatalf("%s:%d: byte by byte\ngot:\n%sin one piece:\n%s", file, c.line, again, got)
				}
			}
			if *update {
				rewrite(t, file, cases)
			}
		})
	}
}

func bytewise(b []byte) [][]byte {
	var pieces [][]byte
	for i := range b {
		pieces = append(pieces, b[i:i+1])
	}
	return pieces
}

func rewrite(t *testing.T, file string, cases []storyCase) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	var out []string
	i := 0
	for _, c := range cases {
		for lines[i] != "----" || i < c.line {
			out = append(out, lines[i])
			i++
		}
		out = append(out, "----", strings.TrimSuffix(tell(c.what, c.input), "\n"))
		for i < len(lines) && lines[i] != "" {
			i++
		}
	}
	out = append(out, lines[i:]...)
	if err := os.WriteFile(file, []byte(strings.Join(out, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
}

// teller drives the codec as a connection would, over pieces as they come, and
// writes down every event. Payload is joined, so that the text does not depend
// on the pieces.
type teller struct {
	method  []byte // of the request that a response answers
	request bool
	out     strings.Builder

	buf     []byte
	scanned int
	inBody  bool
	body    Body
	payload []byte
}

func tell(what string, pieces ...[]byte) string {
	word, method, _ := strings.Cut(what, " ")
	t := &teller{request: word == "request", method: []byte(method)}
	for _, p := range pieces {
		// A buffer of its own each time: no view may survive into the next.
		t.buf = append(bytes.Clone(t.buf), p...)
		if err := t.turn(); err != nil {
			t.failed(err)
			return t.out.String()
		}
	}
	switch {
	case t.inBody:
		if err := t.body.EOF(); err != nil {
			t.failed(err)
		} else {
			t.bodyEnd()
		}
	case len(t.buf) > 0:
		fmt.Fprintln(&t.out, "incomplete")
	case t.out.Len() == 0:
		fmt.Fprintln(&t.out, "nothing")
	}
	return t.out.String()
}

func (t *teller) failed(err error) {
	if len(t.payload) > 0 {
		t.bodyText()
	}
	var e *Error
	if !errors.As(err, &e) {
		fmt.Fprintf(&t.out, "foreign error %v\n", err)
		return
	}
	fmt.Fprintf(&t.out, "error %d %s\n", e.Status, e.Reason)
}

// turn reads as much of the buffer as there is.
func (t *teller) turn() error {
	for {
		if t.inBody {
			for {
				data, n, err := t.body.Next(t.buf)
				if err != nil {
					return err
				}
				t.payload = append(t.payload, data...)
				t.buf = t.buf[n:]
				if n == 0 {
					break
				}
			}
			if !t.body.Done() {
				return nil
			}
			t.bodyEnd()
		}
		if t.request && t.scanned == 0 {
			t.buf = t.buf[LeadingCRLF(t.buf):]
		}
		if len(t.buf) == 0 {
			return nil
		}
		lim := DefaultLimits()
		end, next, err := ScanHead(t.buf, t.scanned, lim.HeadBytes)
		if err != nil {
			return err
		}
		t.scanned = next
		if end == 0 {
			return nil
		}
		head := t.buf[:end:end]
		t.buf, t.scanned = t.buf[end:], 0
		length, err := t.head(head, lim)
		if err != nil {
			return err
		}
		t.body, t.inBody, t.payload = NewBody(length, lim), true, nil
	}
}

func (t *teller) head(head []byte, lim Limits) (length int64, err error) {
	if t.request {
		var r Request
		if err := r.Parse(head, lim); err != nil {
			return 0, err
		}
		fmt.Fprintf(&t.out, "%s %s at %q in 1.%d\n", r.Method, quoted(r.Path), r.Authority, r.Minor)
		t.rest(&r.Head, r.Length, r.Close, r.Upgrade)
		if r.Expect100 {
			fmt.Fprintln(&t.out, "expects 100")
		}
		return r.Length, nil
	}
	var r Response
	if err := r.Parse(head, t.method, lim); err != nil {
		return 0, err
	}
	fmt.Fprintf(&t.out, "%d %s in 1.%d\n", r.Status, quoted(r.Reason), r.Minor)
	t.rest(&r.Head, r.Length, r.Close, r.Upgrade)
	return r.Length, nil
}

// quoted shows text as it is if nothing in it needs an escape, and the size of
// what is too long for a line.
func quoted(b []byte) string {
	q := strconv.Quote(string(b))
	switch {
	case len(q) > 100:
		return fmt.Sprintf("(%d bytes)", len(b))
	case len(q) != len(b)+2 || len(b) == 0:
		return q
	}
	return string(b)
}

func (t *teller) rest(h *mesh.Head, length int64, closes bool, upgrade []byte) {
	for _, f := range h.Fields {
		t.field("field", f)
	}
	switch length {
	case Chunked:
		fmt.Fprintln(&t.out, "length chunked")
	case UntilClose:
		fmt.Fprintln(&t.out, "length until close")
	default:
		fmt.Fprintln(&t.out, "length", length)
	}
	if closes {
		fmt.Fprintln(&t.out, "closes")
	}
	if upgrade != nil {
		fmt.Fprintf(&t.out, "upgrade %q\n", upgrade)
	}
}

func (t *teller) field(word string, f mesh.Field) {
	known := ""
	if f.Known != mesh.LookupKnown(f.Name) {
		known = " KNOWN IS WRONG"
	}
	fmt.Fprintf(&t.out, "%s %s: %s%s\n", word, f.Name, quoted(f.Value), known)
}

func (t *teller) bodyText() {
	if len(t.payload) > 100 {
		fmt.Fprintf(&t.out, "body (%d bytes)\n", len(t.payload))
	} else {
		fmt.Fprintf(&t.out, "body %q\n", t.payload)
	}
}

func (t *teller) bodyEnd() {
	if len(t.payload) > 0 {
		t.bodyText()
	}
	for _, f := range t.body.Trailers(nil) {
		t.field("trailer", f)
	}
	fmt.Fprintln(&t.out, "end")
	t.inBody = false
}
