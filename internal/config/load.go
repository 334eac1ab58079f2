package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

const (
	// MainFile is the name of the first file of a configuration folder, or
	// mainFileJSON is.
	MainFile     = "meshd.hcl"
	mainFileJSON = "meshd.json"
	// confDir stands beside the main file.
	confDir = "conf.d"

	// maxFileBytes and maxFiles are far above any configuration by hand, and
	// bound what a wrong path (a device, a backup) can cost.
	maxFileBytes = 1 << 20
	maxFiles     = 1000
	// maxValueBytes bounds what the function file() puts into a value.
	maxValueBytes = 64 << 10
	// maxNesting bounds brackets within brackets: the parser is recursive, and
	// Go cannot recover from a stack that has run out.
	maxNesting = 64
	// maxOperators bounds what nests in one file without being inside of one
	// another: 1+1+1, a[b][c]. A host's configuration has no operators and a
	// list per service.
	maxOperators = 20_000
)

// host is what a configuration takes from the machine, so that tests can say it.
type host struct {
	name  func() (string, error)
	cores int
	env   func(name string) (string, bool)
	// read is behind the function file(); nil refuses it.
	read func(path string) ([]byte, error)
	// credential returns the path of a systemd credential, or ""; nil has none.
	credential func(name string) string
}

func thisHost() host {
	return host{name: os.Hostname, cores: runtime.NumCPU(), env: os.LookupEnv}
}

// Load reads the file at path (or meshd.hcl in the folder at path), then the
// files conf.d/*.hcl and conf.d/*.json beside it in the order of their names,
// without hidden ones. Where there is no meshd.hcl, meshd.json is read instead.
// The error is a *[Diagnostics].
func Load(path string) (*Config, error) {
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		path = filepath.Join(path, MainFile)
	}
	r := &reporter{}
	path = r.mainFile(path)
	h := thisHost()
	h.read = func(p string) ([]byte, error) {
		if !filepath.IsAbs(p) {
			p = filepath.Join(filepath.Dir(path), p)
		}
		return readFile(p, maxValueBytes)
	}
	h.credential = credential
	names := []string{path}
	extra, err := list(filepath.Join(filepath.Dir(path), confDir))
	if err != nil {
		r.errorf(hcl.Range{Filename: filepath.Join(filepath.Dir(path), confDir)}, "Unreadable folder", "%s.", reason(err))
		r.incomplete = true
	}
	for _, name := range append(names, extra...) {
		s := &source{name: name, order: len(r.sources)}
		r.sources = append(r.sources, s)
		if s.bytes, err = readFile(name, maxFileBytes); err != nil {
			next := ""
			if name == path && errors.Is(err, fs.ErrNotExist) {
				next = " Create it (an empty one will do), or give the path of another."
			}
			r.errorf(hcl.Range{Filename: name}, "Unreadable file", "%s.%s", reason(err), next)
			r.incomplete = true
		}
	}
	return build(r, h)
}

// mainFile chooses between meshd.hcl and meshd.json. Both in one folder are an
// error: one of them would be ignored.
func (r *reporter) mainFile(path string) string {
	dir, base := filepath.Split(path)
	other := dir + mainFileJSON
	if base == mainFileJSON {
		other = dir + MainFile
	} else if base != MainFile {
		return path
	}
	if _, err := os.Stat(other); err != nil {
		return path
	}
	if _, err := os.Stat(path); err == nil {
		r.errorf(hcl.Range{Filename: path}, "Two main files", "Beside it is %s, and only one of them is read. Put everything into one, or move one to %s.", other, confDir)
		return path
	}
	if base == mainFileJSON {
		return path // asked for by name
	}
	return other
}

// credential looks a name up among the systemd credentials of this process
// (systemd.exec(5)): a folder that only it can read.
func credential(name string) string {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if !filepath.IsAbs(dir) {
		return ""
	}
	path := filepath.Join(dir, name)
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
		return ""
	}
	return path
}

// Parse is [Load] for text that is already in memory: name to content. Files of
// the top come before those in folders, then by name. Nothing is read from
// disk. The error is a *[Diagnostics].
func Parse(files map[string][]byte) (*Config, error) {
	return parse(files, thisHost())
}

func parse(files map[string][]byte, h host) (*Config, error) {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if x, y := strings.Count(a, "/"), strings.Count(b, "/"); x != y {
			return x - y
		}
		return strings.Compare(a, b)
	})
	r := &reporter{}
	for i, name := range names {
		r.sources = append(r.sources, &source{name: name, bytes: files[name], order: i})
	}
	return build(r, h)
}

