package lifecycle

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/supervise"
	"dhow/internal/testkit"

	dockertypes "github.com/moby/moby/api/types/container"
)

func policy(name dockertypes.RestartPolicyMode) func(*container.Record) {
	return func(r *container.Record) { r.Host.RestartPolicy.Name = name }
}

// The machine goes down and comes up again.
func TestShutdownAndBoot(t *testing.T) {
	h := newHouse(t)
	const script = "trap 'exit 0' TERM; touch /ready; while :; do sleep 0.02; done"
	h.start(record("b-always", script, policy("always")))
	h.start(record("b-unless", script, policy("unless-stopped")))
	h.start(record("b-by-hand", script, policy("unless-stopped")))
	h.start(record("b-no", script))
	for _, name := range []string{"b-always", "b-unless", "b-by-hand", "b-no"} {
		h.untilMade(name, "/ready")
	}
	_, err := h.Create(h.ctx, CreateRequest{Record: record("b-created", script, policy("always"))})
	h.must(err)
	// A paused one is ended, too.
	h.must(h.Pause(h.ctx, "b-unless"))
	h.must(h.Stop(h.ctx, "b-by-hand", supervise.StopOptions{}))
	ended, err := h.Shutdown(h.ctx)
	h.must(err)
	if want := []string{"b-always", "b-no", "b-unless"}; !slices.Equal(ended, want) {
		t.Errorf("ended %v, want %v", ended, want)
	}
	for _, name := range ended {
		c, err := h.Find(h.ctx, name)
		h.must(err)
		if c.State.Status != dockertypes.StateExited || c.State.Stopped || supervise.Alive(c.State) {
			t.Errorf("%s: got %+v", name, c.State)
		}
	}
	for _, want := range [][]string{{"b-always", "b-unless"}, nil} { // the second time there is nothing to do
		started, err := h.Boot(h.ctx)
		h.must(err)
		if !slices.Equal(started, want) {
			t.Errorf("started %v, want %v", started, want)
		}
	}
}

// A machine that just stops leaves rows that say running, of another boot.
func TestBootAfterACrash(t *testing.T) {
	h := newHouse(t)
	c := h.start(record("b-crash", "sleep 60", policy("always")))
	h.must(h.store.SetContainerState(h.ctx, c.ID, "running", h.crash(c)))
	if c, err := h.Find(h.ctx, "b-crash"); err != nil || c.State.Status != dockertypes.StateExited || c.State.FinishedAt.Before(c.State.StartedAt) {
		t.Errorf("got %+v, %v", c.State, err)
	}
	started, err := h.Boot(h.ctx)
	if err != nil || !slices.Equal(started, []string{"b-crash"}) {
		t.Errorf("started %v, %v", started, err)
	}
}

// crash ends a container and its supervisor as the machine's end does, and
// returns the state that is left in the database.
func (h *house) crash(c *Container) []byte {
	h.t.Helper()
	row, err := h.store.Container(h.ctx, c.ID)
	h.must(err)
	_, st, err := supervise.Parse(row)
	h.must(err)
	for _, pid := range []int{st.Supervisor, st.Pid} {
		p, err := os.FindProcess(pid)
		h.must(err)
		h.must(p.Kill())
	}
	testkit.Until(h.t, "the end of "+c.Name, func() bool { return !supervise.Alive(st) })
	return []byte(strings.Replace(string(row.State), st.Boot, "another-boot", 1))
}

func TestUnit(t *testing.T) {
	dir := t.TempDir()
	for _, u := range []Unit{
		{Program: "/usr/local/bin/dhow", Root: "/var/lib/dhow", Default: true, Dir: filepath.Join(dir, "system")},
		{Program: "/usr/local/bin/dhow", Root: "/srv/50% of $it/\"here\"", Dir: filepath.Join(dir, "odd")},
		{Program: "/usr/local/bin/dhow", Root: "/home/u/.local/share/dhow", Default: true, User: true, Dir: filepath.Join(dir, "user")},
	} {
		for range 2 {
			path, err := u.Install()
			if err != nil {
				t.Fatal(err)
			}
			if u.Default != (filepath.Base(path) == "dhow.service") {
				t.Errorf("got %s", path)
			}
			if target, err := os.Readlink(u.link()); err != nil || target != path {
				t.Errorf("got the link to %s, %v", target, err)
			}
			verifyUnit(t, path, u.User)
		}
		if err := u.Remove(); err != nil {
			t.Error(err)
		}
		if err := u.Remove(); !errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("removed twice: got %v", err)
		}
		if _, err := os.Lstat(u.link()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the link: got %v", err)
		}
	}
	text, err := Unit{Program: "/b/dhow", Root: `/srv/50% of $it/"here"`}.Text()
	if want := `ExecStart="/b/dhow" --root "/srv/50%% of $$it/\"here\"" system start` + "\n"; err != nil || !strings.Contains(text, want) {
		t.Errorf("got %s, %v, want %s", text, err, want)
	}
	for _, bad := range []Unit{{Program: "dhow", Root: "/x"}, {Program: "/dhow", Root: "/x\nExecStart=/bin/sh"}} {
		if _, err := bad.Text(); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%+v: got %v", bad, err)
		}
	}
}

// verifyUnit lets systemd read a unit, where there is one.
func verifyUnit(t *testing.T, path string, user bool) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		return
	}
	args := []string{"verify", "--man=no", path}
	if user {
		args = append([]string{"--user"}, args...)
	}
	out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, filepath.Base(path)) && !strings.Contains(line, "is not executable") {
			t.Errorf("systemd-analyze: %s (%v)", line, err)
		}
	}
}
