package stage

import "syscall"

// PIDVar tells a program that userNSRole executed its own pid, by which it
// knows itself from programs that it starts in turn.
const PIDVar = "DHOW_STAGE_PID"

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
	syscall.CloseOnExec(SyncFD)
	syscall.CloseOnExec(PlanFD)
	env := append(p.Env, PIDVar+"="+itoa(uint64(syscall.Getpid())))
	err := syscall.Exec(p.Path, p.Args, env)
	text := "dhow: execute " + p.Path + " in a user namespace: " + err.Error() + "\n"
	syscall.Write(2, []byte(text)) // nobody listens on the socket any more
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
