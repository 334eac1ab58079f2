package config

import (
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// kind is a way to write a value: what it is called in the reference, what is
// allowed, and how the evaluated expression becomes a Go value.
type kind struct {
	typ     string
	unit    string
	allowed string
	parse   func(v cty.Value) (any, *fault)
}

// fault is what is wrong with a value. The decoder adds the place and the name
// of the attribute in front of detail.
type fault struct {
	summary string
	detail  string
}

func faultf(summary, format string, args ...any) *fault {
	return &fault{summary: summary, detail: fmt.Sprintf(format, args...)}
}

// found shows a value in a message, short enough for one line.
func found(v cty.Value) string {
	switch {
	case v.IsNull():
		return "null"
	case v.Type() == cty.String:
		return quote(v.AsString())
	case v.Type() == cty.Number:
		return v.AsBigFloat().Text('g', 20) // 'f' would write out every digit of 1e600000000
	case v.Type() == cty.Bool:
		return fmt.Sprint(v.True())
	case v.Type().IsTupleType():
		return "a list"
	case v.Type().IsObjectType():
		return "a map"
	}
	return v.Type().FriendlyName()
}

// quotedRunes is how much of a found text a message repeats.
const quotedRunes = 60

func quote(s string) string {
	if r := []rune(s); len(r) > quotedRunes {
		s = string(r[:quotedRunes]) + "…"
	}
	return fmt.Sprintf("%q", s)
}

// asText converts what may stand for a text: texts, numbers and booleans, as
// HCL does elsewhere.
func asText(v cty.Value) (string, *fault) {
	s, err := convert.Convert(v, cty.String)
	if err != nil || s.IsNull() {
		return "", faultf("Wrong type of value", "is %s; a text in quotes is needed.", found(v))
	}
	return s.AsString(), nil
}

// text is a string that check accepts; check returns what is wrong with it,
// or "".
func text(typ, allowed string, check func(string) string) kind {
	return kind{typ: typ, allowed: allowed, parse: func(v cty.Value) (any, *fault) {
		s, f := asText(v)
		if f != nil {
			return nil, f
		}
		if wrong := check(s); wrong != "" {
			return nil, faultf("Invalid "+typ, "is %s; %s", quote(s), wrong)
		}
		return s, nil
	}}
}

// word is one of a closed list. later are words of the language that this
// version does not implement.
func word(allowed, later []string) kind {
	return kind{typ: "string", allowed: strings.Join(allowed, ", "), parse: func(v cty.Value) (any, *fault) {
		s, f := asText(v)
		switch {
		case f != nil:
			return nil, f
		case slices.Contains(allowed, s):
			return s, nil
		case slices.Contains(later, s):
			return nil, faultf("Not supported yet", "= %q is not supported yet by this version of meshd. %s.", s, oneOf(allowed))
		}
		return nil, faultf("Unknown value", "is %s.%s %s.", quote(s), didYouMean(s, allowed), oneOf(allowed))
	}}
}

// oneOf says what is allowed: `Allowed is "a", "b" or "c"`.
func oneOf(words []string) string {
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = fmt.Sprintf("%q", w)
	}
	if len(q) == 1 {
		return "Allowed is only " + q[0]
	}
	return "Allowed is " + strings.Join(q[:len(q)-1], ", ") + " or " + q[len(q)-1]
}

// integer is a whole number from lo to hi.
func integer(unit string, lo, hi int) kind {
	return kind{typ: "number", unit: unit, allowed: fmt.Sprintf("%d to %d", lo, hi), parse: func(v cty.Value) (any, *fault) {
		n, err := convert.Convert(v, cty.Number)
		if err != nil || n.IsNull() {
			return nil, faultf("Wrong type of value", "is %s; a whole number from %d to %d is needed.", found(v), lo, hi)
		}
		i, accuracy := n.AsBigFloat().Int64()
		if accuracy != big.Exact || i < int64(lo) || i > int64(hi) {
			return nil, faultf("Number out of range", "is %s; a whole number from %d to %d is needed.", found(n), lo, hi)
		}
		return int(i), nil
	}}
}

