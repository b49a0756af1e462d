package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"dhow/internal/errdef"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	cgroup1fs "github.com/opencontainers/cgroups/fs"
	cgroup2fs "github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/cgroups/systemd"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// cgroupRoot is where the cgroup file systems are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// cgroup is the control group of one process.
type cgroup struct {
	name    string   // path below the root of the hierarchy
	dir     *os.File // the directory, to clone into; version 2 only
	maxPids *int64   // a limit for limitPids
	unit    *Unit    // of systemd's, which it is; nil for a plain one
	holder  *os.Process

	mu      sync.Mutex
	manager cgroups.Manager   // guarded by mu
	paths   map[string]string // directory by controller, by "" with version 2; guarded by mu
}

// stageThreads is more than a stage has threads. A lower limit on processes is
// set when it needs no new ones any more.
const stageThreads = 16

// cgroup2 tells whether the machine has version 2 alone. A hybrid one keeps
// its controllers in version 1.
func cgroup2() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// buildCgroup makes the cgroup, if the spec wants one. Without a limit nothing
// is lost where none can be made: an ordinary user often may not.
func (b *builder) buildCgroup() error {
	b.plan.WaitReady = b.cfg.BeforeExec != nil
	l, err := cgroupLimits(b.spec.Linux.Resources)
	if err != nil {
		return err
	}
	name := path.Join("/", b.spec.Linux.CgroupsPath, b.cfg.CgroupName)
	if strings.Contains(name, ".slice:") {
		return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "make the cgroup %s: names of systemd's scopes are not supported", name), "name the slice alone, or give a path")
	}
	if name == "/" && len(l.need) == 0 {
		return nil
	}
	if name == "/" {
		name = fmt.Sprintf("/dhow/pid%d-%d", os.Getpid(), time.Now().UnixNano())
	}
	limited := len(l.need) > 0
	_, unit := UnitOf(name)
	if err := b.makeCgroup(name, l); err != nil {
		err = fmt.Errorf("make the cgroup %s: %w", name, err)
		switch {
		case errors.Is(err, errdef.ErrInvalid), unit, b.spec.Linux.CgroupsPath != "", limited && !b.inUserNS:
			return err
		case limited:
			b.warn("%s (%v)", NoLimits, err)
		}
		return nil
	}
	b.warnings = append(b.warnings, l.warnings...)
	b.plan.WaitReady = b.plan.WaitReady || b.cg.maxPids != nil
	return b.passCgroup(b.cg)
}

// NoLimits is the warning for limits of an ordinary user's without a cgroup.
const NoLimits = `no limits are enforced: an ordinary user needs a cgroup of their own for that, as "systemd-run --user --scope -p Delegate=yes" gives`

// passCgroup gives the stage the files by which it enters a cgroup of version 1.
func (b *builder) passCgroup(cg *cgroup) error {
	if cg == nil || cg.dir != nil {
		return nil
	}
	for _, dir := range cg.controllers() {
		file := path.Join(dir, "tasks")
		fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("enter the cgroup: open %s: %w", file, err)
		}
		b.plan.Cgroups = append(b.plan.Cgroups, b.pass(b.own(os.NewFile(uintptr(fd), file))))
	}
	return nil
}

// countedControllers are what Stats reads of version 1.
var countedControllers = []string{"memory", "cpuacct", "blkio"}

// managesCgroups tells whether the process may write to its cgroup, as one that
// starts containers in a container does. Of version 1 it wants every controller.
func (b *builder) managesCgroups() bool {
	return slices.ContainsFunc(b.spec.Mounts, func(m specs.Mount) bool {
		return m.Type == "cgroup" && !slices.Contains(m.Options, "ro")
	})
}

