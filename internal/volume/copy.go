package volume

import (
	"context"
	"fmt"
	"os"

	fscopy "github.com/tonistiigi/fsutil/copy"
	"golang.org/x/sys/unix"
)

// Copy copies what is in src into the directory dst, and gives dst src's own
// mode, owner and time. src may be a detached mount, which has no path: it is
// reached through its descriptor, which as a path of its own is a link.
func Copy(ctx context.Context, src *os.File, dst string) error {
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
	return copyAttributes(src, dst)
}

// copyAttributes gives a directory the owner, mode and time of another one.
func copyAttributes(src *os.File, dst string) error {
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
