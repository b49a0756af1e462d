package store

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The reserve is a file of nothing. SQLite cannot even open its database
// without a few blocks, so on a full disk the very command that would free some
// could not run. The reserve is given up for it, and made again when there is
// room.
const (
	reserveName  = "reserve"
	reserveSize  = 4 << 20  // bytes: the database's shared memory and a large transaction
	reserveFloor = 64 << 20 // free bytes below which none is made, and the disk counts as full for prune
)

// dropReserve gives the reserve up, and says whether there was one.
func dropReserve(root string) bool {
	return os.Remove(filepath.Join(root, reserveName)) == nil
}

// keepReserve makes the reserve where there is room and none of full size.
// Failing to loses nothing that is there.
func keepReserve(root string) {
	path := filepath.Join(root, reserveName)
	if fi, err := os.Lstat(path); err == nil && fi.Size() == reserveSize || nearlyFull(root) {
		return
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Fallocate(int(f.Fd()), 0, 0, reserveSize) != nil {
		os.Remove(path)
	}
}

// nearlyFull says whether little is left on the root's file system.
func nearlyFull(root string) bool {
	var st unix.Statfs_t
	return unix.Statfs(root, &st) == nil && int64(st.Bavail)*st.Bsize < reserveFloor
}
