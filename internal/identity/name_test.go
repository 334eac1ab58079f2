package identity

import (
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
)

func TestParseCertificate(t *testing.T) {
	for _, c := range []struct {
		uri  string
		want Name // zero: refused
	}{
		{"spiffe://1234.test/ns/default/dc/dc1/svc/web", Name{"1234.test", "dc1", "web"}},
		{"SPIFFE://1234.test/ns/default/dc/dc1/svc/web", Name{"1234.test", "dc1", "web"}}, // schemes have no case
		{"spiffe://1234.TEST/ns/default/dc/dc1/svc/web", Name{"1234.test", "dc1", "web"}},
		{"spiffe://1234.test/ns/default/dc/DC-1/svc/Web_2.x", Name{"1234.test", "DC-1", "Web_2.x"}},
		{"spiffe://1234.test/ap/part/ns/default/dc/dc1/svc/web", Name{}},
		{"spiffe://1234.test/ns/other/dc/dc1/svc/web", Name{}},
		{"spiffe://1234.test/ns/default/dc/dc1/svc/web/", Name{}},
		{"spiffe://1234.test/ns/default/dc/dc1/svc/web/more", Name{}},
		{"spiffe://1234.test/ns/default/dc/dc1/svc/", Name{}},
		{"spiffe://1234.test/ns/default/dc//svc/web", Name{}},
		{"spiffe://1234.test//ns/default/dc/dc1/svc/web", Name{}},
		{"spiffe://1234.test/ns/default/dc/../svc/web", Name{}},
		{"spiffe://1234.test/ns/default/dc/dc1/svc/a%2fb", Name{}},
		{"spiffe://1234.test/ns/default/dc/dc1/svc/we%62", Name{}},
		{"spiffe://1234.test/NS/default/dc/dc1/svc/web", Name{}},
		{"spiffe://1234.test/ns/default/dc/dc1/gateway/web", Name{}},
		{"spiffe://1234.test/agent/server/dc/dc1", Name{}},
		{"spiffe://1234.test", Name{}},
		{"spiffe:///ns/default/dc/dc1/svc/web", Name{}},
		{"spiffe://1234.test:1/ns/default/dc/dc1/svc/web", Name{}},
		{"spiffe://u@1234.test/ns/default/dc/dc1/svc/web", Name{}},
		{"spiffe://1234.test/ns/default/dc/dc1/svc/web?q", Name{}},
		{"spiffe://1234.test/ns/default/dc/dc1/svc/web#f", Name{}},
		{"https://1234.test/ns/default/dc/dc1/svc/web", Name{}},
		{"spiffe:1234.test/ns/default/dc/dc1/svc/web", Name{}},
	} {
		u, err := url.Parse(c.uri)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseCertificate(&x509.Certificate{URIs: []*url.URL{u}})
		if got != c.want || (err == nil) != (c.want != Name{}) {
			t.Errorf("%s: %+v, %v; want %+v", c.uri, got, err, c.want)
		}
		if err != nil && ReasonOf(err) != URISANForm {
			t.Errorf("%s: reason %s", c.uri, ReasonOf(err))
		}
	}
	if _, err := ParseCertificate(nil); ReasonOf(err) != NoCertificate {
		t.Errorf("nil: %v", err)
	}
	if _, err := ParseCertificate(&x509.Certificate{}); ReasonOf(err) != URISANCount {
		t.Errorf("no URI: %v", err)
	}
}

// What is accepted says exactly what it looks like.
func FuzzParseURI(f *testing.F) {
	f.Add("spiffe://1234.test/ns/default/dc/dc1/svc/web")
	f.Add("spiffe://1234.test/ns/default/dc/dc1/svc/we%62")
	f.Add("spiffe://1234.test/ap/x/ns/default/dc/dc1/svc/web")
	f.Add("spiffe://u@h:1/ns/default/dc/../svc/web?a#b")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		n, err := ParseCertificate(&x509.Certificate{URIs: []*url.URL{u}})
		if err != nil {
			return
		}
		if !strings.EqualFold(s, n.SPIFFE()) || !strings.HasSuffix(s, n.SPIFFE()[len("spiffe://"+n.TrustDomain):]) {
			t.Errorf("%q was read as %q", s, n)
		}
	})
}

func TestServiceOfSNI(t *testing.T) {
	for sni, want := range map[string]string{
		Name{"1234.consul", "dc1", "web"}.SNI():                 "web",
		"web.default.dc1.internal.td":                           "web",
		"WEB.Default.dc1.Internal.TD":                           "web",
		"v2.web.default.dc1.internal.td.consul":                 "web",
		"default.default.dc1.internal.td":                       "default",
		"internal.default.internal.internal.td":                 "internal",
		"web.default.dc1.internal":                              "",
		"web.other.dc1.internal.td":                             "",
		"web.other.part.dc1.internal-v1.td":                     "",
		"web.default.dc1.query.td":                              "",
		"dc1.internal.td":                                       "",
		"a.b.web.default.dc1.internal.td":                       "",
		".default.dc1.internal.td":                              "",
		".web.default.dc1.internal.td":                          "",
		"web":                                                   "",
		"":                                                      "",
		strings.Repeat(".", 300):                                "",
		"web.default.dc1.internal." + strings.Repeat("a.", 100): "web",
	} {
		if got, ok := ServiceOfSNI(sni); got != want || ok != (want != "") {
			t.Errorf("ServiceOfSNI(%q) = %q, %v; want %q", sni, got, ok, want)
		}
	}
}
