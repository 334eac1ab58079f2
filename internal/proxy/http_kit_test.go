package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/internal/mesh"
	"meshd/internal/telemetry"
)

// patience is how long a step of a story may take before it has failed.
const patience = 5 * time.Second

// rawApp is an application that does with its connections what the test says.
type rawApp struct {
	net.Listener
	conns chan *net.TCPConn
}

func newRawApp(t testing.TB) *rawApp {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &rawApp{Listener: l, conns: make(chan *net.TCPConn, 4096)}
	go func() { // ends with the listener
		defer close(a.conns)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a.conns <- c.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() { l.Close() })
	return a
}

// accept waits for the next connection.
func (a *rawApp) accept(t testing.TB) *net.TCPConn {
	t.Helper()
	select {
	case c := <-a.conns:
		t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(patience):
		t.Fatal("the application got no connection")
		return nil
	}
}

func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func send(t testing.TB, c net.Conn, s string) {
	t.Helper()
	c.SetWriteDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatalf("send %.80q: %v", s, err)
	}
}

// gets reads exactly want.
func gets(t testing.TB, who string, c net.Conn, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if string(got[:n]) != want {
		if n < len(want) && strings.HasPrefix(want, string(got[:n])) {
			t.Fatalf("%s got only\n%q\nof\n%q\n%v", who, got[:n], want, err)
		}
		more := make([]byte, 4096) // shows what it is instead
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		m, _ := c.Read(more)
		t.Fatalf("%s got\n%q\nwant\n%q", who, string(got[:n])+string(more[:m]), want)
	}
}

// head reads one head and returns it.
func head(t testing.TB, c net.Conn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	var got []byte
	for b := make([]byte, 1); !bytes.HasSuffix(got, []byte("\r\n\r\n")); got = append(got, b...) {
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatalf("no whole head but %q, %v", got, err)
		}
	}
	return string(got)
}

// getsError reads an answer that meshd wrote itself.
func getsError(t testing.TB, c net.Conn, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatalf("no answer: %v, want %s", err, want)
	}
	body, err := io.ReadAll(resp.Body)
	got := fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("meshd-error"))
	if resp.Close {
		got += " and close"
	}
	if got != want || err != nil || !strings.HasPrefix(string(body), "meshd: ") || r.Buffered() > 0 {
		t.Fatalf("got %s %q %v, want %s", got, body, err, want)
	}
}

// quiet expects that nothing comes for a moment.
func quiet(t testing.TB, who string, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	var b [256]byte
	if n, err := c.Read(b[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%s got %q, %v; nothing was to come", who, b[:n], err)
	}
}

// ending reads to the end and returns what came before it, and whether the
// connection was cut (reset) rather than ended.
func ending(t testing.TB, who string, c net.Conn) (rest []byte, cut bool) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(c)
	switch {
	case err == nil:
		return rest, false
	case errors.Is(err, syscall.ECONNRESET):
		return rest, true
	}
	t.Fatalf("%s: no end of the connection, but %q, %v", who, rest, err)
	return nil, false
}

// A story is a script of what client and application do, in sections like
// "-- client sends --". Their lines end in CRLF, but for one that ends in a
// backslash; \r \n \t \s \0 and \\ stand for octets. {forwarded} are the fields
// that meshd writes of the caller. What is got must be exact.
//
//	client connects   opens another connection; the first comes by itself
//	client|app sends, gets, ends (half-closes), closes, resets
//	client|app sends and ends      the last octet together with the end
//	client|app sees end, sees cut, hears nothing
//	app accepts       takes another connection; the first comes by itself
//	app untouched     no connection came at all
//	client gets error STATUS OUTCOME [and close]   an answer of meshd's own
//	outbound|inbound OUTCOME=N …   the whole of what telemetry counted
func story(t *testing.T, script string, opts ...pairOption) {
	t.Helper()
	app := newRawApp(t)
	tell(t, newPair(t, 1, mesh.HTTP, mustAddr(app.Addr()), opts...), app, script)
}

