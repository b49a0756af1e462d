package health

import (
	"strconv"
	"time"

	options "dhow/internal/container"
	"dhow/internal/errdef"

	"github.com/moby/moby/api/types/container"
)

// The labels that carry settings which a Dockerfile has no words for. They
// count less than flags and more than the image's HEALTHCHECK, so that an image
// can have a HEALTHCHECK for docker and a probe for dhow.
const (
	LabelHTTP          = "dhow.health.http"           // as --health-http
	LabelTCP           = "dhow.health.tcp"            // as --health-tcp
	LabelGRPC          = "dhow.health.grpc"           // as --health-grpc
	LabelInterval      = "dhow.health.interval"       // as --health-interval, and so on
	LabelTimeout       = "dhow.health.timeout"        //
	LabelStartPeriod   = "dhow.health.start-period"   //
	LabelStartInterval = "dhow.health.start-interval" //
	LabelRetries       = "dhow.health.retries"        //
	LabelOnFailure     = "dhow.health.on-failure"     // as --health-on-failure
	LabelOnUnhealthy   = "dhow.restart.on-unhealthy"  // "true", or how many times at most: as --restart on-unhealthy[:n]
	LabelReadyCmd      = "dhow.ready.cmd"             // for a shell, as --ready-cmd
	LabelReadyHTTP     = "dhow.ready.http"            //
	LabelReadyTCP      = "dhow.ready.tcp"             //
	LabelReadyGRPC     = "dhow.ready.grpc"            //
	LabelReadyInterval = "dhow.ready.interval"        //
	LabelReadyTimeout  = "dhow.ready.timeout"         //
)

// Merge decides the HEALTHCHECK of a container that is created, as docker does:
// what the user gave counts more than what the image has, number by number.
// user and image may be nil. Labels are the container's with the image's among
// them; what they say is filled into o and r where flags have said nothing.
// ErrInvalid names the label that is wrong.
func Merge(user, image *container.HealthConfig, labels map[string]string, o *options.HealthOptions, r *options.RestartOptions) (*container.HealthConfig, error) {
	l := labelReader{labels: labels}
	if err := mergePolicy(&l, o, r); err != nil {
		return nil, err
	}
	if o.Ready == nil {
		o.Ready = l.ready()
	}
	if user == nil {
		user = &container.HealthConfig{}
	}
	if image == nil {
		image = &container.HealthConfig{}
	}
	hc := *user
	if len(hc.Test) == 0 && o.HTTP+o.TCP+o.GRPC == "" {
		o.HTTP, o.TCP, o.GRPC = labels[LabelHTTP], labels[LabelTCP], labels[LabelGRPC]
		if o.HTTP+o.TCP+o.GRPC == "" {
			hc.Test = image.Test
		}
	}
	for _, f := range []struct {
		to    *time.Duration
		label string
		image time.Duration
	}{
		{&hc.Interval, LabelInterval, image.Interval},
		{&hc.Timeout, LabelTimeout, image.Timeout},
		{&hc.StartPeriod, LabelStartPeriod, image.StartPeriod},
		{&hc.StartInterval, LabelStartInterval, image.StartInterval},
	} {
		given := l.duration(f.label)
		*f.to = orDefault(*f.to, orDefault(given, f.image))
	}
	retries := l.number(LabelRetries)
	hc.Retries = orDefault(hc.Retries, orDefault(retries, image.Retries))
	if l.err != nil {
		return nil, l.err
	}
	if len(hc.Test) == 0 && o.HTTP+o.TCP+o.GRPC == "" {
		return nil, nil
	}
	return &hc, nil
}

// mergePolicy fills in what is done about an unhealthy container. The two ways
// to say it exclude each other.
func mergePolicy(l *labelReader, o *options.HealthOptions, r *options.RestartOptions) error {
	if o.OnFailure == "" && !r.OnUnhealthy {
		o.OnFailure = l.labels[LabelOnFailure]
		if v, ok := l.labels[LabelOnUnhealthy]; ok && v != "false" {
			r.OnUnhealthy = true
			if v != "true" {
				r.Max = l.number(LabelOnUnhealthy)
			}
		}
	}
	action, err := ParseAction(o.OnFailure)
	if err != nil {
		return err
	}
	if action != None && r.OnUnhealthy {
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "on-failure action %s together with a restart on unhealthy", action),
			"leave one of them away")
	}
	return l.err
}

// labelReader reads labels until the first that is wrong.
type labelReader struct {
	labels map[string]string
	err    error
}

func (l *labelReader) duration(name string) time.Duration {
	v, ok := l.labels[name]
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(v)
	if (err != nil || d < 0) && l.err == nil {
		l.err = errdef.New(errdef.ErrInvalid, "label %s: got %q, want a duration such as 10s", name, v)
	}
	return d
}

func (l *labelReader) number(name string) int {
	v, ok := l.labels[name]
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil && l.err == nil {
		l.err = errdef.New(errdef.ErrInvalid, "label %s: got %q, want a number", name, v)
	}
	return int(n)
}

// ready is the ready check that labels describe, nil for none.
func (l *labelReader) ready() *options.ReadyCheck {
	r := &options.ReadyCheck{
		HTTP: l.labels[LabelReadyHTTP], TCP: l.labels[LabelReadyTCP], GRPC: l.labels[LabelReadyGRPC],
		Interval: l.duration(LabelReadyInterval), Timeout: l.duration(LabelReadyTimeout),
	}
	if cmd := l.labels[LabelReadyCmd]; cmd != "" {
		r.Test = []string{"CMD-SHELL", cmd}
	}
	if len(r.Test) == 0 && r.HTTP+r.TCP+r.GRPC == "" {
		return nil
	}
	return r
}
