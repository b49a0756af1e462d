package container

import "github.com/moby/moby/api/types/container"

// StartsAtBoot says whether a container that does not run is started with the
// machine, as docker's daemon does when it starts: "always" in any case but for
// one that was never started, "unless-stopped" unless it was stopped by hand,
// and "on-failure" if it failed, by the machine's end too.
func StartsAtBoot(p container.RestartPolicy, st State) bool {
	if st.StartedAt.IsZero() {
		return false
	}
	switch p.Name {
	case container.RestartPolicyAlways:
		return true
	case container.RestartPolicyUnlessStopped:
		return !st.Stopped
	case container.RestartPolicyOnFailure:
		return !st.Stopped && st.ExitCode != 0 && (p.MaximumRetryCount == 0 || st.Restarts < p.MaximumRetryCount)
	}
	return false
}
