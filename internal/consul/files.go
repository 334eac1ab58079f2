package consul

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxSecretFile bounds a token file and each TLS file. A token is 36 octets, a
// bundle of CA certificates a few hundred KiB at most.
const maxSecretFile = 1 << 20

// stamp tells one state of a file from the next without reading it.
type stamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

// readBounded reads a file and what it looked like before that: a change while
// it is read shows as another stamp at the next look.
func readBounded(path string) ([]byte, stamp, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, stamp{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err == nil && len(text) > maxSecretFile {
		err = fmt.Errorf("%s is over %d KiB", path, maxSecretFile>>10)
	}
	return text, stampOf(info), err
}

func stampOf(info os.FileInfo) stamp {
	s := stamp{modified: info.ModTime(), size: info.Size()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s
}

// look returns the stamp of a file, the zero one if there is none.
func look(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stampOf(info)
}

// secret is one token and where it comes from. The zero path is a token that
// was given as it is and never changes.
type secret struct {
	path string

	mu      sync.Mutex // guards what follows
	token   string
	seen    stamp
	read    bool  // the file was looked at
	err     error // why the file was not used the last time
	unknown bool  // Consul said that there is no such token
}

func (s *secret) value() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token
}

// String names the token in a message. It never holds the token.
func (s *secret) String() string {
	switch {
	case s.path != "":
		return s.path
	case s.value() != "":
		return "the token of the configuration"
	}
	return "no token"
}

// refresh reads the file again if it changed, and reports whether the token is
// another one. A file that is missing, empty or unreadable keeps the token of
// before: a tool that writes in place is caught between two states.
func (s *secret) refresh() bool {
	if s.path == "" {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read && s.err == nil && look(s.path) == s.seen {
		return false
	}
	s.read = true
	text, seen, err := readBounded(s.path)
	token := string(bytes.TrimSpace(text))
	switch {
	case err != nil:
	case token == "":
		err = fmt.Errorf("%s is empty", s.path)
	case bytes.ContainsAny([]byte(token), " \t\r\n\x00"):
		err = fmt.Errorf("%s holds more than one token", s.path)
	}
	if s.err = err; err != nil {
		return false
	}
	changed := token != s.token
	s.token, s.seen = token, seen
	if changed {
		s.unknown = false
	}
	return changed
}

// problem says why the file is not used, "" if it is.
func (s *secret) problem() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err == nil:
		return ""
	case s.token != "":
		return fmt.Sprintf("token file: %v; the token of before is used", s.err)
	}
	return fmt.Sprintf("token file: %v; requests are sent without a token", s.err)
}

// gone notes that Consul does not know the token, and reports whether that is
// news.
func (s *secret) gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	news := !s.unknown
	s.unknown = true
	return news
}

// stamps returns what the files look like now.
func (t *TLS) stamps() [3]stamp {
	var all [3]stamp
	for i, path := range []string{t.CAFile, t.CertFile, t.KeyFile} {
		if path != "" {
			all[i] = look(path)
		}
	}
	return all
}

// load reads the files.
func (t *TLS) load() (*tls.Config, error) {
	c := &tls.Config{ServerName: t.ServerName, MinVersion: tls.VersionTLS12}
	if t.CAFile != "" {
		text, _, err := readBounded(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("ca_file: %s holds no certificate", t.CAFile)
		}
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return nil, errors.New("cert_file and key_file need each other")
	}
	if t.CertFile != "" {
		cert, _, err := readBounded(t.CertFile)
		if err != nil {
			return nil, fmt.Errorf("cert_file: %w", err)
		}
		key, _, err := readBounded(t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("key_file: %w", err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("cert_file %s and key_file %s: %w", t.CertFile, t.KeyFile, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
