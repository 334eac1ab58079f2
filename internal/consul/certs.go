package consul

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"
)

// leafSource watches the certificate of one service. The agent makes the key,
// has it signed, and answers the waiting query well before the end of the
// lifetime and after a change of the CA.
type leafSource struct {
	c       *Client
	service string
	last    [sha256.Size]byte // of the leaf that was passed on
	known   bool
}

func (s *leafSource) source() source {
	return source{fetch: s.fetch, service: s.service, rules: offerRules(s.service)[:1]}
}

func (s *leafSource) fetch(_ context.Context, q *api.QueryOptions) (answer, error) {
	leaf, meta, err := s.c.api.Agent().ConnectCALeaf(s.service, q)
	if err != nil {
		return answer{}, err
	}
	sum := sha256.Sum256([]byte(leaf.CertPEM + leaf.PrivateKeyPEM))
	if s.known && sum == s.last {
		return answer{index: meta.LastIndex}, nil
	}
	cert, err := tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.PrivateKeyPEM))
	if err != nil {
		return answer{}, distrust("the leaf cannot be used: %v", err)
	}
	// A query that was not held can bring one from the agent's cache that ran
	// out while the servers were away.
	if end := cert.Leaf.NotAfter; !time.Now().Before(end) {
		return answer{}, distrust("the leaf expired at %s", end.UTC().Format(time.RFC3339))
	}
	if s.c.o.OnLeaf != nil {
		if err := s.c.o.OnLeaf(s.service, cert); err != nil {
			return answer{}, distrust("the leaf was refused: %v", err)
		}
	}
	s.last, s.known = sum, true
	return answer{index: meta.LastIndex, changed: true}, nil
}

// rootsSource watches what Consul trusts. While a CA is being replaced that is
// the old root and the new one, so that leafs of both are good.
type rootsSource struct {
	c     *Client
	last  []byte // trust domain and roots that were passed on
	known bool
}

func (s *rootsSource) source() source { return source{fetch: s.fetch} }

func (s *rootsSource) fetch(ctx context.Context, q *api.QueryOptions) (answer, error) {
	var n notes
	q = q.WithContext(context.WithValue(ctx, notesKey{}, &n))
	list, meta, err := s.c.api.Agent().ConnectCARoots(q)
	if err != nil {
		return answer{}, err
	}
	roots, err := parseRoots(list)
	if err != nil {
		return answer{}, err
	}
	var text bytes.Buffer
	text.WriteString(list.TrustDomain)
	for _, r := range roots {
		text.WriteByte(0)
		text.Write(r.Raw)
	}
	// The agent gives roots out of its cache even without servers, and leafs
	// as well; of the latter it does not tell since when.
	if s.known && bytes.Equal(text.Bytes(), s.last) {
		return answer{index: meta.LastIndex, behind: n.behind}, nil
	}
	s.last, s.known = text.Bytes(), true
	if s.c.o.OnRoots != nil {
		s.c.o.OnRoots(list.TrustDomain, roots)
	}
	return answer{index: meta.LastIndex, changed: true, behind: n.behind}, nil
}

// parseRoots takes all or nothing: with a part of the roots some peers would
// be refused for no reason that anybody could see.
func parseRoots(list *api.CARootList) ([]*x509.Certificate, error) {
	if list.TrustDomain == "" {
		return nil, distrust("the roots have no trust domain")
	}
	var roots []*x509.Certificate
	for _, r := range list.Roots {
		if r == nil {
			return nil, distrust("a root is null")
		}
		certs, err := parsePEM([]byte(r.RootCertPEM))
		if err != nil {
			return nil, distrust("root %s cannot be used: %v", r.ID, err)
		}
		roots = append(roots, certs...)
	}
	if len(roots) == 0 {
		return nil, distrust("Consul states no root at all")
	}
	return roots, nil
}

func parsePEM(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %q", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("it holds no certificate")
	}
	return certs, nil
}
