package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/testkit"
)

// The number of times that something is killed; DHOW_FAULTS changes it.
const defaultFaults = 25

// faults is a state directory, with a network namespace of its own, in which
// things are killed.
type faults struct {
	t    *testing.T
	root string
	// runtime is what the containers are run by.
	runtime string
	net     *exec.Cmd       // holds the network namespace; nil for an ordinary user, who has nothing in the machine's
	ids     map[string]bool // of every container that there ever was
	gone    map[string]bool // names of those that somebody began to remove
	rand    *rand.Rand
}

// TestContainerFaults kills supervisors, commands and first processes of
// containers at random. Afterwards no record is lost, ps tells the truth at
// once, and when all containers are removed nothing of them is left. An ordinary
// user's containers can be joined all the time.
func TestContainerFaults(t *testing.T) { killAtRandom(t, "dhow") }

// TestRuntimeFaults is the same with containers that runc runs.
func TestRuntimeFaults(t *testing.T) {
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip(err)
	}
	killAtRandom(t, "runc")
}

func killAtRandom(t *testing.T, runtime string) {
	count := defaultFaults
	if s := os.Getenv("DHOW_FAULTS"); s != "" {
		var err error
		if count, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("DHOW_FAULTS_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d faults, DHOW_FAULTS_SEED=%d", count, seed)
	f := newFaults(t, seed)
	f.runtime = runtime
	f.must("load", "-q", "-i", filepath.Join(shared.images, "busybox.tar"))
	// What stays for good: the default network's bridge and rules.
	f.must("run", "--rm", "busybox", "true")
	testkit.Until(t, "the end of the container's link", func() bool { // the kernel takes its time with a network namespace that nobody holds
		return !strings.Contains(f.links(), "dhv")
	})
	rules, links := f.inside("nft", "list", "ruleset"), f.links()
	for i := range count {
		f.fault(i)
		if t.Failed() {
			return
		}
	}
	_, _ = f.dhow(append([]string{"rm", "-f", "-v"}, f.names()...)...) // one may go at the same time by itself
	f.wait(func() bool { return len(f.names()) == 0 })
	f.nothingLeft(rules, links)
}

func newFaults(t *testing.T, seed uint64) *faults {
	t.Helper()
	f := &faults{t: t, root: t.TempDir(), ids: map[string]bool{}, gone: map[string]bool{}, rand: rand.New(rand.NewPCG(seed, 0))}
	t.Cleanup(func() { // whatever has gone wrong
		if names := f.names(); len(names) > 0 {
			_, _ = f.dhow(append([]string{"rm", "-f"}, names...)...)
		}
	})
	if os.Getuid() != 0 {
		return f
	}
	f.net = exec.Command("unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 100000")
	out, err := f.net.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.net.Start(); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		_ = f.net.Process.Kill()
		_ = f.net.Wait()
	})
	if n, err := out.Read(make([]byte, 10)); err != nil || n == 0 {
		t.Skip("no network namespace: ", err)
	}
	return f
}

// command runs a program in the network namespace.
func (f *faults) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if f.net == nil {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), "DHOW_ROOT="+f.root)
		return cmd
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", f.net.Process.Pid), name}, args...)...)
	cmd.Env = append(os.Environ(), "DHOW_ROOT="+f.root)
	return cmd
}

