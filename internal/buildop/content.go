package buildop

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"
	"sync"

	"dhow/internal/errdef"
	"dhow/internal/solve"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// contentVersion is part of what is remembered of layers.
const contentVersion = "dhow.content.1"

// selector names what an operation reads from an input.
type selector struct {
	Path     string // absolute in the input
	Wildcard bool   // Path may have wildcards
	Follow   bool   // a link at the end of Path is followed
	Named    bool   // the last name of what is read matters, as it does to a copy into a directory
	Contents bool   // of a directory only what is in it matters: no name, no attributes
	Optional bool   // nothing may be there
	Include  []string
	Exclude  []string
	Required []string // paths one of which every included set must begin with
}

// content returns a function that digests what the selectors read of a result:
// type and permission bits, owner, device number, link target, extended
// attributes and bytes of every file, and names below what is selected; not
// times, and not the path at which it was found. It is equal for a local
// directory and a snapshot that hold the same.
//
// Digests of snapshots are remembered in the store. ErrNotFound for a path
// that is not there, in the words of BuildKit, which people know.
func (d *Deps) content(sels ...selector) func(context.Context, solve.Result) (digest.Digest, error) {
	return func(ctx context.Context, in solve.Result) (digest.Digest, error) {
		if in.Local != nil {
			return d.contentOf(ctx, in, sels)
		}
		// Not JSON: it has one form for all bytes that are not UTF-8.
		key := in.Chain.String() + " " + digest.FromString(fmt.Sprintf("%#v", sels)).String()
		if val, ok, err := d.Store.Memo(ctx, contentVersion, key); err != nil {
			return "", err
		} else if ok {
			return digest.Parse(string(val))
		}
		dgst, err := d.contentOf(ctx, in, sels)
		if err != nil {
			return "", err
		}
		return dgst, d.Store.PutMemo(ctx, contentVersion, key, []byte(dgst))
	}
}

func (d *Deps) contentOf(ctx context.Context, in solve.Result, sels []selector) (digest.Digest, error) {
	if in.Local == nil && len(in.Chain) == 0 {
		// Nothing can be read of it; who tries finds that out.
		return digest.FromString("scratch"), nil
	}
	root, err := d.openResult(in)
	if err != nil {
		return "", err
	}
	defer root.close()
	h := sha256.New()
	for _, s := range sels {
		sum, err := s.digest(ctx, root)
		if err != nil {
			return "", fmt.Errorf("failed to calculate checksum of ref %s: %w", refName(in), err)
		}
		h.Write(sum[:])
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

// refName is what error messages call an input.
func refName(in solve.Result) string {
	if in.Local != nil {
		return "context"
	}
	if len(in.Chain) == 0 {
		return "scratch"
	}
	return in.Chain[len(in.Chain)-1]
}

// digest digests what one selector reads of a tree.
func (s selector) digest(ctx context.Context, root dir) ([32]byte, error) {
	f, err := newFilter(s.Include, s.Exclude)
	if err != nil {
		return [32]byte{}, err
	}
	names := []string{cleanPath(s.Path)}
	if s.Wildcard {
		if names, err = expand(root, s.Path, s.Follow); err != nil {
			return [32]byte{}, hinted(root, err, s.Path)
		}
	}
	w := contentWalk{ctx: ctx, filter: f, required: map[string]bool{}}
	w.group.SetLimit(copyWorkers)
	for _, r := range s.Required {
		w.required[r] = false
	}
	var tops []*record
	for _, name := range names {
		top, err := w.top(root, s, name)
		if err != nil {
			w.group.Wait() // the failure at hand is the first
			return [32]byte{}, err
		}
		tops = append(tops, top...)
	}
	if err := w.group.Wait(); err != nil {
		return [32]byte{}, err
	}
	for _, r := range s.Required {
		if !w.required[r] {
			return [32]byte{}, missing(root, r)
		}
	}
	h := sha256.New()
	writeRecords(h, tops)
	return [32]byte(h.Sum(nil)), nil
}

// record is what a file or directory adds to a digest.
type record struct {
	name string
	head []byte   // attributes
	sum  [32]byte // of a regular file's bytes
	kids []*record
}

// writeRecords is the canonical form: no two different lists give the same
// bytes, since every variable part is preceded by its length.
func writeRecords(h hash.Hash, list []*record) {
	writeInt(h, uint64(len(list)))
	for _, r := range list {
		writeBytes(h, []byte(r.name))
		writeBytes(h, r.head)
		h.Write(r.sum[:])
		writeRecords(h, r.kids)
	}
}

func writeInt(w io.Writer, n uint64) { w.Write(binary.LittleEndian.AppendUint64(nil, n)) }

func writeBytes(w io.Writer, b []byte) {
	writeInt(w, uint64(len(b)))
	w.Write(b)
}

// head is the attributes of a node: all that a copy of it could take over.
func head(d dir, n node) ([]byte, error) {
	perm := n.mode
	if n.isSymlink() {
		perm = unix.S_IFLNK | 0o777
	}
	b := binary.LittleEndian.AppendUint32(nil, perm)
	b = binary.LittleEndian.AppendUint32(b, n.uid)
	b = binary.LittleEndian.AppendUint32(b, n.gid)
	if k := n.kind(); k == unix.S_IFCHR || k == unix.S_IFBLK {
		b = binary.LittleEndian.AppendUint64(b, n.rdev)
	}
	if n.isSymlink() {
		link, err := d.readlink(n)
		if err != nil {
			return nil, err
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(link)))
		b = append(b, link...)
	}
	return b, nil
}

func appendXattrs(b []byte, list []xattr) []byte {
	for _, x := range list {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(x.key)))
		b = append(b, x.key...)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(x.value)))
		b = append(b, x.value...)
	}
	return b
}

