package stage

import (
	"syscall"
	"unsafe"
)

// leaveKeyring leaves the user's session keyring for a new one. Keys are not
// in any namespace, and holding a keyring is the right to read it.
func leaveKeyring(*Plan) *failure {
	_, _, e := syscall.RawSyscall(syscall.SYS_KEYCTL, 1, 0, 0) // KEYCTL_JOIN_SESSION_KEYRING
	if e == syscall.EDQUOT {
		warn("the session keyring is shared with the container: the user's quota of keys is used up")
		return nil
	}
	if e == syscall.ENOSYS || e == syscall.EPERM || e == syscall.EACCES { // no keys, or a filter around us
		return nil
	}
	return fail("make a session keyring", e)
}

// setOOMScore sets how readily the kernel kills the program for memory, through
// the host's /proc, of which nobody inside has a say.
func setOOMScore(p *Plan) *failure {
	if p.OOMScore == NoOOMScore {
		return nil
	}
	value := itoa(uint64(max(p.OOMScore, -p.OOMScore)))
	if p.OOMScore < 0 {
		value = "-" + value
	}
	fd, e := openOwn(p, "/proc/self/oom_score_adj")
	if e == 0 {
		_, err := syscall.Write(fd, []byte(value))
		e = errnoOf(err)
		syscall.Close(fd)
	}
	if e == syscall.EACCES || e == syscall.EPERM {
		warn("the OOM score of " + value + " is not set: lowering it needs CAP_SYS_RESOURCE")
		return nil
	}
	return fail("set the OOM score to "+value, e)
}

// openOwn opens a file of ours in the host's /proc for writing.
func openOwn(p *Plan, file string) (int, syscall.Errno) {
	fd, e := openat(atFdcwd, file, syscall.O_WRONLY, 0)
	if e == syscall.EACCES && !p.Inside {
		// In a user namespace the files of who is not dumpable are not ours. There
		// is nobody yet who could look into us.
		prctl(prSetDumpable, 1, 0)
		fd, e = openat(atFdcwd, file, syscall.O_WRONLY, 0)
		prctl(prSetDumpable, 0, 0)
	}
	return fd, e
}

// ApplyProfile begins the text of a failure to apply an AppArmor profile.
const ApplyProfile = "apply the AppArmor profile "

// setProfile has the kernel put the program under an AppArmor profile when this
// thread executes it. It is asked through the host's /proc, where nobody inside
// can have put another file (CVE-2019-16884, CVE-2025-52881).
func setProfile(p *Plan) *failure {
	if p.AppArmor == "" {
		return nil
	}
	fd, e := openOwn(p, "/proc/thread-self/attr/apparmor/exec")
	if e == syscall.ENOENT { // before Linux 5.1
		fd, e = openOwn(p, "/proc/thread-self/attr/exec")
	}
	if e != 0 {
		return fail("open the AppArmor attributes", e)
	}
	_, err := syscall.Write(fd, []byte("exec "+p.AppArmor))
	syscall.Close(fd)
	return fail(ApplyProfile+p.AppArmor, errnoOf(err))
}

// joinNamespaces enters the namespaces that the plan names. A mount namespace
// can be entered only by a thread that shares its root with no other
// (setns(2)); exec ends the others.
func joinNamespaces(p *Plan) *failure {
	if p.Inside {
		if _, _, e := syscall.RawSyscall(syscall.SYS_UNSHARE, syscall.CLONE_FS, 0, 0); e != 0 {
			return fail("leave the other threads' root", e)
		}
	}
	for _, j := range p.Join {
		if _, _, e := syscall.RawSyscall(sysSetns, uintptr(j.FD), uintptr(j.Flag), 0); e != 0 {
			return fail("join a namespace", e)
		}
	}
	return nil
}

// joinCgroup enters our cgroup and makes it the root of a cgroup namespace.
// clone(2) cannot do the latter: it would take the parent's cgroup for the root.
func joinCgroup(p *Plan) *failure {
	if !p.Inside {
		if f := enterCgroups(p); f != nil {
			return f
		}
	}
	if !p.NewCgroupNS {
		return nil
	}
	_, _, e := syscall.RawSyscall(syscall.SYS_UNSHARE, 0x02000000, 0, 0) // CLONE_NEWCGROUP
	return fail("make a cgroup namespace", e)
}

// enterCgroups moves this thread, which will be the only one. Whoever moves
// another thread or a process waits until every processor has scheduled, 7 ms;
// one that moves itself, as "0", takes 0.03 ms (Linux, cgroup_procs_write_start).
func enterCgroups(p *Plan) *failure {
	self := [1]byte{'0'}
	for _, fd := range p.Cgroups {
		_, _, e := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&self[0])), 1)
		if e != 0 {
			return fail("enter the cgroup", e)
		}
	}
	return nil
}

