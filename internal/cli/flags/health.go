package flags

import (
	"errors"
	"fmt"
	"time"

	"dhow/internal/container"

	api "github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"
)

// fill reads all about health into the record.
func (f *healthFlags) fill(r *container.Record, _ *pflag.FlagSet) error {
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"health-interval", f.interval}, {"health-timeout", f.timeout}, {"health-start-period", f.startPeriod},
		{"health-start-interval", f.startInterval}, {"ready-interval", f.readyInterval}, {"ready-timeout", f.readyTimeout},
	} {
		if d.value < 0 {
			return fmt.Errorf("--%s cannot be negative", d.name)
		}
	}
	if f.retries < 0 {
		return errors.New("--health-retries cannot be negative")
	}
	h := api.HealthConfig{Interval: f.interval, Timeout: f.timeout, StartPeriod: f.startPeriod, StartInterval: f.startInterval, Retries: f.retries}
	settings := h.Interval != 0 || h.Timeout != 0 || h.StartPeriod != 0 || h.StartInterval != 0 || h.Retries != 0
	native := f.http+f.tcp+f.grpc != ""
	r.Health = container.HealthOptions{HTTP: f.http, TCP: f.tcp, GRPC: f.grpc, OnFailure: f.onFailure, Ready: f.ready()}
	switch {
	case f.none && (settings || native || f.cmd != "" || f.onFailure != ""):
		return errors.New("--no-healthcheck conflicts with --health-* options")
	case f.none:
		r.Config.Healthcheck = &api.HealthConfig{Test: []string{"NONE"}}
		return nil
	case f.cmd != "":
		h.Test = []string{"CMD-SHELL", f.cmd}
	case !settings:
		return nil
	}
	r.Config.Healthcheck = &h
	return nil
}

// ready is the check that --wait waits for; nil when none was asked for.
func (f *healthFlags) ready() *container.ReadyCheck {
	c := &container.ReadyCheck{
		HTTP: f.readyHTTP, TCP: f.readyTCP, GRPC: f.readyGRPC, Interval: f.readyInterval, Timeout: f.readyTimeout,
	}
	if f.readyCmd != "" {
		c.Test = []string{"CMD-SHELL", f.readyCmd}
	}
	if c.Test == nil && c.HTTP+c.TCP+c.GRPC == "" && c.Interval == 0 && c.Timeout == 0 {
		return nil
	}
	return c
}
