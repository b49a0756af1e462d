// Command collector runs receivers of the OpenTelemetry Collector and prints what
// they understood, one JSON object a line. It is a module of its own, so that what
// it needs is not what dhow needs. Tests of log drivers start it: what is checked
// then is what someone else's code made of the bytes.
//
//	collector otlp-grpc ADDRESS | otlp-http ADDRESS | fluentforward ADDRESS | syslog-rfc5424 ADDRESS …
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"sync"

	"github.com/open-telemetry/opentelemetry-collector-contrib/receiver/fluentforwardreceiver"
	"github.com/open-telemetry/opentelemetry-collector-contrib/receiver/syslogreceiver"
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"
)

// line is what is printed of one record.
type line struct {
	Time       int64          `json:"time"` // nanoseconds
	Body       any            `json:"body"`
	Attributes map[string]any `json:"attributes"`
	Resource   map[string]any `json:"resource"`
}

func main() {
	log.SetFlags(0)
	if err := run(os.Args[1:]); err != nil {
		log.Fatal("collector: ", err)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	sink, err := consumer.NewLogs(func(_ context.Context, logs plog.Logs) error {
		mu.Lock()
		defer mu.Unlock()
		return each(logs, out.Encode)
	})
	if err != nil {
		return err
	}
	for ; len(args) >= 2; args = args[2:] {
		factory, config, err := receiverOf(args[0], args[1])
		if err != nil {
			return err
		}
		r, err := factory.CreateLogs(ctx, receivertest.NewNopSettings(factory.Type()), config, sink)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		if err := r.Start(ctx, componenttest.NewNopHost()); err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		defer r.Shutdown(context.WithoutCancel(ctx))
	}
	fmt.Println(`"ready"`)
	<-ctx.Done()
	return nil
}

func each(logs plog.Logs, print func(any) error) error {
	for _, r := range logs.ResourceLogs().All() {
		for _, s := range r.ScopeLogs().All() {
			for _, l := range s.LogRecords().All() {
				if err := print(line{l.Timestamp().AsTime().UnixNano(), l.Body().AsRaw(), l.Attributes().AsRaw(), r.Resource().Attributes().AsRaw()}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// receiverOf returns the factory of a receiver and its configuration.
func receiverOf(name, address string) (receiver.Factory, component.Config, error) {
	var factory receiver.Factory
	var settings map[string]any
	kind, option, _ := strings.Cut(name, "-")
	switch kind {
	case "otlp":
		factory = otlpreceiver.NewFactory()
		settings = map[string]any{"protocols": map[string]any{option: map[string]any{"endpoint": address}}}
	case "fluentforward":
		factory = fluentforwardreceiver.NewFactory()
		settings = map[string]any{"endpoint": address}
	case "syslog":
		factory = syslogreceiver.NewFactory()
		settings = map[string]any{"protocol": option, "tcp": map[string]any{"listen_address": address}}
	default:
		return nil, nil, fmt.Errorf("unknown receiver %q", name)
	}
	config := factory.CreateDefaultConfig()
	return factory, config, confmap.NewFromStringMap(settings).Unmarshal(config)
}
