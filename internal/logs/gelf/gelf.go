// Package gelf sends lines as GELF 1.1 messages (Graylog Extended Log Format,
// https://go2docs.graylog.org/current/getting_in_log_data/gelf.html, read in
// 2026): over udp, compressed and in chunks, or over tcp, each ended by a zero
// byte. The protocol has no answers.
//
// The client library that docker uses opens connections and retries on its own,
// and has not changed since 2021; the format is JSON with a chunk header.
//
// Invariant: a message is sent whole, or rejected.
package gelf

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"

	"dhow/internal/logs/driver"
)

// The UDP transport: chunks have a magic number, the message's id, their number
// and how many there are.
const (
	chunkBytes  = 1420 // a datagram, so that it is not fragmented on its way
	chunkHeader = 12
	mostChunks  = 128
)

// Levels of syslog, which GELF uses.
const (
	levelError = 3
	levelInfo  = 6
)

// Kind describes the driver.
func Kind() driver.Kind {
	return driver.Kind{
		Options: driver.Describing(map[string]func(string) error{
			"gelf-address":             checkAddress,
			"gelf-compression-type":    driver.OneOf("gzip", "zlib", "none"),
			"gelf-compression-level":   driver.Number(-1, 9),
			"gelf-tcp-max-reconnect":   driver.Number(0, math.MaxInt),
			"gelf-tcp-reconnect-delay": driver.Number(0, math.MaxInt),
		}),
		Check:    check,
		Open:     open,
		Delivery: delivery,
	}
}

func checkAddress(v string) error {
	u, err := url.Parse(v)
	if err != nil {
		return err
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil || (u.Scheme != "udp" && u.Scheme != "tcp") {
		return fmt.Errorf("want udp://host:port or tcp://host:port")
	}
	return nil
}

func check(o driver.Options) error {
	if o["gelf-address"] == "" {
		return fmt.Errorf("gelf-address is required: udp://host:port or tcp://host:port")
	}
	udp := strings.HasPrefix(o["gelf-address"], "udp:")
	for key := range o {
		switch {
		case strings.HasPrefix(key, "gelf-compression-") && !udp:
			return fmt.Errorf("%s is for udp", key)
		case strings.HasPrefix(key, "gelf-tcp-") && udp:
			return fmt.Errorf("%s is for tcp", key)
		}
	}
	return nil
}

func delivery(o driver.Options) driver.Delivery {
	d := driver.Delivery{Unacknowledged: true}
	if strings.HasPrefix(o["gelf-address"], "udp:") {
		// What fits into 128 chunks, were every byte escaped and nothing compressed.
		d.Line = 16 << 10
	}
	d.Tries = o.Int("gelf-tcp-max-reconnect", 0)
	d.Retry = time.Duration(o.Int("gelf-tcp-reconnect-delay", 0)) * time.Second
	return d
}

// compressor is gzip's or zlib's.
type compressor interface {
	io.WriteCloser
	Reset(io.Writer)
}

type sender struct {
	conn   driver.Conn
	before []byte // the message up to its short text
	after  []byte // what follows the level: fields that are the same for all
	pack   compressor
	buf    []byte
	packed bytes.Buffer
	id     [8]byte
}

func open(info driver.Info, o driver.Options) (driver.Sender, error) {
	u, err := url.Parse(o["gelf-address"])
	if err != nil {
		return nil, err
	}
	s := &sender{conn: driver.Conn{Network: u.Scheme, Address: u.Host, Unacknowledged: u.Scheme == "tcp"}}
	if err := s.fields(info, o); err != nil {
		return nil, err
	}
	if u.Scheme == "tcp" {
		return s, nil
	}
	level := o.Int("gelf-compression-level", gzip.BestSpeed)
	switch o["gelf-compression-type"] {
	case "", "gzip":
		s.pack, err = gzip.NewWriterLevel(io.Discard, level)
	case "zlib":
		s.pack, err = zlib.NewWriterLevel(io.Discard, level)
	}
	return s, err
}

// fields prepares what all messages have in common, with docker's names.
func (s *sender) fields(info driver.Info, o driver.Options) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	tag, err := info.Tag(o, "{{.ID}}")
	if err != nil {
		return err
	}
	extra := map[string]any{
		"_container_id":   info.ContainerID,
		"_container_name": info.Name(),
		"_image_id":       info.ContainerImageID,
		"_image_name":     info.ContainerImageName,
		"_command":        info.Command(),
		"_tag":            tag,
		"_created":        info.ContainerCreated,
	}
	attrs, err := info.Attributes(o, func(name string) string {
		if name = "_" + strings.TrimPrefix(name, "_"); name == "_id" {
			return "__id" // servers refuse messages that have an _id
		}
		return name
	})
	if err != nil {
		return err
	}
	for k, v := range attrs {
		extra[k] = v
	}
	hostJSON, err := json.Marshal(host)
	if err != nil {
		return err
	}
	extraJSON, err := json.Marshal(extra)
	if err != nil {
		return err
	}
	s.before = append([]byte(`{"version":"1.1","host":`), hostJSON...)
	s.before = append(s.before, `,"short_message":`...)
	s.after = append([]byte{','}, extraJSON[1:]...)
	return nil
}

