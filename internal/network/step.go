package network

import "strings"

// stepPrefix begins the ids of what is no container but a step of a build.
const stepPrefix = "step-"

// StepID is the id that a step has in place of a container's; proc is the opening
// of the store whose process runs it (store.ProcID), and lives as long as it does.
func StepID(proc, name string) string { return stepPrefix + proc + "." + name }

// StepProc is the proc of a StepID.
func StepProc(id string) (proc string, isStep bool) {
	rest, ok := strings.CutPrefix(id, stepPrefix)
	if !ok {
		return "", false
	}
	proc, _, _ = strings.Cut(rest, ".")
	return proc, true
}
