package container

import (
	"time"

	"github.com/moby/moby/api/types/container"
)

// docker's restart back-off: 100 ms, doubled at each restart in a row up to a
// minute, forgotten by a run of ten seconds.
const (
	restartDelay    = 100 * time.Millisecond
	restartDelayMax = time.Minute
	restartReset    = 10 * time.Second
)

// Exit is how a run of a container ended, as far as its restart policy cares.
type Exit struct {
	Code      int
	Ran       time.Duration
	Stopped   bool // by hand
	Unhealthy bool // ended to be started again, because its health check failed
}

// RestartPlan decides whether a container starts again. Its zero value with
// the two policies set is that of a container just started by hand.
type RestartPlan struct {
	Policy  container.RestartPolicy
	Options RestartOptions

	Restarts int           // so far, in docker's RestartCount
	delay    time.Duration // before the last restart; 0 is none yet
}

// Next takes in how a run ended, and returns whether the container is to be
// started again, and after how long.
func (p *RestartPlan) Next(e Exit) (delay time.Duration, again bool) {
	if e.Ran >= orDefault(p.Options.Reset, restartReset) {
		p.delay = 0
	}
	if !p.wants(e) {
		return 0, false
	}
	if first := orDefault(p.Options.Delay, restartDelay); p.delay == 0 {
		p.delay = first
	} else {
		p.delay = min(2*p.delay, max(first, restartDelayMax))
	}
	p.Restarts++
	return p.delay, true
}

func (p *RestartPlan) wants(e Exit) bool {
	if e.Stopped {
		return false
	}
	if e.Unhealthy {
		return true
	}
	switch p.Policy.Name {
	case container.RestartPolicyAlways, container.RestartPolicyUnlessStopped:
		return true
	case container.RestartPolicyOnFailure:
		return e.Code != 0 && (p.Policy.MaximumRetryCount == 0 || p.Restarts < p.Policy.MaximumRetryCount)
	}
	return false
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}
