// Package plugin sends lines to docker's log driver plugins: HTTP over a unix
// socket tells the plugin of a FIFO, from which it reads entries
// (https://docs.docker.com/engine/extend/plugins_logging, plugin API 1.0). A plugin
// is found by its name as docker finds one that it does not manage itself
// (https://docs.docker.com/engine/extend/plugin_api#plugin-discovery).
//
// The client in docker's engine is part of its daemon; go-plugins-helpers has the
// plugin's side only.
//
// Invariant: what is in the FIFO begins with a whole entry. After anything that
// went wrong there is a new FIFO.
package plugin

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"dhow/internal/logs/driver"
)

// Where docker looks for sockets, then for files with an address.
func places() (sockets, specs []string) {
	return []string{"/run/docker/plugins"}, []string{"/etc/docker/plugins", "/usr/lib/docker/plugins"}
}

// Find returns the plugin's socket; "" when there is no plugin of the name. A tag
// (":latest") is left out.
func Find(name string) string {
	name, _, _ = strings.Cut(name, ":")
	base := filepath.Base(name)
	if base != name && !strings.Contains(name, "/") || base == "." || base == "/" || base == ".." {
		return ""
	}
	sockets, specs := places()
	for _, dir := range sockets {
		for _, path := range []string{filepath.Join(dir, base+".sock"), filepath.Join(dir, base, base+".sock")} {
			if st, err := os.Stat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
				return path
			}
		}
	}
	for _, dir := range specs {
		if data, err := os.ReadFile(filepath.Join(dir, base+".spec")); err == nil {
			if path, ok := strings.CutPrefix(strings.TrimSpace(string(data)), "unix://"); ok {
				return path
			}
		}
		var spec struct{ Addr string }
		if data, err := os.ReadFile(filepath.Join(dir, base+".json")); err == nil && json.Unmarshal(data, &spec) == nil {
			if path, ok := strings.CutPrefix(spec.Addr, "unix://"); ok {
				return path
			}
		}
	}
	return ""
}

// Kind describes the driver whose plugin listens on the socket. It takes any
// option: what the plugin thinks of them shows when logging starts.
func Kind(socket string) driver.Kind {
	return driver.Kind{
		Any: true,
		Open: func(info driver.Info, o driver.Options) (driver.Sender, error) {
			info.Config = o
			return newSender(socket, info), nil
		},
		Delivery: func(driver.Options) driver.Delivery {
			return driver.Delivery{Line: 16 << 10, Unacknowledged: true}
		},
	}
}

type sender struct {
	http  http.Client
	info  driver.Info
	path  string   // of the FIFO, "" for none
	fifo  *os.File // open for both until the plugin has read from it, then for writing
	read  bool     // it has
	parts [3]partial
	buf   []byte
}

// partial is a line that comes in several records.
type partial struct {
	id      string // "" for none
	ordinal uint64
}

func newSender(socket string, info driver.Info) *sender {
	return &sender{info: info, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// call calls a method of the plugin.
func (s *sender) call(ctx context.Context, method string, args any) error {
	body, err := json.Marshal(args)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/LogDriver."+method, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/vnd.docker.plugins.v1.1+json")
	resp, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct{ Err string }
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &answer); err != nil && len(bytes.TrimSpace(data)) > 0 {
		return fmt.Errorf("%s: the plugin answered %d: %.200q", method, resp.StatusCode, data)
	}
	if answer.Err != "" {
		return driver.Refuse(fmt.Errorf("%s: the plugin says: %s", method, answer.Err))
	}
	return nil
}

// start makes a FIFO and tells the plugin of it.
func (s *sender) start(ctx context.Context) error {
	dir := "/run/docker/logging" // what docker shares with plugins in containers
	if err := os.MkdirAll(dir, 0o700); err != nil {
		if dir, err = os.MkdirTemp("", "dhow-logging-"); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, newID())
	if err := unix.Mkfifo(path, 0o700); err != nil {
		return &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	s.path = path
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	s.fifo = f
	return s.call(ctx, "StartLogging", struct {
		File string
		Info driver.Info
	}{path, s.info})
}

func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return fmt.Sprintf("%x", b)
}

