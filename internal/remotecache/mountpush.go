package remotecache

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/solve"
	"dhow/internal/sys"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// mergeTries is how often another builder may be faster.
const mergeTries = 4

// pushMounts sends the named cache mounts: those that a step of this build used,
// and those that the repository does not have.
func (st *steps) pushMounts(ctx context.Context, ids []string, job solve.Job) error {
	if len(ids) == 0 {
		return nil
	}
	mounts, err := st.set.deps.Store.CacheMounts(ctx)
	if err != nil {
		return err
	}
	used := st.set.usedMounts()
	found := map[string]bool{}
	for _, m := range mounts {
		if !slices.Contains(ids, m.Name) {
			continue
		}
		found[m.Name] = true
		if used[m.ID] == "" {
			if there, err := st.taken(ctx, mountTag(m.ID)); err != nil || there {
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := st.pushMount(ctx, m.Name, m.ID, filepath.Join(st.set.deps.Store.CacheMountsDir(), m.Dir), job); err != nil {
			return fmt.Errorf("cache mount %s: %w", m.Name, err)
		}
	}
	for _, id := range ids {
		if !found[id] {
			job.Warn("no step has used a cache mount with the id %s", id)
		}
	}
	return nil
}

func (s *Set) usedMounts() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.used)
}

// pushMount sends a cache mount's contents: the chunks that the repository lacks,
// then the index, then the manifest that refers to them. What other builders put
// there since stays, see merge.
func (st *steps) pushMount(ctx context.Context, id, key, top string, job solve.Job) error {
	began := time.Now()
	to, err := newChunks(st.send, st.ref)
	if err != nil {
		return err
	}
	defer to.encoder.Close()
	at, theirs, err := st.mountAt(ctx, key)
	if err != nil && !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	to.have(theirs.chunks)
	to.have(theirs.index)
	ours, descs, err := scanLocked(ctx, top, to, st.set.hasty.Patience)
	if err != nil {
		return err
	}
	for range mergeTries {
		done, err := st.pushMerged(ctx, pushedMount{id, key, ours, descs}, at, theirs, to)
		if err != nil {
			return err
		}
		if done {
			job.Status(fmt.Sprintf("cache mount %s: %d files, %d chunks sent (%d bytes)", id, len(ours.files), to.sent, to.bytes), to.bytes, to.bytes, began, true)
			return nil
		}
		if at, theirs, err = st.mountAt(ctx, key); err != nil {
			return err
		}
	}
	return errdef.New(errdef.ErrConflict, "other builders were faster %d times in a row", mergeTries)
}

// pushedMount is what a machine has of a cache mount.
type pushedMount struct {
	id, key string
	index   *mountIndex
	chunks  []ocispecs.Descriptor
}

// pushMerged writes the manifest, unless the repository's is another one by now.
func (st *steps) pushMerged(ctx context.Context, ours pushedMount, at ocispecs.Descriptor, theirs mountManifest, to *chunks) (bool, error) {
	agreed, err := st.agreed(ctx, ours.key)
	if err != nil {
		return false, err
	}
	index, known := ours.index, ours.chunks
	if at.Digest != "" && at.Digest != agreed {
		if index, err = st.merged(ctx, ours, agreed, theirs); err != nil {
			return false, err
		}
		known = append(slices.Clone(known), theirs.chunks...)
	}
	m := mountManifest{id: ours.id, chunks: needed(index, known)}
	if m.index, err = putIndex(ctx, index, to); err != nil {
		return false, err
	}
	raw, err := encodeMount(m)
	if err != nil {
		return false, err
	}
	if err := st.empty(ctx); err != nil {
		return false, err
	}
	tag := st.ref.WithTag(mountTag(ours.key))
	now, err := st.look.Resolve(ctx, tag)
	if err != nil && !errors.Is(err, errdef.ErrNotFound) {
		return false, err
	}
	if err == nil && now.Digest != at.Digest {
		return false, nil // another builder wrote meanwhile
	}
	desc := describe(ocispecs.MediaTypeImageManifest, raw)
	if desc.Digest != at.Digest {
		if _, err := st.send.PushManifest(ctx, tag, desc.MediaType, raw); err != nil {
			return false, err
		}
	}
	return true, st.remember(ctx, ours.key, desc.Digest)
}

