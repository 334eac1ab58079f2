package consul

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"meshd/internal/mesh"
)

// Options of a Client. The callbacks run on the goroutine of the watch that
// learned something, one at a time per watch but side by side between
// watches, and must be quick. A nil callback is not called.
type Options struct {
	// Address of the Consul agent: HOST:PORT, a http:// or https:// URL, or
	// unix:///PATH.
	Address string
	// Token is sent with every request that has no token file. "" sends none;
	// what the environment holds for Consul's own tools is never used.
	Token string
	// TokenFile holds the token instead. It is read again when it changes; a
	// file that cannot be read or is empty keeps the token of before.
	TokenFile string
	// TLS is how the agent is spoken to when Address is https:// or any file of
	// it is given.
	TLS TLS
	// Datacenter of that agent. Endpoints of other datacenters are reached by
	// their wan addresses. "": every upstream that names a datacenter is taken
	// as one of another.
	Datacenter string
	// Node names this host in the mark of what it registers.
	Node string
	// Stale says how long disappearances that may be no removals are held.
	Stale Stale
	Log   *slog.Logger

	// OnService is called with the first answer for a wanted service and with
	// every answer that differs from the one before. It may still be called
	// once for a service that Want has just dropped.
	OnService func(mesh.ServiceKey, mesh.CatalogService)
	// OnChain is called like OnService with what Consul's configuration entries
	// say about reaching a wanted service; never for a prepared query.
	OnChain func(mesh.ServiceKey, mesh.Chain)
	// OnIntentions is called like OnService with who may call a service of
	// Wanted.Intentions.
	OnIntentions func(service string, in mesh.Intentions)
	// OnLeaf is called with every new leaf of a wanted identity. An error is
	// shown in Status and the leaf is fetched again.
	OnLeaf func(service string, leaf tls.Certificate) error
	// OnRoots is called with all roots that Consul trusts, never with none.
	OnRoots func(trustDomain string, roots []*x509.Certificate)
}

// TLS holds the files for a Consul agent that is spoken to by HTTPS. They are
// read again when they change; files that do not belong together keep what was
// in force before.
type TLS struct {
	CAFile     string // who signed the agent's certificate; "" is the system's pool
	CertFile   string // what this client presents, with KeyFile; "" presents nothing
	KeyFile    string
	ServerName string // expected in the agent's certificate; "" is the host of Address
}

// Stale bounds how long something is believed that Consul no longer says.
type Stale struct {
	// ShrinkAfter is how long endpoints are held that vanished because the
	// serfHealth of their nodes turned critical, over half of at least five at
	// once. 0 holds nothing.
	ShrinkAfter time.Duration
}

// Wanted is everything the client shall do. It is a value: who calls Want does
// not write it afterwards. What concerns a service of Register is done with
// that service's token file, if it has one.
type Wanted struct {
	Upstreams  []mesh.ServiceKey // whose endpoints and chains are watched
	Identities []string          // services whose leafs are fetched
	Intentions []string          // services of this host whose permissions are watched
	Register   []Registration    // what this host offers
}

// Registration is one offered service and where its peers reach it.
type Registration struct {
	Service mesh.Service
	// PeerAddress is what other hosts dial; "" is the Consul node's address.
	PeerAddress string
	PeerPort    uint16
}

// Client keeps what it was told to want in step with Consul.
type Client struct {
	o    Options
	api  *api.Client
	http *http.Client
	via  *transport
	pace pace

	mu      sync.Mutex          // guards the fields below
	wanted  *Wanted             // nil until Want was called
	watches map[watchKey]*watch // what is wanted; Run starts and stops by it
	secrets map[string]*secret  // those of wanted services, by path of the file
	tokens  map[string]*secret  // the same, by service

	wake chan struct{} // capacity 1: Run looks at wanted again
	reg  *registrar
}

// New returns a client without a connection. It fails only for an address that
// cannot be one.
func New(o Options) (*Client, error) {
	token := &secret{path: o.TokenFile, token: o.Token}
	token.refresh()
	via, err := newTransport(o.Address, token, o.TLS)
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	hc := &http.Client{
		Transport: via,
		// Consul's API does not redirect. Something that does is not Consul,
		// and would get the token.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	ac, err := api.NewClient(&api.Config{
		Address:    "consul", // the transport dials and addresses; this only fills the URL
		Scheme:     "http",
		HttpClient: hc,
		// Without a token of its own the library reads one from the
		// environment. The transport replaces this with the real one.
		Token: "replaced",
	})
	if err != nil {
		return nil, fmt.Errorf("consul client for %s: %w", o.Address, err)
	}
	c := &Client{
		o: o, api: ac, http: hc, via: via, pace: defaultPace,
		watches: make(map[watchKey]*watch), secrets: make(map[string]*secret), tokens: make(map[string]*secret),
		wake: make(chan struct{}, 1),
	}
	c.reg = newRegistrar(c)
	return c, nil
}

