// Package otlp sends lines as OpenTelemetry logs: OTLP 1.7 over HTTP (protobuf or
// JSON) and gRPC (https://opentelemetry.io/docs/specs/otlp), with resource
// attributes of the semantic conventions for containers.
//
// The messages come from go.opentelemetry.io/proto/otlp. The SDK's exporters queue
// and retry on their own and want its providers around them.
//
// Invariant: a batch is one export request.
package otlp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"dhow/internal/logs/driver"
)

// The protocols have the names of OTEL_EXPORTER_OTLP_PROTOCOL.
const (
	protocolProtobuf = "http/protobuf"
	protocolJSON     = "http/json"
	protocolGRPC     = "grpc"
)

const logsPath = "/v1/logs"

// Kind describes the driver.
func Kind() driver.Kind {
	return driver.Kind{
		Options: driver.Describing(map[string]func(string) error{
			"otlp-endpoint":            checkEndpoint,
			"otlp-protocol":            driver.OneOf(protocolProtobuf, protocolJSON, protocolGRPC),
			"otlp-headers":             checkPairs,
			"otlp-resource-attributes": checkPairs,
			"otlp-compression":         driver.OneOf("gzip", "none"),
			"otlp-timeout":             driver.Period,
			"otlp-tls-ca-cert":         nil,
			"otlp-tls-cert":            nil,
			"otlp-tls-key":             nil,
			"otlp-tls-skip-verify":     driver.Boolean,
		}),
		Check: func(o driver.Options) error {
			if o["otlp-endpoint"] == "" {
				return fmt.Errorf("otlp-endpoint is required: http://host:4318, or http://host:4317 with otlp-protocol=grpc")
			}
			return nil
		},
		Open: open,
		Delivery: func(o driver.Options) driver.Delivery {
			return driver.Delivery{Fill: 200 * time.Millisecond, Timeout: o.Duration("otlp-timeout", 0)}
		},
	}
}

func checkEndpoint(v string) error {
	u, err := url.Parse(v)
	if err != nil {
		return err
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("want http://host:port or https://host:port")
	}
	return nil
}

// pairs reads key=value,… as in OTEL_EXPORTER_OTLP_HEADERS: values are
// percent-encoded.
func pairs(list string) (map[string]string, error) {
	all := map[string]string{}
	if list == "" {
		return all, nil
	}
	for pair := range strings.SplitSeq(list, ",") {
		key, value, ok := strings.Cut(pair, "=")
		if key = strings.TrimSpace(key); !ok || key == "" {
			return nil, fmt.Errorf("want key=value,…")
		}
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if err != nil {
			return nil, err
		}
		all[key] = value
	}
	return all, nil
}

func checkPairs(v string) error {
	_, err := pairs(v)
	return err
}

// exporter sends one request in one of the protocols.
type exporter interface {
	export(ctx context.Context, req *collector.ExportLogsServiceRequest) (*collector.ExportLogsServiceResponse, error)
	Close() error
}

type sender struct {
	exporter
	resource *resource.Resource
	streams  [3][]*common.KeyValue // attributes of lines, by stream
}

func open(info driver.Info, o driver.Options) (driver.Sender, error) {
	attrs, err := resourceOf(info, o)
	if err != nil {
		return nil, err
	}
	s := &sender{resource: &resource.Resource{Attributes: attrs}}
	for _, stream := range []driver.Stream{driver.Stdout, driver.Stderr} {
		s.streams[stream] = []*common.KeyValue{text("log.iostream", stream.String())}
	}
	u, err := url.Parse(o["otlp-endpoint"])
	if err != nil {
		return nil, err
	}
	headers, err := pairs(o["otlp-headers"])
	if err != nil {
		return nil, err
	}
	config, err := driver.TLSFiles(o["otlp-tls-ca-cert"], o["otlp-tls-cert"], o["otlp-tls-key"], o.Bool("otlp-tls-skip-verify"))
	if err != nil {
		return nil, err
	}
	compress := o.Or("otlp-compression", "gzip") == "gzip"
	if protocol := o.Or("otlp-protocol", protocolProtobuf); protocol == protocolGRPC {
		s.exporter, err = newGRPC(u, headers, config, compress)
	} else {
		s.exporter = newHTTP(u, headers, config, compress, protocol == protocolJSON)
	}
	return s, err
}

