package layer

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// scanChunk is how much of a file is looked at at a time, in bytes: it stays in
// the processor's cache while each pattern passes over it.
const scanChunk = 256 << 10

// Needle is a secret to look for. ID names it in findings.
type Needle struct {
	ID    string
	Value []byte
}

// Finding is a place where a needle was found. Path is relative to the scanned
// directory; Form says what of it holds the value ("contents", "name", "link
// target", "xattr user.x") and, where so, its encoding ("contents, base64").
type Finding struct{ Path, ID, Form string }

// Scan searches the directory dir, its files' contents, names, link targets and
// xattrs, in one pass for the needles: their exact bytes, without line breaks at
// the end, and base64 of them, in both alphabets, at any alignment, with or
// without line breaks. A value split over several files, or changed in another
// way, is not found. Values of 4 and 5 bytes are found only where they are all
// that a file, link or attribute holds but for space around them; shorter ones
// never. The findings are sorted by path, one a path, needle and form.
func Scan(ctx context.Context, dir string, needles []Needle) ([]Finding, error) {
	s := &scanner{needles: needles, found: map[Finding]bool{}}
	s.patterns, s.whole = patterns(needles)
	if len(s.patterns) == 0 && len(s.whole) == 0 {
		return nil, nil
	}
	for _, p := range s.patterns {
		s.overlap = max(s.overlap, p.span()-1)
	}
	s.buf = make([]byte, s.overlap+scanChunk)
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("scan layer: open %s: %w", dir, err)
	}
	defer unix.Close(root)
	if err := s.dir(ctx, root, ""); err != nil {
		return nil, fmt.Errorf("scan layer: %w", err)
	}
	out := make([]Finding, 0, len(s.found))
	for f := range s.found {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Form, b.Form))
	})
	return out, nil
}

type scanner struct {
	needles  []Needle
	patterns []pattern
	whole    []int
	overlap  int // bytes of a chunk that are looked at again with the next
	buf      []byte
	found    map[Finding]bool
}

func (s *scanner) dir(ctx context.Context, fd int, prefix string) error {
	names, err := readNames(fd)
	if err != nil {
		return fmt.Errorf("list %q: %w", prefix, err)
	}
	for _, base := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.entry(ctx, fd, prefix+base, base); err != nil {
			return fmt.Errorf("%q: %w", prefix+base, err)
		}
	}
	return nil
}

func (s *scanner) entry(ctx context.Context, at int, name, base string) error {
	s.text(name, "name", []byte(base))
	var st unix.Stat_t
	if err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(at, base, buf)
		if err != nil {
			return err
		}
		s.text(name, "link target", buf[:n])
		return nil
	case unix.S_IFDIR:
		flags |= unix.O_DIRECTORY
	case unix.S_IFREG:
	default:
		return nil
	}
	fd, err := unix.Openat(at, base, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attrs, err := readXattrs(fd, func(string) bool { return true })
	if err != nil {
		return err
	}
	for _, x := range attrs {
		s.text(name, "xattr "+x.name, x.value)
		s.text(name, "name of an xattr", []byte(x.name))
	}
	if flags&unix.O_DIRECTORY != 0 {
		return s.dir(ctx, fd, name+"/")
	}
	return s.contents(ctx, fd, name, st.Size)
}

// text looks at a short text as a whole.
func (s *scanner) text(name, what string, data []byte) {
	for i := range s.patterns {
		s.search(name, what, &s.patterns[i], data)
	}
	s.exactly(name, what, data)
}

// exactly finds the short needles, which must be all there is.
func (s *scanner) exactly(name, what string, data []byte) {
	data = bytes.TrimSpace(data)
	for _, i := range s.whole {
		if bytes.Equal(data, bytes.TrimSpace(s.needles[i].Value)) {
			s.found[Finding{name, s.needles[i].ID, what}] = true
		}
	}
}

func (s *scanner) search(name, what string, p *pattern, data []byte) {
	if p.form != "" {
		what += ", " + p.form
	}
	f := Finding{name, s.needles[p.needle].ID, what}
	if len(data) >= len(p.value) && !s.found[f] && p.in(data) {
		s.found[f] = true
	}
}

// contents reads a file in chunks that begin with the end of the one before, so
// that no match is cut.
func (s *scanner) contents(ctx context.Context, fd int, name string, size int64) error {
	kept := 0
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Read(fd, s.buf[kept:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		data := s.buf[:kept+n]
		for i := range s.patterns {
			s.search(name, "contents", &s.patterns[i], data)
		}
		if first && size <= scanChunk {
			s.exactly(name, "contents", data)
		}
		kept = min(s.overlap, len(data))
		copy(s.buf, data[len(data)-kept:])
	}
}
