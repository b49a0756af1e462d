package source

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/buildcontext"
	"dhow/internal/errdef"
	"dhow/internal/llb"
	"dhow/internal/session"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// localSource is a directory of the person who builds. It is read in place:
// its result is the scanned tree, and its key the digest of all that the filter
// lets through.
type localSource struct {
	deps     *Deps
	name     string
	owner    string // id of the session that has it; "": the build's
	hint     string // shared key hint
	resend   bool
	bare     bool // metadata only, but for contents
	contents []string
	vertex   digest.Digest
	filter   buildcontext.Filter
	tree     *buildcontext.Tree
}

// newLocalSource reads the attributes that select files and say whose they are.
// Those about how files are to be sent are the session's business.
func newLocalSource(d *Deps, v *llb.Vertex, name string, attrs map[string]string) (solve.Op, error) {
	owner := attrs[pb.AttrLocalSessionID]
	if prefix, id, ok := strings.Cut(owner, ":"); ok {
		name, owner = prefix+"-"+name, id
	}
	l := &localSource{deps: d, name: name, owner: owner, hint: attrs[pb.AttrSharedKeyHint], vertex: v.Digest}
	for attr, list := range map[string]*[]string{
		pb.AttrExcludePatterns: &l.filter.Exclude,
		pb.AttrIncludePatterns: &l.filter.Include,
		pb.AttrFollowPaths:     &l.filter.Follow,

		pb.AttrMetadataTransferExclude: &l.contents,
	} {
		if v := attrs[attr]; v != "" {
			if err := json.Unmarshal([]byte(v), list); err != nil {
				return nil, errdef.New(errdef.ErrInvalid, "local source %s: %s: %w", name, attr, err)
			}
		}
	}
	switch attrs[pb.AttrLocalDiffer] {
	case pb.AttrLocalDifferNone:
		l.resend = true
	case "", pb.AttrLocalDifferMetadata:
	default:
		return nil, errdef.New(errdef.ErrInvalid, "local source %s: %s=%s is not known", name, pb.AttrLocalDiffer, attrs[pb.AttrLocalDiffer])
	}
	if v := attrs[pb.AttrMetadataTransfer]; v != "" {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "local source %s: invalid value for %s: %s", name, pb.AttrMetadataTransfer, v)
		}
		l.bare = b
	}
	return l, nil
}

// CacheMap implements solve.Op.
func (l *localSource) CacheMap(ctx context.Context) (*solve.CacheMap, error) {
	if l.tree == nil {
		dir, err := l.deps.Session.Dir(ctx, session.DirRequest{
			Name: l.name, Session: l.owner, SharedKeyHint: l.hint,
			Include: slices.Clone(l.filter.Include), Exclude: slices.Clone(l.filter.Exclude), Follow: slices.Clone(l.filter.Follow),
			Vertex: l.vertex, Resend: l.resend, MetadataOnly: l.bare, Contents: slices.Clone(l.contents),
		})
		if err != nil {
			return nil, err
		}
		if l.tree = dir.Tree; l.tree == nil {
			if l.tree, err = l.scan(ctx, dir.Path); err != nil {
				return nil, err
			}
		}
	}
	dgst, err := keyOf("local", l.tree.Digest().String())
	if err != nil {
		return nil, err
	}
	return &solve.CacheMap{Digest: dgst, Pin: l.tree.Digest().String(), Local: l.tree, Unstored: true}, nil
}

func (l *localSource) scan(ctx context.Context, dir string) (*buildcontext.Tree, error) {
	index, err := l.indexFile(dir)
	if err != nil {
		return nil, err
	}
	tree, err := buildcontext.Scan(ctx, dir, l.filter, buildcontext.ScanOptions{IndexFile: index})
	if err != nil {
		return nil, fmt.Errorf("build context %q: %w", l.name, err)
	}
	return tree, nil
}

// indexFile is where the digests of this directory's files are remembered: one
// file for each directory and filter, so that a build that looks at a part of
// a directory does not make another one forget the rest.
func (l *localSource) indexFile(dir string) (string, error) {
	key, err := json.Marshal(struct {
		Dir    string
		Filter buildcontext.Filter
	}{dir, l.filter})
	if err != nil {
		return "", err
	}
	indexes := filepath.Join(l.deps.Store.Root(), "contexts")
	if err := os.MkdirAll(indexes, 0o700); err != nil {
		return "", fmt.Errorf("make the directory of context indexes: %w", err)
	}
	return filepath.Join(indexes, digest.FromBytes(key).Encoded()[:32]), nil
}

// Run implements solve.Op.
func (l *localSource) Run(_ context.Context, _ []solve.Result, job solve.Job) ([]solve.Result, error) {
	if err := l.tree.IndexErr(); err != nil {
		job.Warn("build context %q: the next build will read all of it again: %v", l.name, err)
	}
	return []solve.Result{{Local: l.tree}}, nil
}
