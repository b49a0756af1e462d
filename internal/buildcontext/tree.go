package buildcontext

import (
	"os"

	"github.com/opencontainers/go-digest"
)

// Entry is one file, directory, link or device of a Tree. Owner and group are
// not recorded: everything in a build context belongs to 0:0 by definition.
type Entry struct {
	// Path is relative to the context, slash separated, without a leading
	// "./"; the context directory itself has no entry.
	Path string
	// Mode is st_mode: file type and permission bits including setuid, setgid
	// and sticky.
	Mode uint32
	// Nlink is the number of hard links to the inode, also from outside.
	Nlink uint32
	// Size is the length of a regular file in bytes; zero for everything else.
	Size int64
	// MTime is the modification time in nanoseconds since 1970 UTC.
	MTime int64
	// Dev and Ino name the inode; entries that share both are hard links of
	// each other.
	Dev, Ino uint64
	// Rdev is the device number of a device node, else zero.
	Rdev uint64
	// Link is the target of a symbolic link, as stored in it.
	Link string
	// Xattrs holds security.capability and user.*; nil when there are none.
	Xattrs map[string][]byte
	// Digest is the SHA-256 of a regular file's bytes; zero for everything else.
	Digest [32]byte
}

// Totals counts what a scan saw.
type Totals struct {
	Files int   // regular files that take part
	Dirs  int   // directories that take part
	Links int   // symbolic links that take part
	Other int   // fifos and device nodes that take part
	Bytes int64 // sum of the sizes of Files

	IgnoredFiles int // files, links and devices left out by a pattern, in directories that were entered
	PrunedDirs   int // directories left out and never entered
	Sockets      int // sockets: never part of a context

	Hashed      int   // files whose bytes were read by this scan
	HashedBytes int64 // and how many bytes that was
}

// Tree is the result of a scan: the entries that take part, in tree order, and
// the open context directory. It is immutable and safe for concurrent use. A
// Tree that is dropped without Close is closed by the garbage collector.
type Tree struct {
	dir      string
	root     *os.File
	entries  []Entry
	totals   Totals
	indexErr error
}

// Dir is the absolute path of the context directory, links resolved.
func (t *Tree) Dir() string { return t.dir }

// Entries returns all entries in tree order: a directory stands before what is
// in it, siblings are sorted by their bytes, and everything below a directory
// follows it without a gap. The slice belongs to the Tree.
func (t *Tree) Entries() []Entry { return t.entries }

// Totals returns what the scan counted.
func (t *Tree) Totals() Totals { return t.totals }

// IndexErr says why the index file could not be written, which costs the next
// scan time and nothing else; nil when all is well.
func (t *Tree) IndexErr() error { return t.indexErr }

// Digest identifies the whole tree: path, mode, device number, link target,
// extended attributes and content of every entry, not times.
func (t *Tree) Digest() digest.Digest { panic("not written yet") }

// Lookup finds the entry with exactly this path.
func (t *Tree) Lookup(path string) (Entry, bool) { panic("not written yet") }

// Range returns the entries strictly below dir, in tree order; all entries for
// "" and ".". The slice belongs to the Tree.
func (t *Tree) Range(dir string) []Entry { panic("not written yet") }

// Children returns the entries directly in dir, sorted; those of the context
// directory for "" and ".".
func (t *Tree) Children(dir string) []Entry { panic("not written yet") }

// Open opens the regular file at path for reading. No link is followed, and
// the file must still be what the scan saw: inode, size and modification time;
// else ErrConflict. ErrNotFound when the Tree has no such entry. A change of
// the bytes that leaves all three as they were is only seen by hashing: who
// copies the file compares with Entry.Digest.
func (t *Tree) Open(path string) (*os.File, error) { panic("not written yet") }

// Close releases the context directory.
func (t *Tree) Close() error { return t.root.Close() }
