package sys

import "os"

// CloneOptions restricts a cloned tree.
type CloneOptions struct {
	Recursive                       bool // with the mounts below it
	ReadOnly, NoDev, NoSuid, NoExec bool
}

// CloneTree makes a detached bind mount of path, which may be a file. A nil dir
// takes path as absolute; else path is relative to dir, and "" means dir itself.
// Closing the file unmounts it unless it has been attached somewhere.
func CloneTree(dir *os.File, path string, o CloneOptions) (*os.File, error) {
	panic("sys.CloneTree")
}
