package config

import (
	"github.com/hashicorp/hcl/v2/hclwrite"
)

// Format returns src, a file in HCL's native syntax, in the usual layout:
// indentation and the columns of "=" and comments. Nothing else changes. The
// error is a *[Diagnostics] whose places name no file, for a text that cannot
// be read; only its syntax is looked at.
func Format(src []byte) ([]byte, error) {
	s := &source{bytes: src}
	r := &reporter{sources: []*source{s}}
	if r.parse(s, nil); r.errors > 0 {
		return nil, &Diagnostics{List: r.diagnostics()}
	}
	return hclwrite.Format(src), nil
}