// merged puts ours together with what others wrote since we agreed.
func (st *steps) merged(ctx context.Context, ours pushedMount, agreed digest.Digest, theirs mountManifest) (*mountIndex, error) {
	their, err := st.index(ctx, theirs)
	if err != nil {
		return nil, err
	}
	var base *mountIndex
	if agreed != "" {
		// What is gone by now was not agreed on: all files are somebody's.
		if raw, err := st.look.Manifest(ctx, st.ref, ocispecs.Descriptor{Digest: agreed}); err == nil {
			if m, err := decodeMount(raw); err == nil {
				base, _ = st.index(ctx, m)
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return merge(ours.index, their, base), nil
}

// needed are the chunks of an index, each once, in the order of its files.
func needed(x *mountIndex, known []ocispecs.Descriptor) []ocispecs.Descriptor {
	by := make(map[digest.Digest]ocispecs.Descriptor, len(known))
	for _, d := range known {
		by[d.Digest] = d
	}
	var out []ocispecs.Descriptor
	for _, f := range x.files {
		for _, p := range f.Pieces {
			if d, ok := by[p.Chunk]; ok {
				delete(by, p.Chunk)
				out = append(out, ocispecs.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
			}
		}
	}
	return out
}

func putIndex(ctx context.Context, x *mountIndex, to *chunks) ([]ocispecs.Descriptor, error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(x.encode(w)) }()
	defer r.Close()
	cut, err := putStream(ctx, r, indexCutting(), mountIndexType, to)
	if err != nil {
		return nil, err
	}
	return cut.descs, nil
}

// putStream cuts a stream and stores its chunks, several at once.
func putStream(ctx context.Context, r io.Reader, c cutting, mediaType string, to *chunks) (*pieces, error) {
	var descs []*ocispecs.Descriptor // each set by its own goroutine
	out := &pieces{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelChunks)
	err := c.cut(r, func(at int64, raw []byte) error {
		if gctx.Err() != nil {
			return context.Cause(gctx)
		}
		desc := &ocispecs.Descriptor{}
		descs = append(descs, desc)
		out.starts, out.ends = append(out.starts, at), append(out.ends, at+int64(len(raw)))
		g.Go(func() (err error) {
			*desc, err = to.put(gctx, mediaType, raw)
			return err
		})
		return nil
	})
	if werr := g.Wait(); werr != nil {
		err = werr // the cause
	}
	if err != nil {
		return nil, err
	}
	for _, d := range descs {
		out.descs = append(out.descs, *d)
	}
	return out, nil
}

// scanLocked reads a cache mount while no step uses it, and sends its chunks. It
// waits a while for steps of other builds.
func scanLocked(ctx context.Context, top string, to *chunks, wait time.Duration) (*mountIndex, []ocispecs.Descriptor, error) {
	dir := filepath.Join(top, "0")
	lctx, cancel := context.WithTimeoutCause(ctx, wait, errdef.New(errdef.ErrConflict, "other builds use it"))
	defer cancel()
	lock, err := sys.LockFile(lctx, dir+".lock", true) // package step has the meaning of it
	if err != nil {
		return nil, nil, err
	}
	defer lock.Unlock()
	return scan(ctx, dir, to)
}

// scan reads a directory as a tar and takes that apart: what describes the files
// becomes the index, what they hold is one stream, cut into chunks.
func scan(ctx context.Context, dir string, to *chunks) (*mountIndex, []ocispecs.Descriptor, error) {
	st, err := os.Lstat(dir)
	if err != nil {
		return nil, nil, err
	}
	x := &mountIndex{}
	x.root.Mode = uint32(st.Mode().Perm())
	if st.Mode()&os.ModeSticky != 0 {
		x.root.Mode |= 0o1000
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		x.root.UID, x.root.GID = int(sys.Uid), int(sys.Gid)
	}
	total, err := sizeOf(dir)
	if err != nil {
		return nil, nil, err
	}
	tarRead, tarWrite := io.Pipe()
	contents, contentsWrite := io.Pipe()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		_, err := layer.WriteArchive(gctx, tarWrite, layer.WriteOptions{}, layer.Tree{Dir: dir})
		return errors.Join(err, tarWrite.CloseWithError(err))
	})
	var starts []int64
	g.Go(func() (err error) {
		starts, err = x.readTar(tarRead, contentsWrite)
		tarRead.CloseWithError(err)
		return errors.Join(err, contentsWrite.CloseWithError(err))
	})
	var stream *pieces
	g.Go(func() (err error) {
		stream, err = putStream(gctx, contents, contentCutting(total), mountChunkType, to)
		contents.CloseWithError(err)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	for i := range x.files {
		x.files[i].Pieces = stream.of(starts[i], x.files[i].Size)
	}
	slices.SortFunc(x.files, func(a, b mountFile) int { return strings.Compare(a.Name, b.Name) })
	return x, stream.descs, nil
}

// sizeOf is how many bytes the files of a tree have.
func sizeOf(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

// readTar takes the headers and passes the contents on. starts tells where each
// file's contents are in what was passed.
func (x *mountIndex) readTar(r io.Reader, w io.Writer) (starts []int64, err error) {
	tr := tar.NewReader(r)
	at := int64(0)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		f := mountFile{
			Name: relative(h.Name), Kind: h.Typeflag, Mode: h.Mode, UID: h.Uid, GID: h.Gid, Size: h.Size, MTime: h.ModTime.Unix(), Link: h.Linkname,
		}
		if f.Kind == tar.TypeLink {
			f.Link = relative(f.Link)
		}
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				if f.Records == nil {
					f.Records = map[string]string{}
				}
				f.Records[k] = v
			}
		}
		if f.Kind != tar.TypeReg {
			f.Size = 0
		}
		starts = append(starts, at)
		x.files = append(x.files, f)
		sum := sha256.New()
		n, err := io.Copy(io.MultiWriter(w, sum), tr)
		at += n
		if err != nil {
			return nil, err
		}
		if n > 0 {
			x.files[len(x.files)-1].Sum = hex.EncodeToString(sum.Sum(nil)[:16])
		}
	}
	_, err = io.Copy(io.Discard, r) // padding
	return starts, err
}
