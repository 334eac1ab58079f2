package config

import (
	"maps"
	"slices"

	"github.com/zclconf/go-cty/cty"
)

// tags is a list of texts.
func tags() kind {
	return kind{typ: "list of strings", allowed: "at most 64, each 1 to 255 characters", parse: func(v cty.Value) (any, *fault) {
		if !v.Type().IsTupleType() && !v.Type().IsListType() {
			return nil, faultf("Wrong type of value", "is %s; a list of texts such as [\"v2\"] is needed.", found(v))
		}
		if v.LengthInt() > maxTags {
			return nil, faultf("List too long", "has %d values; at most %d are allowed.", v.LengthInt(), maxTags)
		}
		list := make([]string, 0, v.LengthInt())
		for _, e := range v.Elements() {
			s, f := asText(e)
			if f != nil {
				return nil, faultf("Wrong type of value", "has %s in it; a list of texts such as [\"v2\"] is needed.", found(e))
			}
			if s == "" || len(s) > 255 {
				return nil, faultf("Invalid tag", "has the tag %s; a tag has 1 to 255 characters.", quote(s))
			}
			if slices.Contains(list, s) {
				return nil, faultf("Invalid tag", "has the tag %s twice.", quote(s))
			}
			list = append(list, s)
		}
		return list, nil
	}}
}

// meta is a map of texts within Consul's limits.
func meta() kind {
	const allowed = "at most 64 pairs; key 1 to 128 of A-Z, a-z, 0-9, _ and -, not meshd…; value at most 512 characters"
	return kind{typ: "map of strings", allowed: allowed, parse: func(v cty.Value) (any, *fault) {
		if !v.Type().IsObjectType() && !v.Type().IsMapType() {
			return nil, faultf("Wrong type of value", "is %s; a map of texts such as { version = \"2\" } is needed.", found(v))
		}
		if v.LengthInt() > maxMetaPairs {
			return nil, faultf("Map too large", "has %d pairs; Consul takes at most %d.", v.LengthInt(), maxMetaPairs)
		}
		values := v.AsValueMap()
		m := make(map[string]string, len(values))
		for _, key := range slices.Sorted(maps.Keys(values)) {
			s, f := asText(values[key])
			switch {
			case f != nil:
				return nil, faultf("Wrong type of value", "has %s under %s; a map of texts such as { version = \"2\" } is needed.", found(values[key]), quote(key))
			case key == "" || len(key) > maxMetaKey || !only(key, "_-", true):
				return nil, faultf("Invalid key", "has the key %s; a key has 1 to %d of the characters A-Z, a-z, 0-9, \"_\" and \"-\".", quote(key), maxMetaKey)
			case len(key) >= 5 && key[:5] == "meshd":
				return nil, faultf("Reserved key", "has the key %s; keys that begin with \"meshd\" are how meshd knows its own registrations.", quote(key))
			case len(s) > maxMetaValue:
				return nil, faultf("Value too long", "has %d characters under %s; Consul takes at most %d.", len(s), quote(key), maxMetaValue)
			}
			m[key] = s
		}
		return m, nil
	}}
}
