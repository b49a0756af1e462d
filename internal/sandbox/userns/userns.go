// Package userns makes an ordinary user root of a user namespace, in which all of
// the user's commands and containers on one state directory live.
//
// It starts no containers; it comes before everything else that a command does.
//
// Invariant: a program inside lives no longer than the process outside that stands
// for it, and nobody enters a namespace that the user did not make.
package userns

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"dhow/internal/errdef"
	"dhow/internal/sandbox/stage"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// State says how the program stands towards user namespaces.
type State struct {
	// Entered is true in a process that Enter re-executed.
	Entered bool
	// HostUID is the user's id outside; os.Geteuid() where Entered is false.
	HostUID int
	// Warning is not empty when only one id could be mapped: a sentence that
	// says what cannot work and what to install.
	Warning string
}

// markVar marks the program inside, and what it starts: the user's id, the
// pid of the process outside, 1 where the namespace is shared, and with a
// single-id map the reason for that.
const markVar = "DHOW_USERNS"

// Enter makes an ordinary user root of a user namespace: the one that all
// processes on the state directory dir share (see share.go), or, where dir is
// "" or not the user's alone, one of its own. It
// returns at once for uid 0 and in the re-executed program; otherwise it
// re-executes the program with the same arguments inside that and a new mount
// namespace and does not return: the process left outside only passes
// signals in and the exit code out. Call it first in main, before any other
// goroutine or file matters.
//
//	dhow (uid 1000)
//	  | clone(NEWUSER|NEWNS) --> stage, waits       or, in one that is there,
//	  | newuidmap, newgidmap     :                  clone --> setns, unshare
//	exec stage                   :
//	  | "go on" ---------------> exec dhow (uid 0 inside, dies with its parent)
//	  v
//	signals in, exit code out
//
// An error says why this machine lets an ordinary user have no namespace.
func Enter(dir string) (State, error) {
	if text, ok := os.LookupEnv(markVar); ok {
		return entered(text)
	}
	if os.Geteuid() == 0 {
		return State{}, nil
	}
	// The thread that forks is the one that executes: the child's death signal
	// is tied to it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var in *inside
	var err error
	if dir != "" && canShare(dir) {
		in, err = startShared(dir)
	} else {
		in, err = startOwn(false)
	}
	if err != nil {
		return State{}, err
	}
	keep := []int{}
	if in.kept != nil {
		keep = append(keep, int(in.kept.Fd()))
	}
	err = stage.EnterShadow("/proc/self/exe", in.child.Pid, int(in.sock.Fd()), keep...)
	in.child.Kill()
	return State{}, fmt.Errorf("stand outside the user namespace: %w", err)
}

// mark is what markVar says.
type mark struct {
	uid, outside int
	shared       bool   // with all processes of the state directory
	reason       string // why there is a single id; "" where there are more, or one that was entered
}

// markedEnv is the environment of the program inside.
func markedEnv(m mark) []string {
	shared := 0
	if m.shared {
		shared = 1
	}
	return append(os.Environ(), fmt.Sprintf("%s=%d %d %d %s", markVar, os.Geteuid(), os.Getpid(), shared, m.reason))
}

func readMark(text string) (m mark, err error) {
	var shared int
	if n, err := fmt.Sscanf(text, "%d %d %d", &m.uid, &m.outside, &shared); n != 3 {
		return m, errdef.New(errdef.ErrInvalid, "read %s=%q: %w", markVar, text, err)
	}
	m.shared = shared == 1
	if f := strings.SplitN(text, " ", 4); len(f) == 4 {
		m.reason = f[3]
	}
	return m, nil
}

// entered is Enter inside. In the very process that was re-executed it also
// ties its life to the one outside, which the kernel forgets to do at the
// execution that raises capabilities (commit_creds clears the death signal).
func entered(text string) (State, error) {
	m, err := readMark(text)
	if err != nil {
		return State{}, err
	}
	if os.Getenv(stage.PIDVar) == stage.PIDText(os.Getpid()) {
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return State{}, fmt.Errorf("enter a user namespace: %w", err)
		}
		// Changes nothing, and fails where a security module lets the namespace be
		// made but takes its rights away.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return State{}, forbidden(err)
		}
		if os.Getppid() != m.outside {
			return State{}, errdef.New(errdef.ErrUnavailable, "enter a user namespace: the process outside has ended")
		}
	}
	ns := State{Entered: true, HostUID: m.uid}
	if m.reason == "" && singleID() {
		m.reason = "the user namespace of what runs already has no more"
	}
	if m.reason != "" {
		ns.Warning = "only your own user id exists inside: images with files of other users, and steps that change user, " +
			"will fail, because " + m.reason + "; install newuidmap (package uidmap) and give the user a range in /etc/subuid and /etc/subgid"
	}
	return ns, nil
}

// singleID says whether the namespace has no id but root's.
func singleID() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(data))
	return err == nil && len(f) == 3 && f[2] == "1"
}

// inside is the program in its namespace, which a message on sock releases; it
// gives up when that is closed.
type inside struct {
	child *os.Process
	sock  *os.File
	kept  *os.File // DIR/userns, locked; nil for a namespace of its own
}

