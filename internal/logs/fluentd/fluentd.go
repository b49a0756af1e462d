// Package fluentd sends lines to Fluentd and Fluent Bit: the Forward Protocol v1
// (https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1) in
// forward mode, over tcp, TLS or a unix socket, with an acknowledgement of each
// batch if it is asked for. Records have docker's keys.
//
// fluent-logger-golang, which docker uses, queues and retries on its own and sends
// messages one by one, so only MessagePack comes from a library (tinylib/msgp,
// which that one uses too).
//
// Invariant: a batch is one message, acknowledged as a whole.
package fluentd

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/tinylib/msgp/msgp"

	"dhow/internal/logs/driver"
)

const defaultPort = "24224"

// Kind describes the driver.
func Kind() driver.Kind {
	return driver.Kind{
		Options: driver.Describing(map[string]func(string) error{
			"fluentd-address":                  checkAddress,
			"fluentd-async":                    driver.Boolean,
			"fluentd-async-reconnect-interval": checkReconnect,
			"fluentd-buffer-limit":             checkLimit,
			"fluentd-max-retries":              driver.Number(0, math.MaxInt32),
			"fluentd-read-timeout":             driver.Period,
			"fluentd-request-ack":              driver.Boolean,
			"fluentd-retry-wait":               driver.Period,
			"fluentd-sub-second-precision":     driver.Boolean,
			"fluentd-write-timeout":            driver.Period,
		}),
		Open:     open,
		Delivery: delivery,
	}
}

func parseAddress(text string) (network, address string, secure bool, err error) {
	if text == "" {
		return "tcp", "127.0.0.1:" + defaultPort, false, nil
	}
	if !strings.Contains(text, "://") {
		text = "tcp://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return "", "", false, err
	}
	switch {
	case u.Scheme == "unix" && strings.Trim(u.Path, "/") != "":
		return "unix", u.Path, false, nil
	case (u.Scheme == "tcp" || u.Scheme == "tls") && u.Path == "":
	default:
		return "", "", false, fmt.Errorf("want host:port, tcp://host:port, tls://host:port or unix:///path")
	}
	host, port := u.Hostname(), u.Port()
	if host == "" {
		host = "127.0.0.1"
	}
	if port == "" {
		port = defaultPort
	}
	return "tcp", net.JoinHostPort(host, port), u.Scheme == "tls", nil
}

func checkAddress(v string) error {
	_, _, _, err := parseAddress(v)
	return err
}

func checkLimit(v string) error {
	if n, err := units.RAMInBytes(v); err != nil || n <= 0 {
		return fmt.Errorf("want a size above zero, such as 8m")
	}
	return nil
}

func checkReconnect(v string) error {
	d, err := time.ParseDuration(v)
	if err != nil || (d != 0 && (d < 100*time.Millisecond || d > 10*time.Second)) {
		return fmt.Errorf("want 0 or a duration from 100ms to 10s")
	}
	return nil
}

func delivery(o driver.Options) driver.Delivery {
	d := driver.Delivery{
		Retry:          o.Duration("fluentd-retry-wait", 0),
		Tries:          o.Int("fluentd-max-retries", 0),
		Unacknowledged: !o.Bool("fluentd-request-ack"),
	}
	if v := o["fluentd-buffer-limit"]; v != "" {
		d.Bound, _ = units.RAMInBytes(v) // checked
	}
	return d
}

type sender struct {
	conn         driver.Conn
	tag          string
	common       []byte // MessagePack of the pairs that all records have
	pairs        int    // how many
	subSecond    bool
	ack          bool
	verify       bool
	writeTimeout time.Duration
	readTimeout  time.Duration
	buf          []byte
	parts        [3]partial // by stream
}

// partial is a line that comes in several records.
type partial struct {
	id      string // "" for none
	ordinal int
}

func open(info driver.Info, o driver.Options) (driver.Sender, error) {
	network, address, secure, err := parseAddress(o["fluentd-address"])
	if err != nil {
		return nil, err
	}
	s := &sender{
		conn:         driver.Conn{Network: network, Address: address, Unacknowledged: !o.Bool("fluentd-request-ack"), Lifetime: o.Duration("fluentd-async-reconnect-interval", 0)},
		subSecond:    o.Bool("fluentd-sub-second-precision"),
		ack:          o.Bool("fluentd-request-ack"),
		verify:       o["fluentd-async"] != "" && !o.Bool("fluentd-async"),
		writeTimeout: o.Duration("fluentd-write-timeout", 0),
		readTimeout:  o.Duration("fluentd-read-timeout", 0),
	}
	if secure {
		s.conn.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if s.tag, err = info.Tag(o, "{{.ID}}"); err != nil {
		return nil, err
	}
	common, err := info.Attributes(o, nil)
	if err != nil {
		return nil, err
	}
	common["container_id"] = info.ContainerID
	common["container_name"] = "/" + info.Name()
	for _, k := range slices.Sorted(maps.Keys(common)) {
		s.common = msgp.AppendString(s.common, k)
		s.common = msgp.AppendString(s.common, common[k])
	}
	s.pairs = len(common)
	return s, nil
}

// Verify connects when fluentd-async=false was given, which makes docker refuse
// to start a container whose destination is not there.
func (s *sender) Verify(ctx context.Context) error {
	if !s.verify {
		return nil
	}
	_, err := s.conn.Dial(ctx)
	return err
}

func (s *sender) Send(ctx context.Context, batch []driver.Record) (n int, err error) {
	before := s.parts
	defer func() {
		if err != nil {
			s.parts = before // the batch comes again
		}
	}()
	if _, err := s.conn.Dial(ctx); err != nil {
		return 0, err
	}
	chunk := s.message(batch)
	timed, cancel := within(ctx, s.writeTimeout)
	defer cancel()
	if err := s.conn.Write(timed, s.buf); err != nil {
		return 0, err
	}
	if !s.ack {
		return 0, s.conn.Drain(timed)
	}
	timed, cancel = within(ctx, s.readTimeout)
	defer cancel()
	if err := s.await(timed, chunk); err != nil {
		s.conn.Close()
		return 0, err
	}
	return len(batch), nil
}

func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}

