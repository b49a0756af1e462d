package buildcontext

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// followLinks returns the patterns that paths stand for: every path as it is
// and, where a component is a symbolic link, the link itself and where it leads.
// A wildcard in a component is kept in the pattern; the links it matches are
// followed. all says that the whole context is asked for.
//
// The result is sorted and has no path below another of it. A loop of links
// ends at the first link met twice.
func followLinks(root int, paths []string) (targets []string, all bool, err error) {
	r := resolver{root: root, done: map[string]bool{}}
	for _, p := range paths {
		if err := r.follow(p); err != nil {
			return nil, false, err
		}
	}
	for p := range r.done {
		targets = append(targets, p)
	}
	slices.Sort(targets)
	if slices.Contains(targets, ".") {
		return nil, true, nil
	}
	return withoutNested(targets), false, nil
}

type resolver struct {
	root int
	done map[string]bool
}

// follow walks down p, one component at a time.
func (r *resolver) follow(p string) error {
	rest := relative(p)
	at := "."
	for {
		first, more, _ := strings.Cut(rest, "/")
		at, rest = path.Join(at, first), more
		links, err := r.links(at)
		if err != nil {
			return err
		}
		if rest == "" || links != nil {
			if r.done[at] {
				return nil
			}
			r.done[at] = true
		}
		for _, target := range links {
			if err := r.follow(path.Join(target, rest)); err != nil {
				return err
			}
		}
		if rest == "" || links != nil {
			return nil
		}
	}
}

// links returns where the links that p names lead to, relative to the context;
// nil when there are none. Only p's last component may be a pattern.
func (r *resolver) links(p string) ([]string, error) {
	dir, base := path.Split(p)
	if !hasWildcard(base) {
		target, ok, err := r.readlink(p)
		if !ok || err != nil {
			return nil, err
		}
		return []string{target}, nil
	}
	d, err := openDir(r.root, path.Clean(dir))
	if isAbsent(err) {
		return nil, nil
	} else if err != nil {
		return nil, unreadable(path.Clean(dir), err)
	}
	defer unix.Close(d)
	names, err := newLister(8<<10).list(d, "")
	if err != nil {
		return nil, unreadable(path.Clean(dir), err)
	}
	var out []string
	for _, n := range names {
		if ok, _ := path.Match(base, n.path); !ok || n.kind != unix.DT_LNK && n.kind != unix.DT_UNKNOWN {
			continue
		}
		target, ok, err := r.readlink(dir + n.path)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, target)
		}
	}
	return out, nil
}

// readlink returns where p leads, relative to the context; ok is false when p
// is no link or not there.
func (r *resolver) readlink(p string) (target string, ok bool, err error) {
	if p == "." {
		return "", false, nil
	}
	dir, base := path.Split(p)
	d, err := openPath(r.root, path.Clean(dir))
	if isAbsent(err) {
		return "", false, nil
	} else if err != nil {
		return "", false, unreadable(path.Clean(dir), err)
	}
	defer unix.Close(d)
	link, err := readLink(d, base)
	switch {
	case errors.Is(err, unix.EINVAL) || isAbsent(err):
		return "", false, nil
	case err != nil:
		return "", false, unreadable(p, fmt.Errorf("readlink: %w", err))
	}
	if !path.IsAbs(link) {
		link = path.Join("/", dir, link)
	}
	return relative(link), true, nil
}

// relative turns a path of the context into one without leading slash or "..",
// which cannot leave it.
func relative(p string) string {
	if p = path.Clean("/" + p); p == "/" {
		return "."
	}
	return p[1:]
}

// hasWildcard reports whether a component is a pattern.
func hasWildcard(name string) bool {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}
