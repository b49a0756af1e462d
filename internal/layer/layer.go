// Package layer turns a layer's tar stream into a directory and back. The
// directory is in the format of an overlayfs upper directory, so that it can be
// mounted as it is: a removed name is a character device 0:0, a directory that
// hides what lies below it carries an opaque xattr. In the tar the same two are
// the AUFS names of image-spec v1.1.1, layer.md, "Whiteouts".
//
// It knows nothing of images, registries or mounts, and keeps no state.
//
// Invariant: Apply writes below its directory and nowhere else, whatever the
// tar says; Write's output depends on the directory's contents alone.
package layer

import "time"

// Limits bounds what one layer may unpack to. Zero fields are unlimited.
type Limits struct {
	MaxBytes     int64 // of all files' contents, holes included, in bytes
	MaxFiles     int64 // entries of any type
	MaxEntrySize int64 // of one file, holes included, in bytes
}

// ApplyOptions says how a tar is unpacked. The zero value has no limits.
type ApplyOptions struct {
	// Archive says that the tar is no layer: names that begin with ".wh." are
	// names.
	Archive bool
	// Owner, when not nil, owns everything instead of those that the tar says.
	Owner  *Owner
	Limits Limits
}

// Owner is a user and a group by number.
type Owner struct{ UID, GID uint32 }

// ApplyResult tells what Apply wrote, and what a layer alone could not settle.
type ApplyResult struct {
	Files int64 // entries written, of any type
	Bytes int64 // contents of regular files, holes included
	// Names is how many names the directory has now, itself left out, and none of
	// them a whiteout; with it, Bytes is what they hold. 0: they have to be counted,
	// because entries replaced, removed or repeated others, or stand for nothing.
	Names int64
	// Implicit are directories that entries lie in but that have no entry of
	// their own, parents first. They were made root:root 0755; their metadata is
	// that of the tree below (see Complete).
	Implicit []string
	// Dangling are hard links to files that this layer does not have. Nothing
	// was made of them (see Complete).
	Dangling []Link
	// Devices counts device nodes left out in a user namespace, which may not
	// make any.
	Devices int64
	// Owners counts entries whose owner has no id in the user namespace; they
	// belong to its root.
	Owners int64
	// Xattrs counts attributes that the kernel or the file system refused.
	Xattrs int64
}

// Link is a hard link as a tar has it, both names relative to the root.
type Link struct{ Name, Target string }

// WriteOptions says how a directory becomes a tar.
type WriteOptions struct {
	// Epoch, when not nil, is the latest time that the tar may carry: later ones
	// are set to it (reproducible-builds.org, SOURCE_DATE_EPOCH).
	Epoch *time.Time
}

// Tree is a directory that WriteArchive puts below a name.
type Tree struct {
	Dir    string
	Prefix string // one element, or "" for the archive's root
}

// WriteResult tells what Write or WriteArchive wrote.
type WriteResult struct {
	Files int64 // entries, of any type
	Bytes int64 // contents of regular files
	Size  int64 // of the tar
}
