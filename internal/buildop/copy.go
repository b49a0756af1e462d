package buildop

import (
	"context"
	"fmt"
	"path"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"github.com/moby/buildkit/solver/pb"
	mode "github.com/tonistiigi/dchapes-mode"
	"golang.org/x/sys/unix"
)

// owner is whom new files belong to.
type owner struct{ uid, gid uint32 }

// copier carries out one copy action. What a copy means, down to which
// directories take attributes from the source and which do not, is what
// tonistiigi/fsutil's copy package does for BuildKit.
type copier struct {
	t       *target
	op      *pb.FileActionCopy
	own     *owner // nil: each file keeps its own
	chmod   func(n node) uint32
	at      *unix.Timespec // nil: each file keeps its own time
	filter  *filter
	literal bool // no attribute of a file changes on the way

	links linkSet
	data  copyData
}

// newCopier checks what can be checked before a file is touched. ErrInvalid.
func newCopier(t *target, op *pb.FileActionCopy, own *owner) (*copier, error) {
	c := &copier{t: t, op: op, own: own, at: timestamp(op.Timestamp)}
	var err error
	if c.filter, err = newFilter(op.IncludePatterns, op.ExcludePatterns); err != nil {
		return nil, err
	}
	if c.chmod, err = chmodFunc(op.ModeStr, op.Mode); err != nil {
		return nil, err
	}
	c.literal = own == nil && c.at == nil && c.chmod == nil
	c.links.first = map[inode]linkName{}
	return c, nil
}

// timestamp reads LLB's form of an optional time: nanoseconds, -1 for none.
func timestamp(ns int64) *unix.Timespec {
	if ns == -1 {
		return nil
	}
	ts := unix.NsecToTimespec(ns)
	return &ts
}

// chmodFunc returns what computes the permission bits of a copy, or nil when
// they stay. A symbolic mode (chmod(1), umask 0) goes before an octal one,
// for which -1 means none.
func chmodFunc(symbolic string, octal int32) (func(node) uint32, error) {
	if symbolic != "" {
		set, err := mode.ParseWithUmask(symbolic, 0)
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "mode %q: %w", symbolic, err)
		}
		return func(n node) uint32 { return sys.UnixMode(set.Apply(sys.FileMode(n.mode))) & 0o7777 }, nil
	}
	if octal == -1 {
		return nil, nil
	}
	return func(node) uint32 { return uint32(octal) & 0o7777 }, nil
}

// perm is the mode a copy of n gets.
func (c *copier) perm(n node) uint32 {
	if c.chmod == nil {
		return n.mode & 0o7777
	}
	return c.chmod(n)
}

func (c *copier) ownerOf(n node) owner {
	if c.own != nil {
		return *c.own
	}
	return owner{n.uid, n.gid}
}

func (c *copier) timeOf(n node) unix.Timespec {
	if c.at != nil {
		return c.t.clamp(*c.at)
	}
	return c.t.clamp(n.mtime)
}

// run copies everything that the source path stands for.
func (c *copier) run(ctx context.Context, src dir) error {
	dest := cleanPath(c.op.Dest)
	if !c.op.CreateDestPath {
		if err := c.needParent(dest); err != nil {
			return err
		}
	}
	for _, p := range c.op.RequiredPaths {
		if err := required(src, p); err != nil {
			return err
		}
	}
	matches := []string{cleanPath(c.op.Src)}
	if c.op.AllowWildcard {
		var err error
		if matches, err = expand(src, c.op.Src, c.op.FollowSymlink); err != nil {
			return err
		}
		if len(matches) == 0 && !c.op.AllowEmptyWildcard {
			return errdef.New(errdef.ErrNotFound, "%s not found", cleanPath(c.op.Src))
		}
	}
	for _, m := range matches {
		if c.op.AttemptUnpackDockerCompatibility {
			done, err := c.unpack(ctx, src, m, dest)
			if err != nil {
				return fmt.Errorf("unpack %s to %s: %w", m, dest, err)
			}
			if done {
				continue
			}
		}
		if err := c.one(ctx, src, m, dest); err != nil {
			return fmt.Errorf("copy %s to %s: %w", m, dest, err)
		}
	}
	return nil
}

// required refuses a source without the path. Where the content of the source
// is part of the key this was found out before.
func required(src dir, name string) error {
	p, err := resolve(src, name, true)
	if err != nil {
		return err
	}
	defer p.close()
	if !p.found() {
		return absent(src, name)
	}
	return nil
}

// needParent refuses a destination whose directory does not exist.
func (c *copier) needParent(dest string) error {
	p, err := resolve(c.t.root, dest, true)
	if err != nil {
		return err
	}
	defer p.close()
	if len(p.rest) > 1 {
		return pathError("stat", c.op.Dest, unix.ENOENT)
	}
	return nil
}

