package config

import "slices"

// block is a kind of block of the language: a label or none, attributes, and
// blocks inside it.
type block struct {
	name    string
	label   *label // nil: a block without a label
	many    bool   // may be given more than once
	meaning string
	attrs   []attr
	blocks  []*block
	// later lists the attributes and blocks of the language that this version
	// does not implement. They are refused by name, never ignored.
	later []string
}

// label is the text between the name of a block and its brace.
type label struct {
	is   string // for the reference and for messages, in capitals
	kind kind
}

// attr is an argument of a block.
type attr struct {
	name string
	kind kind
	// def is the default as HCL text. In parentheses it is words: then there is
	// no value, and whoever builds the Config decides.
	def      string
	value    any // def evaluated, once it was needed
	required bool
	reload   Reload
	meaning  string
}

func (b *block) attr(name string) *attr {
	for i := range b.attrs {
		if b.attrs[i].name == name {
			return &b.attrs[i]
		}
	}
	return nil
}

func (b *block) block(name string) *block {
	for _, c := range b.blocks {
		if c.name == name {
			return c
		}
	}
	return nil
}

func (b *block) attrNames() []string {
	names := make([]string, len(b.attrs))
	for i := range b.attrs {
		names[i] = b.attrs[i].name
	}
	return names
}

func (b *block) blockNames() []string {
	names := make([]string, len(b.blocks))
	for i := range b.blocks {
		names[i] = b.blocks[i].name
	}
	return names
}

// usage is how the block is begun: `upstream "NAME" {`.
func (b *block) usage() string {
	if b.label == nil {
		return b.name + " {"
	}
	return b.name + " \"" + b.label.is + "\" {"
}

// names lists every name of b and of what is inside it.
func (b *block) names() []string {
	names := slices.Concat(b.attrNames(), b.blockNames(), b.later)
	for _, c := range b.blocks {
		names = append(names, c.names()...)
	}
	return names
}

// language is the whole table. It is made anew for each use: it is small, and
// nobody can write into somebody else's.
func language() *block {
	return &block{
		blocks: []*block{
			agentBlock(), adminBlock(), consulBlock(), identityBlock(), dnsBlock(), loopbackBlock(), peerBlock(),
			defaultsBlock(), serviceBlock(), upstreamBlock(), catalogBlock(),
		},
		later: []string{"telemetry", "intention"},
	}
}

// where says which blocks inside b, which is at path, have the name now or will
// have it later, for "it belongs …".
func (b *block) where(name, path string) (now, later []string) {
	for _, c := range b.blocks {
		inner := join(path, c.name)
		if path == "" && c.name == name {
			now = append(now, "at the top of a file")
		}
		if c.attr(name) != nil || c.block(name) != nil {
			now = append(now, "in "+inner)
		} else if slices.Contains(c.later, name) {
			later = append(later, "in "+inner)
		}
		n, l := c.where(name, inner)
		now, later = append(now, n...), append(later, l...)
	}
	return now, later
}
