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
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"dhow/internal/logs/driver"
)

// helper is a log driver plugin that collects what it is sent.
type helper struct {
	t     *testing.T
	lines chan string
	info  chan driver.Info
	err   string
}

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
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
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
