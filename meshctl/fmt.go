package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"meshd/internal/config"
)

// maxFormatBytes is the size of the largest configuration file that meshd reads.
const maxFormatBytes = 1 << 20

func newFmt() *cobra.Command {
	var check, diff bool
	cmd := &cobra.Command{
		Use:   "fmt [PATH...]",
		Short: "Rewrite configuration files in the usual layout",
		Long: `Rewrite files in the usual layout of HCL: indents by two spaces, the equals signs
of neighbouring lines below each other. Nothing but white space changes, and
files that are fine already are not touched. The names of the others are printed.

PATH is a file, a folder (its *.hcl and those of conf.d in it), or - for stdin
to stdout; default ` + filepath.Dir(defaultConfig) + `.

With --check nothing is written, and the exit code is 1 when a file is not in
the usual layout. 2 means that a file is no HCL; it is left as it is.`,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"hcl"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{filepath.Dir(defaultConfig)}
			}
			f := formatter{in: cmd.InOrStdin(), out: cmd.OutOrStdout(), errw: cmd.ErrOrStderr(), check: check, diff: diff}
			for _, path := range args {
				f.path(path)
			}
			switch {
			case f.bad:
				return told(exitBadInput)
			case check && f.changed:
				return told(exitUnhealthy)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "write nothing; exit 1 when a file would change")
	cmd.Flags().BoolVar(&diff, "diff", false, "print the lines that change")
	return cmd
}

// formatter goes over the files of one run. It carries on behind a bad one.
type formatter struct {
	in          io.Reader
	out, errw   io.Writer
	check, diff bool
	changed     bool // a file was not in the usual layout
	bad         bool // a file could not be read, written, or is no HCL
}

func (f *formatter) fail(path string, err error) {
	f.bad = true
	s := styleOf(f.errw)
	if ds := new(config.Diagnostics); errors.As(err, &ds) {
		for i := range ds.List {
			ds.List[i].File = path // Format was given a text without a name
		}
		config.WriteDiagnostics(f.errw, ds.List, s.width, s.color)
		fmt.Fprintf(f.errw, "%s %s: %s; left as it is\n", s.cross(), path, verdict(ds.List))
		return
	}
	fmt.Fprintf(f.errw, "%s %s: %v\n", s.cross(), path, err)
}

// path formats what an argument names.
func (f *formatter) path(path string) {
	if path == "-" {
		f.stdin()
		return
	}
	st, err := os.Stat(path)
	if err != nil {
		f.fail(path, bare(err))
		return
	}
	if !st.IsDir() {
		f.file(path)
		return
	}
	for _, dir := range []string{path, filepath.Join(path, "conf.d")} {
		entries, err := os.ReadDir(dir)
		if err != nil && (dir == path || !errors.Is(err, fs.ErrNotExist)) {
			f.fail(dir, bare(err))
		}
		for _, e := range entries {
			if n := e.Name(); strings.HasSuffix(n, ".hcl") && !strings.HasPrefix(n, ".") && !e.IsDir() {
				f.file(filepath.Join(dir, n))
			}
		}
	}
}

func (f *formatter) stdin() {
	src, err := io.ReadAll(io.LimitReader(f.in, maxFormatBytes+1))
	if err == nil && len(src) > maxFormatBytes {
		err = fmt.Errorf("has more than %d bytes", maxFormatBytes)
	}
	var to []byte
	if err == nil {
		to, err = config.Format(src)
	}
	if err != nil {
		f.fail("(stdin)", err)
		return
	}
	same := bytes.Equal(src, to)
	f.changed = f.changed || !same
	switch {
	case f.diff && !same:
		writeDiff(f.out, styleOf(f.out), "(stdin)", src, to)
	case !f.check && !f.diff:
		f.out.Write(to)
	}
}

func (f *formatter) file(path string) {
	if strings.HasSuffix(path, ".json") {
		f.fail(path, errors.New("is JSON; fmt is for HCL files"))
		return
	}
	src, err := readRegular(path)
	if err != nil {
		f.fail(path, bare(err))
		return
	}
	to, err := config.Format(src)
	if err != nil {
		f.fail(path, err)
		return
	}
	if bytes.Equal(src, to) {
		return
	}
	f.changed = true
	if !f.check {
		if err := replaceFile(path, to); err != nil {
			f.fail(path, bare(err))
			return
		}
	}
	if f.diff {
		writeDiff(f.out, styleOf(f.out), path, src, to)
	} else {
		fmt.Fprintln(f.out, path)
	}
}

func readRegular(path string) ([]byte, error) {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular(): // opening a pipe would wait for a writer
		return nil, errors.New("is not a regular file")
	case st.Size() > maxFormatBytes:
		return nil, fmt.Errorf("has more than %d bytes", maxFormatBytes)
	}
	return os.ReadFile(path)
}

// replaceFile gives the file at path a new content at once: an agent that
// reloads meanwhile reads the old one or the new one. Links stay links; mode
// and owner stay.
func replaceFile(path string, content []byte) (err error) {
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	// Hidden, so that no agent takes a leftover for configuration.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".meshctl-fmt-*")
	if err != nil {
		return err
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(content); err != nil {
		return err
	}
	if o, ok := st.Sys().(*syscall.Stat_t); ok && (int(o.Uid) != os.Geteuid() || int(o.Gid) != os.Getegid()) {
		if err = tmp.Chown(int(o.Uid), int(o.Gid)); err != nil {
			return fmt.Errorf("keep its owner: %w", bare(err))
		}
	}
	// After the owner: a change of owner clears mode bits.
	if err = tmp.Chmod(st.Mode().Perm()); err != nil {
		return err
	}
	if err = tmp.Sync(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// bare is an error without the path, which the message has already.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// writeDiff prints the lines that differ. Formatting changes lines and moves
// none, so lines are compared in pairs; what only one side has is at the end.
func writeDiff(w io.Writer, s style, name string, from, to []byte) {
	fmt.Fprintf(w, "%s\n%s\n", s.head("--- "+name), s.head("+++ "+name))
	a, b := diffLines(from), diffLines(to)
	differs := func(i int) bool { return i >= len(a) || i >= len(b) || a[i] != b[i] }
	for i := 0; i < max(len(a), len(b)); i++ {
		if !differs(i) {
			continue
		}
		end := i
		for end < max(len(a), len(b)) && differs(end) {
			end++
		}
		fmt.Fprintln(w, s.dim(fmt.Sprintf("@@ -%d,%d +%d,%d @@", i+1, len(cut(a, i, end)), i+1, len(cut(b, i, end)))))
		for _, l := range cut(a, i, end) {
			fmt.Fprintln(w, s.bad("-"+l))
		}
		for _, l := range cut(b, i, end) {
			fmt.Fprintln(w, s.good("+"+l))
		}
		i = end
	}
}

// cut is l[from:to] as far as l goes.
func cut(l []string, from, to int) []string {
	return l[min(from, len(l)):min(to, len(l))]
}

// diffLines splits a text; that a last line lacks its end is said in words.
func diffLines(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	text, ended := strings.CutSuffix(string(b), "\n")
	lines := strings.Split(text, "\n")
	if !ended {
		lines = slices.Concat(lines[:len(lines)-1], []string{lines[len(lines)-1] + "  (no newline at the end)"})
	}
	return lines
}
