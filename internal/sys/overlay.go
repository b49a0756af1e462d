package sys

import "os"

// Overlay describes a tree stacked from directories.
type Overlay struct {
	// Lowers are the read-only layers, bottom first, as absolute paths.
	Lowers []string
	// Upper takes the changes and Work is overlayfs's own directory on the same
	// file system. Both empty means a read-only tree.
	Upper, Work string
	// Volatile skips every sync of the upper directory. A kernel crash may then
	// lose what was written; the work directory cannot be mounted twice.
	Volatile bool
}

// MountOverlay mounts the tree detached, without devices, and returns its root.
// Closing the file unmounts it unless it has been attached somewhere. One lower
// and no upper gives a read-only clone of that directory. Set-user-id bits keep
// working, containers need them.
func MountOverlay(o Overlay) (*os.File, error) { panic("sys.MountOverlay") }
