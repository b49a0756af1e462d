package buildcontext

import "context"

// Filter selects the part of a directory that takes part in a build, with the
// meaning BuildKit gives to a local source. The zero Filter selects everything.
type Filter struct {
	// Exclude leaves out what matches: the patterns of a .dockerignore, in
	// order, "!" for exceptions.
	Exclude []string
	// Include keeps only what matches one of the patterns; empty keeps all.
	Include []string
	// Follow holds paths, possibly with wildcards, that are added to Include
	// together with everything that symbolic links on the way lead to.
	Follow []string
}

// ScanOptions tune a scan; the zero value is fine.
type ScanOptions struct {
	// IndexFile is where digests are remembered from one scan to the next.
	// Empty: every file is read. A missing, damaged or foreign index is ignored
	// and replaced.
	IndexFile string
	// Workers limits the directories read at the same time; 0 chooses.
	Workers int
}

// Scan reads the directory dir. Files that vanish while it runs are left out.
// A file or directory that takes part and cannot be read is ErrDenied and names
// the path; a missing dir is ErrNotFound, one that is no directory ErrInvalid.
func Scan(ctx context.Context, dir string, f Filter, o ScanOptions) (*Tree, error) {
	panic("not written yet")
}
