package buildop

import (
	"fmt"
	"path"

	"github.com/moby/buildkit/util/suggest"
	"golang.org/x/sys/unix"
)

// advice says why a path may be missing from a tree: left out by an ignore
// rule, or spelled differently. "" when it has nothing to say.
func advice(root dir, name string) string {
	name = path.Join("/", name)
	if l, ok := root.(*localDir); ok {
		return l.advice(name)
	}
	p, err := resolve(root, name, true)
	if err != nil {
		return ""
	}
	defer p.close()
	if p.found() {
		return ""
	}
	nodes, err := p.dir().list()
	if err != nil {
		return ""
	}
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.name
	}
	return similar(path.Join(append([]string{"/"}, p.names...)...), p.rest[0], names)
}

func similar(in, name string, names []string) string {
	if near, ok := suggest.Search(name, names, false); ok {
		return fmt.Sprintf("did you mean %q?", path.Join(in, near))
	}
	return fmt.Sprintf("there is no %q in %s", name, in)
}

// advice looks at the directory itself, since the tree holds only what the
// build asked for and the ignore rules let through.
func (d *localDir) advice(name string) string {
	root, err := openDir(unix.AT_FDCWD, d.tree.Dir())
	if err != nil {
		return ""
	}
	defer unix.Close(root)
	in := "/"
	for _, c := range components(name) {
		next := path.Join(in, c)
		fd, err := openInside(root, next, unix.O_PATH|unix.O_NOFOLLOW)
		if err == nil {
			unix.Close(fd)
			in = next
			continue
		}
		fd, err = openInside(root, in, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return ""
		}
		names, err := readNames(fd)
		unix.Close(fd)
		if err != nil {
			return ""
		}
		return similar(in, c, names)
	}
	return fmt.Sprintf("%s exists, but the ignore file (.dockerignore) leaves it out; dhow build --print-context shows the rule", path.Join(d.tree.Dir(), name))
}

// openInside opens a path below an open directory and never leaves it.
func openInside(root int, name string, flags uint64) (int, error) {
	return unix.Openat2(root, path.Join(".", name), &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
}
