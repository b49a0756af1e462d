package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/health"
	"dhow/internal/logs"
	"dhow/internal/oci"
	"dhow/internal/store"
	"dhow/internal/supervise"

	dockertypes "github.com/moby/moby/api/types/container"
)

// Inspect is all about one container. size measures what it wrote, too.
func (cs *Containers) Inspect(ctx context.Context, ref string, size bool) (container.Inspection, error) {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return container.Inspection{}, err
	}
	f := container.InspectFacts{Dir: c.Dir, LogPath: logs.LogPath(supervise.LogsDir(c.Dir), c.ID, supervise.LogConfig(c.Record).Drivers)}
	if c.State.Health != "" {
		entries, err := health.Read(supervise.TimelinePath(c.Dir))
		if err != nil {
			return container.Inspection{}, err
		}
		if f.Health = health.Summary(entries); f.Health == nil {
			f.Health = &dockertypes.Health{}
		}
		f.Health.Status = c.State.Health
	}
	f.Hostname, _ = os.Hostname()
	if img, err := cs.store.Image(ctx, c.Image.String()); err == nil && img.ManifestDesc != nil {
		desc := *img.ManifestDesc
		if p, err := oci.ParsePlatform(c.Platform); err == nil {
			desc.Platform = &p
		}
		f.Manifest = &desc
	} else if err != nil && !errors.Is(err, errdef.ErrNotFound) {
		return container.Inspection{}, err
	}
	in := c.Record.Inspect(&c.State, f)
	if stat, err := logs.Stat(supervise.LogsDir(c.Dir), time.Now()); err == nil && stat.Store != "" {
		in.Dhow.Log = stat
	}
	if size {
		own, all, err := cs.Size(ctx, c)
		if err != nil {
			return container.Inspection{}, err
		}
		in.SizeRw, in.SizeRootFs = &own, &all
	}
	return in, nil
}

// Rename gives a container another name. ErrConflict when that is taken.
func (cs *Containers) Rename(ctx context.Context, ref, name string) error {
	name = strings.TrimPrefix(name, "/")
	if name == "" {
		return errdef.New(errdef.ErrInvalid, "neither old nor new names may be empty")
	}
	if err := container.ValidateName(name); err != nil {
		return err
	}
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return err
	}
	old := c.Name
	if name == old {
		return errdef.New(errdef.ErrInvalid, "renaming a container with the same name as its current name")
	}
	event := supervise.Event(c.Record, "rename", map[string]string{"oldName": "/" + old, "name": name})
	if _, err = supervise.ChangeRecord(ctx, cs.store, c.ID, func(r *container.Record) error {
		r.Name = name
		return nil
	}, event); err != nil {
		return err
	}
	if err := cs.told(ctx, c, supervise.Client.Reload); err != nil {
		return err
	}
	return cs.renameLinks(ctx, old, name)
}

// renameLinks lets the containers that link to one of that name go on doing so.
func (cs *Containers) renameLinks(ctx context.Context, old, name string) error {
	all, err := cs.List(ctx)
	if err != nil {
		return err
	}
	for _, c := range all {
		if !supervise.RenameLinks(c.Record, old, name) {
			continue
		}
		_, err := supervise.ChangeRecord(ctx, cs.store, c.ID, func(r *container.Record) error {
			supervise.RenameLinks(r, old, name)
			return nil
		})
		if err == nil {
			err = cs.told(ctx, c, supervise.Client.Reload)
		}
		if err != nil && !errors.Is(err, errdef.ErrNotFound) { // removed meanwhile
			return err
		}
	}
	return nil
}

// Update changes what was asked of a container, of which its limits, the restart
// policy and the log's destinations take effect while it runs. change sees the
// record as it is kept.
func (cs *Containers) Update(ctx context.Context, ref string, change func(*container.Record) error) error {
	c, err := cs.Find(ctx, ref)
	if err != nil {
		return err
	}
	_, err = supervise.ChangeRecord(ctx, cs.store, c.ID, change, supervise.Event(c.Record, "update", nil))
	if err != nil {
		return fmt.Errorf("cannot update container %s: %w", c.Name, err)
	}
	return cs.told(ctx, c, supervise.Client.Update)
}

