package config

// Change is one difference between two configurations.
type Change struct {
	Kind      string `json:"kind"`                // "+" added, "-" removed, "~" changed
	What      string `json:"what"`                // `upstream inventory`, `agent`
	Attribute string `json:"attribute,omitempty"` // for "~": such as "circuit_breaker.open_for"
	Old       string `json:"old,omitempty"`
	New       string `json:"new,omitempty"`
}

// String returns the change as `meshctl reload` prints it:
// "~ upstream inventory: request_timeout 2s -> 5s".
func (c Change) String() string {
	if c.Kind != "~" {
		return c.Kind + " " + c.What
	}
	return c.Kind + " " + c.What + ": " + c.Attribute + " " + c.Old + " -> " + c.New
}

// Diff returns what changes in effect at a reload, and which changed settings
// wait for a restart.
func Diff(old, new *Config) (changes, restart []Change) { return nil, nil }
