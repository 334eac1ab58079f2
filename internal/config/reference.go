package config

// Attribute describes one block or attribute of the configuration language.
type Attribute struct {
	Block    string // path of the enclosing block, such as "upstream.limits"; "" is the top of a file
	Name     string // of the attribute or block
	IsBlock  bool
	Label    string // what the label of a block is; "" is a block without one
	Many     bool   // the block may be given more than once
	Required bool
	Type     string // what is written, such as "duration"
	Unit     string // "" when the type says it all
	Default  string // as written in HCL, or words in parentheses
	Allowed  string // values or range
	Reload   Reload
	Meaning  string // one line
}

// Reload says when a changed value takes effect.
type Reload string

// The reload behaviours.
const (
	OnReload  Reload = "reload"  // at `meshctl reload` or SIGHUP
	OnRestart Reload = "restart" // when the agent starts again
)

// Path returns the dotted name, such as "upstream.limits.max_connections".
func (a Attribute) Path() string {
	if a.Block == "" {
		return a.Name
	}
	return a.Block + "." + a.Name
}

// Reference lists every block and attribute that a file may contain, a block
// before what is inside it.
func Reference() []Attribute { return nil }
