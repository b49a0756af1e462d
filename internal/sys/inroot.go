package sys

import "os"

// OpenInRoot opens path as a process whose root directory is root would: links,
// absolute ones and "..", stay inside. Magic links (/proc/*/fd) are refused.
// flags are open(2)'s; O_CLOEXEC is added. With O_CREAT the file's mode is 0644.
func OpenInRoot(root *os.File, path string, flags int) (*os.File, error) { panic("sys.OpenInRoot") }

// MkdirAllInRoot makes the directory path and its missing parents inside root,
// new ones with the given mode regardless of the umask, and opens it. Existing
// links on the way are followed inside root.
func MkdirAllInRoot(root *os.File, path string, mode os.FileMode) (*os.File, error) {
	panic("sys.MkdirAllInRoot")
}