// one copies one match of the source path.
func (c *copier) one(ctx context.Context, src dir, match, dest string) error {
	if err := c.ensureDest(dest); err != nil {
		return err
	}
	from, err := resolve(src, match, c.op.FollowSymlink)
	if err != nil {
		return err
	}
	defer from.close()
	if !from.found() {
		return absent(src, match)
	}
	to, err := resolve(c.t.root, dest, true)
	if err != nil {
		return err
	}
	defer to.close()
	in, name, err := c.place(from.isDir(), match, to)
	if err != nil {
		return err
	}
	defer in.close()
	if from.leaf != nil {
		err = c.leaf(ctx, from.dir(), *from.leaf, in, name)
	} else {
		err = c.tree(ctx, from.dir(), in, name)
	}
	return c.finishLinks(err)
}

// ensureDest makes the directories that the spelling of the destination
// demands: all of it when it ends in "/" or "/.", else what it is in.
func (c *copier) ensureDest(dest string) error {
	parents := dest
	if d, f := path.Split(dest); f != "" && f != "." {
		parents = d
	}
	return c.makeParents(parents)
}

func (c *copier) makeParents(name string) error {
	d, err := c.t.openParents(name, c.parentMode(), c.parentOwner(), c.at)
	if err != nil {
		return err
	}
	d.close()
	return nil
}

// parentMode is for directories made on the way to a destination: an octal
// mode goes for them, too, a symbolic one does not.
func (c *copier) parentMode() uint32 {
	if c.op.ModeStr == "" && c.op.Mode != -1 {
		return uint32(c.op.Mode) & 0o777
	}
	return 0o755
}

func (c *copier) parentOwner() owner {
	if c.own != nil {
		return *c.own
	}
	return owner{}
}

// place decides where a match goes: into the directory in under name, or, when
// name is "", onto the directory in itself. It makes the directories missing
// on the way. The caller closes in.
func (c *copier) place(isDir bool, match string, to *place[*targetDir]) (in *targetDir, name string, err error) {
	into := to.isDir() && (!isDir || !c.op.DirCopyContents)
	if base := path.Base(match); into && base != "/" && base != "." {
		return to.dir().hold(), base, nil
	}
	switch {
	case to.isDir():
		return to.dir().hold(), "", nil
	case to.leaf != nil && isDir && !c.op.DirCopyContents:
		return nil, "", pathError("mkdir", to.path(), unix.ENOTDIR)
	case to.leaf != nil:
		return to.dir().hold(), to.leaf.name, nil
	case to.blocked:
		return nil, "", pathError("mkdir", to.path(), unix.ENOTDIR)
	case isDir && c.op.DirCopyContents:
		in, err = c.t.extend(to, to.rest, c.parentMode(), c.parentOwner(), c.at)
		return in, "", err
	}
	last := len(to.rest) - 1
	in, err = c.t.extend(to, to.rest[:last], c.parentMode(), c.parentOwner(), c.at)
	return in, to.rest[last], err
}

// expand lists what a path with wildcards stands for, in the order of the
// names; paths without any stand for themselves. The part before the first
// wildcard may lead through links.
func expand[D listed[D]](src D, pattern string, follow bool) ([]string, error) {
	fixed, wild := splitWildcards(pattern)
	if len(wild) == 0 {
		return []string{fixed}, nil
	}
	p, err := resolve(src, fixed, follow)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if !p.found() {
		return nil, errNotFound(fixed)
	}
	if p.leaf != nil {
		return nil, nil
	}
	return expandIn(p.dir(), p.path(), wild)
}

func expandIn[D listed[D]](d D, at string, wild []string) ([]string, error) {
	nodes, err := d.list()
	if err != nil {
		return nil, pathError("read", at, err)
	}
	var out []string
	for _, n := range nodes {
		ok, err := path.Match(wild[0], n.name)
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "wildcard %q: %w", wild[0], err)
		}
		if !ok {
			continue
		}
		if len(wild) == 1 {
			out = append(out, path.Join(at, n.name))
			continue
		}
		if !n.isDir() {
			continue
		}
		sub, err := d.sub(n)
		if err != nil {
			return nil, pathError("open", path.Join(at, n.name), err)
		}
		more, err := expandIn(sub, path.Join(at, n.name), wild[1:])
		sub.close()
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// splitWildcards cuts a path before its first component with a wildcard.
func splitWildcards(p string) (fixed string, wild []string) {
	parts := components(path.Clean("/" + p))
	for i, c := range parts {
		if hasWildcard(c) {
			return path.Join(append([]string{"/"}, parts[:i]...)...), parts[i:]
		}
	}
	return path.Join("/", p), nil
}

// hasWildcard says whether a path has a "*", "?" or "[" that is not escaped.
func hasWildcard(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}
