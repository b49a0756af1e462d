// Package splunk sends lines to Splunk's HTTP Event Collector ("Format events for
// HTTP Event Collector" and "About HTTP Event Collector Indexer Acknowledgment" of
// its documentation, version 9). Splunk has no kept client library for it.
//
// Invariant: with index acknowledgement, a batch counts as sent only when Splunk
// says that it is indexed.
package splunk

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/logs/driver"
)

const eventPath = "/services/collector/event/1.0"

// Kind describes the driver.
func Kind() driver.Kind {
	return driver.Kind{
		Options: driver.Describing(map[string]func(string) error{
			"splunk-url":                  checkURL,
			"splunk-token":                nil,
			"splunk-source":               nil,
			"splunk-sourcetype":           nil,
			"splunk-index":                nil,
			"splunk-capath":               nil,
			"splunk-caname":               nil,
			"splunk-insecureskipverify":   driver.Boolean,
			"splunk-format":               driver.OneOf("inline", "json", "raw"),
			"splunk-verify-connection":    driver.Boolean,
			"splunk-gzip":                 driver.Boolean,
			"splunk-gzip-level":           driver.Number(-1, 9),
			"splunk-index-acknowledgment": driver.Boolean,
		}),
		Check: func(o driver.Options) error {
			for _, key := range []string{"splunk-url", "splunk-token"} {
				if o[key] == "" {
					return fmt.Errorf("%s is required", key)
				}
			}
			return nil
		},
		Open:     open,
		Delivery: func(driver.Options) driver.Delivery { return driver.Delivery{Fill: 200 * time.Millisecond} },
	}
}

func checkURL(v string) error {
	u, err := url.Parse(v)
	if err != nil {
		return err
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("want https://host:port without a path")
	}
	return nil
}

type sender struct {
	http    *driver.HTTP
	base    string
	header  http.Header
	format  string
	host    string
	source  string
	kind    string
	index   string
	tag     string
	attrs   map[string]string
	prefix  string // of raw lines
	ack     bool
	verify  bool
	pending int64 // acknowledgement that was not given yet, when waiting is set
	waiting int   // records that it is for
	buf     bytes.Buffer
}

// event is one line, as HEC takes it.
type event struct {
	Event      any    `json:"event"`
	Time       string `json:"time"`
	Host       string `json:"host"`
	Source     string `json:"source,omitempty"`
	SourceType string `json:"sourcetype,omitempty"`
	Index      string `json:"index,omitempty"`
}

// inline is docker's form of a line in formats inline and json.
type inline struct {
	Line   any               `json:"line"`
	Source string            `json:"source"`
	Tag    string            `json:"tag,omitempty"`
	Attrs  map[string]string `json:"attrs,omitempty"`
}

func open(info driver.Info, o driver.Options) (driver.Sender, error) {
	config, err := driver.TLSFiles(o["splunk-capath"], "", "", o.Bool("splunk-insecureskipverify"))
	if err != nil {
		return nil, err
	}
	config.ServerName = o["splunk-caname"]
	s := &sender{
		http:   newHTTP(config, o),
		base:   strings.TrimSuffix(o["splunk-url"], "/"),
		header: http.Header{"Authorization": {"Splunk " + o["splunk-token"]}, "Content-Type": {"application/json"}},
		format: o.Or("splunk-format", "inline"),
		source: o["splunk-source"], kind: o["splunk-sourcetype"], index: o["splunk-index"],
		ack: o.Bool("splunk-index-acknowledgment"), verify: o.Bool("splunk-verify-connection"),
	}
	if s.ack {
		s.header.Set("X-Splunk-Request-Channel", newChannel())
	}
	if s.host, err = os.Hostname(); err != nil {
		return nil, err
	}
	if tag, set := o["tag"]; !set || tag != "" { // an empty one means none
		if s.tag, err = info.Tag(o, "{{.ID}}"); err != nil {
			return nil, err
		}
	}
	if s.attrs, err = info.Attributes(o, nil); err != nil {
		return nil, err
	}
	if s.tag != "" {
		s.prefix = s.tag + " "
	}
	for _, k := range slices.Sorted(maps.Keys(s.attrs)) {
		s.prefix += k + "=" + s.attrs[k] + " "
	}
	return s, nil
}

