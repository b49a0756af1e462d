package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/testkit"

	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// dialHere is a Dialer without a namespace.
func dialHere(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr.String())
}

// listen accepts on a port of the loopback and hands each connection to serve.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return portOf(l.Addr().String())
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':'):] }

// try runs a probe of the given text once.
func try(t *testing.T, c *Check, timeout time.Duration) Result {
	t.Helper()
	return ask(t.Context(), c.Prober(nil, dialHere), timeout)
}

func httpCheck(t *testing.T, text string) *Check {
	t.Helper()
	target, err := ParseHTTP(text)
	if err != nil {
		t.Fatal(err)
	}
	return &Check{HTTP: target}
}

func TestHTTPProbe(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "host=", r.Host, " q=", r.URL.RawQuery) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/fail", http.StatusFound) })
	mux.HandleFunc("/fail", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "no database", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/flood", func(w http.ResponseWriter, r *http.Request) {
		for range 10000 {
			if _, err := io.WriteString(w, strings.Repeat("x", 4096)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	port, tlsPort := portOf(plain.Listener.Addr().String()), portOf(secure.Listener.Addr().String())
	tests := []struct {
		text string
		exit int
		out  string
	}{
		{port + "/ok?a=b", 0, "HTTP 200 OK\nhost=localhost" + port + " q=a=b"},
		{"example.com" + port + "/ok", 0, "host=example.com" + port},
		{"127.0.0.1" + port + "/ok=201", 1, "HTTP 200 OK"},
		{port + "/moved", 0, "HTTP 302 Found"},
		{port + "/moved=200", 1, "HTTP 302 Found"},
		{port + "/fail", 1, "HTTP 503 Service Unavailable\nno database"},
		{port + "/fail=200-299,500-503", 0, "HTTP 503"},
		{"https://" + tlsPort + "/ok", 0, "HTTP 200 OK"},
		{"http://" + tlsPort + "/ok", 1, "HTTP 400"},
		{"https://" + port + "/ok", 1, "TLS"},
		{":1/", 1, "connection refused"},
	}
	for _, tt := range tests {
		if r := try(t, httpCheck(t, tt.text), testkit.Patience); r.ExitCode != tt.exit || !strings.Contains(r.Output, tt.out) {
			t.Errorf("%s: got %d %q, want %d %q", tt.text, r.ExitCode, r.Output, tt.exit, tt.out)
		}
	}
	if r := try(t, httpCheck(t, port+"/flood"), testkit.Patience); r.ExitCode != 0 || len(r.Output) != MaxOutput+3 {
		t.Errorf("flood: got %d and %d bytes", r.ExitCode, len(r.Output))
	}
	for name, text := range map[string]string{
		"an answer that never comes": port + "/hang",
		"a mute server":              listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }) + "/",
		"an endless header":          listen(t, func(c net.Conn) { trickle(c) }) + "/",
		"a mute TLS server":          "https://" + listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }) + "/",
	} {
		start := time.Now()
		r := try(t, httpCheck(t, text), 100*time.Millisecond)
		if r.ExitCode != -1 || r.Output != "Health check exceeded timeout (100ms)" || time.Since(start) > 30*time.Second {
			t.Errorf("%s: got %d %q after %v", name, r.ExitCode, r.Output, time.Since(start))
		}
	}
	garbage := listen(t, func(c net.Conn) {
		_, _ = io.WriteString(c, strings.Repeat("junk ", 1<<20))
		c.Close()
	})
	if r := try(t, httpCheck(t, garbage+"/"), testkit.Patience); r.ExitCode != 1 || !strings.Contains(r.Output, "no answer in HTTP") {
		t.Errorf("garbage: got %d %q", r.ExitCode, r.Output)
	}
}