// end takes the FIFO back.
func (s *sender) end(ctx context.Context) error {
	if s.path == "" {
		return nil
	}
	err := s.call(ctx, "StopLogging", struct{ File string }{s.path})
	if s.fifo != nil {
		err = errors.Join(err, s.fifo.Close())
	}
	err = errors.Join(err, os.Remove(s.path))
	s.path, s.fifo, s.read = "", nil, false
	return err
}

func (s *sender) Send(ctx context.Context, batch []driver.Record) (n int, err error) {
	parts := s.parts
	defer func() {
		if err != nil {
			s.parts = parts
			quick, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			s.end(quick) // a plugin that is gone cannot be told
		}
	}()
	if s.path == "" {
		if err := s.start(ctx); err != nil {
			return 0, err
		}
	}
	s.buf = s.buf[:0]
	for i := range batch {
		s.buf = s.entry(s.buf, &batch[i])
	}
	deadline, _ := ctx.Deadline()
	s.fifo.SetDeadline(deadline)
	defer context.AfterFunc(ctx, func() { s.fifo.SetDeadline(time.Unix(1, 0)) })()
	if _, err := s.fifo.Write(s.buf); err != nil {
		return 0, err
	}
	if err := s.drain(ctx); err != nil {
		return 0, err
	}
	return 0, s.onlyWrite()
}

// onlyWrite makes the plugin the only one who has the FIFO open for reading, as
// soon as it surely has: the kernel tells when it is gone then.
func (s *sender) onlyWrite() error {
	if s.read {
		return nil
	}
	f, err := os.OpenFile(s.path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	err = s.fifo.Close()
	s.fifo, s.read = f, true
	return err
}

// entry appends a LogEntry of docker's api/types/plugins/logdriver, with its length
// before it, big-endian.
func (s *sender) entry(dst []byte, r *driver.Record) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = protowire.AppendTag(dst, 1, protowire.BytesType)
	dst = protowire.AppendString(dst, r.Stream.String())
	dst = protowire.AppendTag(dst, 2, protowire.VarintType)
	dst = protowire.AppendVarint(dst, uint64(r.Time.UnixNano()))
	dst = protowire.AppendTag(dst, 3, protowire.BytesType)
	dst = protowire.AppendBytes(dst, r.Line)
	p := &s.parts[r.Stream]
	if r.Partial && p.id == "" {
		p.id = newID()
	}
	if p.id != "" {
		p.ordinal++
		dst = protowire.AppendTag(dst, 4, protowire.VarintType)
		dst = protowire.AppendVarint(dst, protowire.EncodeBool(true))
		meta := protowire.AppendTag(nil, 1, protowire.VarintType)
		meta = protowire.AppendVarint(meta, protowire.EncodeBool(!r.Partial))
		meta = protowire.AppendTag(meta, 2, protowire.BytesType)
		meta = protowire.AppendString(meta, p.id)
		meta = protowire.AppendTag(meta, 3, protowire.VarintType)
		meta = protowire.AppendVarint(meta, p.ordinal)
		dst = protowire.AppendTag(dst, 5, protowire.BytesType)
		dst = protowire.AppendBytes(dst, meta)
		if !r.Partial {
			*p = partial{}
		}
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst
}

var errGone = errors.New("the plugin is gone")

// abandoned says whether nobody has the FIFO open for reading.
func (s *sender) abandoned(rc syscall.RawConn) bool {
	gone := false
	err := rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		gone = n == 1 && err == nil && p[0].Revents&unix.POLLERR != 0
	})
	return err != nil || gone
}

// drain waits until the plugin has read the FIFO empty.
func (s *sender) drain(ctx context.Context) error {
	rc, err := s.fifo.SyscallConn()
	if err != nil {
		return err
	}
	for pause := 200 * time.Microsecond; ; pause = min(2*pause, 50*time.Millisecond) {
		waiting := 0
		var errno error
		if err := rc.Control(func(fd uintptr) { waiting, errno = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil {
			return err
		}
		if errno != nil || waiting == 0 {
			return errno
		}
		if s.abandoned(rc) {
			return errGone
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the plugin does not read: %w", ctx.Err())
		case <-time.After(pause):
		}
	}
}

func (s *sender) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return s.end(ctx)
}