// makeCgroup makes it with device rules where that can be done.
func (b *builder) makeCgroup(name string, l *limits) error {
	if b.cfg.Survive {
		for _, c := range countedControllers {
			if cgroup2() || exists(path.Join(cgroupRoot, c)) {
				l.need = append(l.need, c)
			}
		}
	}
	if b.managesCgroups() && !cgroup2() {
		for _, c := range append([]string{"cpu", "cpuset", "freezer"}, countedControllers...) {
			if exists(path.Join(cgroupRoot, c)) {
				l.need = append(l.need, c)
			}
		}
		if b.allDevices && exists(path.Join(cgroupRoot, "devices")) { // the library makes none without a rule
			all := &devices.Rule{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "rwm", Allow: true}
			l.SkipDevices, l.Devices, l.need = false, []*devices.Rule{all}, append(l.need, "devices")
		}
	}
	if b.canGuardDevices() {
		rules, err := deviceRules(b.spec)
		if err != nil {
			return err
		}
		res := *l.Resources
		res.SkipDevices, res.Devices = false, rules
		guarded := &limits{Resources: &res, need: append(slices.Clone(l.need), "devices")}
		if b.cg, err = newCgroup(name, guarded, false); err == nil {
			b.guarded, l.warnings = true, append(l.warnings, guarded.warnings...)
			return nil
		}
		// Without the rules it may well be had.
	}
	var err error
	if b.cg, err = newCgroup(name, l, b.inUserNS); err != nil {
		b.cg = nil
	}
	return err
}

// newCgroup makes the cgroup with its limits, and adds to l's warnings.
func newCgroup(name string, l *limits, inUserNS bool) (*cgroup, error) {
	c := &cgroup{name: name}
	var err error
	if u, ok := UnitOf(name); ok {
		if err := u.Check(inUserNS); err != nil {
			return nil, err
		}
		c.unit, c.name = &u, u.Path
	}
	if cgroup2() {
		if inUserNS {
			if c.name, err = delegated(name); err != nil {
				return nil, err
			}
		}
		dir := path.Join(cgroupRoot, c.name)
		l.fit(func(controller string) bool { return offersController(path.Dir(dir), controller) })
		c.paths = map[string]string{"": dir}
	} else {
		l.fit(func(controller string) bool {
			return controller == "devices" || exists(path.Join(cgroupRoot, controller))
		})
		if c.paths, err = cgroup1Paths(name, l.need); err != nil {
			return nil, err
		}
	}
	res := l.Resources
	if res.PidsLimit != nil && *res.PidsLimit < stageThreads {
		c.maxPids, res.PidsLimit = res.PidsLimit, nil
	}
	if err := c.manage(res); err != nil {
		return nil, err
	}
	make := func() error { return c.manager.Apply(-1) } // -1 makes it without moving anyone in
	if c.unit != nil {
		make = c.place
	}
	if err := make(); err != nil {
		return nil, errors.Join(explainRealtime(err, name, res), c.remove())
	}
	if dir, ok := c.paths[""]; ok {
		l.fitWeights(dir)
		if err := c.open2(dir, l.need); err != nil {
			return nil, errors.Join(err, c.remove())
		}
	} else if dir, ok := c.paths["blkio"]; ok {
		l.fitWeights(dir)
	}
	if err := c.manager.Set(res); err != nil {
		return nil, errors.Join(err, c.remove())
	}
	return c, nil
}

// explainRealtime says what to do about real-time CPU time that a cgroup's
// parent has not: a new one has none, and what it gets is taken from its own
// parent, so that only the machine's owner can decide how much that is.
func explainRealtime(err error, name string, res *cgroups.Resources) error {
	if res.CpuRtRuntime == 0 || !errors.Is(err, unix.EINVAL) {
		return err
	}
	budget := path.Join(cgroupRoot, "cpu", path.Dir(name), "cpu.rt_runtime_us")
	return errdef.WithHint(errdef.As(errdef.ErrInvalid, err),
		"the real-time CPU time may be more than its parent has left: raise %s", budget)
}

// offersController tells whether a cgroup of version 2, or the closest one
// above that is there, has a controller to give to a child.
func offersController(dir, controller string) bool {
	for ; dir != "/" && dir != "."; dir = path.Dir(dir) {
		if exists(dir) {
			return hasControllers(dir, []string{controller}) == nil
		}
	}
	return false
}

