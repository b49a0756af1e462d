package sandbox

import (
	"os"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

func cgroup2() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

type cgroup struct{ dir *os.File }

func (c *cgroup) add(pid int) error              { return nil }
func (c *cgroup) remove() error                  { return nil }
func (c *cgroup) oomKilled() bool                { return false }
func (c *cgroup) controllers() map[string]string { return nil }
func (b *builder) buildCgroup() error            { return nil }
func ReclaimCgroups(procID string) error         { return nil }
