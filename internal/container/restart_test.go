package container

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

func TestRestartPlan(t *testing.T) {
	fail, ok := Exit{Code: 1}, Exit{}
	long := Exit{Code: 1, Ran: time.Minute}
	sick := Exit{Code: 137, Unhealthy: true}
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	const no = -1
	for _, c := range []struct {
		name  string
		plan  RestartPlan
		exits []Exit
		want  []time.Duration // no: not again
	}{
		{"no", RestartPlan{Policy: container.RestartPolicy{Name: "no"}}, []Exit{fail}, []time.Duration{no}},
		{"always doubles", RestartPlan{Policy: container.RestartPolicy{Name: "always"}},
			[]Exit{ok, ok, fail, long, fail}, []time.Duration{ms(100), ms(200), ms(400), ms(100), ms(200)}},
		{"always, stopped by hand", RestartPlan{Policy: container.RestartPolicy{Name: "always"}}, []Exit{{Stopped: true}}, []time.Duration{no}},
		{"on-failure leaves success", RestartPlan{Policy: container.RestartPolicy{Name: "on-failure"}}, []Exit{fail, ok}, []time.Duration{ms(100), no}},
		{"on-failure:2", RestartPlan{Policy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2}},
			[]Exit{fail, fail, fail}, []time.Duration{ms(100), ms(200), no}},
		{"own delay and reset", RestartPlan{Policy: container.RestartPolicy{Name: "unless-stopped"}, Options: RestartOptions{Delay: time.Second, Reset: time.Hour}},
			[]Exit{long, long}, []time.Duration{time.Second, 2 * time.Second}},
		{"a delay above docker's longest", RestartPlan{Policy: container.RestartPolicy{Name: "always"}, Options: RestartOptions{Delay: 2 * time.Minute}},
			[]Exit{ok, ok}, []time.Duration{2 * time.Minute, 2 * time.Minute}},
		{"unhealthy, whatever the policy", RestartPlan{Policy: container.RestartPolicy{Name: "no"}},
			[]Exit{sick, sick, fail}, []time.Duration{ms(100), ms(200), no}},
	} {
		for i, e := range c.exits {
			delay, again := c.plan.Next(e)
			if !again {
				delay = no
			}
			if delay != c.want[i] {
				t.Errorf("%s, exit %d: got %v, want %v", c.name, i, delay, c.want[i])
			}
		}
	}
	p := RestartPlan{Policy: container.RestartPolicy{Name: "always"}}
	for range 20 {
		p.Next(fail)
	}
	if d, _ := p.Next(fail); d != time.Minute || p.Restarts != 21 {
		t.Errorf("after many restarts: got %v and %d restarts, want 1m and 21", d, p.Restarts)
	}
}
