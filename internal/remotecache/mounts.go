package remotecache

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/solve"
	"dhow/internal/sys"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// parallelChunks is how many chunks are on their way at the same time.
const parallelChunks = 8

// mountSet is the cache mounts of a repository that a build fills from it.
type mountSet struct {
	ids []string // guarded by steps.mu; those that may be filled
}

func (st *steps) importMounts(ids []string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.mounts.ids = append(st.mounts.ids, ids...)
}

func (st *steps) imports(id string) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return !st.down && slices.Contains(st.mounts.ids, id)
}

// FillMount makes the new directory dir of the cache mount with the key from a
// repository that has one; false when none has, and then dir is not there. It
// fails with ctx only: a cache is empty rather than in the way.
func (s *Set) FillMount(ctx context.Context, id, key, dir string, job solve.Job) (bool, error) {
	for _, f := range s.finders() {
		st, ok := f.(*steps)
		if !ok || !st.imports(id) {
			continue
		}
		filled, err := st.fillMount(ctx, key, dir, job)
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		if err != nil {
			if rerr := sys.RemoveAll(dir); rerr != nil {
				return false, rerr
			}
			job.Warn("cache mount %s begins empty: %v", id, err)
		} else if filled {
			return true, nil
		}
	}
	return false, nil
}

// UsedMount notes a cache mount that a step has written to.
func (s *Set) UsedMount(id, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[key] = id
}

func (st *steps) fillMount(ctx context.Context, key, dir string, job solve.Job) (bool, error) {
	began := time.Now()
	desc, m, err := st.mountAt(ctx, key)
	if errors.Is(err, errdef.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	x, err := st.index(ctx, m)
	if err != nil {
		return false, err
	}
	if err := st.unpackMount(ctx, x, m, dir, func(done, total int64) {
		job.Status("cache mount "+m.id+" from "+st.name(), done, total, began, done == total)
	}); err != nil {
		return false, err
	}
	return true, st.remember(ctx, key, desc.Digest)
}

// mountAt is what a repository has of a cache mount. ErrNotFound.
func (st *steps) mountAt(ctx context.Context, key string) (ocispecs.Descriptor, mountManifest, error) {
	desc, raw, err := st.look.Tagged(ctx, st.ref.WithTag(mountTag(key)))
	if err != nil {
		return desc, mountManifest{}, err
	}
	m, err := decodeMount(raw)
	return desc, m, err
}

// index fetches and reads the index.
func (st *steps) index(ctx context.Context, m mountManifest) (*mountIndex, error) {
	var text bytes.Buffer
	for _, desc := range m.index {
		raw, err := fetchChunk(ctx, st.send, st.ref, desc, maxChunk)
		if err != nil {
			return nil, err
		}
		if text.Write(raw); text.Len() > maxMountIndex {
			return nil, errdef.New(errdef.ErrInvalid, "the index has more than %d bytes", maxMountIndex)
		}
	}
	return decodeIndex(text.Bytes(), m.chunks)
}

// unpackMount makes the directory of an index. It is not to be used when it fails.
func (st *steps) unpackMount(ctx context.Context, x *mountIndex, m mountManifest, dir string, progress func(done, total int64)) error {
	store, err := st.set.deps.Store.TempDir("chunks")
	if err != nil {
		return err
	}
	defer sys.RemoveAll(store) // the process's temporary directory is removed in any case
	if err := st.fetchAll(ctx, x, m, store, progress); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(x.writeTar(w, store)) }()
	// The same bounds as for a layer.
	limits := layer.Limits{MaxBytes: 256 << 30, MaxFiles: 20_000_000, MaxEntrySize: 256 << 30}
	_, err = layer.Apply(ctx, dir, r, layer.ApplyOptions{Archive: true, Limits: limits})
	r.Close()
	if err != nil {
		return err
	}
	if err := os.Chown(dir, x.root.UID, x.root.GID); err != nil {
		return err
	}
	return unix.Chmod(dir, x.root.Mode&0o7777)
}