func tell(t *testing.T, p *pair, app *rawApp, script string) {
	t.Helper()
	conns := map[string]*net.TCPConn{}
	conn := func(who string) *net.TCPConn {
		if conns[who] == nil {
			if who == "app" {
				conns[who] = app.accept(t)
			} else {
				conns[who] = dial(t, p.addr)
			}
		}
		return conns[who]
	}
	forwarded := "x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-forwarded-client-cert: By=" +
		p.b.spiffeOf("world") + ";URI=" + p.a.spiffeOf("web") + "\r\n"
	for _, section := range strings.Split("\n"+script, "\n-- ")[1:] {
		title, body, _ := strings.Cut(section+"\n", "\n")
		title = strings.TrimSuffix(title, " --")
		text := octets(body, forwarded)
		who, what, _ := strings.Cut(title, " ")
		switch {
		case who == "outbound" || who == "inbound":
			h, d := p.a, telemetry.Outbound
			if who == "inbound" {
				h, d = p.b, telemetry.Inbound
			}
			h.expect(d, what)
		case title == "app untouched":
			select {
			case <-app.conns:
				t.Fatal("the application got a connection")
			default:
			}
		case what == "connects", what == "accepts":
			delete(conns, who)
			conn(who)
		case what == "sends":
			send(t, conn(who), text)
		case what == "sends and ends": // in one event for whoever reads
			send(t, conn(who), text[:len(text)-1])
			time.Sleep(20 * time.Millisecond)
			h := p.b
			if who == "client" {
				h = p.a
			}
			h.each(func(*worker) {
				send(t, conn(who), text[len(text)-1:])
				conn(who).CloseWrite()
			})
		case what == "gets":
			gets(t, who, conn(who), text)
		case strings.HasPrefix(what, "gets error "):
			getsError(t, conn(who), strings.TrimPrefix(what, "gets error "))
		case what == "ends":
			conn(who).CloseWrite()
		case what == "closes":
			conn(who).Close()
		case what == "resets":
			conn(who).SetLinger(0)
			conn(who).Close()
		case what == "hears nothing":
			quiet(t, who, conn(who))
		case what == "sees end", what == "sees cut":
			rest, cut := ending(t, who, conn(who))
			if string(rest) != text {
				t.Fatalf("%s got %q before the end, want %q", who, rest, text)
			}
			if cut != (what == "sees cut") {
				t.Fatalf("%s: cut is %v, the story says %s", who, cut, what)
			}
		default:
			t.Fatalf("a story cannot say %q", title)
		}
	}
	for _, c := range conns {
		c.Close()
	}
	p.calm()
}

// octets turns the lines of a section into what goes over the connection.
func octets(body, forwarded string) string {
	var b strings.Builder
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		if line == "{forwarded}" {
			b.WriteString(forwarded)
			continue
		}
		open := strings.HasSuffix(line, `\`) && !strings.HasSuffix(line, `\\`)
		line = strings.TrimSuffix(line, `\`)
		b.WriteString(strings.NewReplacer(`\\`, `\`, `\r`, "\r", `\n`, "\n", `\t`, "\t", `\s`, " ", `\0`, "\x00").Replace(line))
		if !open {
			b.WriteString("\r\n")
		}
	}
	return b.String()
}

// counted says what telemetry has of the only upstream or service, as "ok=2
// bad_request=1".
func (h *host) counted(d telemetry.Direction) string {
	t := h.telemetry.Series(d, "world", "http").Totals()
	var words []string
	for i, n := range t.ByOutcome {
		if n > 0 {
			words = append(words, fmt.Sprintf("%s=%d", Outcome(i), n))
		}
	}
	return strings.Join(words, " ")
}

func (h *host) expect(d telemetry.Direction, want string) {
	h.t.Helper()
	got := ""
	if !eventually(func() bool { got = h.counted(d); return got == want }) {
		h.t.Fatalf("telemetry counted %q, want %q", got, want)
	}
}

func eventually(f func() bool) bool {
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// calm expects that nothing is left of the exchanges once applications have
// closed their connections: counters are at zero, streams are in their free
// lists, buffers in theirs.
func (p *pair) calm() {
	p.a.t.Helper()
	for _, h := range []*host{p.a, p.b} {
		left := ""
		if !eventually(func() bool { left = h.remains(); return left == "" }) {
			h.t.Fatalf("left behind: %s", left)
		}
	}
}

func (h *host) remains() string {
	var b bytes.Buffer
	h.each(func(w *worker) {
		if w.active != 0 {
			fmt.Fprintf(&b, "%d active; ", w.active)
		}
		for l := range w.allLinks {
			if l.count != 0 || len(l.blocked) != 0 || l.in != nil || l.out != nil || l.cipher != nil {
				fmt.Fprintf(&b, "link with %d streams, %d blocked, %d in, %d out, %d cipher; ", l.count, len(l.blocked), len(l.in), len(l.out), len(l.cipher))
			}
			if l.opener && len(l.free) != len(l.streams) {
				fmt.Fprintf(&b, "%d of %d slots free; ", len(l.free), len(l.streams))
			}
		}
		for _, s := range w.links {
			if s != nil && len(s.waiting) != 0 {
				fmt.Fprintf(&b, "%d waiting; ", len(s.waiting))
			}
		}
		for _, e := range w.eps {
			if e != nil && e.inFlight != 0 {
				fmt.Fprintf(&b, "%d in flight; ", e.inFlight)
			}
		}
		for c := range w.conns {
			up, ok := c.(*upHTTP)
			if !ok || !up.idle || up.in != nil || up.out != nil || up.replay != nil {
				fmt.Fprintf(&b, "%T; ", c)
			}
		}
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, st := range h.registry.upstreams {
		if u := &st.usage; u.connections.Load() != 0 || u.pending.Load() != 0 || u.requests.Load() != 0 {
			fmt.Fprintf(&b, "usage %d %d %d; ", u.connections.Load(), u.pending.Load(), u.requests.Load())
		}
	}
	for _, st := range h.registry.services {
		if n := st.usage.requests.Load(); n != 0 {
			fmt.Fprintf(&b, "service usage %d; ", n)
		}
	}
	return b.String()
}