// manage makes the manager for the directories in paths.
func (c *cgroup) manage(res *cgroups.Resources) (err error) {
	if c.unit != nil && systemd.IsRunningSystemd() {
		c.manager, err = c.unit.manager(res)
		return err
	}
	config := &cgroups.Cgroup{Path: c.name, Resources: res}
	if dir, ok := c.paths[""]; ok {
		c.manager, err = cgroup2fs.NewManager(config, dir)
		return err
	}
	c.manager, err = cgroup1fs.NewManager(config, c.paths)
	return err
}

// openCgroup finds a cgroup that was made before, perhaps by another process;
// one that is not there has no directories.
func openCgroup(name string) (*cgroup, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	c := &cgroup{name: name, paths: map[string]string{}}
	if u, ok := UnitOf(name); ok {
		c.unit, c.name = &u, u.Path
		name = c.name
	}
	if cgroup2() {
		c.paths[""] = path.Join(cgroupRoot, name)
		dir, err := os.Open(c.paths[""])
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		c.dir = dir
	} else {
		mounts, err := os.ReadDir(cgroupRoot)
		if err != nil {
			return nil, err
		}
		for _, m := range mounts {
			if dir := path.Join(cgroupRoot, m.Name(), name); m.Name() != "unified" && exists(dir) {
				c.paths[m.Name()] = dir
			}
		}
	}
	return c, c.manage(&cgroups.Resources{SkipDevices: true})
}

// checkName refuses a name that is no cgroup's below the root of the hierarchy. In
// the root's is everything that runs on the machine, and a cgroup is ended with
// all that is in it.
func checkName(name string) error {
	if path.Clean("/"+name) == "/" || slices.Contains(strings.Split(name, "/"), "..") {
		return errdef.New(errdef.ErrInvalid, "open the cgroup %q: not a cgroup's name", name)
	}
	return nil
}

// open2 opens a version 2 directory that has the needed controllers.
func (c *cgroup) open2(dir string, need []string) (err error) {
	if err := hasControllers(dir, need); err != nil {
		return err
	}
	c.dir, err = os.Open(dir)
	return err
}