// trickle sends a header that does not end, slowly.
func trickle(c net.Conn) {
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
	for {
		if _, err := io.WriteString(c, "X: y\r\n"); err != nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestTCPProbe(t *testing.T) {
	target, err := ParseTCP(listen(t, func(c net.Conn) { c.Close() }))
	if err != nil {
		t.Fatal(err)
	}
	if r := try(t, &Check{TCP: target}, testkit.Patience); r.ExitCode != 0 || !strings.HasPrefix(r.Output, "connected to 127.0.0.1:") {
		t.Errorf("got %+v", r)
	}
	if r := try(t, &Check{TCP: &Target{Port: 1}}, testkit.Patience); r.ExitCode != 1 || !strings.Contains(r.Output, "refused") {
		t.Errorf("nobody listens: got %+v", r)
	}
	stuck := func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if r := ask(t.Context(), (&Check{TCP: target}).Prober(nil, stuck), 20*time.Millisecond); r.ExitCode != -1 || r.Output != "Health check exceeded timeout (20ms)" {
		t.Errorf("no answer: got %+v", r)
	}
}

func TestTCPProbeTriesIPv6(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip(err)
	}
	defer l.Close()
	target, err := ParseTCP(portOf(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	if r := try(t, &Check{TCP: target}, testkit.Patience); r.ExitCode != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestGRPCProbe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, service := grpc.NewServer(), grpchealth.NewServer()
	healthpb.RegisterHealthServer(server, service)
	service.SetServingStatus("shop.Cart", healthpb.HealthCheckResponse_NOT_SERVING)
	go server.Serve(l)
	defer server.Stop()
	bare, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	none := grpc.NewServer()
	go none.Serve(bare)
	defer none.Stop()
	port := portOf(l.Addr().String())
	for text, want := range map[string]string{
		port:                         "0 grpc.health.v1: SERVING",
		port + "/shop.Cart":          "1 grpc.health.v1: NOT_SERVING",
		port + "/shop.Till":          `does not know a service "shop.Till"`,
		portOf(bare.Addr().String()): "has no health service",
		":1":                         "connection refused",
	} {
		target, err := ParseGRPC(text)
		if err != nil {
			t.Fatal(err)
		}
		r := try(t, &Check{GRPC: target}, testkit.Patience)
		if got := fmt.Sprint(r.ExitCode, " ", r.Output); !strings.Contains(got, want) || r.ExitCode < 0 {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
	mute, err := ParseGRPC(listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }))
	if err != nil {
		t.Fatal(err)
	}
	if r := try(t, &Check{GRPC: mute}, 100*time.Millisecond); r.ExitCode != -1 || r.Output != "Health check exceeded timeout (100ms)" {
		t.Errorf("mute server: got %+v", r)
	}
}

// runHere is a Runner without a container, which keeps the contract by a
// process group.
func runHere(ctx context.Context, argv []string, output *os.File) (int, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	kill := func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	stop := context.AfterFunc(ctx, kill)
	defer stop()
	err := cmd.Wait()
	kill()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

func TestCommandProbe(t *testing.T) {
	sh := func(script string, timeout time.Duration) (Result, time.Duration) {
		start := time.Now()
		r := ask(t.Context(), (&Check{Argv: []string{"/bin/sh", "-c", script}}).Prober(runHere, nil), timeout)
		return r, time.Since(start)
	}
	tests := []struct {
		script string
		exit   int
		out    string
	}{
		{"echo out; echo err >&2", 0, "out\nerr\n"},
		{"echo no; exit 3", 3, "no\n"},
		{"kill -9 $$", 137, ""},
		{"yes | head -c 4096 | tr -d '\\n' | head -c 2048", 0, strings.Repeat("y", 2048)},
		{"head -c 4096 /dev/zero | tr '\\0' x", 0, strings.Repeat("x", 4096)},
		{"head -c 4097 /dev/zero | tr '\\0' x", 0, strings.Repeat("x", 4096) + "..."},
		{"head -c 10000000 /dev/zero | tr '\\0' x; exit 1", 1, strings.Repeat("x", 4096) + "..."},
		{"printf x; for i in $(seq 1 4096); do printf '\\303\\244'; done", 0, "x" + strings.Repeat("ä", 2047) + "..."},
	}
	for _, tt := range tests {
		if r, _ := sh(tt.script, testkit.Patience); r.ExitCode != tt.exit || r.Output != tt.out {
			t.Errorf("%s: got %d and %d bytes %.60q, want %d and %d bytes", tt.script, r.ExitCode, len(r.Output), r.Output, tt.exit, len(tt.out))
		}
	}
	const timedOut = "Health check exceeded timeout (200ms)"
	for _, script := range []string{"sleep 600 & sleep 600 & wait", "trap '' TERM INT; sleep 600"} {
		if r, took := sh(script, 200*time.Millisecond); r.ExitCode != -1 || r.Output != timedOut || took > 30*time.Second {
			t.Errorf("%s: got %d %.80q after %v", script, r.ExitCode, r.Output, took)
		}
	}
	// What was said before the time was over is told, however late that began.
	for said, out := range map[string]string{"begun\n": ": begun\n", strings.Repeat("y\n", 100_000): ": " + strings.Repeat("y\n", 2048) + "..."} {
		talk := func(ctx context.Context, _ []string, output *os.File) (int, error) {
			_, err := output.WriteString(said)
			<-ctx.Done()
			return 137, err
		}
		if r := ask(t.Context(), (&Check{Argv: []string{"x"}}).Prober(talk, nil), 200*time.Millisecond); r.ExitCode != -1 || r.Output != timedOut+out {
			t.Errorf("got %d %.80q", r.ExitCode, r.Output)
		}
	}
	// Something left behind holds the output open: that is not waited for.
	if r, took := sh("echo done; sleep 600 & exit 0", testkit.Patience); r.ExitCode != 0 || r.Output != "done\n" || took > 30*time.Second {
		t.Errorf("left behind: got %+v after %v", r, took)
	}
	if r := ask(t.Context(), (&Check{Argv: []string{"/no/such/program"}}).Prober(runHere, nil), testkit.Patience); r.ExitCode != -1 || !strings.Contains(r.Output, "no such file") {
		t.Errorf("no program: got %+v", r)
	}
}

// The output of what escapes even its Runner is not waited for.
func TestCommandProbeEscaped(t *testing.T) {
	var kept *os.File
	p := (&Check{Argv: []string{"x"}}).Prober(func(_ context.Context, _ []string, output *os.File) (int, error) {
		fd, err := syscall.Dup(int(output.Fd()))
		if err != nil {
			return 0, err
		}
		kept = os.NewFile(uintptr(fd), "kept")
		_, err = output.WriteString("said")
		return 0, err
	}, nil)
	start := time.Now()
	r := ask(t.Context(), p, time.Minute)
	defer kept.Close()
	if r.ExitCode != 0 || r.Output != "said" || time.Since(start) > 30*time.Second {
		t.Errorf("got %+v after %v", r, time.Since(start))
	}
}

func BenchmarkHTTPProbe(b *testing.B) {
	// The server is a process of its own, so that the CPU measured is the probe's.
	addr := os.Getenv("DHOW_BENCH_HTTP")
	if addr == "" {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") }))
		defer s.Close()
		addr = s.Listener.Addr().String()
	}
	target, err := ParseHTTP(addr + "/")
	if err != nil {
		b.Fatal(err)
	}
	p := (&Check{HTTP: target}).Prober(nil, dialHere)
	before := cpu(b)
	for b.Loop() {
		if r := ask(b.Context(), p, time.Second); r.ExitCode != 0 {
			b.Fatal(r)
		}
	}
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "µs-cpu/probe")
}

// cpu is the time that this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
