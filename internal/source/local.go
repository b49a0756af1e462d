package source

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"dhow/internal/buildcontext"
	"dhow/internal/errdef"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// localSource is a directory of the person who builds. It is read in place:
// its result is the scanned tree, and its key the digest of all that the filter
// lets through.
type localSource struct {
	deps   *Deps
	name   string
	dir    string
	filter buildcontext.Filter
	tree   *buildcontext.Tree
}

// newLocalSource reads the attributes that select files. Those that tell
// sessions apart, or how files are to be sent, mean nothing where nothing is
// sent.
func newLocalSource(d *Deps, name string, attrs map[string]string) (solve.Op, error) {
	if user, rest, ok := strings.Cut(attrs[pb.AttrLocalSessionID], ":"); ok && rest != "" {
		name = user + "-" + name
	}
	l := &localSource{deps: d, name: name}
	for attr, list := range map[string]*[]string{
		pb.AttrExcludePatterns: &l.filter.Exclude,
		pb.AttrIncludePatterns: &l.filter.Include,
		pb.AttrFollowPaths:     &l.filter.Follow,
	} {
		if v := attrs[attr]; v != "" {
			if err := json.Unmarshal([]byte(v), list); err != nil {
				return nil, errdef.New(errdef.ErrInvalid, "local source %s: %s: %w", name, attr, err)
			}
		}
	}
	dir, ok := d.Session.Dir(name)
	if !ok {
		return nil, errdef.New(errdef.ErrNotFound, "build context %q: no directory was given for it", name)
	}
	l.dir = dir
	return l, nil
}

// CacheMap implements solve.Op.
func (l *localSource) CacheMap(ctx context.Context) (*solve.CacheMap, error) {
	if l.tree == nil {
		index, err := l.indexFile()
		if err != nil {
			return nil, err
		}
		tree, err := buildcontext.Scan(ctx, l.dir, l.filter, buildcontext.ScanOptions{IndexFile: index})
		if err != nil {
			return nil, fmt.Errorf("build context %q: %w", l.name, err)
		}
		l.tree = tree
	}
	dgst, err := keyOf("local", l.tree.Digest().String())
	if err != nil {
		return nil, err
	}
	return &solve.CacheMap{Digest: dgst, Pin: l.tree.Digest().String(), Local: l.tree, Unstored: true}, nil
}

// indexFile is where the digests of this directory's files are remembered: one
// file for each directory and filter, so that a build that looks at a part of
// a directory does not make another one forget the rest.
func (l *localSource) indexFile() (string, error) {
	key, err := json.Marshal(struct {
		Dir    string
		Filter buildcontext.Filter
	}{l.dir, l.filter})
	if err != nil {
		return "", err
	}
	dir := filepath.Join(l.deps.Store.Root(), "contexts")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the directory of context indexes: %w", err)
	}
	return filepath.Join(dir, digest.FromBytes(key).Encoded()[:32]), nil
}

// Run implements solve.Op.
func (l *localSource) Run(_ context.Context, _ []solve.Result, job solve.Job) ([]solve.Result, error) {
	if err := l.tree.IndexErr(); err != nil {
		job.Warn("build context %q: the next build will read all of it again: %v", l.name, err)
	}
	return []solve.Result{{Local: l.tree}}, nil
}
