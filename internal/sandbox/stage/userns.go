package stage

import "syscall"

// userNSRole waits in a new user namespace until the parent has written the id
// maps, and then becomes the plan's program. That execution is what turns the
// now mapped root into one with capabilities (user_namespaces(7)).
func userNSRole() {
	p, f := readPlan()
	if f != nil {
		report(f)
	}
	var b [1]byte
	if n, err := syscall.Read(SyncFD, b[:]); err != nil || n == 0 {
		syscall.Exit(exitFailed) // the parent gave up, and says why itself
	}
	prctl(prSetDeathSig, uintptr(p.DeathSignal), 0)
	if parentGone() {
		syscall.Exit(exitFailed)
	}
	syscall.CloseOnExec(SyncFD)
	syscall.CloseOnExec(PlanFD)
	report(fail("start "+p.Path+" in a user namespace", errnoOf(syscall.Exec(p.Path, p.Args, p.Env))))
}

// EnterShadow turns the calling process, which must have locked its thread,
// into the one that stands outside for its child. It returns only an error.
func EnterShadow(exe string, child int) error {
	blockSignals(true)
	err := syscall.Exec(exe, []string{"dhow"}, []string{RoleVar + "=" + RoleShadow + itoa(uint64(child))})
	blockSignals(false)
	return err
}

// shadowRole passes signals to the process that re-executed inside the user
// namespace and ends as it does. Signals that the kernel made (Ctrl-C on the
// terminal) have reached the child too, which is in the same process group.
func shadowRole(child string) {
	pid := 0
	for _, c := range []byte(child) {
		pid = pid*10 + int(c-'0')
	}
	if pid <= 1 {
		return
	}
	serve(pid, func(s *signalInfo) bool { return s.code <= 0 })
}
