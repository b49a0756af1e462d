package logs

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crypto/rand"
	"crypto/x509"

	"dhow/internal/logs/driver"
	"dhow/internal/testkit"
)

// remote is a driver that talks over a network, and how to point it at an address.
type remote struct {
	name    string
	http    bool
	options func(t *testing.T, scheme, address string) driver.Options
}

// remotes has every driver that can be pointed at a server of a test. scheme is
// "plain" or "tls".
func remotes() []remote {
	web := map[string]string{"plain": "http://", "tls": "https://"}
	return []remote{
		{"syslog", false, func(_ *testing.T, scheme, address string) driver.Options {
			return driver.Options{"syslog-address": map[string]string{"plain": "tcp://", "tls": "tcp+tls://"}[scheme] + address}
		}},
		{"gelf", false, func(t *testing.T, scheme, address string) driver.Options {
			if scheme == "tls" {
				t.Skip("GELF has no TLS")
			}
			return driver.Options{"gelf-address": "tcp://" + address}
		}},
		{"fluentd", false, func(_ *testing.T, scheme, address string) driver.Options {
			return driver.Options{"fluentd-address": map[string]string{"plain": "tcp://", "tls": "tls://"}[scheme] + address, "fluentd-request-ack": "true"}
		}},
		{"splunk", true, func(_ *testing.T, scheme, address string) driver.Options {
			return driver.Options{"splunk-url": web[scheme] + address, "splunk-token": "t"}
		}},
		{"loki", true, func(_ *testing.T, scheme, address string) driver.Options {
			return driver.Options{"loki-url": web[scheme] + address}
		}},
		{"otlp", true, func(_ *testing.T, scheme, address string) driver.Options {
			return driver.Options{"otlp-endpoint": web[scheme] + address}
		}},
		{"otlp", false, func(_ *testing.T, scheme, address string) driver.Options {
			return driver.Options{"otlp-endpoint": web[scheme] + address, "otlp-protocol": "grpc"}
		}},
		{"awslogs", true, func(t *testing.T, scheme, address string) driver.Options {
			t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
			return driver.Options{"awslogs-group": "g", "awslogs-region": "eu-west-1", "awslogs-endpoint": web[scheme] + address, "awslogs-create-stream": "false"}
		}},
		{"gcplogs", true, func(t *testing.T, scheme, address string) driver.Options {
			t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", googleCredentials(t))
			t.Setenv("GCE_METADATA_HOST", "")
			return driver.Options{"gcp-project": "p", "gcp-endpoint": web[scheme] + address}
		}},
	}
}