// message appends the message of a record. Empty lines have none, since a message
// must have a text.
func (s *sender) message(dst []byte, r driver.Record) []byte {
	level := levelInfo
	if r.Stream == driver.Stderr {
		level = levelError
	}
	dst = append(append(dst, s.before...), '"')
	dst, _ = driver.AppendJSON(dst, r.Line) // JSON has no other bytes
	dst = append(dst, `","timestamp":`...)
	dst = strconv.AppendFloat(dst, float64(r.Time.UnixMilli())/1000, 'f', 3, 64)
	dst = append(dst, `,"level":`...)
	dst = strconv.AppendInt(dst, int64(level), 10)
	return append(dst, s.after...)
}

func (s *sender) Send(ctx context.Context, batch []driver.Record) (int, error) {
	if _, err := s.conn.Dial(ctx); err != nil {
		return 0, err
	}
	if s.conn.Network == "udp" {
		for i, r := range batch {
			if err := s.datagram(ctx, r); err != nil {
				return i, err
			}
		}
		return len(batch), nil
	}
	s.buf = s.buf[:0]
	for _, r := range batch {
		if len(r.Line) == 0 {
			continue
		}
		s.buf = append(s.message(s.buf, r), 0)
	}
	if err := s.conn.Write(ctx, s.buf); err != nil {
		return 0, err
	}
	return 0, s.conn.Drain(ctx)
}

// datagram sends a message in as many chunks as it takes.
func (s *sender) datagram(ctx context.Context, r driver.Record) error {
	if len(r.Line) == 0 {
		return nil
	}
	s.buf = s.message(s.buf[:0], r)
	data := s.buf
	if s.pack != nil {
		s.packed.Reset()
		s.pack.Reset(&s.packed)
		if _, err := s.pack.Write(data); err != nil {
			return err
		}
		if err := s.pack.Close(); err != nil {
			return err
		}
		data = s.packed.Bytes()
	}
	if len(data) <= chunkBytes {
		return s.conn.Write(ctx, data)
	}
	const room = chunkBytes - chunkHeader
	chunks := (len(data) + room - 1) / room
	if chunks > mostChunks {
		return driver.Reject(fmt.Errorf("a message of %d bytes takes %d chunks, more than the %d that GELF allows", len(data), chunks, mostChunks))
	}
	rand.Read(s.id[:])
	var datagram [chunkBytes]byte
	for i := range chunks {
		d := append(datagram[:0], 0x1e, 0x0f)
		d = append(d, s.id[:]...)
		d = append(d, byte(i), byte(chunks))
		d = append(d, data[i*room:min((i+1)*room, len(data))]...)
		if err := s.conn.Write(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// End is driver.Conn's.
func (s *sender) End(ctx context.Context) bool { return s.conn.End(ctx) }

// Told is driver.Conn's.
func (s *sender) Told() (written, unread int64) { return s.conn.Told() }

func (s *sender) Close() error { return s.conn.Close() }
