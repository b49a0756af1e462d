package lifecycle

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/supervise"
	"dhow/internal/volume"

	dockertypes "github.com/moby/moby/api/types/container"
)

func binds(binds ...string) func(*container.Record) {
	return func(r *container.Record) { r.Host.Binds = binds }
}

func (h *house) says(r *container.Record, want string) {
	h.t.Helper()
	if out, errs, e := h.run(r); out != want || e.Code != 0 {
		h.t.Errorf("%s: got %q %q, status %d, want %q", r.Name, out, errs, e.Code, want)
	}
}

func TestVolumesOfContainers(t *testing.T) {
	h := newHouse(t)
	vols, anon := h.Volumes(), func(r *container.Record) { r.Config.Volumes = map[string]struct{}{"/etc": {}} }
	h.says(record("v1", "ls /etc; echo mine > /etc/f", binds("named:/etc:nocopy")), "hostname\nhosts\nresolv.conf\n")
	h.says(record("v2", "cat /data/f; touch /data/g 2>/dev/null || echo no", binds("named:/data:ro")), "mine\nno\n")
	h.says(record("v3", "cat /keep/passwd /etc/passwd", binds("filled:/etc"), func(r *container.Record) {
		r.Host.Binds = append(r.Host.Binds, "filled:/keep")
	}), strings.Repeat("root:x:0:0:root:/root:/bin/sh\n", 2))
	c := h.start(record("v4", "sleep 60", anon))
	m := c.Mounts[0]
	if m.Source != vols.Path(m.Name) || len(m.Name) != 64 {
		t.Errorf("got the mount %+v", m)
	}
	if data, err := os.ReadFile(filepath.Join(m.Source, "passwd")); err != nil || !strings.HasPrefix(string(data), "root:") {
		t.Errorf("got %q, %v", data, err)
	}
	// Another one has the same volumes, and does not take them with it.
	h.says(record("v5", "ls /etc/passwd; echo x > /etc/x", func(r *container.Record) {
		r.Host.VolumesFrom, r.Host.AutoRemove = []string{"v4"}, true
	}), "/etc/passwd\n")
	if _, err := os.Stat(filepath.Join(m.Source, "x")); err != nil {
		t.Error(err)
	}
	if err := vols.Remove(h.ctx, m.Name, true); !errors.Is(err, errdef.ErrConflict) || !strings.Contains(err.Error(), c.ID) {
		t.Errorf("in use: got %v", err)
	}
	h.must(h.Remove(h.ctx, "v4", supervise.RemoveOptions{Force: true, Volumes: true}))
	if _, err := vols.Inspect(h.ctx, m.Name); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("the anonymous volume: got %v", err)
	}
	events, err := h.store.Events(h.ctx, 0, time.Time{})
	h.must(err)
	var got []string
	for _, e := range events {
		if e.Type == "volume" && e.Actor == m.Name {
			got = append(got, e.Action)
		}
	}
	if s := strings.Join(got, " "); s != "create mount mount unmount unmount destroy" {
		t.Errorf("got the events %s", s)
	}
}

// Driver options are mounted when the container starts; memory is shared by
// those that run.
func TestVolumeOptions(t *testing.T) {
	h := newHouse(t)
	dir := t.TempDir()
	h.must(os.WriteFile(filepath.Join(dir, "f"), []byte("host\n"), 0o644))
	for name, options := range map[string]map[string]string{
		"memory": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"},
		"bound":  {"type": "none", "device": dir, "o": "bind"},
	} {
		_, err := h.Volumes().Create(h.ctx, volume.Request{Name: name, Options: options})
		h.must(err)
	}
	h.start(record("m1", "cat /b/f > /m/f; sleep 60", binds("memory:/m", "bound:/b")))
	h.until("m1", "the file", func(c *Container) bool {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(c.State.Pid) + "/root/m/f")
		return err == nil && string(data) == "host\n"
	})
	h.says(record("m2", "cat /elsewhere/f", binds("memory:/elsewhere")), "host\n")
	h.must(h.Remove(h.ctx, "m1", supervise.RemoveOptions{Force: true}))
	h.says(record("m3", "ls /m", binds("memory:/m")), "")
}

// What a Dockerfile's labels say of health is carried out.
func TestHealthLabels(t *testing.T) {
	h := newHouse(t)
	c, err := h.Create(h.ctx, CreateRequest{Record: record("l1", "true", func(r *container.Record) {
		r.Config.Labels = map[string]string{"dhow.health.tcp": ":80", "dhow.health.interval": "5s", "dhow.health.on-failure": "kill"}
	})})
	h.must(err)
	if c.Health.TCP != ":80" || c.Config.Healthcheck.Interval != 5*time.Second || c.Health.OnFailure != "kill" {
		t.Errorf("got %+v, %+v", c.Health, c.Config.Healthcheck)
	}
	for _, change := range []func(*container.Record){
		func(r *container.Record) { r.Config.Labels = map[string]string{"dhow.health.http": "nonsense"} },
		func(r *container.Record) { r.Config.Healthcheck = &dockertypes.HealthConfig{Test: []string{"CMD"}} },
		func(r *container.Record) { r.Health.Ready = &container.ReadyCheck{TCP: "x"} },
	} {
		if _, err := h.Create(h.ctx, CreateRequest{Record: record("", "true", change)}); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("got %v", err)
		}
	}
}
