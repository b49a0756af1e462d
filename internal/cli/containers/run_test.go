package containers

import (
	"errors"
	"testing"

	"dhow/internal/container"
	"dhow/internal/engine"
	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
)

func TestParseVolume(t *testing.T) {
	for _, c := range []struct {
		in   string
		want engine.Volume
	}{
		{"/data", engine.Volume{Target: "/data", Create: true}},
		{"name:/data", engine.Volume{Source: "name", Target: "/data", Create: true}},
		{"/h:/c:ro", engine.Volume{Source: "/h", Target: "/c", ReadOnly: true, Create: true}},
		{"/h:/c:ro,rslave,z", engine.Volume{Source: "/h", Target: "/c", ReadOnly: true, Propagation: "rslave", Create: true}},
		{"v:/c:nocopy", engine.Volume{Source: "v", Target: "/c", NoCopy: true, Create: true}},
	} {
		got, err := parseVolume(c.in)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.in, d)
		}
	}
	for _, bad := range []string{":/c", "a:b", "/h:/c:xx", "/h:/"} {
		if _, err := parseVolume(bad); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want it refused", bad, err)
		}
	}
}

func TestRunRequest(t *testing.T) {
	f := runFlags{network: "none", pull: "missing", entrypoint: "", hasEntrypoint: true, env: []string{"A=1"}, ulimits: []string{"nofile=10:20"}, tmpfs: []string{"/t:size=1m"}}
	if err := f.mounts.Set("type=tmpfs,target=/m,tmpfs-size=1m,tmpfs-mode=1770"); err != nil {
		t.Fatal(err)
	}
	if err := f.cpus.Set("1.5"); err != nil {
		t.Fatal(err)
	}
	r, err := f.request([]string{"img", "cmd", "arg"})
	if err != nil {
		t.Fatal(err)
	}
	o := r.Options
	if o.Network != container.NetworkNone || o.Entrypoint == nil || len(o.Entrypoint) != 0 || o.Resources.CPUs != 1.5 {
		t.Errorf("got %+v", o)
	}
	want := map[string]string{"/t": "size=1m", "/m": "size=1048576,mode=1770"}
	if d := cmp.Diff(want, o.Tmpfs); d != "" {
		t.Errorf("tmpfs (-want +got):\n%s", d)
	}
	if len(o.Ulimits) != 1 || o.Ulimits[0].Type != "RLIMIT_NOFILE" || o.Ulimits[0].Soft != 10 || o.Ulimits[0].Hard != 20 {
		t.Errorf("ulimits: got %+v", o.Ulimits)
	}
}
