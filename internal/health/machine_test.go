package health

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
)

// script is a sequence of events, each with what must come of it:
//
//	t=10 ok   → healthy changed next=30
type scene struct {
	at   int    // seconds after the container's start
	what string // begin, adopt, due, ok, fail, hold, resume
	want string
}

// play runs a script through the machine.
func play(t *testing.T, s Settings, st State, scenes []scene) State {
	t.Helper()
	start := time.Unix(1000, 0)
	began := start // of the probe that runs
	for i, sc := range scenes {
		now := start.Add(time.Duration(sc.at) * time.Second)
		ev := Event{At: now}
		switch sc.what {
		case "begin":
			ev.Kind = Begin
		case "adopt":
			ev.Kind, ev.At = Adopt, start
		case "due":
			ev.Kind, began = Due, now
		case "hold":
			ev.Kind = Hold
		case "resume":
			ev.Kind = Resume
		default: // a result: ok, or an exit code
			ev.Kind, ev.Result = Done, Result{Start: began, End: now}
			if _, err := fmt.Sscanf(sc.what, "exit %d", &ev.Result.ExitCode); err != nil {
				t.Fatalf("scene %d: %v", i, err)
			}
		}
		before := st
		var d Decision
		st, d = s.Next(st, ev)
		got := string(st.Status)
		if st.FailingStreak > 0 {
			got += fmt.Sprint(" streak=", st.FailingStreak)
		}
		if d.Changed != "" {
			got += " changed"
			if d.Changed != st.Status || st.Status == before.Status {
				t.Errorf("scene %d: got the change %s from %s to %s", i, d.Changed, before.Status, st.Status)
			}
		}
		for name, on := range map[string]bool{"failed": d.Failed, "probe": d.Probe, "cancel": d.Cancel} {
			if on {
				got += " " + name
			}
		}
		if d.Next > 0 {
			got += " next=" + d.Next.String()
		}
		if got != sc.want {
			t.Errorf("scene %d, t=%d %s: got %q, want %q", i, sc.at, sc.what, got, sc.want)
		}
	}
	return st
}

