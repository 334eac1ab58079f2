package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// Paths of the API. The version changes only when a field would have to be
// renamed or to change its meaning.
const (
	pathStatus  = "/v1/status"
	pathReload  = "/v1/reload"
	pathVersion = "/v1/version"
	pathCatalog = "/v1/catalog"
	pathExplain = "/v1/config/explain"
	pathPolicy  = "/v1/policy/test"
	pathReady   = "/ready"
	pathLive    = "/live"
	pathMetrics = "/metrics"
)

// readiness is the body of /ready.
type readiness struct {
	Ready   bool     `json:"ready"`
	Waiting []string `json:"waiting"`
}

// failure is the body of every answer that is neither a result nor 200.
type failure struct {
	Error string `json:"error"`
}

// socketHandler serves the Unix socket: everything, for whom the file mode
// lets in.
func (s *Server) socketHandler() http.Handler {
	mux := http.NewServeMux() // never the default one: pprof registers itself there
	s.readOnly(mux)
	mux.HandleFunc("GET "+pathStatus, s.status)
	mux.HandleFunc("GET "+pathVersion, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, s.o.Agent.Version())
	})
	mux.HandleFunc("GET "+pathCatalog, func(w http.ResponseWriter, _ *http.Request) {
		c := s.o.Agent.Catalog()
		c.fill()
		answer(w, http.StatusOK, c)
	})
	mux.HandleFunc("GET "+pathExplain, s.explain)
	mux.HandleFunc("GET "+pathPolicy, s.testPolicy)
	mux.HandleFunc("POST "+pathReload, s.reload)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	// cmdline is left out: the journal has it, and a profile should not.
	return http.MaxBytesHandler(exact(mux), maxBodyBytes)
}

// httpHandler serves TCP: what probes and scrapers need, and nothing that
// changes anything or tells about configuration.
func (s *Server) httpHandler() http.Handler {
	mux := http.NewServeMux()
	s.readOnly(mux)
	guarded := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !allowedHost(r.Host, s.o.Hosts):
			// A page of another site whose name was made to resolve to
			// 127.0.0.1 sends that name: DNS rebinding.
			answer(w, http.StatusMisdirectedRequest, failure{Error: "unknown host in request; use an IP address or localhost"})
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			answer(w, http.StatusMethodNotAllowed, failure{Error: "this listener is read-only; use the admin socket"})
		default:
			exact(mux).ServeHTTP(w, r)
		}
	})
	return http.MaxBytesHandler(guarded, maxBodyBytes)
}

func (s *Server) readOnly(mux *http.ServeMux) {
	mux.HandleFunc("GET "+pathReady, s.ready)
	mux.HandleFunc("GET "+pathLive, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, struct {
			Live bool `json:"live"`
		}{true})
	})
	if s.o.Metrics != nil {
		mux.Handle("GET "+pathMetrics, s.o.Metrics)
	}
}

// exact answers 404 for paths that ServeMux would clean and redirect: nothing
// here redirects.
func exact(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := r.URL.Path; strings.Contains(p, "//") || strings.Contains(p, "/.") || p == "/debug/pprof" {
			answer(w, http.StatusNotFound, failure{Error: "not found"})
			return
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		mux.ServeHTTP(w, r)
	})
}

// allowedHost: an IP address cannot be rebound, so any is fine; of the names,
// only those of loopback and the configured ones. No Host at all (HTTP/1.0, a
// plain probe) comes from no browser.
func allowedHost(hostport string, extra []string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if _, err := netip.ParseAddr(host); err == nil || hostport == "" {
		return true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost") ||
		slices.ContainsFunc(extra, func(e string) bool { return strings.EqualFold(e, host) })
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	st := s.o.Agent.Status()
	st.Problems = sortProblems(append(slices.Clone(st.Problems), Diagnose(&st)...))
	st.fill()
	st.Catalog.fill()
	answer(w, http.StatusOK, st)
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	// A client that goes away does not stop what it began: the operator
	// pressed Ctrl-C on the answer, not on half a reload.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), reloadTimeout)
	defer cancel()
	uid := int64(-1)
	if c, ok := r.Context().Value(peerKey{}).(syscall.Ucred); ok {
		uid = int64(c.Uid)
	}
	s.o.Log.Info("reload asked for on the admin socket", "uid", uid)
	res, err := s.o.Agent.Reload(ctx)
	res.Changes = orEmpty(res.Changes)
	switch {
	case err != nil:
		answer(w, http.StatusServiceUnavailable, failure{Error: err.Error()})
	case !res.Applied:
		answer(w, http.StatusUnprocessableEntity, res)
	default:
		answer(w, http.StatusOK, res)
	}
}

// fill makes every list of c a list in JSON.
func (c *Catalog) fill() {
	c.Watches, c.Registrations, c.Denied = orEmpty(c.Watches), orEmpty(c.Registrations), orEmpty(c.Denied)
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("upstream")
	if name == "" {
		answer(w, http.StatusBadRequest, failure{Error: "which upstream? " + pathExplain + "?upstream=NAME"})
		return
	}
	e, err := s.o.Agent.Explain(name)
	e.Values = orEmpty(e.Values)
	found(w, e, err)
}

func (s *Server) testPolicy(w http.ResponseWriter, r *http.Request) {
	from, to := r.URL.Query().Get("from"), r.URL.Query().Get("to")
	if from == "" || to == "" {
		answer(w, http.StatusBadRequest, failure{Error: "who calls whom? " + pathPolicy + "?from=CALLER&to=SERVICE"})
		return
	}
	t, err := s.o.Agent.TestPolicy(from, to)
	t.Instances = orEmpty(t.Instances)
	found(w, t, err)
}

// found answers v, or why there is none.
func found(w http.ResponseWriter, v any, err error) {
	var missing *NotFoundError
	switch {
	case errors.As(err, &missing):
		answer(w, http.StatusNotFound, failure{Error: missing.Message})
	case err != nil:
		answer(w, http.StatusInternalServerError, failure{Error: err.Error()})
	default:
		answer(w, http.StatusOK, v)
	}
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	ok, waiting := s.o.Agent.Ready()
	code := http.StatusOK
	if !ok {
		code = http.StatusServiceUnavailable
	}
	answer(w, code, readiness{Ready: ok, Waiting: orEmpty(waiting)})
}

// answer writes v as JSON. An error of the write means that the client is
// gone, which is nobody's business here.
func answer(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // only a NaN can do this, and that is a bug of ours
		code, b = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be encoded: `+strings.ReplaceAll(err.Error(), `"`, `'`)+`"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	w.Write(append(b, '\n'))
}