// boolean is true or false.
func boolean() kind {
	return kind{typ: "boolean", allowed: "true, false", parse: func(v cty.Value) (any, *fault) {
		b, err := convert.Convert(v, cty.Bool)
		if err != nil || b.IsNull() {
			return nil, faultf("Wrong type of value", "is %s; true or false is needed.", found(v))
		}
		return b.True(), nil
	}}
}

// span is a duration from lo to hi, in whole steps of step.
func span(lo, hi, step time.Duration) kind {
	allowed := fmt.Sprintf("%s to %s", duration(lo), duration(hi))
	if step == time.Second {
		allowed += ", whole seconds"
	}
	return kind{typ: "duration", allowed: allowed, parse: func(v cty.Value) (any, *fault) {
		d, f := parseDuration(v)
		if f != nil {
			return nil, f
		}
		if d < lo || d > hi || d%step != 0 {
			return nil, faultf("Duration out of range", "is %s; allowed is %s.", found(v), allowed)
		}
		return d, nil
	}}
}

// maxTimeout is 30 days: longer is "off", and a typing error otherwise.
const maxTimeout = 30 * 24 * time.Hour

// timeout is a duration that "0s" or "off" turns off.
func timeout() kind {
	allowed := fmt.Sprintf("1ms to %s, or \"off\"", duration(maxTimeout))
	return kind{typ: "duration", allowed: allowed, parse: func(v cty.Value) (any, *fault) {
		if v.Type() == cty.String && v.AsString() == "off" {
			return time.Duration(0), nil
		}
		d, f := parseDuration(v)
		if f != nil {
			return nil, f
		}
		if d != 0 && (d < time.Millisecond || d > maxTimeout) {
			return nil, faultf("Duration out of range", "is %s; allowed is %s.", found(v), allowed)
		}
		return d, nil
	}}
}

func parseDuration(v cty.Value) (time.Duration, *fault) {
	const example = `such as "250ms", "2s" or "1m30s"`
	if v.Type() == cty.Number {
		return 0, faultf("Duration without a unit", "is %s; a duration is a text with a unit, %s.", found(v), example)
	}
	s, f := asText(v)
	if f != nil {
		return 0, faultf("Invalid duration", "is %s; a duration is a text %s.", found(v), example)
	}
	d, err := time.ParseDuration(s)
	switch {
	case err == nil && d >= 0:
		return d, nil
	case err == nil:
		return 0, faultf("Invalid duration", "is %s; a duration cannot be negative.", quote(s))
	}
	if guess, ok := guessDuration(s); ok {
		return 0, faultf("Invalid duration", "is %s; a duration is written %s. Did you mean %q?", quote(s), example, guess)
	}
	return 0, faultf("Invalid duration", "is %s; a duration is a text %s.", quote(s), example)
}

// guessDuration reads what people write: "5 seconds", "2 min", "30", "1d".
func guessDuration(s string) (string, bool) {
	s = strings.ToLower(strings.TrimSpace(s))
	i := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if i < 0 {
		i = len(s)
	}
	if i == 0 || i > 6 { // six digits are more than any unit needs
		return "", false
	}
	switch strings.TrimSpace(s[i:]) {
	case "", "sec", "secs", "second", "seconds", "s":
		return s[:i] + "s", true
	case "m", "min", "mins", "minute", "minutes":
		return s[:i] + "m", true
	case "h", "hr", "hrs", "hour", "hours":
		return s[:i] + "h", true
	case "ms", "msec", "millis", "millisecond", "milliseconds":
		return s[:i] + "ms", true
	case "d", "day", "days":
		var n int
		fmt.Sscanf(s[:i], "%d", &n)
		return fmt.Sprintf("%dh", n*24), true
	}
	return "", false
}

// timeoutText is duration for what "off" turns off.
func timeoutText(d time.Duration) string {
	if d == 0 {
		return "off"
	}
	return duration(d)
}

// duration prints d as an operator writes it: "5m", not "5m0s".
func duration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