func TestMachine(t *testing.T) {
	s := Settings{Interval: 30 * time.Second, Timeout: 5 * time.Second, StartInterval: 2 * time.Second, Retries: 3}
	slow := s
	slow.StartPeriod = 60 * time.Second
	once := s
	once.Retries = 1
	tests := []struct {
		name   string
		s      Settings
		scenes []scene
	}{
		{"healthy at the first probe", s, []scene{
			{0, "begin", "starting next=30s"},
			{30, "due", "starting probe"},
			{31, "exit 0", "healthy changed next=30s"},
			{61, "due", "healthy probe"},
			{61, "exit 0", "healthy next=30s"},
		}},
		{"unhealthy after retries, and once more healthy", s, []scene{
			{0, "begin", "starting next=30s"},
			{30, "due", "starting probe"},
			{31, "exit 1", "starting streak=1 next=30s"},
			{61, "due", "starting streak=1 probe"},
			{62, "exit 1", "starting streak=2 next=30s"},
			{92, "due", "starting streak=2 probe"},
			{93, "exit 1", "unhealthy streak=3 changed failed next=30s"},
			{123, "due", "unhealthy streak=3 probe"},
			{124, "exit 1", "unhealthy streak=4 next=30s"},
			{154, "due", "unhealthy streak=4 probe"},
			{155, "exit 0", "healthy changed next=30s"},
			{185, "due", "healthy probe"},
			{186, "exit 1", "healthy streak=1 next=30s"},
			{216, "due", "healthy streak=1 probe"},
			{217, "exit 0", "healthy next=30s"},
		}},
		{"exit 2 is reserved and a failure, a probe without an end too", s, []scene{
			{0, "begin", "starting next=30s"},
			{30, "due", "starting probe"},
			{31, "exit 2", "starting streak=1 next=30s"},
			{61, "due", "starting streak=1 probe"},
			{62, "exit -1", "starting streak=2 next=30s"},
			{92, "due", "starting streak=2 probe"},
			{93, "exit 127", "unhealthy streak=3 changed failed next=30s"},
		}},
		{"failures in the start period do not count, and it is asked more often", slow, []scene{
			{0, "begin", "starting next=2s"},
			{2, "due", "starting probe"},
			{3, "exit 1", "starting next=2s"},
			{5, "due", "starting probe"},
			{6, "exit 1", "starting next=2s"},
			{59, "due", "starting probe"},
			{64, "exit 1", "starting next=30s"}, // it began in the period
			{94, "due", "starting probe"},
			{95, "exit 1", "starting streak=1 next=30s"},
		}},
		{"a success ends the start period", slow, []scene{
			{0, "begin", "starting next=2s"},
			{2, "due", "starting probe"},
			{3, "exit 0", "healthy changed next=30s"},
			{33, "due", "healthy probe"},
			{34, "exit 1", "healthy streak=1 next=30s"},
		}},
		{"retries of one", once, []scene{
			{0, "begin", "starting next=30s"},
			{30, "due", "starting probe"},
			{31, "exit 1", "unhealthy streak=1 changed failed next=30s"},
		}},
		{"paused: nothing is asked, shown as unhealthy, no event", s, []scene{
			{0, "begin", "starting next=30s"},
			{30, "due", "starting probe"},
			{31, "exit 0", "healthy changed next=30s"},
			{40, "hold", "unhealthy"},
			{41, "hold", "unhealthy"},
			{61, "due", "unhealthy"},
			{70, "resume", "unhealthy next=30s"},
			{71, "resume", "unhealthy"},
			{100, "due", "unhealthy probe"},
			{101, "exit 0", "healthy changed next=30s"},
		}},
		{"paused while a probe runs: its result does not count", s, []scene{
			{0, "begin", "starting next=30s"},
			{30, "due", "starting probe"},
			{31, "hold", "unhealthy cancel"},
			{32, "exit 0", "unhealthy"},
		}},
		{"resumed and failing: noticed, though its status does not change", once, []scene{
			{0, "begin", "starting next=30s"},
			{5, "hold", "unhealthy"},
			{9, "resume", "unhealthy next=30s"},
			{39, "due", "unhealthy probe"},
			{40, "exit 1", "unhealthy streak=1 failed next=30s"},
		}},
		{"restarted: it starts anew", s, []scene{
			{0, "begin", "starting next=30s"},
			{30, "due", "starting probe"},
			{31, "exit 1", "starting streak=1 next=30s"},
			{61, "due", "starting streak=1 probe"},
			{62, "hold", "unhealthy streak=1 cancel"},
			{64, "begin", "starting next=30s"},
			{94, "due", "starting probe"},
			{95, "begin", "starting cancel next=30s"},
		}},
		{"resume before begin does nothing", s, []scene{{0, "resume", ""}, {0, "due", ""}, {0, "exit 0", ""}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { play(t, tt.s, State{}, tt.scenes) })
	}
}

func TestMachineAdopt(t *testing.T) {
	s := Settings{Interval: 30 * time.Second, StartPeriod: time.Minute, StartInterval: time.Second, Retries: 3}
	play(t, s, State{Status: container.Healthy, FailingStreak: 2}, []scene{
		{100, "adopt", "healthy streak=2 next=30s"},
		{130, "due", "healthy streak=2 probe"},
		{131, "exit 1", "unhealthy streak=3 changed failed next=30s"},
	})
	play(t, s, State{}, []scene{{0, "adopt", "starting next=1s"}})
}

func TestMachineKeepsFiveResults(t *testing.T) {
	s := Settings{Interval: time.Second, Retries: 3}
	st, _ := s.Next(State{}, Event{Kind: Begin})
	var logs [][]Result
	for i := range 8 {
		st, _ = s.Next(st, Event{Kind: Due})
		st, _ = s.Next(st, Event{Kind: Done, Result: Result{ExitCode: i}})
		logs = append(logs, st.Log)
	}
	var codes []int
	for _, r := range st.Health().Log {
		codes = append(codes, r.ExitCode)
	}
	if diff := cmp.Diff([]int{3, 4, 5, 6, 7}, codes); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	if logs[6][0].ExitCode != 2 {
		t.Error("an earlier state's log was changed in place")
	}
}