// resourceOf describes the container.
func resourceOf(info driver.Info, o driver.Options) ([]*common.KeyValue, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	name, tag, _ := strings.Cut(info.ContainerImageName, ":")
	attrs := []*common.KeyValue{
		text("service.name", info.Name()),
		text("host.name", host),
		text("container.id", info.ContainerID),
		text("container.name", info.Name()),
		text("container.image.name", name),
		text("container.image.id", info.ContainerImageID),
		text("container.command_line", info.Command()),
	}
	if tag != "" {
		attrs = append(attrs, &common.KeyValue{Key: "container.image.tags", Value: &common.AnyValue{Value: &common.AnyValue_ArrayValue{
			ArrayValue: &common.ArrayValue{Values: []*common.AnyValue{{Value: &common.AnyValue_StringValue{StringValue: tag}}}}}}})
	}
	chosen, err := info.Attributes(o, func(key string) string {
		if _, label := info.ContainerLabels[key]; label {
			return "container.label." + key
		}
		return key
	})
	if err != nil {
		return nil, err
	}
	if tagged, err := info.Tag(o, ""); err != nil {
		return nil, err
	} else if tagged != "" {
		chosen["tag"] = tagged
	}
	given, err := pairs(o["otlp-resource-attributes"])
	if err != nil {
		return nil, err
	}
	for _, more := range []map[string]string{chosen, given} {
		for k, v := range more {
			attrs = set(attrs, k, v)
		}
	}
	return attrs, nil
}

// set replaces or adds an attribute.
func set(attrs []*common.KeyValue, key, value string) []*common.KeyValue {
	for i, a := range attrs {
		if a.Key == key {
			attrs[i] = text(key, value)
			return attrs
		}
	}
	return append(attrs, text(key, value))
}

func text(key, value string) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: strings.ToValidUTF8(value, "\ufffd")}}}
}

func (s *sender) Send(ctx context.Context, batch []driver.Record) (int, error) {
	records := make([]*logs.LogRecord, len(batch))
	for i := range batch {
		r := &batch[i]
		at := uint64(r.Time.UnixNano())
		records[i] = &logs.LogRecord{TimeUnixNano: at, ObservedTimeUnixNano: at, Attributes: s.streams[r.Stream], Body: body(r.Line)}
	}
	resp, err := s.export(ctx, &collector.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{
		Resource:  s.resource,
		ScopeLogs: []*logs.ScopeLogs{{Scope: &common.InstrumentationScope{Name: "dhow"}, LogRecords: records}},
	}}})
	if err != nil {
		return 0, err
	}
	if partial := resp.GetPartialSuccess(); partial.GetRejectedLogRecords() > 0 {
		return 0, driver.RejectSome(errors.New(partial.GetErrorMessage()), int(partial.GetRejectedLogRecords()))
	}
	return 0, nil
}

// body is a string, or bytes where they are no UTF-8.
func body(line []byte) *common.AnyValue {
	if utf8.Valid(line) {
		return &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: string(line)}}
	}
	return &common.AnyValue{Value: &common.AnyValue_BytesValue{BytesValue: line}}
}

// overHTTP is OTLP/HTTP.
type overHTTP struct {
	*driver.HTTP
	url    string
	header http.Header
	json   bool
}

func newHTTP(u *url.URL, headers map[string]string, config *tls.Config, compress, json bool) *overHTTP {
	e := &overHTTP{header: http.Header{}, json: json}
	level := 0
	if compress {
		level = 1
	}
	e.HTTP = driver.NewHTTP(config, level)
	if u.Path == "" || u.Path == "/" {
		u.Path = logsPath
	}
	e.url = u.String()
	for k, v := range headers {
		e.header.Set(k, v)
	}
	e.header.Set("Content-Type", "application/x-protobuf")
	if json {
		e.header.Set("Content-Type", "application/json")
	}
	return e
}

func (e *overHTTP) export(ctx context.Context, req *collector.ExportLogsServiceRequest) (*collector.ExportLogsServiceResponse, error) {
	marshal, unmarshal := proto.Marshal, proto.Unmarshal
	if e.json {
		marshal, unmarshal = protojson.Marshal, protojson.Unmarshal
	}
	data, err := marshal(req)
	if err != nil {
		return nil, err
	}
	answer, err := e.Post(ctx, e.url, e.header, data)
	if err != nil {
		return nil, err
	}
	resp := &collector.ExportLogsServiceResponse{}
	if len(answer) == 0 {
		return resp, nil
	}
	if err := unmarshal(answer, resp); err != nil {
		return nil, driver.Refuse(fmt.Errorf("%s answers, but not as OTLP does: %w", e.url, err))
	}
	return resp, nil
}
