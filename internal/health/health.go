// Package health tells whether a container works: docker's HEALTHCHECK as a
// pure state machine and the shell around it, probes that need no program in
// the image, what is done about an unhealthy container, and a timeline of it
// all on disk.
//
// It starts no process and enters no namespace: who supervises the container
// supplies a Runner and a Dialer. It reads no flags, and keeps no record but
// the timeline.
//
// Invariant: one probe at a time, and none that outlives its timeout or its
// monitor.
package health

import (
	"fmt"
	"slices"
	"time"

	options "dhow/internal/container"
	"dhow/internal/errdef"

	"github.com/moby/moby/api/types/container"
)

// What docker takes where a HEALTHCHECK says nothing.
const (
	DefaultInterval      = 30 * time.Second
	DefaultTimeout       = 30 * time.Second
	DefaultStartPeriod   = 0
	DefaultStartInterval = 5 * time.Second
	DefaultRetries       = 3
)

// minDuration is the shortest time that docker takes in a HEALTHCHECK.
const minDuration = time.Millisecond

// DefaultReadyInterval is how often a ready check is tried.
const DefaultReadyInterval = time.Second

// Check is what a container is asked, and how often. Exactly one of Argv, HTTP,
// TCP and GRPC is set.
type Check struct {
	Argv []string // a program of the container's, with its shell in front where it needs one
	HTTP *HTTPTarget
	TCP  *Target
	GRPC *GRPCTarget
	Settings
}

// Decide returns what a container's settings come to, or nil if it is not to be
// checked. hc is docker's HEALTHCHECK, and may be nil; shell the image's SHELL,
// nil for "/bin/sh -c". ErrInvalid for settings that docker or dhow refuse.
func Decide(hc *container.HealthConfig, shell []string, o options.HealthOptions) (*Check, error) {
	if hc == nil {
		hc = &container.HealthConfig{}
	}
	if slices.Equal(hc.Test, []string{"NONE"}) && o.HTTP+o.TCP+o.GRPC != "" {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "health check: NONE together with a probe"), "leave one of them away")
	}
	if err := validate(hc); err != nil {
		return nil, err
	}
	c, err := target(hc.Test, shell, o.HTTP, o.TCP, o.GRPC)
	if err != nil || c == nil {
		return nil, err
	}
	c.Settings = Settings{
		Interval:      orDefault(hc.Interval, DefaultInterval),
		Timeout:       orDefault(hc.Timeout, DefaultTimeout),
		StartPeriod:   orDefault(hc.StartPeriod, DefaultStartPeriod),
		StartInterval: orDefault(hc.StartInterval, DefaultStartInterval),
		Retries:       orDefault(hc.Retries, DefaultRetries),
	}
	return c, nil
}

// DecideReady is Decide for the check that is only waited for.
func DecideReady(r options.ReadyCheck, shell []string) (*Check, error) {
	if err := validate(&container.HealthConfig{Interval: r.Interval, Timeout: r.Timeout}); err != nil {
		return nil, err
	}
	c, err := target(r.Test, shell, r.HTTP, r.TCP, r.GRPC)
	if err != nil {
		return nil, fmt.Errorf("ready check: %w", err)
	}
	if c == nil {
		return nil, errdef.New(errdef.ErrInvalid, "ready check: nothing says what to try")
	}
	c.Settings = Settings{
		Interval: orDefault(r.Interval, DefaultReadyInterval),
		Timeout:  orDefault(r.Timeout, DefaultTimeout),
		Retries:  DefaultRetries,
	}
	return c, nil
}

// validate refuses what docker refuses.
func validate(hc *container.HealthConfig) error {
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"interval", hc.Interval}, {"timeout", hc.Timeout}, {"start period", hc.StartPeriod}, {"start interval", hc.StartInterval}} {
		if d.d != 0 && d.d < minDuration {
			return errdef.New(errdef.ErrInvalid, "health check: the %s is %v, want at least %v", d.name, d.d, minDuration)
		}
	}
	if hc.Retries < 0 {
		return errdef.New(errdef.ErrInvalid, "health check: retries is %d, want 0 or more", hc.Retries)
	}
	return nil
}

// target decides what is asked; nil for nothing.
func target(test, shell []string, http, tcp, grpc string) (*Check, error) {
	c := &Check{}
	set := 0
	var err error
	for _, p := range []struct {
		text  string
		parse func(string) error
	}{
		{http, func(s string) (err error) { c.HTTP, err = ParseHTTP(s); return err }},
		{tcp, func(s string) (err error) { c.TCP, err = ParseTCP(s); return err }},
		{grpc, func(s string) (err error) { c.GRPC, err = ParseGRPC(s); return err }},
	} {
		if p.text == "" {
			continue
		}
		set++
		if err = p.parse(p.text); err != nil {
			return nil, err
		}
	}
	switch {
	case set > 1 || set == 1 && len(test) > 0:
		return nil, errdef.New(errdef.ErrInvalid, "health check: more than one says what to try: give one of a command, http, tcp and grpc")
	case set == 1:
		return c, nil
	case len(test) == 0 || test[0] == "NONE":
		return nil, nil
	}
	c.Argv, err = argv(test, shell)
	return c, err
}

// argv is the program of a HEALTHCHECK.
func argv(test, shell []string) ([]string, error) {
	if len(test) < 2 {
		return nil, errdef.New(errdef.ErrInvalid, "health check %q: it names no program", test)
	}
	switch test[0] {
	case "CMD":
		return slices.Clone(test[1:]), nil
	case "CMD-SHELL":
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return append(slices.Clone(shell), test[1:]...), nil
	}
	return nil, errdef.New(errdef.ErrInvalid, "health check %q: got %q, want CMD, CMD-SHELL or NONE", test, test[0])
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Prober makes what carries the check out. A check of a program needs run, the
// others dial.
func (c *Check) Prober(run Runner, dial Dialer) Prober {
	switch {
	case c.HTTP != nil:
		return &httpProbe{*c.HTTP, dial}
	case c.TCP != nil:
		return &tcpProbe{*c.TCP, dial}
	case c.GRPC != nil:
		return &grpcProbe{*c.GRPC, dial}
	}
	return &commandProbe{c.Argv, run}
}

// String is what a user is told that is tried.
func (c *Check) String() string {
	switch {
	case c.HTTP != nil:
		return c.HTTP.String()
	case c.TCP != nil:
		return "tcp " + c.TCP.String()
	case c.GRPC != nil:
		return c.GRPC.String()
	}
	return fmt.Sprintf("%q", c.Argv)
}