// hasControllers checks that a version 2 directory has the controllers that
// are needed, which are named as in version 1.
func hasControllers(dir string, need []string) error {
	data, err := os.ReadFile(path.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	have := strings.Fields(string(data))
	for _, controller := range need {
		switch controller {
		case "cpuacct", "freezer", "devices": // part of every cgroup
			continue
		case "blkio":
			controller = "io"
		}
		if !slices.Contains(have, controller) {
			return errdef.New(errdef.ErrUnsupported, "there is no %s controller to be had", controller)
		}
	}
	return nil
}

// cgroup1Paths lists a directory for each controller that is needed, and one
// for pids in any case, by which the processes can be found. Each one more
// costs a start 0.1 ms.
func cgroup1Paths(name string, need []string) (map[string]string, error) {
	paths := map[string]string{}
	for _, controller := range append(need, "pids") {
		mount := path.Join(cgroupRoot, controller)
		if !exists(mount) {
			return nil, errdef.New(errdef.ErrUnsupported, "there is no %s controller to be had", controller)
		}
		paths[controller] = path.Join(mount, name)
	}
	return paths, nil
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// DelegatedCgroup is where an ordinary user's cgroup of that name can be, below
// the root of the hierarchy; ok is false where none has been delegated.
func DelegatedCgroup(name string) (path string, ok bool) {
	if !cgroup2() {
		return "", false
	}
	path, err := delegated(name)
	return path, err == nil
}

// delegated finds the name for a cgroup below our own, which version 2 allows an ordinary user if it has been delegated. A cgroup with processes
// can have no children with controllers, so ours step into a child of it.
func delegated(name string) (string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	own, ok := strings.CutPrefix(strings.TrimSpace(string(data)), "0::")
	if !ok {
		return "", errdef.New(errdef.ErrUnsupported, "the machine has no unified cgroup hierarchy")
	}
	const self = "dhow-self"
	base := path.Join(cgroupRoot, own)
	if path.Base(base) == self {
		return path.Join(path.Dir(own), name), nil // a former start stepped down already
	}
	if err := unix.Access(path.Join(base, "cgroup.subtree_control"), unix.W_OK); err != nil {
		return "", fmt.Errorf("%s is not delegated to this user: %w", base, err)
	}
	child := path.Join(base, self)
	if err := os.Mkdir(child, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	// The process outside the user namespace is ours too; others are not.
	for _, pid := range []int{os.Getpid(), os.Getppid()} {
		if err := cgroups.WriteCgroupProc(child, pid); err != nil {
			return "", err
		}
	}
	return path.Join(own, name), nil
}

// add moves a process into the cgroup.
func (c *cgroup) add(pid int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	add := func() error { return c.manager.AddPid("", pid) }
	if dir, ok := c.paths[""]; ok { // systemd need not be asked: it is delegated
		add = func() error { return cgroups.WriteCgroupProc(dir, pid) }
	}
	if err := add(); err != nil {
		return fmt.Errorf("enter the cgroup: %w", err)
	}
	return nil
}

// limitPids sets the limit on processes that newCgroup has put off.
func (c *cgroup) limitPids() error {
	if c == nil || c.maxPids == nil {
		return nil
	}
	dir, ok := c.paths[""]
	if !ok {
		dir = c.paths["pids"]
	}
	err := os.WriteFile(path.Join(dir, "pids.max"), strconv.AppendInt(nil, *c.maxPids, 10), 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil // the process has ended, and the cgroup with it
	}
	if err != nil {
		return fmt.Errorf("limit the number of processes: %w", err)
	}
	return nil
}

// pids lists all processes in the cgroup and those below it.
func (c *cgroup) pids() ([]int, error) {
	dirs := c.controllers()
	dir, ok := dirs[""]
	if !ok {
		dir = dirs["pids"]
	}
	return cgroups.GetAllPids(dir)
}

// maxMoves bounds how often require looks for processes that were started
// while it moved their parents.
const maxMoves = 100

// require adds version 1 controllers that the cgroup was made without, and
// moves its processes there. Version 2 has a cgroup in all controllers.
func (c *cgroup) require(need []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if dir, ok := c.paths[""]; ok {
		return hasControllers(dir, need)
	}
	wanted, err := cgroup1Paths(c.name, need)
	if err != nil {
		return err
	}
	maps.DeleteFunc(wanted, func(controller, _ string) bool { return c.paths[controller] != "" })
	if len(wanted) == 0 {
		return nil
	}
	maps.Copy(c.paths, wanted)
	if err := c.manage(&cgroups.Resources{SkipDevices: true}); err != nil {
		return err
	}
	if err := c.manager.Apply(-1); err != nil {
		return err
	}
	moved := map[int]bool{}
	for range maxMoves {
		pids, err := cgroups.GetAllPids(c.paths["pids"])
		if err != nil {
			return err
		}
		before := len(moved)
		for _, pid := range pids {
			if moved[pid] {
				continue
			}
			moved[pid] = true
			for _, dir := range wanted {
				if err := cgroups.WriteCgroupProc(dir, pid); err != nil && !errors.Is(err, unix.ESRCH) {
					return err
				}
			}
		}
		if len(moved) == before {
			return nil
		}
	}
	return errdef.New(errdef.ErrUnavailable, "move processes to the controllers %s: they multiply too fast", strings.Join(need, ", "))
}

// freeze stops the cgroup's processes, or lets them go on.
func (c *cgroup) freeze(state cgroups.FreezerState) error {
	if c.dir == nil {
		if err := c.require([]string{"freezer"}); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.manager.Freeze(state)
}

// update changes limits.
func (c *cgroup) update(l *limits) error {
	if err := c.require(l.need); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.manage(l.Resources); err != nil {
		return err
	}
	return c.manager.Set(l.Resources)
}

// stats measures.
func (c *cgroup) stats() (*cgroups.Stats, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.manager.GetStats()
}

// controllers are the directories by version 1 controller; nil without a
// cgroup.
func (c *cgroup) controllers() map[string]string {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.paths)
}

// oomKilled tells whether the kernel killed a process in the cgroup to keep
// its memory limit.
func (c *cgroup) oomKilled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, limited := c.paths["memory"]; !limited && c.dir == nil {
		return false
	}
	n, err := c.manager.OOMKillCount()
	return err == nil && n > 0
}

// remove kills what is left in the cgroup and removes it. Of nil it does
// nothing.
func (c *cgroup) remove() error {
	if c == nil {
		return nil
	}
	if c.dir != nil {
		c.dir.Close()
	}
	c.leavePlace()
	var errs []error
	if dir := c.paths["freezer"]; dir != "" { // what is frozen does not die
		_ = os.WriteFile(path.Join(dir, "freezer.state"), []byte(cgroups.Thawed), 0)
	}
	for _, dir := range c.paths {
		errs = append(errs, removeCgroup(dir))
	}
	if dir := unifiedDir(c.name); dir != "" { // scopes, beside controllers of version 1
		errs = append(errs, removeCgroup(dir))
	}
	if c.unit != nil && c.manager != nil {
		_ = c.manager.Destroy() // systemd has seen it go, but for one that failed
	}
	return errors.Join(errs...)
}

// removeTries times a pause of up to 64 ms is how long the dying processes of a
// cgroup are waited for, about 2 s.
const removeTries = 40

// removeCgroup kills everything in a cgroup and its children, and removes
// them. One that is not there is fine.
func removeCgroup(dir string) error {
	if isHierarchy(dir) {
		return errdef.New(errdef.ErrInvalid, "remove the cgroup %s: it is the machine's", dir)
	}
	pause := time.Millisecond
	for try := 0; ; try++ {
		err := removeCgroupTree(dir)
		if err == nil || try == removeTries || !errors.Is(err, unix.EBUSY) {
			return err
		}
		killCgroup(dir)
		time.Sleep(pause)
		pause = min(2*pause, 64*time.Millisecond)
	}
}

// isHierarchy tells whether a directory is the root of a hierarchy, or holds some,
// and no cgroup.
func isHierarchy(dir string) bool {
	var st, parent unix.Stat_t
	return len(path.Clean(dir)) <= len(cgroupRoot) ||
		unix.Stat(dir, &st) == nil && unix.Stat(path.Dir(path.Clean(dir)), &parent) == nil && st.Dev != parent.Dev
}

// removeCgroupTree removes the directories, the deepest first. The files in
// them go with them.
func removeCgroupTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	entries, readErr := os.ReadDir(dir)
	if readErr != nil {
		return fmt.Errorf("remove the cgroup %s: %w", dir, err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := removeCgroupTree(path.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the cgroup %s: %w", dir, err)
	}
	return nil
}

// killCgroup kills every process in a cgroup and its children.
func killCgroup(dir string) {
	if isHierarchy(dir) {
		return
	}
	if os.WriteFile(path.Join(dir, "cgroup.kill"), []byte("1"), 0) == nil { // version 2 from Linux 5.14
		return
	}
	filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil
		}
		data, _ := os.ReadFile(path.Join(p, "cgroup.procs"))
		for _, f := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 1 && pid != os.Getpid() {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
		return nil
	})
}

// ReclaimCgroups kills what still runs in the cgroups named dhow/<procID>-…
// and removes them. It is for the cgroups of a process known to be dead.
func ReclaimCgroups(procID string) error {
	if procID == "" || strings.ContainsAny(procID, "/*?[\\") {
		return errdef.New(errdef.ErrInvalid, "reclaim cgroups of %q: not a process's name", procID)
	}
	pattern := path.Join(cgroupRoot, "*", "dhow", procID+"-*")
	if cgroup2() {
		pattern = path.Join(cgroupRoot, "dhow", procID+"-*")
	}
	dirs, err := filepath.Glob(pattern)
	if err != nil {
		return fmt.Errorf("reclaim cgroups of %s: %w", procID, err)
	}
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, removeCgroup(dir))
	}
	return errors.Join(errs...)
}