// dhow runs dhow to its end.
func (f *faults) dhow(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*testkit.Patience)
	defer cancel()
	cmd := f.command(ctx, filepath.Join(shared.bin, "dhow"), args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("dhow %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(string(out)), err
}

func (f *faults) must(args ...string) string {
	f.t.Helper()
	out, err := f.dhow(args...)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

// inside runs another program in the network namespace.
func (f *faults) inside(name string, args ...string) string {
	out, err := f.command(context.Background(), name, args...).CombinedOutput()
	if err != nil {
		return "" // not installed: not looked at
	}
	return string(out)
}

// links are the names of the network's links: whether a bridge is up changes a
// while after what is on it has gone.
func (f *faults) links() string {
	var names []string
	for line := range strings.Lines(f.inside("ip", "-br", "link")) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// wait waits until the condition holds, as long as any machine may take for it;
// who calls looks what did not come to be.
func (f *faults) wait(holds func() bool) {
	for end := time.Now().Add(testkit.Patience); !holds() && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
}

// seen is a container as ps and inspect show it.
type seen struct {
	ID, Name string
	State    struct {
		Status string
		Pid    int
	}
}

func (f *faults) containers() []seen {
	f.t.Helper()
	ids := strings.Fields(f.must("ps", "-aq", "--no-trunc"))
	if len(ids) == 0 {
		return nil
	}
	out, err := f.dhow(append([]string{"inspect", "--type", "container"}, ids...)...)
	if err != nil && !strings.Contains(err.Error(), "No such container") { // one was removed meanwhile
		f.t.Fatal(err)
	}
	var list []seen
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		f.t.Fatal(err)
	}
	for i := range list {
		list[i].Name = strings.TrimPrefix(list[i].Name, "/")
		f.ids[list[i].ID] = true
	}
	return list
}

func (f *faults) names() []string {
	out, err := f.dhow("ps", "-a", "--format", "{{.Names}}")
	if err != nil {
		return nil
	}
	return strings.Fields(out)
}

// fault does one thing to one container and kills something meanwhile or
// afterwards, then looks at all of them.
func (f *faults) fault(i int) {
	f.t.Helper()
	name := fmt.Sprint("f", f.rand.IntN(6))
	before := f.names()
	there := slices.Contains(before, name)
	policy := []string{"no", "always", "on-failure"}[f.rand.IntN(3)]
	what := ""
	switch n := f.rand.IntN(6); {
	case !there:
		f.gone[name] = false
		what = f.killCommand("run", "-d", "--name", name, "--runtime", f.runtime, "--restart", policy, "--restart-delay", "20ms", "-v", "/anon", "-v", "named:/named",
			"--health-cmd", "true", "--health-interval", "50ms", "busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done")
	case n == 0:
		what = f.killCommand([]string{"stop", "start", "restart"}[f.rand.IntN(3)], name)
	case n == 1:
		what = f.killCommand("exec", name, "sleep", "0.05")
	case n == 2:
		f.gone[name] = true
		what = f.killCommand("rm", "-f", "-v", name)
	case n <= 4:
		what = "kill -9 the supervisor of " + name
		kill9(f.supervisor(name))
	default:
		what = "kill -9 the first process of " + name
		for _, c := range f.containers() {
			if c.Name == name {
				kill9(c.State.Pid)
			}
		}
	}
	f.truth(fmt.Sprintf("fault %d: %s", i, what))
	if f.net == nil {
		f.joined(fmt.Sprintf("fault %d: %s", i, what))
	}
	// A removal goes on when the command that began it was killed.
	after := f.names()
	for _, n := range before {
		if !slices.Contains(after, n) && !f.gone[n] {
			f.t.Errorf("fault %d: %s: the container %s is lost", i, what, n)
		}
	}
}

// killCommand starts dhow and kills it within 80 ms, or lets it end.
func (f *faults) killCommand(args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 3*testkit.Patience)
	defer cancel()
	cmd := f.command(ctx, filepath.Join(shared.bin, "dhow"), args...)
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	timer := time.AfterFunc(time.Duration(f.rand.IntN(80))*time.Millisecond, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait() // killed or not
	timer.Stop()
	short := args[:min(len(args), 6)]
	return "kill -9 of dhow " + strings.Join(short, " ")
}

// supervisor finds the supervisor of a container, 0 for none.
func (f *faults) supervisor(name string) int {
	id, err := f.dhow("inspect", "-f", "{{.Id}}", name)
	if err != nil || len(id) < 12 {
		return 0
	}
	for _, pid := range f.supervisors() {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(data), id[:12]) {
			return pid
		}
	}
	return 0
}

// supervisors are those of this state directory.
func (f *faults) supervisors() (pids []int) {
	found, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, p := range found {
		env, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(env, []byte("DHOW_ROOT="+f.root)) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
		if pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil && bytes.Contains(data, []byte("supervise")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func kill9(pid int) {
	if pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// truth compares what ps says with what runs. A container may start or end
// between two looks, as its policy wants; then they have to agree soon.
func (f *faults) truth(what string) {
	f.t.Helper()
	var wrong string
	f.wait(func() bool {
		wrong = ""
		for _, c := range f.containers() {
			runs := c.State.Pid > 0 && syscall.Kill(c.State.Pid, 0) == nil
			if said := c.State.Status == "running" || c.State.Status == "paused"; said != runs {
				wrong = fmt.Sprintf("%s is %s, pid %d; it runs: %v", c.Name, c.State.Status, c.State.Pid, runs)
			}
			if c.State.Status == "exited" && len(f.processes(c.ID)) > 0 {
				wrong = fmt.Sprintf("%s has ended, and has the processes %v", c.Name, f.processes(c.ID))
			}
		}
		return wrong == ""
	})
	if wrong != "" {
		f.t.Errorf("%s: %s", what, wrong)
	}
}

// joined looks whether all containers are in one user namespace, and one of them
// can be entered by a program and by another container.
func (f *faults) joined(what string) {
	f.t.Helper()
	namespaces, last, pid := map[string]bool{}, "", 0
	for _, c := range f.containers() {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", c.State.Pid))
		if c.State.Status == "running" && err == nil {
			namespaces[ns], last, pid = true, c.Name, c.State.Pid
		}
	}
	if len(namespaces) > 1 {
		f.t.Errorf("%s: the containers are in the user namespaces %v", what, namespaces)
	}
	if last == "" {
		return
	}
	for _, args := range [][]string{{"exec", last, "true"}, {"run", "--rm", "--network", "container:" + last, "busybox", "true"}} {
		if _, err := f.dhow(args...); err != nil && !strings.Contains(err.Error(), "not running") && !f.over(pid) { // its policy, or a stop that goes on
			f.t.Errorf("%s: %v", what, err)
		}
	}
}

// over tells whether a process that was just joined in vain has ended, as one does
// that the fault itself killed.
func (f *faults) over(pid int) bool {
	for end := time.Now().Add(testkit.Patience / 4); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return true
		}
	}
	return false
}

// cgroups are the control groups of a container.
func cgroups(id string) []string {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/dhow/c-", "/sys/fs/cgroup/*/dhow/c-"} {
		dirs, _ := filepath.Glob(pattern + id)
		found = append(found, dirs...)
	}
	return found
}

// processes are those in a container's control groups.
func (f *faults) processes(id string) (pids []string) {
	for _, dir := range cgroups(id) {
		_ = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				data, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
				pids = append(pids, strings.Fields(string(data))...)
			}
			return nil
		})
	}
	return pids
}

// nothingLeft looks for everything that containers have, when there are none.
func (f *faults) nothingLeft(rules, links string) {
	f.t.Helper()
	f.wait(func() bool { return len(f.supervisors()) == 0 })
	if pids := f.supervisors(); len(pids) > 0 {
		f.t.Errorf("supervisors are left: %v", pids)
	}
	// Directories without records and the files of locks wait for a prune.
	f.must("builder", "prune", "-f")
	for id := range f.ids {
		if dirs := cgroups(id); len(dirs) > 0 {
			f.t.Errorf("control groups are left: %v", dirs)
		}
	}
	if names := f.names(); len(names) > 0 {
		f.t.Errorf("containers are left: %v", names)
	}
	for _, dir := range []string{"containers", "locks", "tmp"} {
		entries, err := os.ReadDir(filepath.Join(f.root, dir))
		if err != nil || len(entries) > 0 {
			f.t.Errorf("%s: %v are left (%v)", dir, entries, err)
		}
	}
	f.wait(func() bool { return f.links() == links })
	if got := f.links(); got != links {
		f.t.Errorf("links: got %s, want %s", got, links)
	}
	if got := f.inside("nft", "list", "ruleset"); got != rules {
		f.t.Errorf("rules: got\n%s, want\n%s", got, rules)
	}
	if out, err := exec.Command("pgrep", "-f", "--", f.root).Output(); err == nil { // 1: nobody
		f.t.Errorf("processes of %s are left: %s", f.root, out)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(f.root)) {
		f.t.Errorf("something is mounted in %s (%v)", f.root, err)
	}
	if out := f.must("network", "inspect", "-f", "{{len .Containers}}", "bridge"); out != "0" {
		f.t.Errorf("the network has %s containers", out)
	}
	if out := f.must("volume", "ls", "-q"); out != "named" {
		f.t.Errorf("volumes are left: %s", out)
	}
}
