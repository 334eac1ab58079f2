package proxy

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"meshd/internal/mesh"
)

func TestRequestThroughTwoAgents(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %q from %s", r.Method, r.URL.Path, b, r.Header.Get("x-forwarded-client-cert"))
	}))
	p := newPair(t, 1, mesh.HTTP, app)
	code, body, _ := get(t, "http://"+p.addr+"/hello")
	if code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	t.Log(body)
}
