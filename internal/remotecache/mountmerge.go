package remotecache

import (
	"archive/tar"
	"path"
	"slices"
	"strings"
)

// merge puts together what two builders made of one cache mount that both began
// with (base; nil: nothing is known of it): a file that one added stays, one that
// one removed and the other left alone goes, and of one that both changed ours is
// taken. Files are whole: a file never has parts of both. Pure.
func merge(ours, theirs, base *mountIndex) *mountIndex {
	began := map[string]*mountFile{}
	if base != nil {
		began = byName(base.files)
	}
	out := &mountIndex{root: ours.root}
	mine := byName(ours.files)
	for i := range theirs.files {
		f := &theirs.files[i]
		was := began[f.Name]
		switch own := mine[f.Name]; {
		case own == nil && was == nil: // they added it
			out.files = append(out.files, *f)
		case own == nil: // we removed it
			if !f.same(was) {
				out.files = append(out.files, *f)
			}
		case was != nil && own.same(was): // we left it alone
			out.files = append(out.files, *f)
			delete(mine, f.Name)
		}
	}
	their := byName(theirs.files)
	for i := range ours.files {
		f := &ours.files[i]
		if mine[f.Name] == nil {
			continue
		}
		if was := began[f.Name]; was != nil && their[f.Name] == nil && f.same(was) {
			continue // they removed it
		}
		out.files = append(out.files, *f)
	}
	out.files = whole(withParents(out.files, mine, their))
	return out
}

// withParents adds the directories that files lie in, from where they are known.
func withParents(files []mountFile, known ...map[string]*mountFile) []mountFile {
	have := map[string]bool{".": true}
	for _, f := range files {
		have[f.Name] = true
	}
	for _, f := range slices.Clone(files) {
		for at := path.Dir(f.Name); !have[at]; at = path.Dir(at) {
			have[at] = true
			for _, m := range known {
				if dir := m[at]; dir != nil && dir.Kind == tar.TypeDir {
					files = append(files, *dir)
					break
				}
			}
		}
	}
	return files
}

func byName(files []mountFile) map[string]*mountFile {
	m := make(map[string]*mountFile, len(files))
	for i := range files {
		m[files[i].Name] = &files[i]
	}
	return m
}

// whole leaves out what cannot be: files below what is no directory, and hard
// links to what is not there. Directories that the others need are kept.
func whole(files []mountFile) []mountFile {
	slices.SortFunc(files, func(a, b mountFile) int { return strings.Compare(a.Name, b.Name) })
	dirs := map[string]bool{".": true}
	regular := map[string]bool{}
	for _, f := range files {
		switch f.Kind {
		case tar.TypeDir:
			dirs[f.Name] = true
		case tar.TypeReg:
			regular[f.Name] = true
		}
	}
	inside := func(name string) bool {
		for at := path.Dir(name); at != "."; at = path.Dir(at) {
			if !dirs[at] {
				return false
			}
		}
		return true
	}
	return slices.DeleteFunc(files, func(f mountFile) bool {
		return !inside(f.Name) || f.Kind == tar.TypeLink && !(regular[f.Link] && inside(f.Link))
	})
}
