package identity

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func newDev(t *testing.T, dir string) (*Dev, *Store) {
	t.Helper()
	s := NewStore()
	d, err := NewDev(dir, s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return d, s
}

// Agents that start at once on an empty folder agree, and talk.
func TestDevRace(t *testing.T) {
	const agents = 8
	for range 5 {
		dir := filepath.Join(t.TempDir(), "a", "b") // made by whoever comes first
		stores := make([]*Store, agents)
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range agents {
			stores[i] = NewStore()
			wg.Go(func() {
				<-start
				d, err := NewDev(dir, stores[i], slog.New(slog.DiscardHandler))
				if err == nil {
					err = d.Want([]string{"web", "payments"})
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		close(start)
		wg.Wait()
		if t.Failed() {
			return
		}
		for i, s := range stores {
			if s.TrustDomain() == "" || s.TrustDomain() != stores[0].TrustDomain() {
				t.Fatalf("agent %d is in trust domain %q, agent 0 in %q", i, s.TrustDomain(), stores[0].TrustDomain())
			}
			next := stores[(i+1)%agents]
			cfg, err := s.ClientConfig("web", Name{Datacenter: DevDatacenter, Service: "payments"})
			if err != nil {
				t.Fatal(err)
			}
			if c, s := handshake(t, cfg, next.ServerConfig(every)); c.err != nil || s.err != nil {
				t.Fatal(c.err, s.err)
			}
		}
		names, err := filepath.Glob(filepath.Join(dir, ".*"))
		if err != nil || len(names) != 0 {
			t.Errorf("left behind: %v, %v", names, err)
		}
	}
}

func TestDevFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	_, a := newDev(t, dir)
	for name, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, authorityFile): 0o600, filepath.Join(dir, lockFile): 0o600} {
		if i, err := os.Stat(name); err != nil || i.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", name, i.Mode(), err, want)
		}
	}
	if d := a.TrustDomain(); !strings.HasSuffix(d, devDomainSuffix) || len(d) != 16+len(devDomainSuffix) {
		t.Errorf("trust domain %q", d)
	}
	if _, b := newDev(t, dir); a.TrustDomain() != b.TrustDomain() {
		t.Error("a second start made another authority")
	}
	if _, c := newDev(t, t.TempDir()); a.TrustDomain() == c.TrustDomain() {
		t.Error("two folders have one trust domain")
	}
}

// A folder that cannot be used is reported and left as it is.
func TestDevBadFolder(t *testing.T) {
	good := func(t *testing.T) []byte {
		dir := t.TempDir()
		newDev(t, dir)
		text, err := os.ReadFile(filepath.Join(dir, authorityFile))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	cut := func(text []byte) []byte { return text[:len(text)/2] }
	for name, make := range map[string]func(t *testing.T, path string) error{
		"empty file": func(_ *testing.T, path string) error { return os.WriteFile(path, nil, 0o600) },
		"cut file":   func(t *testing.T, path string) error { return os.WriteFile(path, cut(good(t)), 0o600) },
		"others may read": func(t *testing.T, path string) error {
			if err := os.WriteFile(path, good(t), 0o600); err != nil {
				return err
			}
			return os.Chmod(path, 0o604)
		},
		"a folder": func(_ *testing.T, path string) error { return os.Mkdir(path, 0o700) },
		"a leaf": func(t *testing.T, path string) error {
			ca := newCA(t, nil, func(c *x509.Certificate) {
				c.IsCA, c.KeyUsage, c.URIs = false, 0, []*url.URL{uri(t, "spiffe://x.dev.meshd")}
				c.NotAfter = time.Now().Add(devRootLife)
			})
			a := &authority{root: ca.cert, key: ca.key}
			return a.write(path)
		},
		"expired": func(_ *testing.T, path string) error {
			a, err := newAuthority(time.Now().Add(-devRootLife))
			if err != nil {
				return err
			}
			return a.write(path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, authorityFile)
			if err := make(t, path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadFile(path)
			s := NewStore()
			_, err := NewDev(dir, s, slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %v does not name %s", err, path)
			}
			t.Log(err)
			if after, _ := os.ReadFile(path); string(after) != string(before) {
				t.Error("the file was changed")
			}
			if s.TrustDomain() != "" {
				t.Error("a trust domain was set")
			}
		})
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewDev(file, NewStore(), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a file served as folder")
	}
}

func TestDevLeaf(t *testing.T) {
	d, s := newDev(t, t.TempDir())
	if err := d.Want([]string{"web"}); err != nil {
		t.Fatal(err)
	}
	first, ok := s.Leaf("web")
	if !ok {
		t.Fatal("no leaf")
	}
	c := first.Leaf
	if life := c.NotAfter.Sub(c.NotBefore); life != devLeafLife+devBackdate {
		t.Errorf("life %v", life)
	}
	if back := time.Since(c.NotBefore); back < devBackdate || back > devBackdate+time.Minute {
		t.Errorf("backdated %v", back)
	}
	if n, err := ParseCertificate(c); err != nil || n != (Name{s.TrustDomain(), DevDatacenter, "web"}) {
		t.Errorf("name %v, %v", n, err)
	}
	if err := d.Want([]string{"web", "payments"}); err != nil {
		t.Fatal(err)
	}
	if again, _ := s.Leaf("web"); again != first {
		t.Error("an unchanged service got another leaf")
	}
	if _, ok := s.Leaf("payments"); !ok {
		t.Error("no leaf for a new service")
	}
	if err := d.Want([]string{"payments"}); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Leaf("web"); !ok {
		t.Error("Want dropped a leaf: connections of the picture before need it")
	}
	if err := d.Want([]string{"a/b", "after"}); err == nil {
		t.Error("a leaf for a name that no peer would accept")
	}
	if _, ok := s.Leaf("after"); !ok {
		t.Error("one bad name kept the others from a leaf")
	}
}

// A week: each leaf is renewed in time, and only those that are wanted.
func TestDevRenews(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d, s := newDev(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- d.Run(ctx) }()
		if err := d.Want([]string{"web", "gone"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := d.Want([]string{"web", "late"}); err != nil {
			t.Fatal(err)
		}
		gone, _ := s.Leaf("gone")
		seen := map[*x509.Certificate]bool{}
		for range 7 * 24 * 6 {
			time.Sleep(10 * time.Minute) // of the bubble's clock
			synctest.Wait()
			for _, service := range []string{"web", "late"} {
				c, _ := s.Leaf(service)
				seen[c.Leaf] = true
				if left := time.Until(c.Leaf.NotAfter); left < devLeafLife/4 {
					t.Fatalf("%s has %v left", service, left)
				}
			}
		}
		// A life of 24 h is renewed after 14 to 16 h: 10 to 12 times a week.
		if n := len(seen); n < 2*(10+1) || n > 2*(12+1) {
			t.Errorf("%d leafs in a week for two services", n)
		}
		if c, _ := s.Leaf("gone"); c != gone {
			t.Error("what nobody wants was renewed")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestRenewAt(t *testing.T) {
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	to := from.Add(30 * time.Hour)
	for jitter, want := range map[float64]time.Duration{0: 20 * time.Hour, 0.5: 18*time.Hour + 30*time.Minute, 1: 17 * time.Hour} {
		if got := renewAt(from, to, jitter).Sub(from); got != want {
			t.Errorf("jitter %v: after %v, want %v", jitter, got, want)
		}
	}
}