// message encodes the batch into buf: [tag, [[time, record], …], {options}], and
// returns the id to be acknowledged.
func (s *sender) message(batch []driver.Record) string {
	var id [16]byte
	rand.Read(id[:])
	chunk := base64.StdEncoding.EncodeToString(id[:])
	b := msgp.AppendArrayHeader(s.buf[:0], 3)
	b = msgp.AppendString(b, s.tag)
	b = msgp.AppendArrayHeader(b, uint32(len(batch)))
	for i := range batch {
		b = msgp.AppendArrayHeader(b, 2)
		b = s.appendTime(b, batch[i].Time)
		b = s.appendRecord(b, &batch[i])
	}
	options := uint32(1)
	if s.ack {
		options = 2
	}
	b = msgp.AppendMapHeader(b, options)
	b = msgp.AppendString(b, "size")
	b = msgp.AppendInt(b, len(batch))
	if s.ack {
		b = msgp.AppendString(b, "chunk")
		b = msgp.AppendString(b, chunk)
	}
	s.buf = b
	return chunk
}

// appendTime appends seconds, or the extension type EventTime: 0xd7 (8 bytes), type
// 0, seconds and nanoseconds, big-endian.
func (s *sender) appendTime(b []byte, t time.Time) []byte {
	if !s.subSecond {
		return msgp.AppendInt64(b, t.Unix())
	}
	b = append(b, 0xd7, 0x00)
	b = binary.BigEndian.AppendUint32(b, uint32(t.Unix()))
	return binary.BigEndian.AppendUint32(b, uint32(t.Nanosecond()))
}

// appendRecord appends the map of a record, with docker's keys of partial lines
// where a line does not fit into one.
func (s *sender) appendRecord(b []byte, r *driver.Record) []byte {
	p := &s.parts[r.Stream]
	pairs := s.pairs + 2
	if r.Partial && p.id == "" {
		var id [32]byte
		rand.Read(id[:])
		p.id = fmt.Sprintf("%x", id)
	}
	if p.id != "" {
		pairs += 4
	}
	b = msgp.AppendMapHeader(b, uint32(pairs))
	b = append(b, s.common...)
	b = msgp.AppendString(b, "source")
	b = msgp.AppendString(b, r.Stream.String())
	b = msgp.AppendString(b, "log")
	b = msgp.AppendStringFromBytes(b, r.Line)
	if p.id == "" {
		return b
	}
	p.ordinal++
	for _, pair := range [][2]string{{"partial_message", "true"}, {"partial_id", p.id},
		{"partial_ordinal", fmt.Sprint(p.ordinal)}, {"partial_last", fmt.Sprint(!r.Partial)}} {
		b = msgp.AppendString(b, pair[0])
		b = msgp.AppendString(b, pair[1])
	}
	if !r.Partial {
		*p = partial{}
	}
	return b
}

// longestAnswer bounds what is read in search of an acknowledgement.
const longestAnswer = 1024

// await reads the answer, {"ack": chunk}.
func (s *sender) await(ctx context.Context, chunk string) error {
	in, release := s.conn.Reader(ctx)
	defer release()
	r := msgp.NewReaderSize(io.LimitReader(in, longestAnswer), longestAnswer)
	n, err := r.ReadMapHeader()
	if err != nil {
		return fmt.Errorf("read the acknowledgement: %w", err)
	}
	for range n {
		key, err := r.ReadString()
		if err != nil {
			return fmt.Errorf("read the acknowledgement: %w", err)
		}
		if key != "ack" {
			if err := r.Skip(); err != nil {
				return fmt.Errorf("read the acknowledgement: %w", err)
			}
			continue
		}
		got, err := r.ReadString()
		if err != nil {
			return fmt.Errorf("read the acknowledgement: %w", err)
		}
		if got != chunk {
			return fmt.Errorf("acknowledgement: got %q, want %q", got, chunk)
		}
		return nil
	}
	return fmt.Errorf("the answer has no acknowledgement")
}

// End is driver.Conn's.
func (s *sender) End(ctx context.Context) bool { return s.conn.End(ctx) }

// Told is driver.Conn's.
func (s *sender) Told() (written, unread int64) { return s.conn.Told() }

func (s *sender) Close() error { return s.conn.Close() }