// fetchAll brings the chunks that an index needs, several at once.
func (st *steps) fetchAll(ctx context.Context, x *mountIndex, m mountManifest, to string, progress func(done, total int64)) error {
	needed := map[digest.Digest]bool{}
	for _, f := range x.files {
		for _, p := range f.Pieces {
			needed[p.Chunk] = true
		}
	}
	var done atomic.Int64 // bytes
	total := int64(0)
	for _, desc := range m.chunks {
		if needed[desc.Digest] {
			total += desc.Size
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelChunks)
	for _, desc := range m.chunks {
		if !needed[desc.Digest] {
			continue
		}
		delete(needed, desc.Digest)
		g.Go(func() error {
			raw, err := fetchChunk(gctx, st.send, st.ref, desc, maxChunk)
			if err == nil {
				err = os.WriteFile(filepath.Join(to, desc.Digest.Encoded()), raw, 0o600)
			}
			progress(done.Add(desc.Size), total)
			return err
		})
	}
	return g.Wait()
}

// writeTar writes the index as a tar, with the contents from files of chunks.
// Hard links come last: what they link to may have a later name.
func (x *mountIndex) writeTar(w io.Writer, chunks string) error {
	tw := tar.NewWriter(w)
	for _, links := range []bool{false, true} {
		for i := range x.files {
			f := &x.files[i]
			if (f.Kind == tar.TypeLink) != links {
				continue
			}
			if err := tw.WriteHeader(f.header()); err != nil {
				return fmt.Errorf("%s: %w", f.Name, err)
			}
			for _, p := range f.Pieces {
				if err := copyPiece(tw, filepath.Join(chunks, p.Chunk.Encoded()), p); err != nil {
					return fmt.Errorf("%s: %w", f.Name, err)
				}
			}
		}
	}
	return tw.Close()
}

func (f *mountFile) header() *tar.Header {
	name := f.Name
	if f.Kind == tar.TypeDir {
		name += "/"
	}
	return &tar.Header{
		Typeflag: f.Kind, Name: name, Mode: f.Mode, Uid: f.UID, Gid: f.GID, Size: f.Size,
		ModTime: time.Unix(f.MTime, 0), Linkname: f.Link, PAXRecords: f.Records,
	}
}

func copyPiece(w io.Writer, name string, p piece) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(w, io.NewSectionReader(f, p.Offset, p.Length))
	if err == nil && n != p.Length {
		err = errdef.New(errdef.ErrInvalid, "chunk %s ends before byte %d", p.Chunk, p.Offset+p.Length)
	}
	return err
}

// What this machine and a repository last agreed on, so that a removed file is
// told from one that somebody else added.
const memoMount = "remotecache.mount"

func (st *steps) remember(ctx context.Context, key string, d digest.Digest) error {
	return st.set.deps.Store.PutMemo(ctx, memoMount, st.ref.Name()+" "+key, []byte(d))
}

func (st *steps) agreed(ctx context.Context, key string) (digest.Digest, error) {
	val, _, err := st.set.deps.Store.Memo(ctx, memoMount, st.ref.Name()+" "+key)
	return digest.Digest(val), err
}

// pieces tells of each part of a stream which piece of which chunk it is.
type pieces struct {
	starts []int64
	descs  []ocispecs.Descriptor
	ends   []int64
}

// of is the part from start on of that length.
func (p *pieces) of(start, length int64) []piece {
	var out []piece
	i, _ := slices.BinarySearch(p.ends, start+1) // the first chunk that ends behind start
	for ; length > 0 && i < len(p.starts); i++ {
		n := min(length, p.ends[i]-start)
		out = append(out, piece{Chunk: p.descs[i].Digest, Offset: start - p.starts[i], Length: n})
		start, length = start+n, length-n
	}
	return out
}

// relative makes tar's name of an entry that of an index.
func relative(name string) string { return strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/") }