// askParent sends a message and waits for the answer.
//
// The wait is a raw system call, of which the Go runtime does not know: it
// would start a thread to go on with, and there may be none left to start.
func askParent(msg byte) *failure {
	if e := send(SyncFD, []byte{msg}, -1); e != 0 {
		return fail("ask the parent", e)
	}
	var b [1]byte
	for {
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, SyncFD, uintptr(unsafe.Pointer(&b[0])), 1)
		if e == syscall.EINTR {
			continue
		}
		if e != 0 || n == 0 {
			syscall.Exit(exitFailed) // the parent has died or given up
		}
		return nil
	}
}

// setNames sets the host and domain name.
func setNames(p *Plan) *failure {
	if !p.NewUTS {
		return nil
	}
	if err := syscall.Sethostname([]byte(p.Hostname)); err != nil {
		return fail("set the host name "+p.Hostname, errnoOf(err))
	}
	if err := syscall.Setdomainname([]byte(p.Domainname)); err != nil {
		return fail("set the domain name "+p.Domainname, errnoOf(err))
	}
	return nil
}

// setLoopback brings lo up in a new network namespace.
func setLoopback(p *Plan) *failure {
	if !p.LoopbackUp {
		return nil
	}
	s, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail("bring the loopback interface up", errnoOf(err))
	}
	defer syscall.Close(s)
	var req [ifrSize]byte // struct ifreq: name[16], then short flags
	copy(req[:], "lo")
	*(*uint16)(unsafe.Pointer(&req[16])) = syscall.IFF_UP | syscall.IFF_RUNNING
	return fail("bring the loopback interface up", ioctl(s, syscall.SIOCSIFFLAGS, unsafe.Pointer(&req[0])))
}

// setConsole makes the terminal, or hands the pipes that are our standard
// streams to the user, who could not reopen /dev/stdout otherwise.
func setConsole(p *Plan) *failure {
	if p.TTY {
		return makeConsole(p)
	}
	if f := openNulls(p); f != nil {
		return f
	}
	for fd := 0; p.OwnStdio && fd <= 2; fd++ {
		var st syscall.Stat_t
		if syscall.Fstat(fd, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFIFO {
			syscall.Fchown(fd, int(p.UID), -1) // EINVAL: the id is not mapped, the pipe stays ours
		}
	}
	return nil
}

// openNulls opens the null device inside for the streams that have nothing
// else. It is the read-only mount of the machine's node: through a descriptor
// of the node itself, root inside could change its mode with fchmod(2).
func openNulls(p *Plan) *failure {
	for fd, want := range p.NullStdio {
		if !want {
			continue
		}
		null, e := openat2(atFdcwd, "/dev/null", syscall.O_RDWR|syscall.O_NOCTTY, resolveNoMagicLinks)
		if e != 0 {
			return fail("open /dev/null", e)
		}
		var st syscall.Stat_t
		if err := syscall.Fstat(null, &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFCHR || st.Rdev != 1<<8|3 {
			return fail("open /dev/null", syscall.ENODEV)
		}
		if err := syscall.Dup3(null, fd, 0); err != nil {
			return fail("open /dev/null", errnoOf(err))
		}
		syscall.Close(null)
	}
	return nil
}

// makeConsole makes a pty in the sandbox's own devpts. The other end is taken
// from the master by ioctl and bound by descriptor, so no path in between can
// be replaced (CVE-2025-52565).
func makeConsole(p *Plan) *failure {
	const what = "make the terminal"
	master, e := openat2(atFdcwd, "/dev/pts/ptmx", syscall.O_RDWR|syscall.O_NOCTTY, resolveNoMagicLinks)
	if e != 0 {
		return fail(what, e)
	}
	var fs syscall.Statfs_t
	if err := syscall.Fstatfs(master, &fs); err != nil || fs.Type != devptsMagic {
		return fail(what, syscall.ENODEV)
	}
	var zero int32
	if e := ioctl(master, tiocsptlck, unsafe.Pointer(&zero)); e != 0 {
		return fail(what, e)
	}
	peer, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(master), tiocgptpeer,
		syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC)
	if e != 0 {
		return fail(what, e)
	}
	slave := int(peer)
	if p.Rows > 0 || p.Cols > 0 {
		size := [4]uint16{uint16(p.Rows), uint16(p.Cols)}
		ioctl(master, syscall.TIOCSWINSZ, unsafe.Pointer(&size))
	}
	if err := syscall.Fchown(slave, int(p.UID), -1); err != nil && !p.InUserNS {
		return fail("give the terminal to the user", errnoOf(err))
	}
	if !p.Inside { // /dev/console is the first process's
		if f := bindConsole(slave); f != nil {
			return f
		}
	}
	if e := send(SyncFD, []byte{MsgConsole}, master); e != 0 {
		return fail("pass the terminal on", e)
	}
	syscall.Close(master)
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, peer, syscall.TIOCSCTTY, 0); e != 0 {
		return fail("take control of the terminal", e)
	}
	for fd := 0; fd <= 2; fd++ {
		if err := syscall.Dup3(slave, fd, 0); err != nil {
			return fail(what, errnoOf(err))
		}
	}
	syscall.Close(slave)
	return nil
}