// googleCredentials writes the key file of a service account, whose tokens come
// from a server of the test.
func googleCredentials(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"access_token":"a-token","token_type":"Bearer","expires_in":3600}`)
	}))
	t.Cleanup(tokens.Close)
	data, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "x@example.com", "token_uri": tokens.URL,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// opened opens the sender of a driver, after its options were checked.
func (r remote) opened(t *testing.T, scheme, address string) driver.Sender {
	t.Helper()
	o := r.options(t, scheme, address)
	if err := Check(r.name, o); err != nil {
		t.Fatal(err)
	}
	s, err := kinds()[r.name]().Open(Info{ContainerID: strings.Repeat("ab", 32), ContainerName: "web"}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// sendFor sends a batch with a time limit, and fails when it takes much longer.
func sendFor(t *testing.T, s driver.Sender, limit time.Duration, records int) (int, error) {
	t.Helper()
	batch := make([]Record, records)
	for i := range batch {
		batch[i] = Record{Time: time.Now(), Stream: Stdout, Seq: uint64(i + 1), Line: []byte(strings.Repeat("z", 10_000))}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	before := time.Now()
	n, err := s.Send(ctx, batch)
	if took := time.Since(before); took > limit+30*time.Second {
		t.Errorf("Send took %v, allowed were %v", took, limit)
	}
	return n, err
}

func eachRemote(t *testing.T, test func(t *testing.T, r remote)) {
	for _, r := range remotes() {
		name := r.name
		if r.name == "otlp" && !r.http {
			name = "otlp-grpc"
		}
		t.Run(name, func(t *testing.T) { test(t, r) })
	}
}

// TestAbsent: nobody listens.
func TestAbsent(t *testing.T) {
	eachRemote(t, func(t *testing.T, r remote) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		l.Close()
		n, err := sendFor(t, r.opened(t, "plain", address), testkit.Patience, 1)
		if n != 0 || err == nil || driver.IsRefused(err) || driver.IsRejected(err) {
			t.Errorf("got %d, %v, want an error that is worth another try", n, err)
		}
	})
}

// TestHung: somebody accepts connections and never reads.
func TestHung(t *testing.T) {
	eachRemote(t, func(t *testing.T, r remote) {
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
				defer c.Close()
			}
		}()
		n, err := sendFor(t, r.opened(t, "plain", l.Addr().String()), 500*time.Millisecond, 2000)
		if n != 0 || err == nil || driver.IsRefused(err) || driver.IsRejected(err) {
			t.Errorf("got %d, %v, want an error that is worth another try", n, err)
		}
	})
}

// TestUnixSockets: nobody listens at a socket's path, or somebody who never reads.
func TestUnixSockets(t *testing.T) {
	for _, c := range []struct{ driver, option, scheme string }{
		{"syslog", "syslog-address", "unix"}, {"syslog", "syslog-address", "unixgram"}, {"fluentd", "fluentd-address", "unix"},
	} {
		t.Run(c.driver+" "+c.scheme, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			r := remote{c.driver, false, func(*testing.T, string, string) driver.Options {
				return driver.Options{c.option: c.scheme + "://" + path}
			}}
			check := func(what string, n, most int, err error) {
				t.Helper()
				if n > most || err == nil || driver.IsRefused(err) || driver.IsRejected(err) {
					t.Errorf("%s: got %d, %v, want an error that is worth another try", what, n, err)
				}
			}
			n, err := sendFor(t, r.opened(t, "", ""), 3*time.Second, 1)
			check("absent", n, 0, err)
			most := 0
			if c.scheme == "unix" {
				l, err := net.Listen("unix", path)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
			} else {
				l, err := net.ListenPacket("unixgram", path)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				most = 1999 // what the socket holds is the kernel's
			}
			n, err = sendFor(t, r.opened(t, "", ""), 500*time.Millisecond, 2000)
			check("hung", n, most, err)
		})
	}
}

// TestWrongCertificate: the server's certificate is not trusted.
func TestWrongCertificate(t *testing.T) {
	eachRemote(t, func(t *testing.T, r remote) {
		srv := httptest.NewUnstartedServer(http.NotFoundHandler())
		srv.EnableHTTP2 = true
		srv.Config.ErrorLog = nil
		srv.StartTLS()
		defer srv.Close()
		n, err := sendFor(t, r.opened(t, "tls", srv.Listener.Addr().String()), testkit.Patience, 1)
		if n != 0 || !driver.IsRefused(err) {
			t.Errorf("got %d, %v, want to be refused", n, err)
		}
	})
}

// TestClosing: the server closes each connection after it has read a little.
func TestClosing(t *testing.T) {
	eachRemote(t, func(t *testing.T, r remote) {
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
				io.ReadFull(c, make([]byte, 1000))
				c.Close()
			}
		}()
		s := r.opened(t, "plain", l.Addr().String())
		for range 3 {
			n, err := sendFor(t, s, testkit.Patience, 100)
			if n == 100 || err == nil || driver.IsRejected(err) {
				t.Errorf("got %d, %v, want an error", n, err)
			}
		}
	})
}

// TestStatuses: what servers answer, and what it means.
func TestStatuses(t *testing.T) {
	for _, c := range []struct {
		status            int
		refused, rejected bool
		after             time.Duration
	}{
		{400, false, true, 0}, {413, false, true, 0},
		{401, true, false, 0}, {403, true, false, 0}, {404, true, false, 0}, {301, true, false, 0},
		{429, false, false, 7 * time.Second}, {503, false, false, 7 * time.Second},
		{500, false, false, 0}, {502, false, false, 0},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			eachRemote(t, func(t *testing.T, r remote) {
				if !r.http {
					t.Skip("not over HTTP")
				}
				srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Retry-After", "7")
					w.Header().Set("Location", "http://127.0.0.1:1/")
					w.WriteHeader(c.status)
					io.WriteString(w, "no")
				}))
				defer srv.Close()
				n, err := sendFor(t, r.opened(t, "plain", srv.Listener.Addr().String()), testkit.Patience, 1)
				if n != 0 || err == nil || driver.IsRefused(err) != c.refused || driver.IsRejected(err) != c.rejected || driver.After(err) != c.after {
					t.Errorf("got %d, %v (refused %v, rejected %v, after %v)", n, err, driver.IsRefused(err), driver.IsRejected(err), driver.After(err))
				}
			})
		})
	}
}

// TestUnread: a destination whose protocol has no answers takes lines without
// reading them, for long, and is killed. They are sent again to the next one.
func TestUnread(t *testing.T) {
	for name := range unanswered("") {
		t.Run(name, func(t *testing.T) {
			hung, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			address := hung.Addr().String()
			options := unanswered(address)[name]
			var later atomic.Int64
			c := Config{Drivers: []Driver{{name, options}}, Info: realInfo(), Now: func() time.Time { return time.Now().Add(time.Duration(later.Load())) }}
			dir := t.TempDir()
			s := mustOpen(t, dir, c)
			lines := numbered(0, 20_000)
			writeLines(t, s, lines[:50]) // as many as its buffer holds
			first, err := hung.Accept()
			if err != nil {
				t.Fatal(err)
			}
			testkit.Until(t, "a batch that is not read", func() bool { return mustStat(t, dir).Destinations[0].Shipped.Lines > 0 })
			writeLines(t, s, lines[50:])
			time.Sleep(200 * time.Millisecond)
			later.Store(int64(time.Minute)) // what was sent is no news any more
			hung.Close()
			first.(*net.TCPConn).SetLinger(0)
			first.Close()
			got := listen(t, address)
			testkit.Until(t, "every line", func() bool { return strings.Contains(got(), "line 19999 ") })
			there := map[string]bool{}
			for _, l := range regexp.MustCompile(`line \d+ `).FindAllString(got(), -1) {
				there[l] = true
			}
			for i := range lines {
				if !there[fmt.Sprintf("line %d ", i)] {
					t.Fatalf("line %d of %d is lost", i, len(lines))
				}
			}
		})
	}
}

// listen accepts connections at an address, and returns what comes in.
func listen(t *testing.T, address string) func() string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var mu sync.Mutex
	var text []byte // guarded by mu
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				buf := make([]byte, 64<<10)
				for {
					n, err := c.Read(buf)
					mu.Lock()
					text = append(text, buf[:n]...)
					mu.Unlock()
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return string(text)
	}
}
