package test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // the driver compresses
	"google.golang.org/grpc/status"
)

// sink is a destination of a container's lines in TestLogFaults: as much of a
// protocol's server as it takes to know which lines it has. Whether the drivers
// speak their protocols well is tested elsewhere, with real servers.
type sink struct {
	name    string // the driver's, and how it is used
	driver  string
	of      string // the container
	options map[string]string
	door    *door
	packets *packets      // instead of a door, over UDP
	certs   *certificates // nil without TLS
	web     bool          // speaks HTTP: it can answer with a status
	status  atomic.Int32  // what it answers; 0 is what it should
	asked   atomic.Int64  // requests that were answered with status

	stop func() // ends connections that are not the door's

	mu       sync.Mutex
	have     []uint64 // guarded by mu: bits by number
	lines    int      // guarded by mu: different ones
	again    int      // guarded by mu: that it had already
	complete int      // guarded by mu: all numbers up to this are here
}

// answers says whether the protocol tells what has arrived.
func (s *sink) answers() bool {
	return s.web || s.name == "fluentd" || s.name == "otlp"
}

// take notes the numbers in a piece of output, which has whole ones.
func (s *sink) take(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		i := bytes.IndexByte(data, 'q')
		if i < 0 || len(data) < i+11 {
			return
		}
		data = data[i:]
		n, err := strconv.Atoi(string(data[1:10]))
		if data[10] != 'q' || err != nil {
			data = data[1:]
			continue
		}
		data = data[11:]
		for n/64 >= len(s.have) {
			s.have = append(s.have, 0)
		}
		if s.have[n/64]&(1<<(n%64)) != 0 {
			s.again++
			continue
		}
		s.have[n/64] |= 1 << (n % 64)
		s.lines++
	}
}

// missing counts the numbers up to n that it does not have.
func (s *sink) missing(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.complete < n && (s.complete+1)/64 < len(s.have) && s.have[(s.complete+1)/64]&(1<<((s.complete+1)%64)) != 0 {
		s.complete++
	}
	lost := 0
	for i := s.complete + 1; i <= n; i++ {
		if i/64 >= len(s.have) || s.have[i/64]&(1<<(i%64)) == 0 {
			lost++
		}
	}
	return lost
}

func (s *sink) duplicates() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.again
}

// serveWeb answers requests with the reply.
func (s *sink) serveWeb(reply string) {
	l := net.Listener(s.door)
	if s.certs != nil {
		l = tls.NewListener(l, s.certs.config())
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, reply) }), ErrorLog: quiet()}
	go srv.Serve(l)
}

func (s *sink) answer(w http.ResponseWriter, r *http.Request, reply string) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(body)
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		body = z
	}
	data, err := io.ReadAll(body)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if code := s.status.Load(); code != 0 {
		s.asked.Add(1)
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(int(code))
		return
	}
	if bytes.Contains(data, []byte("bitter")) {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.take(data)
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, reply)
}

// serveStream reads connections that have no answers.
func (s *sink) serveStream() {
	s.accept(func(c net.Conn) {
		s.read(c)
	})
}

// read takes all of a stream.
func (s *sink) read(r io.Reader) {
	buf, n := make([]byte, 64<<10), 0
	for {
		m, err := r.Read(buf[n:])
		n += m
		last := bytes.LastIndexByte(buf[:n], 'x') // lines end with it
		if last < 0 {
			last = 0
		}
		s.take(buf[:last])
		n = copy(buf, buf[last:n])
		if err != nil {
			return
		}
	}
}

// serveForward reads fluentd's messages and acknowledges each, whose last part is
// its option "chunk".
func (s *sink) serveForward() {
	s.accept(func(c net.Conn) {
		var pending []byte
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			pending = append(pending, buf[:n]...)
			i := bytes.LastIndex(pending, []byte("\xa5chunk"))
			if i < 0 || len(pending) < i+7 {
				continue
			}
			size, head := int(pending[i+6]&0x1f), 7
			if pending[i+6] == 0xd9 && len(pending) > i+7 {
				size, head = int(pending[i+7]), 8
			}
			if len(pending) < i+head+size {
				continue
			}
			s.take(pending)
			ack := append([]byte("\x81\xa3ack"), pending[i+6:i+head+size]...)
			pending = pending[:0]
			if _, err := c.Write(ack); err != nil {
				return
			}
		}
	})
}

func (s *sink) accept(serve func(net.Conn)) {
	l := net.Listener(s.door)
	if s.certs != nil {
		l = tls.NewListener(l, s.certs.config())
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
}

// raw is a codec that leaves messages as they are.
type raw struct{}

func (raw) Name() string                { return "proto" }
func (raw) Marshal(any) ([]byte, error) { return nil, nil } // an empty message
func (raw) Unmarshal(d []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(d)
	return nil
}

func (s *sink) serveGRPC() {
	srv := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		var data []byte
		if err := stream.RecvMsg(&data); err != nil {
			return err
		}
		if s.status.Load() != 0 {
			s.asked.Add(1)
			return status.Error(codes.Unavailable, "busy")
		}
		s.take(data)
		return stream.SendMsg(nil)
	}))
	go srv.Serve(s.door)
}

// servePlugin is docker's log driver plugin: it is told of a FIFO over HTTP.
func (s *sink) servePlugin() {
	var mu sync.Mutex
	var fifos []*os.File
	s.stop = func() {
		mu.Lock()
		defer mu.Unlock()
		for _, f := range fifos {
			f.Close()
		}
		fifos = nil
	}
	srv := &http.Server{ErrorLog: quiet(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var args struct{ File string }
		if err := json.NewDecoder(r.Body).Decode(&args); err == nil && filepath.Base(r.URL.Path) == "LogDriver.StartLogging" {
			if f, err := os.Open(args.File); err == nil {
				mu.Lock()
				fifos = append(fifos, f)
				mu.Unlock()
				go s.read(&hangingFile{f, s.door})
			}
		}
		io.WriteString(w, `{"Err":""}`)
	})}
	go srv.Serve(s.door)
}

// hangingFile is not read while the door hangs.
type hangingFile struct {
	*os.File
	door *door
}

func (f *hangingFile) Read(p []byte) (int, error) {
	for {
		f.door.mu.Lock()
		mode := f.door.mode
		f.door.mu.Unlock()
		if mode != hanging {
			return f.File.Read(p)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// journal is journald's socket. Datagrams have no connection: when it hangs, its
// queue fills up.
type journal struct {
	sink *sink
	path string
	mu   sync.Mutex
	conn *net.UnixConn // guarded by mu; nil while nobody listens
	hang atomic.Bool
}

func (j *journal) open() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.hang.Store(false)
	if j.conn != nil {
		return nil
	}
	_ = os.Remove(j.path)
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: j.path, Net: "unixgram"})
	if err != nil {
		return err
	}
	j.conn = c
	go func() {
		buf := make([]byte, 256<<10)
		for {
			if j.hang.Load() {
				time.Sleep(5 * time.Millisecond)
				continue
			}
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			j.sink.take(buf[:n])
		}
	}()
	return nil
}

func (j *journal) shut() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.conn != nil {
		j.hang.Store(false)
		// What is queued was accepted by the kernel in journald's name.
		for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
		}
		j.conn.Close()
		j.conn = nil
	}
}

// metadataServer answers for tokens of Google's.
func tokens(ctx context.Context) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"a-token","token_type":"Bearer","expires_in":36000}`)
	})}
	context.AfterFunc(ctx, func() { srv.Close() })
	go srv.Serve(l)
	return "http://" + l.Addr().String(), nil
}
