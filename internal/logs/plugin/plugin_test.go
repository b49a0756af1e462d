package plugin

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"dhow/internal/logs/driver"
	"dhow/internal/testkit"
)

// helper is a log driver plugin that collects what it is sent.
type helper struct {
	t     *testing.T
	lines chan string
	info  chan driver.Info
	err   string
	fifo  *os.File
}

// kill ends it as a signal would.
func (h *helper) kill() { h.fifo.Close() }

func (h *helper) serve(socket string) *http.Server {
	l, err := net.Listen("unix", socket)
	if err != nil {
		h.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/LogDriver.StartLogging", func(w http.ResponseWriter, r *http.Request) {
		var args struct {
			File string
			Info driver.Info
		}
		if err := json.NewDecoder(r.Body).Decode(&args); err != nil {
			h.t.Error(err)
		}
		if h.err == "" {
			h.info <- args.Info
			f, err := os.Open(args.File)
			if err != nil {
				h.t.Error(err)
			}
			h.fifo = f
			go h.read(f)
		}
		fmt.Fprintf(w, `{"Err":%q}`, h.err)
	})
	mux.HandleFunc("/LogDriver.StopLogging", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"Err":""}`) })
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	h.t.Cleanup(func() { srv.Close() })
	return srv
}

// read decodes entries as a plugin that was written in another language would.
func (h *helper) read(f *os.File) {
	defer f.Close()
	for {
		var size uint32
		if err := binary.Read(f, binary.BigEndian, &size); err != nil {
			return
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(f, b); err != nil {
			return
		}
		fields := map[protowire.Number]string{}
		for len(b) > 0 {
			num, typ, n := protowire.ConsumeTag(b)
			b = b[n:]
			if typ == protowire.VarintType {
				v, n := protowire.ConsumeVarint(b)
				fields[num], b = fmt.Sprint(v), b[n:]
				continue
			}
			v, n := protowire.ConsumeBytes(b)
			fields[num], b = string(v), b[n:]
		}
		h.lines <- fmt.Sprintf("%s %s %s %s", fields[2], fields[1], fields[3], fields[4])
	}
}

func TestPlugin(t *testing.T) {
	h := &helper{t: t, lines: make(chan string, 10), info: make(chan driver.Info, 10)}
	socket := filepath.Join(t.TempDir(), "p.sock")
	srv := h.serve(socket)
	s, err := Kind(socket).Open(driver.Info{ContainerID: "abc", ContainerName: "web"}, driver.Options{"any": "thing"})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(100, 7)
	batch := []driver.Record{{Time: at, Stream: driver.Stdout, Line: []byte("one")}, {Time: at, Stream: driver.Stderr, Line: []byte("t\xffo"), Partial: true}}
	send := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
		defer cancel()
		_, err := s.Send(ctx, batch)
		return err
	}
	if err := send(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"100000000007 stdout one ", "100000000007 stderr t\xffo 1"} {
		if got := <-h.lines; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if info := <-h.info; info.ContainerName != "web" || info.Config["any"] != "thing" {
		t.Errorf("got %+v", info)
	}
	// The plugin is stopped and started again.
	srv.Close()
	s.Close()
	if err := send(); err == nil {
		t.Error("no error from a plugin that is gone")
	}
	h.serve(socket)
	if err := send(); err != nil {
		t.Error(err)
	}
	if got := <-h.lines; got != "100000000007 stdout one " {
		t.Errorf("got %q", got)
	}
	s.Close()
	h.err = "bad option"
	if err := send(); !driver.IsRefused(err) {
		t.Errorf("got %v, want to be refused", err)
	}
}

// TestExample builds the program of docs/log-plugins.md and sends lines to it.
func TestExample(t *testing.T) {
	page, err := os.ReadFile("../../../docs/log-plugins.md")
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(page), "```go\n")
	code, _, _ = strings.Cut(code, "```\n")
	if n := strings.Count(code, "\n"); n > 50 {
		t.Errorf("the example has %d lines", n)
	}
	dir := t.TempDir()
	source, program, socket, out := filepath.Join(dir, "filelog.go"), filepath.Join(dir, "filelog"), filepath.Join(dir, "s"), filepath.Join(dir, "out")
	if err := os.WriteFile(source, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", program, source)
	build.Dir = dir
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	cmd := exec.Command(program, socket)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	s, err := Kind(socket).Open(driver.Info{ContainerName: "/web"}, driver.Options{"file": out})
	if err != nil {
		t.Fatal(err)
	}
	batch := []driver.Record{{Time: time.Now(), Stream: driver.Stdout, Line: []byte("one")}, {Time: time.Now(), Stream: driver.Stderr, Line: []byte("t\xffo")}}
	want, got := "stdout: one\nstderr: t\xffo\n", []byte(nil)
	for end := time.Now().Add(testkit.Patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err = s.Send(t.Context(), batch); err == nil || time.Now().After(end) {
			break // it listens
		}
	}
	for end := time.Now().Add(testkit.Patience); string(got) != want && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		got, _ = os.ReadFile(out) // it may not be there yet
	}
	if string(got) != want {
		t.Errorf("got %q, want %q (%v)", got, want, err)
	}
	s.Close()
	bad, err := Kind(socket).Open(driver.Info{ContainerName: "/web"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bad.Send(t.Context(), batch); !driver.IsRefused(err) {
		t.Errorf("without its option: got %v, want to be refused", err)
	}
	bad.Close()
}

// A plugin that is killed is noticed at once, not when the time is over.
func TestKilledPlugin(t *testing.T) {
	h := &helper{t: t, lines: make(chan string, 10), info: make(chan driver.Info, 10)}
	socket := filepath.Join(t.TempDir(), "p.sock")
	h.serve(socket)
	s := newSender(socket, driver.Info{})
	defer s.Close()
	batch := []driver.Record{{Stream: driver.Stdout, Line: []byte("one")}}
	if _, err := s.Send(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	h.kill()
	before := time.Now()
	if _, err := s.Send(t.Context(), batch); err == nil || time.Since(before) > testkit.Patience/2 {
		t.Errorf("got %v after %v, want an error at once", err, time.Since(before))
	}
}