// bindConsole shows the terminal as /dev/console too. A link there, which the
// user's own /dev may hold, would have it mounted over another file
// (CVE-2025-52565).
func bindConsole(slave int) *failure {
	const what = "bind /dev/console"
	root, e := openat(atFdcwd, "/", oPath|syscall.O_DIRECTORY, 0)
	if e != 0 {
		return fail(what, e)
	}
	defer syscall.Close(root)
	clone, e := cloneMount(slave, 0)
	if e != 0 {
		return fail(what, e)
	}
	defer syscall.Close(clone)
	return tree{root}.attach(&Mount{Dest: "/dev/console", FD: clone, NoLinks: true})
}

// setRlimits applies the limits; one that is above a hard limit we may not
// raise is cut to it, with a warning.
func setRlimits(p *Plan) *failure {
	for _, r := range p.Rlimits {
		want := syscall.Rlimit{Cur: r.Soft, Max: r.Hard}
		e := prlimit(r.Resource, &want, nil)
		if e == syscall.EPERM {
			var have syscall.Rlimit
			prlimit(r.Resource, nil, &have)
			want = syscall.Rlimit{Cur: min(r.Soft, have.Max), Max: min(r.Hard, have.Max)}
			if e = prlimit(r.Resource, &want, nil); e == 0 {
				warn("ulimit " + r.Name + ": kept at the hard limit of " + itoa(have.Max) +
					", because raising it needs CAP_SYS_RESOURCE")
			}
		}
		if e != 0 {
			return fail("set ulimit "+r.Name, e)
		}
		if r.Resource == syscall.RLIMIT_NOFILE {
			// Makes the runtime forget the soft limit it raised for itself and
			// would put back in Exec.
			syscall.Setrlimit(syscall.RLIMIT_NOFILE, &want)
		}
	}
	return nil
}

func prlimit(resource uint64, set, get *syscall.Rlimit) syscall.Errno {
	_, _, e := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, 0, uintptr(resource), uintptr(unsafe.Pointer(set)),
		uintptr(unsafe.Pointer(get)), 0, 0)
	return e
}

// EnterCwd is how the text of a failure begins that has to do with the working
// directory, which follows.
const EnterCwd = "enter the working directory "

// enterCwd goes to the working directory, made for a container's first process if
// it is missing, and checks that it
// is inside the root (CVE-2024-21626).
func enterCwd(p *Plan) *failure {
	what := EnterCwd + p.Cwd
	root, e := openat(atFdcwd, "/", oPath|syscall.O_DIRECTORY, 0)
	if e != 0 {
		return fail(what, e)
	}
	defer syscall.Close(root)
	t := tree{root}
	dir, e := t.open(p.Cwd, syscall.O_DIRECTORY, 0)
	if e == syscall.ENOENT && !p.Inside {
		dir, e = t.create(p.Cwd, true)
	}
	if e != 0 {
		return fail(what, e)
	}
	defer syscall.Close(dir)
	if err := syscall.Fchdir(dir); err != nil {
		return fail(what, errnoOf(err))
	}
	var buf [4096]byte
	n, err := syscall.Getcwd(buf[:])
	if err != nil || n < 2 || buf[0] != '/' { // the kernel says "(unreachable)…" outside the root
		return fail(what+": it is outside the root", syscall.EXDEV)
	}
	return nil
}

// setIdentity becomes the user, with the capabilities, the filter and the
// death signal. Everything is per thread; exec leaves only this one.
func setIdentity(p *Plan) *failure {
	if f := setUser(p); f != nil {
		return f
	}
	// After setuid(2), which clears it (prctl(2)).
	if p.DeathSignal != 0 {
		prctl(prSetDeathSig, uintptr(p.DeathSignal), 0)
	}
	if parentGone() { // nobody would know of the program
		syscall.Exit(exitFailed)
	}
	if p.NoNewPrivs {
		if e := prctl(prSetNoNewPrivs, 1, 0); e != 0 {
			return fail("set no_new_privs", e)
		}
	}
	if _, _, e := syscall.RawSyscall(sysCloseRange, MinFD, ^uintptr(0)>>32, closeRangeCloexec); e != 0 {
		return fail("mark descriptors close-on-exec", e)
	}
	if p.Umask >= 0 {
		syscall.Umask(int(p.Umask))
	}
	// From here on our threads may be more than the cgroup allows. That hinders
	// no one: no new one is needed, and exec ends all but this.
	if p.Inside {
		if f := enterCgroups(p); f != nil {
			return f
		}
	}
	if p.WaitReady {
		if f := askParent(MsgReady); f != nil {
			return f
		}
	}
	// The filter is loaded with CAP_SYS_ADMIN still effective, which is needed
	// without no_new_privs; from here on it sees our own calls: capset and prctl
	// for the capabilities, execve, and writing to the parent if that fails.
	if f := loadFilter(p); f != nil {
		return f
	}
	return setCaps(p)
}

