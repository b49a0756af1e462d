// Package loki sends lines to Grafana Loki: its push API with JSON
// (https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs, Loki
// 3). Options have the names of Grafana's docker plugin where they mean the same.
//
// Grafana's client library comes with all of Loki; the request is one JSON object.
//
// Invariant: a batch is one request. Loki drops what it has already, so that one
// sent twice does no harm.
package loki

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"dhow/internal/logs/driver"
)

const pushPath = "/loki/api/v1/push"

// Kind describes the driver.
func Kind() driver.Kind {
	return driver.Kind{
		Options: driver.Describing(map[string]func(string) error{
			"loki-url":                      checkURL,
			"loki-tenant-id":                nil,
			"loki-external-labels":          checkLabels,
			"loki-structured-metadata":      driver.Boolean,
			"loki-batch-size":               driver.Number(1, 64<<20),
			"loki-batch-wait":               driver.Period,
			"loki-timeout":                  driver.Period,
			"loki-retries":                  driver.Number(0, math.MaxInt32),
			"loki-min-backoff":              driver.Period,
			"loki-tls-ca-file":              nil,
			"loki-tls-cert-file":            nil,
			"loki-tls-key-file":             nil,
			"loki-tls-server-name":          nil,
			"loki-tls-insecure-skip-verify": driver.Boolean,
			"loki-gzip":                     driver.Boolean,
		}),
		Check: func(o driver.Options) error {
			if o["loki-url"] == "" {
				return fmt.Errorf("loki-url is required: http://host:3100%s", pushPath)
			}
			return nil
		},
		Open: open,
		Delivery: func(o driver.Options) driver.Delivery {
			return driver.Delivery{
				Bytes:   o.Int("loki-batch-size", 0),
				Fill:    o.Duration("loki-batch-wait", 200*time.Millisecond),
				Timeout: o.Duration("loki-timeout", 0),
				Tries:   o.Int("loki-retries", 0),
				Retry:   o.Duration("loki-min-backoff", 0),
			}
		},
	}
}

func checkURL(v string) error {
	u, err := url.Parse(v)
	if err != nil {
		return err
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("want http://host:3100%s or https://…", pushPath)
	}
	return nil
}

func checkLabels(v string) error {
	_, err := labels(driver.Info{}, v)
	return err
}

// labels carries out a list name=template,….
func labels(info driver.Info, list string) (map[string]string, error) {
	all := map[string]string{}
	if list == "" {
		return all, nil
	}
	for pair := range strings.SplitSeq(list, ",") {
		name, text, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("want name=value,…")
		}
		value, err := info.Tag(driver.Options{"tag": text}, "")
		if err != nil {
			return nil, err
		}
		all[labelName(name)] = value
	}
	return all, nil
}

// labelName makes a name that Loki takes: [a-zA-Z_:][a-zA-Z0-9_:]*.
func labelName(name string) string {
	b := []byte(name)
	for i, c := range b {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c == ':', i > 0 && c >= '0' && c <= '9':
		default:
			b[i] = '_'
		}
	}
	return string(b)
}

type sender struct {
	http     *driver.HTTP
	url      string
	header   http.Header
	streams  [3][]byte // labels of each stream, JSON
	metadata []byte    // structured metadata of each line, JSON, or nil
	buf      []byte
}

func open(info driver.Info, o driver.Options) (driver.Sender, error) {
	config, err := driver.TLSFiles(o["loki-tls-ca-file"], o["loki-tls-cert-file"], o["loki-tls-key-file"], o.Bool("loki-tls-insecure-skip-verify"))
	if err != nil {
		return nil, err
	}
	config.ServerName = o["loki-tls-server-name"]
	level := 1
	if o["loki-gzip"] != "" && !o.Bool("loki-gzip") {
		level = 0
	}
	s := &sender{http: driver.NewHTTP(config, level), header: http.Header{"Content-Type": {"application/json"}}}
	u, err := url.Parse(o["loki-url"])
	if err != nil {
		return nil, err
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = pushPath
	}
	s.url = u.String()
	if tenant := o["loki-tenant-id"]; tenant != "" {
		s.header.Set("X-Scope-OrgID", tenant)
	}
	return s, s.describe(info, o)
}

// describe works out labels and metadata. Labels have few values; what differs
// for each container is metadata, where that is wanted.
func (s *sender) describe(info driver.Info, o driver.Options) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	all, err := labels(info, o.Or("loki-external-labels", "container_name={{.Name}}"))
	if err != nil {
		return err
	}
	attrs, err := info.Attributes(o, labelName)
	if err != nil {
		return err
	}
	tag, err := info.Tag(o, "")
	if err != nil {
		return err
	}
	all["host"] = host
	if tag != "" {
		all["tag"] = tag
	}
	for k, v := range attrs {
		all[k] = v
	}
	for _, stream := range []driver.Stream{driver.Stdout, driver.Stderr} {
		all["source"] = stream.String()
		if s.streams[stream], err = json.Marshal(all); err != nil {
			return err
		}
	}
	if o.Bool("loki-structured-metadata") {
		s.metadata, err = json.Marshal(map[string]string{"container_id": info.ContainerID, "image_name": info.ContainerImageName})
	}
	return err
}

func (s *sender) Send(ctx context.Context, batch []driver.Record) (int, error) {
	s.buf = append(s.buf[:0], `{"streams":[`...)
	separator := ""
	for _, stream := range []driver.Stream{driver.Stdout, driver.Stderr} {
		n := 0
		for i := range batch {
			if batch[i].Stream != stream {
				continue
			}
			if n == 0 {
				s.buf = fmt.Appendf(s.buf, `%s{"stream":%s,"values":[`, separator, s.streams[stream])
			} else {
				s.buf = append(s.buf, ',')
			}
			s.buf = s.appendValue(s.buf, &batch[i])
			n++
		}
		if n > 0 {
			s.buf = append(s.buf, "]}"...)
			separator = ","
		}
	}
	s.buf = append(s.buf, "]}"...)
	_, err := s.http.Post(ctx, s.url, s.header, s.buf)
	return 0, err
}

// appendValue appends [time, line, metadata].
func (s *sender) appendValue(dst []byte, r *driver.Record) []byte {
	dst = append(dst, `["`...)
	dst = strconv.AppendInt(dst, r.Time.UnixNano(), 10)
	dst = append(dst, `","`...)
	dst, _ = driver.AppendJSON(dst, r.Line) // JSON has no other bytes
	dst = append(dst, '"')
	if s.metadata != nil {
		dst = append(dst, ',')
		dst = append(dst, s.metadata...)
	}
	return append(dst, ']')
}

func (s *sender) Close() error { return s.http.Close() }
