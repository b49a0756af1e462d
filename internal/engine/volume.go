package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"dhow/internal/container"
	"dhow/internal/errdef"

	fscopy "github.com/tonistiigi/fsutil/copy"
	"golang.org/x/sys/unix"
)

// nameForm is what docker takes as the name of a container or a volume.
func nameForm() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`) }

// checkName refuses names of containers and volumes that docker refuses.
func checkName(what, name string) error {
	if nameForm().MatchString(name) {
		return nil
	}
	return errdef.New(errdef.ErrInvalid, "%s name %q has characters that names may not have, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", what, name)
}

// imageVolumes are the volumes that the image declares, but for those that the
// user put something else on: they live as long as the container.
func imageVolumes(o *container.Options, given []Volume) []Volume {
	var list []Volume
	for target := range o.Image.Volumes {
		target = filepath.Join("/", target)
		taken := target == "/" || slices.ContainsFunc(given, func(v Volume) bool { return filepath.Clean(v.Target) == target })
		for t := range o.Tmpfs {
			taken = taken || filepath.Clean(t) == target
		}
		if !taken {
			list = append(list, Volume{Target: target})
		}
	}
	slices.SortFunc(list, func(a, b Volume) int { return len(a.Target) - len(b.Target) }) // a parent before what is in it
	return list
}

// copyTree copies what is in src into the empty directory dst, and gives dst
// src's own mode, owner and time. src may be a detached mount, which has no path:
// it is reached through its descriptor, which as a path of its own is a link.
func copyTree(ctx context.Context, src *os.File, dst string) error {
	from := fmt.Sprintf("/proc/self/fd/%d", src.Fd())
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := "/" + e.Name()
		if err := fscopy.Copy(ctx, from, name, dst, name, fscopy.AllowXAttrErrors); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	if err := os.Chown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dst, []unix.Timespec{st.Atim, st.Mtim}, 0)
}
