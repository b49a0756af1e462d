package buildcontext

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"os"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"dhow/internal/errdef"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
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
	Files int   `json:"files"`       // regular files that take part
	Dirs  int   `json:"directories"` // directories that take part
	Links int   `json:"links"`       // symbolic links that take part
	Other int   `json:"other"`       // fifos and device nodes that take part
	Bytes int64 `json:"bytes"`       // sum of the sizes of Files

	IgnoredFiles int   `json:"ignoredFiles"`       // left out by a pattern, in directories that were entered
	IgnoredBytes int64 `json:"ignoredBytes"`       // and their size; only Explain looks
	PrunedDirs   int   `json:"skippedDirectories"` // left out by a pattern and never entered
	Sockets      int   `json:"sockets"`            // sockets are never part of a context

	Hashed      int   `json:"-"` // files whose bytes were read by this scan
	HashedBytes int64 `json:"-"` // and how many bytes that was
}

// String is the line a build's summary shows.
func (n Totals) String() string {
	text := fmt.Sprintf("%s, %s used", count(n.Files, "file", "files"), humanSize(n.Bytes))
	if n.IgnoredFiles+n.PrunedDirs == 0 {
		return text
	}
	var out []string
	if n.IgnoredFiles > 0 {
		out = append(out, count(n.IgnoredFiles, "file", "files"))
	}
	if n.PrunedDirs > 0 {
		out = append(out, count(n.PrunedDirs, "directory", "directories"))
	}
	return text + "; " + strings.Join(out, " and ") + " ignored"
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
	sealed   bool

	digestOnce sync.Once
	digest     digest.Digest // set by digestOnce
}

// NewTree is a tree of which somebody else knows what it holds: dir has the regular
// files, with just the modes and times of the entries, and none of them is ever
// written to. The entries are in tree order and become the Tree's; of their Dev
// and Ino only whether they are equal counts.
func NewTree(dir string, entries []Entry) (*Tree, error) {
	root, abs, err := openContext(dir)
	if err != nil {
		return nil, err
	}
	t := &Tree{dir: abs, root: root, entries: entries, sealed: true}
	t.totals.add(entries)
	return t, nil
}

// Sealed reports whether the files of the tree are never written to, so that a
// hard link of one stays what it is.
func (t *Tree) Sealed() bool { return t.sealed }

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
func (t *Tree) Digest() digest.Digest {
	t.digestOnce.Do(func() { t.digest = digestEntries(t.entries) })
	return t.digest
}

// digestEntries hashes entries, each field with its length before it where
// that is not fixed.
func digestEntries(entries []Entry) digest.Digest {
	h := sha256.New()
	var b []byte
	for i := range entries {
		e := &entries[i]
		b = binary.AppendUvarint(b, uint64(len(e.Path)))
		b = append(b, e.Path...)
		b = binary.LittleEndian.AppendUint32(b, e.Mode)
		b = binary.AppendUvarint(b, e.Rdev)
		b = binary.AppendUvarint(b, uint64(len(e.Link)))
		b = append(b, e.Link...)
		b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
		b = appendXattrs(b, e.Xattrs)
		b = append(b, e.Digest[:]...)
		if len(b) > 16<<10 {
			h.Write(b)
			b = b[:0]
		}
	}
	h.Write(b)
	return digest.NewDigestFromBytes(digest.SHA256, h.Sum(nil))
}

// Lookup finds the entry with exactly this path.
func (t *Tree) Lookup(path string) (Entry, bool) {
	i, ok := t.find(path)
	if !ok {
		return Entry{}, false
	}
	return t.entries[i], true
}

// find returns where path is, or would be.
func (t *Tree) find(path string) (int, bool) {
	return slices.BinarySearchFunc(t.entries, path, func(e Entry, path string) int { return comparePaths(e.Path, path) })
}

// Range returns the entries strictly below dir, in tree order; all entries for
// "" and ".". The slice belongs to the Tree.
func (t *Tree) Range(dir string) []Entry {
	if dir == "" || dir == "." {
		return t.entries
	}
	from, ok := t.find(dir)
	if !ok {
		return nil
	}
	from++
	below := dir + "/"
	n := sort.Search(len(t.entries)-from, func(i int) bool {
		return !strings.HasPrefix(t.entries[from+i].Path, below)
	})
	return t.entries[from : from+n : from+n]
}

// Children iterates over the entries directly in dir, sorted; over those of
// the context directory for "" and ".".
func (t *Tree) Children(dir string) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		in := t.Range(dir)
		for len(in) > 0 {
			e := in[0]
			if !yield(e) {
				return
			}
			in = in[1:]
			if e.Mode&unix.S_IFMT == unix.S_IFDIR {
				below := e.Path + "/"
				in = in[sort.Search(len(in), func(i int) bool { return !strings.HasPrefix(in[i].Path, below) }):]
			}
		}
	}
}

// Open opens the regular file at path for reading. No link is followed, and
// the file must still be what the scan saw: inode, size and modification time;
// else ErrConflict. ErrNotFound when the Tree has no such entry, ErrInvalid when
// it is no regular file. A change of the bytes that leaves all three as they
// were is only seen by hashing: who copies the file compares with Entry.Digest.
func (t *Tree) Open(path string) (*os.File, error) {
	i, ok := t.find(path)
	if !ok {
		return nil, errdef.New(errdef.ErrNotFound, "open %s: not in the build context", path)
	}
	e := &t.entries[i]
	if e.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errdef.New(errdef.ErrInvalid, "open %s: not a regular file", path)
	}
	fd, err := openAt(int(t.root.Fd()), path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	runtime.KeepAlive(t)
	if isAbsent(err) {
		return nil, changed(path, "it is gone")
	} else if err != nil {
		return nil, unreadable(path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	if t.sealed {
		return f, nil
	}
	if err := e.verify(fd); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// verify checks that the file open at fd is what the scan saw.
func (e *Entry) verify(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return unreadable(e.Path, err)
	}
	switch {
	case st.Dev != e.Dev || st.Ino != e.Ino:
		return changed(e.Path, "another file took its place")
	case st.Size != e.Size:
		return changed(e.Path, "got %d bytes, want %d", st.Size, e.Size)
	case st.Mtim.Nano() != e.MTime:
		return changed(e.Path, "got modification time %s, want %s",
			time.Unix(0, st.Mtim.Nano()).UTC().Format(time.RFC3339Nano), time.Unix(0, e.MTime).UTC().Format(time.RFC3339Nano))
	}
	return nil
}

// changed is the error for a file that is not what the scan saw.
func changed(path, format string, args ...any) error {
	err := errdef.New(errdef.ErrConflict, "read build context: %s changed during the build: %s", path, fmt.Sprintf(format, args...))
	return errdef.WithHint(err, "run the build again when nothing writes to the context")
}

// Close releases the context directory.
func (t *Tree) Close() error { return t.root.Close() }

// comparePaths orders paths as a tree: component by component, a directory
// before what is in it.
func comparePaths(a, b string) int {
	for i := 0; i < len(a) && i < len(b); i++ {
		if a[i] != b[i] {
			switch {
			case a[i] == '/':
				return -1
			case b[i] == '/':
				return 1
			}
			return int(a[i]) - int(b[i])
		}
	}
	return len(a) - len(b)
}
