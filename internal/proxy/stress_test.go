package proxy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"meshd/internal/mesh"
)

// echoApp answers with the body it was sent, chunked or with a length.
func echoHandler(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("len") != "" {
		w.Header().Set("content-length", fmt.Sprint(r.ContentLength))
	}
	http.NewResponseController(w).EnableFullDuplex()
	w.WriteHeader(200)
	io.Copy(w, r.Body)
}

// TestManyBodiesAtOnce sends bodies of all sizes in both framings over many
// connections and expects every byte back.
func TestManyBodiesAtOnce(t *testing.T) {
	for _, loops := range []int{1, 3} {
		t.Run(fmt.Sprint(loops, " loops"), func(t *testing.T) {
			p := newPair(t, loops, mesh.HTTP, httpApp(t, http.HandlerFunc(echoHandler)))
			tr := &http.Transport{MaxIdleConnsPerHost: 64}
			defer tr.CloseIdleConnections()
			client := &http.Client{Transport: tr, Timeout: 30 * time.Second}
			var wg sync.WaitGroup
			for g := range 32 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(g), 1))
					for range 20 {
						size := rng.IntN(1 << rng.IntN(21))
						data := make([]byte, size)
						for i := range data {
							data[i] = byte(rng.Uint32())
						}
						var body io.Reader = bytes.NewReader(data)
						url := "http://" + p.addr + "/echo"
						if rng.IntN(2) == 0 {
							body = struct{ io.Reader }{body} // chunked
						} else {
							url += "?len=1"
						}
						req, _ := http.NewRequest("POST", url, body)
						resp, err := client.Do(req)
						if err != nil {
							t.Error(err)
							return
						}
						got, err := io.ReadAll(resp.Body)
						resp.Body.Close()
						if err != nil || resp.StatusCode != 200 || !bytes.Equal(got, data) {
							t.Errorf("sent %d bytes, got %d %d bytes, %v", size, resp.StatusCode, len(got), err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// TestTCPStreams sends random bytes both ways at once through echo servers and
// half-closes; everything must come back before the end does.
func TestTCPStreams(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, c)
				c.Close()
			}()
		}
	}()
	p := newPair(t, 2, mesh.TCP, mustAddr(l.Addr()))
	var wg sync.WaitGroup
	for g := range 24 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 2))
			size := rng.IntN(1 << (10 + rng.IntN(13)))
			c, err := net.Dial("tcp", p.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(30 * time.Second))
			sent := sha256.New()
			go func() {
				buf := make([]byte, 32<<10)
				for left := size; left > 0; {
					n := min(left, 1+rng.IntN(len(buf)))
					for i := range buf[:n] {
						buf[i] = byte(rng.Uint32())
					}
					sent.Write(buf[:n])
					if _, err := c.Write(buf[:n]); err != nil {
						t.Error(err)
						return
					}
					left -= n
				}
				c.(*net.TCPConn).CloseWrite()
			}()
			got := sha256.New()
			n, err := io.Copy(got, c)
			if err != nil || int(n) != size || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
				t.Errorf("stream %d: sent %d, got %d, %v", g, size, n, err)
			}
		})
	}
	wg.Wait()
}