// startOwn starts the stage in new namespaces and writes its id maps.
func startOwn(shared bool) (*inside, error) {
	maps, reason := findIDMaps()
	exe, err := ownPath()
	if err != nil {
		return nil, err
	}
	plan, err := sys.MemoryFile("plan", (&stage.Plan{
		Path: exe,
		Args: os.Args,
		Env:  markedEnv(mark{shared: shared, reason: reason}),
	}).Encode())
	if err != nil {
		return nil, err
	}
	defer plan.Close()
	sock, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	child, err := os.StartProcess("/proc/self/exe", []string{"dhow"}, &os.ProcAttr{
		Env:   []string{stage.RoleVar + "=" + stage.RoleUserNS},
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, theirs, plan},
		Sys:   &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS},
	})
	if err == nil {
		if err = maps.write(child.Pid); err == nil {
			return &inside{child: child, sock: sock}, nil
		}
		child.Kill()
		child.Wait()
	}
	sock.Close()
	return nil, forbidden(err)
}

func socketPair() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("enter a user namespace: %w", err)
	}
	return os.NewFile(uintptr(pair[0]), "userns"), os.NewFile(uintptr(pair[1]), "stage"), nil
}

// ownPath is where our binary is in the file system. Executing it from there,
// in the new mount namespace, is what lets Start clone its mount later.
func ownPath() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the program: %w", err)
	}
	var here, running unix.Stat_t
	if unix.Stat(path, &here) != nil || unix.Stat("/proc/self/exe", &running) != nil ||
		here.Dev != running.Dev || here.Ino != running.Ino {
		return "/proc/self/exe", nil // replaced or removed meanwhile
	}
	return path, nil
}

// forbidden explains why there is no user namespace to have.
func forbidden(err error) error {
	return errdef.WithHint(errdef.New(errdef.ErrDenied, "enter a user namespace: %w", err), "%s", whyForbidden("/proc/sys"))
}

// whyForbidden says which setting below sysctls is in the way, and what allows it.
func whyForbidden(sysctls string) string {
	for _, s := range []struct{ file, bad, hint string }{
		{"kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1 allows it"},
		{"user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000 allows it"},
		{"kernel/apparmor_restrict_unprivileged_userns", "1", "an AppArmor profile with \"userns,\" for dhow, or sysctl kernel.apparmor_restrict_unprivileged_userns=0, allows it"},
	} {
		if v, err := os.ReadFile(filepath.Join(sysctls, s.file)); err == nil && strings.TrimSpace(string(v)) == s.bad {
			return "this machine forbids user namespaces to ordinary users: " + s.hint
		}
	}
	return "run dhow as root, or on a machine that lets ordinary users make user namespaces"
}

// Range is a run of ids outside.
type Range struct{ Start, Count uint32 }

// idMaps is what to map into the namespace: the user itself as 0 and, unless
// empty, the ranges from 1 on.
type idMaps struct {
	uid, gid         int
	uids, gids       []Range
	uidTool, gidTool string
}

// findIDMaps finds the user's subordinate ids and the tools that may map them.
// Where something lacks, reason says what, and a single id is mapped.
func findIDMaps() (m idMaps, reason string) {
	m = idMaps{uid: os.Geteuid(), gid: os.Getegid()}
	name := ""
	if u, err := user.LookupId(strconv.Itoa(m.uid)); err == nil {
		name = u.Username
	}
	var err1, err2 error
	m.uidTool, err1 = exec.LookPath("newuidmap")
	m.gidTool, err2 = exec.LookPath("newgidmap")
	if err1 != nil || err2 != nil {
		return m.single(), "newuidmap and newgidmap are not installed"
	}
	if m.uids = Subordinate("/etc/subuid", name, strconv.Itoa(m.uid)); len(m.uids) == 0 {
		return m.single(), "/etc/subuid has no range for the user"
	}
	if m.gids = Subordinate("/etc/subgid", name, strconv.Itoa(m.uid)); len(m.gids) == 0 {
		return m.single(), "/etc/subgid has no range for the user"
	}
	return m, ""
}

func (m idMaps) single() idMaps { return idMaps{uid: m.uid, gid: m.gid} }

// Subordinate reads the ranges of a user, who goes by any of the names: a name or
// a number (subuid(5)). "" is none.
func Subordinate(file string, names ...string) []Range {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var out []Range
	for line := range strings.Lines(string(data)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || f[0] == "" || !slices.Contains(names, f[0]) {
			continue
		}
		start, err1 := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil && count > 0 {
			out = append(out, Range{uint32(start), uint32(count)})
		}
	}
	return out
}

// write gives the process its maps.
func (m idMaps) write(pid int) error {
	dir := fmt.Sprintf("/proc/%d/", pid)
	if m.uids == nil {
		// Without a helper a process may map only its own ids, and only once it
		// has given up setgroups(2) (user_namespaces(7)).
		return cmp.Or(
			os.WriteFile(dir+"setgroups", []byte("deny"), 0),
			os.WriteFile(dir+"uid_map", fmt.Appendf(nil, "0 %d 1\n", m.uid), 0),
			os.WriteFile(dir+"gid_map", fmt.Appendf(nil, "0 %d 1\n", m.gid), 0))
	}
	var wg sync.WaitGroup
	var errs [2]error
	wg.Go(func() { errs[0] = runMapTool(m.uidTool, pid, m.uid, m.uids) })
	wg.Go(func() { errs[1] = runMapTool(m.gidTool, pid, m.gid, m.gids) })
	wg.Wait()
	return errors.Join(errs[:]...)
}

// runMapTool runs newuidmap or newgidmap, which are privileged.
func runMapTool(tool string, pid, id int, ranges []Range) error {
	args := []string{strconv.Itoa(pid), "0", strconv.Itoa(id), "1"}
	inside := uint64(1)
	for _, r := range ranges {
		args = append(args, strconv.FormatUint(inside, 10), strconv.FormatUint(uint64(r.Start), 10), strconv.FormatUint(uint64(r.Count), 10))
		inside += uint64(r.Count)
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", tool, err, strings.TrimSpace(string(out)))
	}
	return nil
}