// contentWalk collects the records of one selector.
type contentWalk struct {
	ctx      context.Context
	filter   *filter
	group    errgroup.Group // hashes files
	buffers  sync.Pool      // of *[bufferSize]byte
	required map[string]bool
}

// top collects what one path of a selector leads to.
func (w *contentWalk) top(root dir, s selector, name string) ([]*record, error) {
	p, err := resolve(root, name, s.Follow)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if !p.found() {
		if s.Optional {
			return nil, nil
		}
		return nil, missing(root, name)
	}
	w.meets(name)
	base := ""
	if s.Named {
		base = path.Base(name)
	}
	if p.leaf != nil {
		r, err := w.file(p.dir(), *p.leaf, base)
		return []*record{r}, err
	}
	kids, err := w.dir(p.dir(), name, "", matchState{})
	if err != nil || s.Contents {
		// Which directory it was does not matter, but that it was one does.
		return []*record{{head: []byte("contents"), kids: kids}}, err
	}
	r, err := w.dirRecord(p.dir(), base)
	if err != nil {
		return nil, err
	}
	r.kids = kids
	return []*record{r}, nil
}

// meets notes that a path is included.
func (w *contentWalk) meets(name string) {
	for r, met := range w.required {
		if !met && strings.HasPrefix(name, r) {
			w.required[r] = true
		}
	}
}

func (w *contentWalk) dirRecord(d dir, name string) (*record, error) {
	b, err := head(d, d.self())
	if err != nil {
		return nil, err
	}
	list, err := d.xattrs(d.self(), -1)
	if err != nil {
		return nil, err
	}
	return &record{name: name, head: appendXattrs(b, list)}, nil
}

// dir collects what a directory holds. at is its path, rel its path below what
// is selected.
func (w *contentWalk) dir(d dir, at, rel string, state matchState) ([]*record, error) {
	if err := w.ctx.Err(); err != nil {
		return nil, err
	}
	nodes, err := d.list()
	if err != nil {
		return nil, pathError("read", at, err)
	}
	var out []*record
	for _, n := range nodes {
		full, below := path.Join(at, n.name), path.Join(rel, n.name)
		m, err := w.filter.match(below, state)
		if err != nil {
			return nil, err
		}
		if m.included {
			w.meets(full)
		}
		var r *record
		switch {
		case n.isDir() && w.filter.enter(below, m):
			r, err = w.sub(d, n, full, below, m)
		case !n.isDir() && m.included:
			r, err = w.file(d, n, n.name)
		}
		if err != nil {
			return nil, err
		}
		if r != nil {
			out = append(out, r)
		}
	}
	return out, nil
}

// sub is the record of a sub directory; nil when nothing in it is included,
// nor itself.
func (w *contentWalk) sub(d dir, n node, full, rel string, m match) (*record, error) {
	sub, err := d.sub(n)
	if err != nil {
		return nil, pathError("open", full, err)
	}
	defer sub.close()
	kids, err := w.dir(sub, full, rel, m.state)
	if err != nil || len(kids) == 0 && !m.included {
		return nil, err
	}
	r, err := w.dirRecord(sub, n.name)
	if err != nil {
		return nil, err
	}
	r.kids = kids
	return r, nil
}

// file is the record of what is no directory. Bytes that nobody has hashed
// before are hashed beside the walk.
func (w *contentWalk) file(d dir, n node, name string) (*record, error) {
	b, err := head(d, n)
	if err != nil {
		return nil, err
	}
	r := &record{name: name, head: b}
	sum, known := d.sum(n)
	if known || !n.isFile() {
		list, err := d.xattrs(n, -1)
		r.head, r.sum = appendXattrs(b, list), sum
		return r, err
	}
	d = d.hold()
	w.group.Go(func() error {
		defer d.close()
		return w.hash(d, n, r)
	})
	return r, nil
}

func (w *contentWalk) hash(d dir, n node, r *record) error {
	fd, err := d.openFile(n)
	if err != nil {
		return pathError("open", n.name, err)
	}
	defer unix.Close(fd)
	list, err := d.xattrs(n, fd)
	if err != nil {
		return err
	}
	r.head = appendXattrs(r.head, list)
	if r.sum, err = w.sum(fd); err != nil {
		return pathError("read", n.name, err)
	}
	return nil
}

// sum is the SHA-256 of a file's bytes.
func (w *contentWalk) sum(fd int) (sum [32]byte, err error) {
	buf, ok := w.buffers.Get().(*[bufferSize]byte)
	if !ok {
		buf = new([bufferSize]byte)
	}
	defer w.buffers.Put(buf)
	h := sha256.New()
	for off := int64(0); ; {
		if err := w.ctx.Err(); err != nil {
			return sum, err
		}
		n, err := unix.Pread(fd, buf[:], off)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return sum, err
		case n == 0:
			h.Sum(sum[:0])
			return sum, nil
		}
		h.Write(buf[:n])
		off += int64(n)
	}
}

// errNotFound has BuildKit's words for a path that is not there.
func errNotFound(name string) error {
	return errdef.New(errdef.ErrNotFound, "%q: not found", path.Join("/", name))
}

// missing is errNotFound with what may help.
func missing(root dir, name string) error { return hinted(root, errNotFound(name), name) }

// absent is for a copy that finds nothing to copy, in the kernel's words.
func absent(root dir, name string) error {
	return hinted(root, errdef.As(errdef.ErrNotFound, pathError("lstat", path.Join("/", name), unix.ENOENT)), name)
}

// hinted adds advice to ErrNotFound.
func hinted(root dir, err error, name string) error {
	if !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	return errdef.WithHint(err, "%s", advice(root, name))
}