// setUser sets the groups and ids and cuts the bounding set, keeping the
// capabilities that later steps need.
func setUser(p *Plan) *failure {
	for c := uintptr(0); c < 64; c++ {
		if p.Bounding>>c&1 != 0 {
			continue
		}
		if e := prctl(prCapBsetDrop, c, 0); e == syscall.EINVAL {
			break // the kernel knows no more
		} else if e != 0 {
			return fail("drop capability "+itoa(uint64(c)), e)
		}
	}
	if e := prctl(prSetKeepCaps, 1, 0); e != 0 {
		return fail("keep capabilities", e)
	}
	var gids *uint32
	if len(p.Groups) > 0 {
		gids = &p.Groups[0]
	}
	_, _, e := syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(p.Groups)), uintptr(unsafe.Pointer(gids)), 0)
	switch {
	case (e == syscall.EPERM || e == syscall.EINVAL) && p.InUserNS:
		if len(p.Groups) > 1 || len(p.Groups) == 1 && p.Groups[0] != p.GID {
			warn("the user's additional groups are left out: this user namespace does not map them")
		}
	case e != 0:
		return fail("set the additional groups", e)
	}
	gid, uid := uintptr(p.GID), uintptr(p.UID)
	if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESGID, gid, gid, gid); e != 0 {
		return fail("become group "+itoa(uint64(gid)), e)
	}
	if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, uid, uid, uid); e != 0 {
		return fail("become user "+itoa(uint64(uid)), e)
	}
	if e := prctl(prSetKeepCaps, 0, 0); e != 0 {
		return fail("keep capabilities", e)
	}
	return nil
}

// parentGone tells whether the other end of SyncFD is closed.
func parentGone() bool {
	var b [1]byte
	n, _, err := syscall.Recvfrom(SyncFD, b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return n == 0 && err == nil
}

// capset sets the thread's capability sets.
func capset(effective, permitted, inheritable uint64) syscall.Errno {
	hdr := struct {
		version uint32
		pid     int32
	}{capVersion3, 0}
	data := [6]uint32{
		uint32(effective), uint32(permitted), uint32(inheritable),
		uint32(effective >> 32), uint32(permitted >> 32), uint32(inheritable >> 32),
	}
	_, _, e := syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data)), 0)
	return e
}

// setCaps sets the final capabilities. After a change of user the effective
// set is empty, so the permitted one is what counts.
func setCaps(p *Plan) *failure {
	if e := capset(p.Effective, p.Permitted, p.Inheritable); e != 0 {
		return fail("set the capabilities", e)
	}
	prctl(prCapAmbient, prCapAmbientClear, 0)
	for c := uintptr(0); c < 64; c++ {
		if p.Ambient>>c&1 == 0 {
			continue
		}
		if e := prctl(prCapAmbient, prCapAmbientRaise, c); e != 0 {
			return fail("raise ambient capability "+itoa(uint64(c)), e)
		}
	}
	return nil
}

// loadFilter installs the seccomp filter on this thread.
func loadFilter(p *Plan) *failure {
	if len(p.Filter) == 0 {
		return nil
	}
	if !p.NoNewPrivs && p.UID != 0 {
		// setresuid emptied the effective set.
		const need = 1<<capSetPcap | 1<<capSys
		if e := capset(p.Permitted|need, p.Permitted|need, p.Inheritable); e != 0 {
			return fail("prepare for the seccomp filter", e)
		}
	}
	prog := struct {
		n   uint16
		ins *byte
	}{uint16(len(p.Filter) / 8), &p.Filter[0]}
	_, _, e := syscall.RawSyscall(sysSeccomp, seccompSetFilter, uintptr(p.FilterFlags), uintptr(unsafe.Pointer(&prog)))
	if e == syscall.EINVAL && p.FilterFlags != 0 {
		// An older kernel does not know a flag; all of them are refinements.
		_, _, e = syscall.RawSyscall(sysSeccomp, seccompSetFilter, 0, uintptr(unsafe.Pointer(&prog)))
	}
	return fail("load the seccomp filter", e)
}
