package bkapi

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/export"

	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/staticfs"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/codes"
)

// output reads what one exporter is asked for. Files and directories go to the
// client, which knows each exporter by its number in the request.
func (s *Server) output(sess *remote, id int, kind string, attrs map[string]string) (export.Output, error) {
	// Clients write the same options for builds with and without an epoch.
	o := export.Output{EpochOptional: true}
	rest := map[string]string{}
	for k, v := range attrs {
		switch k {
		case "source-date-epoch":
			at, err := epochOf(v)
			if err != nil {
				return o, err
			}
			o.OwnEpoch, o.Epoch = true, at
		case "dest": // the client's own business
		case "containerimage.config":
			o.Config = []byte(v)
		default:
			if !strings.HasPrefix(k, "attest:") { // which is the frontend's business
				rest[k] = v
			}
		}
	}
	o.Type = export.Type(kind)
	switch o.Type {
	case export.TypeImage:
		o.Describe = true
	case export.TypeLocal:
		o.Trees = func(ctx context.Context, trees []export.Tree) error { return sess.sendTrees(ctx, id, trees, o.Delete) }
	case export.TypeTar, export.TypeOCI, export.TypeDocker:
		o.Stream = func(ctx context.Context, about map[string]string) (io.WriteCloser, error) {
			return sess.sendFile(ctx, id, about)
		}
	}
	if tar, err := strconv.ParseBool(rest["tar"]); err == nil && !tar && (o.Type == export.TypeOCI || o.Type == export.TypeDocker) {
		o.Stream, o.Layout = nil, sess.sendLayout
	}
	err := o.SetAll(rest)
	return o, err
}

func epochOf(v string) (*time.Time, error) {
	if v == "" {
		return nil, nil
	}
	sec, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "invalid SOURCE_DATE_EPOCH: %q is no number of seconds", v)
	}
	at := time.Unix(sec, 0).UTC()
	return &at, nil
}

// sendFile opens a stream to the file of an exporter.
func (r *remote) sendFile(ctx context.Context, id int, about map[string]string) (io.WriteCloser, error) {
	c, err := r.caller(ctx, "")
	if err != nil {
		return nil, err
	}
	w, err := filesync.CopyFileWriter(ctx, about, id, c)
	return file{w}, err
}

// file is a file of a client, which may have no need of it: it has the same thing.
type file struct{ io.WriteCloser }

func (f file) Write(p []byte) (int, error) {
	n, err := f.WriteCloser.Write(p)
	return n, notNeeded(err)
}

func (f file) Close() error { return notNeeded(f.WriteCloser.Close()) }

func notNeeded(err error) error {
	if grpcerrors.Code(err) == codes.AlreadyExists {
		return export.ErrNotNeeded
	}
	return err
}

// sendTrees writes trees into the directory of an exporter. A client that deletes
// what it is not sent is sent all of them as one.
func (r *remote) sendTrees(ctx context.Context, id int, trees []export.Tree, all bool) error {
	c, err := r.caller(ctx, "")
	if err != nil {
		return err
	}
	var list []platformTree
	for _, t := range trees {
		// The path is a link of /proc to a mount that is nowhere else: it must be
		// opened, since to read the link leads to the host's own root.
		dir, err := os.OpenRoot(t.Dir)
		if err != nil {
			return err
		}
		root := fsutil.NewRoot(dir)
		defer root.Close()
		tree, err := treeFS(root, t)
		if err != nil {
			return err
		}
		if n := len(list); n > 0 && (list[n-1].name == t.Prefix || all && t.Prefix == "") {
			list[n-1].fs = staticfs.NewMergeFS(list[n-1].fs, tree)
			continue
		}
		list = append(list, platformTree{t.Prefix, tree, t.Epoch})
	}
	if !all {
		for _, one := range list {
			if err := sendTree(ctx, c, id, one); err != nil {
				return err
			}
		}
		return nil
	}
	return sendTree(ctx, c, id, list...)
}

// platformTree is what one platform has in a directory of its own.
type platformTree struct {
	name  string // "": it has none of its own
	fs    fsutil.FS
	epoch *time.Time
}

func sendTree(ctx context.Context, c bksession.Caller, id int, trees ...platformTree) error {
	out := trees[0].fs
	if trees[0].name != "" {
		var dirs []fsutil.Dir
		for _, t := range trees {
			st := &fstypes.Stat{Path: strings.ReplaceAll(t.name, "/", "_"), Mode: uint32(fs.ModeDir | 0o755)}
			if t.epoch != nil {
				st.ModTime = t.epoch.UnixNano()
			}
			dirs = append(dirs, fsutil.Dir{Stat: st, FS: t.fs})
		}
		var err error
		if out, err = fsutil.SubDirFS(dirs); err != nil {
			return err
		}
	}
	return filesync.CopyToCaller(ctx, out, id, c, func(int, bool) {}, filesync.WithExporterMultiPlatformTransfer())
}

// plainFS opens files with errors that say whether there is one.
type plainFS struct{ fsutil.FS }

// Open implements fsutil.FS.
func (p plainFS) Open(name string) (io.ReadCloser, error) {
	r, err := p.FS.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return r, err
}

// treeFS is a tree as fsutil sends it. Owners are left out: what arrives belongs
// to the client.
func treeFS(root fsutil.Root, t export.Tree) (fsutil.FS, error) {
	out, err := fsutil.NewFilterFS(fsutil.NewRootFS(root), &fsutil.FilterOpt{Map: func(_ string, st *fstypes.Stat) fsutil.MapResult {
		st.Uid, st.Gid = 0, 0
		if t.Epoch != nil && st.ModTime > t.Epoch.UnixNano() {
			st.ModTime = t.Epoch.UnixNano()
		}
		return fsutil.MapResultKeep
	}})
	return plainFS{out}, err
}