func newHTTP(config *tls.Config, o driver.Options) *driver.HTTP {
	level := 0
	if o.Bool("splunk-gzip") {
		level = o.Int("splunk-gzip-level", -1)
	}
	return driver.NewHTTP(config, level)
}

// newChannel returns a random UUID, which HEC wants for acknowledgements.
func newChannel() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Verify asks for the server's health and whether the token may be used, when
// splunk-verify-connection=true was given.
func (s *sender) Verify(ctx context.Context) error {
	if !s.verify {
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodOptions, s.base+eventPath, nil)
	if err != nil {
		return err
	}
	_, err = s.http.Do(req)
	return err
}

func (s *sender) Send(ctx context.Context, batch []driver.Record) (int, error) {
	if s.waiting == 0 || s.waiting > len(batch) {
		s.waiting = 0
		if err := s.post(ctx, batch); err != nil || !s.ack {
			return 0, err
		}
		s.waiting = len(batch)
	}
	n := s.waiting
	err := s.awaitIndexed(ctx)
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		s.waiting = 0
	}
	if err != nil || n == len(batch) {
		return 0, err
	}
	// The acknowledgement was for a batch that has grown since.
	more, err := s.Send(ctx, batch[n:])
	return n + more, err
}

func (s *sender) post(ctx context.Context, batch []driver.Record) error {
	s.buf.Reset()
	encoder := json.NewEncoder(&s.buf)
	for i := range batch {
		e := event{Time: seconds(batch[i].Time), Host: s.host, Source: s.source, SourceType: s.kind, Index: s.index}
		if e.Event = s.event(&batch[i]); e.Event == nil {
			continue
		}
		if err := encoder.Encode(e); err != nil {
			return err
		}
	}
	if s.buf.Len() == 0 {
		s.pending = -1
		return nil
	}
	body, err := s.http.Post(ctx, s.base+eventPath, s.header, s.buf.Bytes())
	if err != nil || !s.ack {
		return err
	}
	var answer struct {
		AckID *int64 `json:"ackId"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.AckID == nil {
		return driver.Refuse(fmt.Errorf("the server gives no acknowledgements: it answered %.100q (turn them on for the token, or leave splunk-index-acknowledgment out)", body))
	}
	s.pending = *answer.AckID
	return nil
}

// event returns what a line becomes, nil for one that HEC would refuse: it has
// no text.
func (s *sender) event(r *driver.Record) any {
	if s.format == "raw" {
		if len(bytes.TrimSpace(r.Line)) == 0 {
			return nil
		}
		return s.prefix + string(r.Line)
	}
	e := inline{Line: string(r.Line), Source: r.Stream.String(), Tag: s.tag, Attrs: s.attrs}
	if s.format == "json" && json.Valid(r.Line) {
		e.Line = json.RawMessage(r.Line)
	}
	return e
}

// seconds is a time as HEC takes it.
func seconds(t time.Time) string {
	return fmt.Sprintf("%d.%06d", t.Unix(), t.Nanosecond()/1000)
}

// awaitIndexed asks until the server says that the pending batch is indexed.
func (s *sender) awaitIndexed(ctx context.Context) error {
	if s.pending < 0 {
		return nil
	}
	id := strconv.FormatInt(s.pending, 10)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		body, err := s.http.Post(ctx, s.base+"/services/collector/ack", s.header, []byte(`{"acks":[`+id+`]}`))
		if err != nil {
			return err
		}
		var answer struct {
			Acks map[string]bool `json:"acks"`
		}
		if err := json.Unmarshal(body, &answer); err != nil {
			return fmt.Errorf("acknowledgement: %w", err)
		}
		if answer.Acks[id] {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the acknowledgement: %w", ctx.Err())
		case <-time.After(pause):
		}
	}
}

func (s *sender) Close() error { return s.http.Close() }
