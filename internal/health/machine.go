package health

import (
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
)

// Result is how one probe ended: docker's object, as inspect shows it. ExitCode
// 0 is healthy and anything else a failure, the 2 that is reserved too; -1 says
// that the probe did not come to an end of its own.
type Result = container.HealthcheckResult

// maxLog is how many results inspect shows.
const maxLog = 5

// Settings are the numbers of a HEALTHCHECK, with nothing left open.
type Settings struct {
	Interval      time.Duration // from the end of one probe to the start of the next, and before the first
	Timeout       time.Duration // of one probe
	StartPeriod   time.Duration // after the container's start, in which a failure does not count
	StartInterval time.Duration // Interval's value in the start period, until the first success
	Retries       int           // failures in a row that make it unhealthy
}

// Phase is what the machine waits for.
type Phase int

// The phases of the machine. Status, beside it, goes its own way:
//
//	        Begin, Resume                         Began → starting
//	Idle ───────────────────▶ Waiting ◀────┐
//	 ▲                          │ Due      │ Done
//	 │ Hold                     ▼          │      success → healthy
//	 └──────────────────────── Probing ────┘      Retries failures in a row → unhealthy
//	   (from Waiting too)                         Hold → unhealthy, as docker has it
const (
	Idle    Phase = iota // the container does not run or is paused: nothing is to be done
	Waiting              // for the next probe's time
	Probing              // for the probe's result
)

// State is all that the machine knows. The zero State has not begun.
type State struct {
	Phase         Phase
	Status        container.HealthStatus // "" before the first Begin
	FailingStreak int
	Log           []Result // the last five, oldest first; never changed in place
	Started       time.Time
}

// Kind is the kind of an Event.
type Kind int

// What happens to the machine.
const (
	Begin  Kind = iota // the container has started, at At
	Adopt              // it runs since At, and State stems from before: it stays as it is
	Resume             // it goes on after a pause
	Hold               // it was paused, or it ends
	Due                // the time that Next has asked for has passed
	Done               // the probe has ended with Result
)

// Event is one fact, with the time at which it became true.
type Event struct {
	Kind   Kind
	At     time.Time
	Result Result // of Done; its Start decides whether it lies in the start period
}

// Decision is what is to be done after an event.
type Decision struct {
	Probe  bool          // start a probe, and report Done
	Cancel bool          // end the probe that runs; its result does not count
	Next   time.Duration // if not 0, report Due when so much has passed
	// Changed is the new status, if a probe has changed it: one health_status
	// event. Begin and Hold change the status without one.
	Changed container.HealthStatus
	// Failed says that the failures in a row have just become as many as Retries.
	// It holds for a resumed container too, whose status does not change then.
	Failed bool
}

// Next is the machine: it takes the state before an event to the state after.
func (s Settings) Next(st State, ev Event) (State, Decision) {
	switch ev.Kind {
	case Begin:
		d := Decision{Cancel: st.Phase == Probing}
		st.Phase, st.Status, st.FailingStreak, st.Started = Waiting, container.Starting, 0, ev.At
		d.Next = s.pause(st, ev.At)
		return st, d
	case Adopt:
		if st.Status == "" {
			st.Status = container.Starting
		}
		st.Phase, st.Started = Waiting, ev.At
		return st, Decision{Next: s.pause(st, ev.At)}
	case Resume:
		if st.Phase != Idle || st.Status == "" {
			return st, Decision{}
		}
		st.Phase = Waiting
		return st, Decision{Next: s.pause(st, ev.At)}
	case Hold:
		if st.Phase == Idle {
			return st, Decision{}
		}
		d := Decision{Cancel: st.Phase == Probing}
		st.Phase, st.Status = Idle, container.Unhealthy // docker's inspect shows the same
		return st, d
	case Due:
		if st.Phase != Waiting {
			return st, Decision{}
		}
		st.Phase = Probing
		return st, Decision{Probe: true}
	}
	if st.Phase != Probing {
		return st, Decision{} // it came from a probe that was cancelled
	}
	return s.done(st, ev)
}

// done takes a probe's result in.
func (s Settings) done(st State, ev Event) (State, Decision) {
	var d Decision
	before := st.Status
	st.Phase = Waiting
	st.Log = append(slices.Clone(st.Log[max(0, len(st.Log)+1-maxLog):]), ev.Result)
	switch {
	case ev.Result.ExitCode == 0:
		st.FailingStreak, st.Status = 0, container.Healthy
	case st.Status == container.Starting && ev.Result.Start.Sub(st.Started) < s.StartPeriod:
	default:
		st.FailingStreak++
		if st.FailingStreak >= s.Retries {
			st.Status = container.Unhealthy
		}
		d.Failed = st.FailingStreak == s.Retries
	}
	if st.Status != before {
		d.Changed = st.Status
	}
	d.Next = s.pause(st, ev.At)
	return st, d
}

// pause is the time until the next probe.
func (s Settings) pause(st State, now time.Time) time.Duration {
	if st.Status == container.Starting && now.Sub(st.Started) < s.StartPeriod {
		return s.StartInterval
	}
	return s.Interval
}

// Health is the state as docker's inspect shows it.
func (st State) Health() *container.Health {
	h := &container.Health{Status: st.Status, FailingStreak: st.FailingStreak, Log: []*Result{}}
	for _, r := range st.Log {
		h.Log = append(h.Log, &r)
	}
	return h
}
