package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// epoch is the modification time of every file in every stand-in.
func epoch() time.Time { return time.Unix(1_700_000_000, 0).UTC() }

// A node is one file of a tree: its tar header and where its bytes come from.
type node struct {
	header tar.Header
	body   []byte // when source is empty
	source string // a file of this machine, read when the layer is written
}

// A tree is a layer in the making, by slash path without a leading slash.
type tree struct {
	nodes map[string]*node
}

func newTree() *tree {
	return &tree{nodes: map[string]*node{}}
}

func (t *tree) put(name string, n *node) {
	n.header.Name = name
	n.header.ModTime = epoch()
	n.header.Format = tar.FormatPAX
	t.nodes[name] = n
}

func (t *tree) dir(name string, mode int64) {
	t.put(name, &node{header: tar.Header{Typeflag: tar.TypeDir, Mode: mode}})
}

func (t *tree) file(name string, body []byte, mode int64) {
	t.put(name, &node{header: tar.Header{Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(body))}, body: body})
}

func (t *tree) symlink(name, target string) {
	t.put(name, &node{header: tar.Header{Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: target}})
}

func (t *tree) hardlink(name, target string) {
	t.put(name, &node{header: tar.Header{Typeflag: tar.TypeLink, Mode: 0o755, Linkname: target}})
}

// copyFrom adds the directory dir of this machine as name, owned by root.
func (t *tree) copyFrom(dir, name string) error {
	return filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		to := path.Join(name, filepath.ToSlash(rel))
		mode := int64(info.Mode().Perm())
		switch {
		case d.IsDir():
			t.dir(to, mode)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			t.symlink(to, target)
		case info.Mode().IsRegular():
			t.put(to, &node{header: tar.Header{Typeflag: tar.TypeReg, Mode: mode, Size: info.Size()}, source: file})
		}
		return nil
	})
}

// merge adds the entries of a package's file tree. Directories that are links
// in t (bin → usr/bin) stay links, and what the package has below them goes
// where they point; documentation is left out.
func (t *tree) merge(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.Trim(path.Clean(h.Name), "/")
		if name == "." || unwanted(name) {
			continue
		}
		name = t.resolve(name)
		if have := t.nodes[name]; have != nil && h.Typeflag == tar.TypeDir {
			continue
		}
		n := &node{header: tar.Header{Typeflag: h.Typeflag, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid, Linkname: h.Linkname}}
		switch h.Typeflag {
		case tar.TypeReg:
			if n.body, err = io.ReadAll(tr); err != nil {
				return err
			}
			n.header.Size = int64(len(n.body))
		case tar.TypeLink:
			n.header.Linkname = t.resolve(strings.Trim(path.Clean(h.Linkname), "/"))
		case tar.TypeDir, tar.TypeSymlink:
		default:
			return fmt.Errorf("%s: unexpected type %q in a package", h.Name, h.Typeflag)
		}
		t.put(name, n)
	}
}

// resolve replaces a first component that is a link in t by its target.
func (t *tree) resolve(name string) string {
	first, rest, _ := strings.Cut(name, "/")
	if n := t.nodes[first]; n != nil && n.header.Typeflag == tar.TypeSymlink {
		return path.Join(n.header.Linkname, rest)
	}
	return name
}

func unwanted(name string) bool {
	for _, dir := range []string{"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/"} {
		if strings.HasPrefix(name+"/", dir) {
			return true
		}
	}
	return false
}

// write emits the layer in path order, hard links after everything they can
// point to, which is what every unpacker accepts.
func (t *tree) write(w io.Writer) error {
	names := make([]string, 0, len(t.nodes))
	for name := range t.nodes {
		names = append(names, name)
	}
	isLink := func(name string) bool { return t.nodes[name].header.Typeflag == tar.TypeLink }
	slices.SortFunc(names, func(a, b string) int {
		if isLink(a) != isLink(b) {
			if isLink(a) {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})
	tw := tar.NewWriter(w)
	for _, name := range names {
		if err := t.nodes[name].write(tw); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return tw.Close()
}

func (n *node) write(tw *tar.Writer) error {
	h := n.header
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	if err := tw.WriteHeader(&h); err != nil {
		return err
	}
	if n.source == "" {
		_, err := io.Copy(tw, bytes.NewReader(n.body))
		return err
	}
	f, err := os.Open(n.source)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(tw, f)
	return err
}