// Want replaces the desired set. Watches and registrations start and stop by
// the difference, what stays is not disturbed. It may be called at any time,
// before Run as well.
func (c *Client) Want(w Wanted) {
	w.Upstreams = slices.Clone(w.Upstreams)
	w.Identities = slices.Clone(w.Identities)
	w.Intentions = slices.Clone(w.Intentions)
	w.Register = slices.Clone(w.Register)
	c.mu.Lock()
	c.wanted = &w
	moved := c.setTokens(&w)
	c.setWatches(&w)
	var those []*watch
	for _, w := range c.watches {
		if moved[w.service] {
			those = append(those, w)
		}
	}
	c.mu.Unlock()
	for _, w := range those {
		w.kick() // a new one has nothing to ask anew yet
	}
	poke(c.wake)
	poke(c.reg.wake)
}

// Run watches and registers until ctx is done, and returns when every
// goroutine it started has ended. The error is always nil: Consul being away
// is a state, shown by Status, not an end.
func (c *Client) Run(ctx context.Context) error {
	var all sync.WaitGroup // Run waits for the registrar and every watch, pulse and watchFiles
	defer func() {
		all.Wait()
		c.via.CloseIdleConnections()
	}()
	all.Go(func() { c.reg.run(ctx) })
	all.Go(func() { c.pulse(ctx) })
	all.Go(func() { c.watchFiles(ctx) })

	running := make(map[*watch]context.CancelFunc)
	defer func() {
		for _, cancel := range running {
			cancel()
		}
	}()
	for {
		wanted := c.current()
		for w, cancel := range running {
			if !wanted[w] {
				cancel()
				delete(running, w)
			}
		}
		for w := range wanted {
			if running[w] == nil {
				wctx, cancel := context.WithCancel(ctx)
				running[w] = cancel
				all.Go(func() { w.run(wctx) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
	}
}

// Deregister removes from Consul everything that carries our mark and our
// node, and from then on nothing is registered any more. It is for the
// shutdown and may run beside Run or after it.
func (c *Client) Deregister(ctx context.Context) error {
	err := c.reg.leave(ctx)
	c.via.CloseIdleConnections()
	return err
}

// setTokens makes c.tokens what is wanted and returns the services whose token
// is another one. c.mu is held.
func (c *Client) setTokens(wanted *Wanted) (moved map[string]bool) {
	before := c.tokens
	secrets := make(map[string]*secret)
	c.tokens = make(map[string]*secret)
	for i := range wanted.Register {
		s := &wanted.Register[i].Service
		if s.TokenFile == "" || c.tokens[s.Name] != nil {
			continue // of several instances the first with a file decides
		}
		token := c.secrets[s.TokenFile]
		if token == nil {
			token = &secret{path: s.TokenFile}
			token.refresh()
		}
		secrets[s.TokenFile], c.tokens[s.Name] = token, token
	}
	c.secrets = secrets
	moved = make(map[string]bool)
	for name, token := range before {
		if c.tokens[name] != token {
			moved[name] = true
		}
	}
	for name, token := range c.tokens {
		if before[name] != token {
			moved[name] = true
		}
	}
	return moved
}

// secretOf returns the token for what concerns a service of this host, the
// agent's for one that has none of its own and for "". c.mu is held.
func (c *Client) secretOf(service string) *secret {
	if s := c.tokens[service]; s != nil && service != "" {
		return s
	}
	return c.via.token
}

// setWatches makes c.watches what is wanted: what stays is kept, so that it
// goes on undisturbed. c.mu is held.
func (c *Client) setWatches(wanted *Wanted) {
	watches := make(map[watchKey]*watch)
	want := func(kind Kind, name, datacenter string, source func() source) {
		key := watchKey{kind, name, datacenter}
		w := c.watches[key]
		if w == nil && watches[key] == nil {
			w = c.newWatch(key, source())
		}
		if watches[key] == nil {
			watches[key] = w
		}
	}
	for _, u := range wanted.Upstreams {
		if u.Query {
			want(KindQuery, u.Name, u.Datacenter, (&querySource{c: c, key: u}).source)
			continue
		}
		want(KindService, u.Name, u.Datacenter, newHealth(c, u).source)
		if c.o.OnChain != nil {
			want(KindChain, u.Name, u.Datacenter, (&chainSource{c: c, key: u}).source)
		}
	}
	for _, name := range wanted.Identities {
		want(KindLeaf, name, "", (&leafSource{c: c, service: name}).source)
	}
	for _, name := range wanted.Intentions {
		want(KindIntentions, name, "", (&intentionSource{c: c, service: name}).source)
	}
	if len(wanted.Identities) > 0 {
		want(KindRoots, "", "", (&rootsSource{c: c}).source)
	}
	c.watches = watches
}

// current returns the watches that shall run.
func (c *Client) current() map[*watch]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	set := make(map[*watch]bool, len(c.watches))
	for _, w := range c.watches {
		set[w] = true
	}
	return set
}

// poke wakes the reader of a channel of capacity 1; a wake that is already
// waiting is enough.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
