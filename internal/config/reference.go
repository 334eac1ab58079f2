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
	Reload   Reload // empty for blocks
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
func (a Attribute) Path() string { return join(a.Block, a.Name) }

// Reference lists every block and attribute that a file may contain: a block
// before what is inside it, the blocks in the order of docs/configuration.md.
// It is read from the table that the decoder goes by.
func Reference() []Attribute { return describe(nil, language(), "") }

func describe(list []Attribute, b *block, path string) []Attribute {
	for i := range b.attrs {
		a := &b.attrs[i]
		list = append(list, Attribute{
			Block: path, Name: a.name, Required: a.required, Type: a.kind.typ, Unit: a.kind.unit,
			Default: a.def, Allowed: a.kind.allowed, Reload: a.reload, Meaning: a.meaning,
		})
	}
	for _, c := range b.blocks {
		entry := Attribute{Block: path, Name: c.name, IsBlock: true, Many: c.many, Type: "block", Meaning: c.meaning}
		if c.label != nil {
			entry.Label, entry.Allowed = c.label.is, c.label.kind.allowed
		}
		list = describe(append(list, entry), c, join(path, c.name))
	}
	return list
}