// build goes from the sources to the Config. It carries on behind errors, so
// that all are seen at once.
func build(r *reporter, h host) (*Config, error) {
	d := &decoder{reporter: r, eval: evalContext(h), lang: language()}
	root := newBody(d.lang, hcl.Range{})
	for _, s := range r.sources {
		r.parse(s, d.lang)
	}
	for _, s := range r.sources {
		if s.body != nil {
			d.decode(s.body, root, "")
		}
	}
	c := newBuilder(r, h, root).config()
	for _, s := range r.sources {
		c.Files = append(c.Files, s.name)
	}
	found := r.diagnostics()
	if r.errors > 0 {
		return nil, &Diagnostics{List: found}
	}
	c.Warnings = found
	return c, nil
}

// parse fills in s.body, going by lang for a file in JSON. It stays nil for
// a file with syntax errors: what such a file seems to say is not what it was
// meant to say.
func (r *reporter) parse(s *source, lang *block) {
	start := hcl.Pos{Line: 1, Column: 1}
	if len(s.bytes) > maxFileBytes {
		r.errorf(hcl.Range{Filename: s.name}, "File too large", "A file has at most %d bytes.", maxFileBytes)
		r.incomplete = true
		return
	}
	if strings.HasSuffix(s.name, jsonSuffix) {
		r.parseJSON(s, lang)
		return
	}
	tokens, diags := hclsyntax.LexConfig(s.bytes, s.name, start)
	if !diags.HasErrors() {
		if at, what := tooDeep(tokens); what != "" {
			r.errorf(at, "Nested too deeply", "%s", what)
			r.incomplete = true
			return
		}
	}
	f, diags := hclsyntax.ParseConfig(s.bytes, s.name, start)
	if diags.HasErrors() {
		r.hcl(plainSyntax(diags))
		r.incomplete = true
		return
	}
	s.body = f.Body.(*hclsyntax.Body)
}

// plainSyntax leaves out what only follows from an error before it: further
// ones on the same line, and everything behind a quote that was not closed,
// where texts and what is between them have changed places.
func plainSyntax(diags hcl.Diagnostics) hcl.Diagnostics {
	slices.SortStableFunc(diags, func(a, b *hcl.Diagnostic) int { return line(a) - line(b) })
	var plain hcl.Diagnostics
	last := -1
	for _, d := range diags {
		if line(d) == last {
			continue
		}
		last = line(d)
		plain = append(plain, d)
		if d.Summary == "Invalid multi-line string" {
			d.Summary, d.Detail = "Missing quote", "The text on this line has no closing quote."
			break
		}
	}
	return plain
}

func line(d *hcl.Diagnostic) int {
	if d.Subject == nil {
		return 0
	}
	return d.Subject.Start.Line
}

// tooDeep looks for what would make a recursive parser recurse without bound.
func tooDeep(tokens hclsyntax.Tokens) (hcl.Range, string) {
	depth, operators := 0, 0
	for _, t := range tokens {
		switch t.Type {
		case hclsyntax.TokenBang, hclsyntax.TokenMinus, hclsyntax.TokenQuestion, hclsyntax.TokenPlus, hclsyntax.TokenStar, hclsyntax.TokenSlash,
			hclsyntax.TokenPercent, hclsyntax.TokenAnd, hclsyntax.TokenOr, hclsyntax.TokenEqualOp, hclsyntax.TokenNotEqual,
			hclsyntax.TokenLessThan, hclsyntax.TokenLessThanEq, hclsyntax.TokenGreaterThan, hclsyntax.TokenGreaterThanEq, hclsyntax.TokenOBrack:
			if operators++; operators > maxOperators {
				return t.Range, fmt.Sprintf("There are more than %d operators and lists in this file.", maxOperators)
			}
		}
		switch t.Type {
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen, hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl,
			hclsyntax.TokenOQuote, hclsyntax.TokenOHeredoc:
			if depth++; depth > maxNesting {
				return t.Range, fmt.Sprintf("There are more than %d brackets open here.", maxNesting)
			}
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenTemplateSeqEnd,
			hclsyntax.TokenCQuote, hclsyntax.TokenCHeredoc:
			depth--
		}
	}
	return hcl.Range{}, ""
}

// list returns the files of conf.d in the order of their names. Editors' and
// package managers' leftovers do not end in .hcl or .json; hidden files are not meant.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); (strings.HasSuffix(n, ".hcl") || strings.HasSuffix(n, jsonSuffix)) && !strings.HasPrefix(n, ".") {
			names = append(names, filepath.Join(dir, n))
		}
	}
	if len(names) >= maxFiles {
		return nil, fmt.Errorf("has %d files, at most %d are read", len(names), maxFiles)
	}
	return names, nil
}

// readFile reads a regular file of at most limit bytes. It never waits: a pipe
// is refused, not opened for reading until somebody writes.
func readFile(name string, limit int64) ([]byte, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return b, nil
}

// reason is err without the name of the file, which the diagnostic has already.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}
