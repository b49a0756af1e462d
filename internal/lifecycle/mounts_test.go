package lifecycle

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"dhow/internal/container"
	"dhow/internal/errdef"

	"github.com/moby/moby/api/types/mount"
)

func TestBindAndImageMounts(t *testing.T) {
	h := newHouse(t)
	dir := t.TempDir()
	h.must(os.WriteFile(filepath.Join(dir, "file"), []byte("host\n"), 0o644))
	out, errs, _ := h.run(record("", "cat /d/file /i/passwd; touch /d/new; touch /i/x || echo kept", func(r *container.Record) {
		r.Host.Binds = []string{dir + ":/d", dir + "/made:/m"}
		r.Host.Mounts = []mount.Mount{{Type: mount.TypeImage, Source: "busybox", Target: "/i", ImageOptions: &mount.ImageOptions{Subpath: "etc"}}}
	}))
	if out != "host\nroot:x:0:0:root:/root:/bin/sh\nkept\n" {
		t.Errorf("got %q, %q", out, errs)
	}
	for _, name := range []string{"new", "made"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	_, s, err := h.launch(CreateRequest{Record: record("", "true", func(r *container.Record) {
		r.Host.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: dir + "/none", Target: "/n"}}
	})}, nil)
	h.must(err)
	if err := s.Started(h.ctx); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("a missing source: got %v", err)
	}
}
