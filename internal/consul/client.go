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
	// Token is sent with every request. "" sends none; what the environment
	// holds for Consul's own tools is never used.
	Token string
	// Datacenter of that agent. Endpoints of other datacenters are reached by
	// their wan addresses. "": every upstream that names a datacenter is taken
	// as one of another.
	Datacenter string
	// Node names this host in the mark of what it registers.
	Node string
	Log  *slog.Logger

	// OnService is called with the first answer for a wanted service and with
	// every answer that differs from the one before. It may still be called
	// once for a service that Want has just dropped.
	OnService func(mesh.ServiceKey, mesh.CatalogService)
	// OnLeaf is called with every new leaf of a wanted identity. An error is
	// shown in Status and the leaf is fetched again.
	OnLeaf func(service string, leaf tls.Certificate) error
	// OnRoots is called with all roots that Consul trusts, never with none.
	OnRoots func(trustDomain string, roots []*x509.Certificate)
}

// Wanted is everything the client shall do. It is a value: who calls Want does
// not write it afterwards.
type Wanted struct {
	Upstreams  []mesh.ServiceKey // whose endpoints are watched
	Identities []string          // services whose leafs are fetched
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

	mu      sync.Mutex // guards the fields below
	wanted  *Wanted    // nil until Want was called
	watches map[watchKey]*watch

	wake chan struct{} // capacity 1: Run looks at wanted again
	reg  *registrar
}

// New returns a client without a connection. It fails only for an address that
// cannot be one.
func New(o Options) (*Client, error) {
	via, err := newTransport(o.Address, o.Token)
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
		watches: make(map[watchKey]*watch),
		wake:    make(chan struct{}, 1),
	}
	c.reg = &registrar{c: c, wake: make(chan struct{}, 1)}
	return c, nil
}

// Want replaces the desired set. Watches and registrations start and stop by
// the difference, what stays is not disturbed. It may be called at any time,
// before Run as well.
func (c *Client) Want(w Wanted) {
	w.Upstreams = slices.Clone(w.Upstreams)
	w.Identities = slices.Clone(w.Identities)
	w.Register = slices.Clone(w.Register)
	c.mu.Lock()
	c.wanted = &w
	c.mu.Unlock()
	poke(c.wake)
	poke(c.reg.wake)
}

// Run watches and registers until ctx is done, and returns when every
// goroutine it started has ended. The error is always nil: Consul being away
// is a state, shown by Status, not an end.
func (c *Client) Run(ctx context.Context) error {
	var all sync.WaitGroup // Run waits for the registrar and every watch
	defer func() {
		all.Wait()
		c.via.CloseIdleConnections()
	}()
	all.Go(func() { c.reg.run(ctx) })

	cancels := make(map[watchKey]context.CancelFunc)
	defer func() {
		for _, cancel := range cancels {
			cancel()
		}
	}()
	for {
		start, stop := c.difference()
		for _, key := range stop {
			cancels[key]()
			delete(cancels, key)
		}
		for _, w := range start {
			wctx, cancel := context.WithCancel(ctx)
			cancels[w.key] = cancel
			all.Go(func() { w.run(wctx) })
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

// difference brings c.watches in step with what is wanted and returns those to
// be started and the keys of those to be stopped.
func (c *Client) difference() (start []*watch, stop []watchKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wanted == nil {
		return nil, nil
	}
	keep := make(map[watchKey]bool)
	want := func(key watchKey, make func() *watch) {
		keep[key] = true
		if c.watches[key] == nil {
			w := make()
			c.watches[key] = w
			start = append(start, w)
		}
	}
	for _, u := range c.wanted.Upstreams {
		key := watchKey{kind: KindService, name: u.Name, datacenter: u.Datacenter}
		want(key, func() *watch { return c.newWatch(key, newHealth(c, u).fetch) })
	}
	for _, name := range c.wanted.Identities {
		key := watchKey{kind: KindLeaf, name: name}
		want(key, func() *watch { return c.newWatch(key, (&leafSource{c: c, service: name}).fetch) })
	}
	if len(c.wanted.Identities) > 0 {
		key := watchKey{kind: KindRoots}
		want(key, func() *watch { return c.newWatch(key, (&rootsSource{c: c}).fetch) })
	}
	for key := range c.watches {
		if !keep[key] {
			delete(c.watches, key)
			stop = append(stop, key)
		}
	}
	return start, stop
}

// poke wakes the reader of a channel of capacity 1; a wake that is already
// waiting is enough.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
