package health

import (
	"fmt"
	"strings"

	options "dhow/internal/container"
	"dhow/internal/errdef"
)

// Action is what is done about a container that has become unhealthy.
type Action string

// The actions. Kill and Stop leave the rest to the restart policy, as when the
// container had ended by itself or by the user's hand.
const (
	None    Action = "none"    // its status alone changes
	Kill    Action = "kill"    // SIGKILL; the restart policy decides then
	Restart Action = "restart" // stopped and started again, whatever the restart policy says
	Stop    Action = "stop"    // stopped as by hand: no restart policy brings it back
)

// ParseAction reads --health-on-failure. "" is None.
func ParseAction(s string) (Action, error) {
	switch a := Action(s); a {
	case "":
		return None, nil
	case None, Kill, Restart, Stop:
		return a, nil
	}
	return "", errdef.New(errdef.ErrInvalid, "on-failure action: got %q, want none, kill, restart or stop", s)
}

// OnFailure decides what is done about a container that has become unhealthy,
// and why, in words for ps and inspect. inRow is how many times it was restarted
// for its health since it was healthy last.
func OnFailure(o options.HealthOptions, r options.RestartOptions, inRow int, last Result) (Action, string) {
	reason := "unhealthy"
	if line := firstLine(last.Output); line != "" {
		reason += ": " + line
	} else {
		reason += fmt.Sprintf(": the probe exited with %d", last.ExitCode)
	}
	if a, err := ParseAction(o.OnFailure); err == nil && a != None {
		return a, reason
	}
	switch {
	case !r.OnUnhealthy:
		return None, reason
	case r.Max > 0 && inRow >= r.Max:
		return None, fmt.Sprintf("%s; left so after %d restarts", reason, inRow)
	}
	return Restart, reason
}

// maxReason bounds the part of an output that becomes a reason.
const maxReason = 200

// firstLine is an output's first line that is not empty, for a table's cell.
func firstLine(s string) string {
	for line := range strings.Lines(s) {
		line = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, strings.TrimSpace(line))
		if line == "" {
			continue
		}
		if r := []rune(line); len(r) > maxReason {
			line = string(r[:maxReason]) + "…"
		}
		return line
	}
	return ""
}
