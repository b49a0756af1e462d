package container

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

func TestStartsAtBoot(t *testing.T) {
	ran := State{StartedAt: time.Unix(1, 0), ExitCode: 0}
	stopped, failed, tried := ran, ran, ran
	stopped.Stopped, stopped.ExitCode = true, 143
	failed.ExitCode = 255
	tried.ExitCode, tried.Restarts = 1, 3
	tests := []struct {
		policy container.RestartPolicy
		st     State
		want   bool
	}{
		{container.RestartPolicy{}, failed, false},
		{container.RestartPolicy{Name: "no"}, failed, false},
		{container.RestartPolicy{Name: "always"}, State{}, false},
		{container.RestartPolicy{Name: "always"}, ran, true},
		{container.RestartPolicy{Name: "always"}, stopped, true},
		{container.RestartPolicy{Name: "unless-stopped"}, ran, true},
		{container.RestartPolicy{Name: "unless-stopped"}, stopped, false},
		{container.RestartPolicy{Name: "on-failure"}, ran, false},
		{container.RestartPolicy{Name: "on-failure"}, failed, true},
		{container.RestartPolicy{Name: "on-failure"}, stopped, false},
		{container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 3}, tried, false},
		{container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 4}, tried, true},
	}
	for _, tt := range tests {
		if got := StartsAtBoot(tt.policy, tt.st); got != tt.want {
			t.Errorf("%+v %+v: got %v, want %v", tt.policy, tt.st, got, tt.want)
		}
	}
}