// told has the supervisor of a container, if there is one, take in its record.
func (cs *Containers) told(ctx context.Context, c *Container, how func(supervise.Client, context.Context) error) error {
	client, err := cs.supervisor(ctx, c)
	if err == nil {
		err = how(client, ctx)
	}
	if notRunning(err) {
		return nil
	}
	return err
}

// Stats measures what a running container uses.
func (cs *Containers) Stats(ctx context.Context, ref string) (dockertypes.StatsResponse, error) {
	_, client, err := cs.running(ctx, ref)
	if err != nil {
		return dockertypes.StatsResponse{}, err
	}
	return client.Stats(ctx)
}

// Pids are a running container's processes as the machine numbers them.
func (cs *Containers) Pids(ctx context.Context, ref string) ([]int, error) {
	_, client, err := cs.running(ctx, ref)
	if err != nil {
		return nil, err
	}
	return client.Pids(ctx)
}

// Probe asks a container's health check now.
func (cs *Containers) Probe(ctx context.Context, ref string) (health.Result, error) {
	_, client, err := cs.running(ctx, ref)
	if err != nil {
		return health.Result{}, err
	}
	return client.Probe(ctx)
}

// Events yields what happened since then, and goes on until ctx ends, which its
// last value tells.
func (cs *Containers) Events(ctx context.Context, since time.Time) iter.Seq2[store.Event, error] {
	return cs.store.FollowEvents(ctx, since)
}

// Process is one process of a container, as the machine sees it.
type Process struct {
	PID, PPID int
	UID       uint32
	CPU       int           // per cent of one processor, over its life
	Time      time.Duration // of processors
	Started   time.Time
	TTY       string // "pts/0"; "?" for none
	Command   string // its command line, or its name in brackets
}

// Processes describes a running container's processes.
func (cs *Containers) Processes(ctx context.Context, ref string) ([]Process, error) {
	pids, err := cs.Pids(ctx, ref)
	if err != nil {
		return nil, err
	}
	boot, err := bootTime()
	if err != nil {
		return nil, err
	}
	var out []Process
	for _, pid := range pids {
		if p, ok := describeProcess(pid, boot); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

// tick is the unit of times in /proc/PID/stat: USER_HZ is 100 everywhere.
const tick = 10 * time.Millisecond

func bootTime() (time.Time, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "btime "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			return time.Unix(n, 0), err
		}
	}
	return time.Time{}, errdef.New(errdef.ErrUnsupported, "/proc/stat does not tell when the machine started")
}

// describeProcess reads /proc/PID; false for one that has ended.
func describeProcess(pid int, boot time.Time) (Process, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Process{}, false
	}
	open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
	if open < 0 || end < open {
		return Process{}, false
	}
	f := strings.Fields(string(stat[end+1:])) // from field 3, the state, on (proc_pid_stat(5))
	const fields = 20
	if len(f) < fields {
		return Process{}, false
	}
	number := func(field int) int64 { n, _ := strconv.ParseInt(f[field-3], 10, 64); return n }
	p := Process{
		PID: pid, PPID: int(number(4)), TTY: ttyName(int(number(7))), Time: time.Duration(number(14)+number(15)) * tick,
		Started: boot.Add(time.Duration(number(22)) * tick), Command: "[" + string(stat[open+1:end]) + "]",
	}
	if age := time.Since(p.Started); age > 0 {
		p.CPU = int(100 * p.Time / age)
	}
	if line, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && len(line) > 0 {
		p.Command = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
	}
	if status, err := os.ReadFile(filepath.Join(dir, "status")); err == nil {
		for line := range strings.Lines(string(status)) {
			if text, ok := strings.CutPrefix(line, "Uid:"); ok {
				_, _ = fmt.Sscan(text, &p.UID) // stays 0
			}
		}
	}
	return p, true
}

// ttyName is a terminal's name; the kernel numbers pseudo-terminals from 136:0
// on.
func ttyName(dev int) string {
	major, minor := dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
	const firstPTS, lastPTS = 136, 143
	if major < firstPTS || major > lastPTS {
		return "?"
	}
	return fmt.Sprintf("pts/%d", (major-firstPTS)<<8+minor)
}
