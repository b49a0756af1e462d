package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dhow/internal/buildcontext"
	"dhow/internal/errdef"
	"dhow/internal/llb"
	"dhow/internal/solve"
	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/klauspost/compress/zstd"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// keepBuilds is how many builds the history holds; the oldest go first.
const keepBuilds = 100

// Summary is what lists of builds show of one.
type Summary struct {
	Steps   int           `json:"steps"`
	Cached  int           `json:"cached"`
	Ran     int           `json:"ran"`
	Took    time.Duration `json:"took"` // nanoseconds
	Tags    []string      `json:"tags,omitempty"`
	Error   string        `json:"error,omitempty"`
	Read    int64         `json:"read"`    // bytes
	Written int64         `json:"written"` // bytes
	Pinned  bool          `json:"pinned,omitempty"`
}

// What became of a build.
const (
	StatusRunning  = "running" // the only one that is no end
	statusDone     = "done"
	statusFailed   = "failed"
	statusCanceled = "canceled"
	statusKilled   = "killed" // recorded as running, but nobody holds its lock
)

func newBuildID() string { return strings.ToLower(rand.Text()[:12]) }

func (b *building) record(status string) store.BuildRecord {
	rec := store.BuildRecord{ID: b.id, Target: b.job.Target, Name: b.job.Name, Started: b.started, Status: status}
	if status != StatusRunning {
		rec.Finished = time.Now()
	}
	return rec
}

// finish compares the build with the one before, and keeps it.
func (b *building) finish(ctx context.Context, res *BuildResult, failure error) error {
	if res == nil {
		res = &BuildResult{ID: b.id}
	}
	s := b.engine.Store
	steps, trees, dockerfile := recordSteps(b.solver.Steps(), failure)
	res.Steps, res.Took, res.IO = steps, time.Since(b.started), usageNow().since(b.before)
	res.Warnings = b.progress.stepWarnings()
	for _, step := range steps {
		if t := trees[step.Tree]; t != nil && step.Source == "local://context" {
			totals := t.Totals()
			res.Context = &totals
		}
	}
	// Beside the rest: it takes as long, and somebody waits for the answer.
	var keepsake errgroup.Group
	keepsake.Go(func() error { return b.makeKeepsake(res, failure) })
	rec, err := b.describe(ctx, res, failure, trees, dockerfile)
	if kerr := keepsake.Wait(); err == nil {
		err = kerr
	}
	if err != nil {
		return err
	}
	if err := s.PutBuild(ctx, rec); err != nil {
		return err
	}
	if used := b.usedRecords(); len(used) > 0 {
		if err := s.TouchCache(ctx, used...); err != nil {
			return err
		}
	}
	return b.trim(ctx)
}

// describe says why each step ran, and makes the record. What trees hold is
// remembered for the builds to come.
func (b *building) describe(ctx context.Context, res *BuildResult, failure error, trees map[string]*buildcontext.Tree, dockerfile string) (store.BuildRecord, error) {
	rec := b.record(statusDone)
	before, err := b.lastSteps(ctx)
	if err != nil {
		return rec, err
	}
	if before != nil {
		h := &history{steps: before, dockerfile: dockerfile, changes: func(was, is string) []fileChange {
			return b.treeChanges(ctx, was, is, trees)
		}}
		h.explain(res.Steps)
	}
	switch {
	case errors.Is(failure, context.Canceled):
		rec.Status = statusCanceled
	case failure != nil:
		rec.Status = statusFailed
	}
	if err := encodeRecord(&rec, res, b.job.Tags, failure); err != nil {
		return rec, err
	}
	s := b.engine.Store
	for dgst, t := range trees {
		if _, ok, err := s.Memo(ctx, memoTree, dgst); err != nil {
			return rec, err
		} else if !ok {
			if err := s.PutMemo(ctx, memoTree, dgst, encodeManifest(manifest(t))); err != nil {
				return rec, err
			}
		}
	}
	return rec, nil
}

// usedRecords are the cache records that the build took results from; prune
// begins with those that nobody uses.
func (b *building) usedRecords() []string {
	var keys []string
	for _, s := range b.solver.Steps() {
		if s.Cached && s.ResultKey != "" {
			keys = append(keys, s.ResultKey)
		}
	}
	return keys
}

func (b *building) trim(ctx context.Context) error {
	removed, err := b.engine.Store.TrimBuilds(ctx, keepBuilds)
	if err != nil {
		return err
	}
	for _, id := range removed {
		if err := sys.RemoveAll(filepath.Join(b.engine.Store.BuildsDir(), id)); err != nil {
			return err
		}
	}
	// A build that printed nothing leaves no empty directory.
	if err := os.Remove(b.logDir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("tidy the log directory: %w", err)
	}
	return nil
}

func encodeRecord(rec *store.BuildRecord, res *BuildResult, tags []string, failure error) error {
	sum := Summary{Took: res.Took, Tags: tags, Read: res.IO.Read, Written: res.IO.Written}
	sum.Steps, sum.Cached, sum.Ran = Count(res.Steps)
	if failure != nil {
		sum.Error = failure.Error()
	}
	var err error
	if rec.Summary, err = json.Marshal(sum); err != nil {
		return fmt.Errorf("encode build record: %w", err)
	}
	detail, err := json.Marshal(res.Steps)
	if err != nil {
		return fmt.Errorf("encode build record: %w", err)
	}
	rec.Detail = compress(detail)
	return nil
}

// Count tells how many steps there are, sources left out, and how many of them
// were taken from the cache and how many ran.
func Count(steps []StepRecord) (all, cached, ran int) {
	for _, s := range steps {
		switch {
		case s.Kind == "source" || s.State == "":
			continue
		case s.State == StateCached || s.State == StateShared:
			cached++
		default:
			ran++
		}
		all++
	}
	return all, cached, ran
}

func compress(b []byte) []byte {
	// Options are constants that the library accepts.
	w, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	defer w.Close()
	return w.EncodeAll(b, nil)
}

func decompress(b []byte) ([]byte, error) {
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.DecodeAll(b, nil)
}

// lastSteps is the record of the last finished build of the same target; nil
// when there is none.
func (b *building) lastSteps(ctx context.Context) ([]StepRecord, error) {
	last, err := b.engine.Store.LastBuild(ctx, b.job.Target)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeSteps(last)
}

func decodeSteps(rec store.BuildRecord) ([]StepRecord, error) {
	if len(rec.Detail) == 0 {
		return nil, nil
	}
	raw, err := decompress(rec.Detail)
	if err != nil {
		return nil, fmt.Errorf("read build %s: %w", rec.ID, err)
	}
	var steps []StepRecord
	if err := json.Unmarshal(raw, &steps); err != nil {
		return nil, fmt.Errorf("read build %s: %w", rec.ID, err)
	}
	return steps, nil
}

// recordSteps puts what the solver saw into records. Directories read in place
// are returned by the digest that their step's Tree names.
func recordSteps(steps []solve.Step, failure error) (records []StepRecord, trees map[string]*buildcontext.Tree, dockerfile string) {
	trees = map[string]*buildcontext.Tree{}
	index := map[*llb.Vertex]int{}
	var failed *llb.Vertex
	var ve *solve.VertexError
	if errors.As(failure, &ve) {
		failed = ve.Vertex
	}
	for _, s := range steps {
		v := s.Vertex
		r := StepRecord{
			Name: v.Name, Vertex: v.Digest.String(), Operation: s.Operation.String(), Pin: s.Pin, Deps: s.Deps,
			Forced: v.Meta.IgnoreCache, Started: s.Started,
		}
		switch {
		case v == failed:
			r.State = StateFailed
		case s.Ran:
			r.State = StateRan
		case s.Waited:
			r.State = StateShared
		case s.Cached || failure == nil:
			// Whatever stands below a step taken from the cache was not looked at.
			r.State = StateCached
		}
		if s.From != "" && !s.Ran {
			r.Reason = "found in " + s.From
		}
		if s.Ran && !s.Completed.IsZero() {
			r.Took = s.Completed.Sub(s.Started)
		}
		r.Took += s.Pinning
		for _, in := range v.Inputs {
			r.Inputs = append(r.Inputs, index[in.Vertex])
		}
		describe(&r, v)
		if s.Local != nil {
			r.Tree = s.Local.Digest().String()
			trees[r.Tree] = s.Local
		}
		if len(v.Sources) > 0 {
			r.Line = v.Sources[0].Start
			dockerfile = string(v.Sources[0].Info.GetData())
		}
		index[v] = len(records)
		records = append(records, r)
	}
	return records, trees, dockerfile
}

// describe keeps what an explanation needs of the operation.
func describe(r *StepRecord, v *llb.Vertex) {
	switch op := v.Op.Op.(type) {
	case *pb.Op_Source:
		r.Kind, r.Source = "source", llb.HidePasswords(op.Source.Identifier)
	case *pb.Op_Exec:
		r.Kind, r.Args, r.Env = "exec", op.Exec.Meta.Args, op.Exec.Meta.Env
	case *pb.Op_File:
		r.Kind = "file"
		for _, a := range op.File.Actions {
			if c := a.GetCopy(); c != nil && a.SecondaryInput >= 0 && int(a.SecondaryInput) < len(v.Inputs) {
				r.Copies = append(r.Copies, CopyRecord{Input: int(a.SecondaryInput), Src: c.Src})
			}
		}
	case *pb.Op_Merge:
		r.Kind = "merge"
	case *pb.Op_Diff:
		r.Kind = "diff"
	default:
		r.Kind = "other"
	}
}

// memoTree is the kind of memo that holds directory manifests.
const memoTree = "tree manifest"

// manifestEntry is what is compared of one file of two directories.
type manifestEntry struct {
	path   string
	mode   uint32
	digest [8]byte // of the contents; enough to tell that they changed
	link   string
}

func manifest(t *buildcontext.Tree) []manifestEntry {
	entries := t.Entries()
	m := make([]manifestEntry, len(entries))
	for i, e := range entries {
		m[i] = manifestEntry{path: e.Path, mode: e.Mode, link: e.Link}
		copy(m[i].digest[:], e.Digest[:])
	}
	return m
}

func encodeManifest(m []manifestEntry) []byte {
	var b []byte
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	for _, e := range m {
		str(e.path)
		b = binary.AppendUvarint(b, uint64(e.mode))
		b = append(b, e.digest[:]...)
		str(e.link)
	}
	return compress(b)
}

func decodeManifest(raw []byte) ([]manifestEntry, error) {
	data, err := decompress(raw)
	if err != nil {
		return nil, err
	}
	r := bytes.NewReader(data)
	str := func() string {
		n, e := binary.ReadUvarint(r)
		if e != nil || n > uint64(r.Len()) {
			err = errors.Join(err, e, errdef.ErrInvalid)
			return ""
		}
		buf := make([]byte, n)
		_, _ = r.Read(buf) // n bytes are there
		return string(buf)
	}
	var m []manifestEntry
	for r.Len() > 0 && err == nil {
		e := manifestEntry{path: str()}
		mode, merr := binary.ReadUvarint(r)
		e.mode = uint32(mode)
		_, derr := r.Read(e.digest[:])
		e.link = str()
		err = errors.Join(err, merr, derr)
		m = append(m, e)
	}
	return m, err
}

// treeChanges compares two recorded directories; nil when one is not known.
func (b *building) treeChanges(ctx context.Context, was, is string, trees map[string]*buildcontext.Tree) []fileChange {
	raw, ok, err := b.engine.Store.Memo(ctx, memoTree, was)
	if err != nil || !ok || trees[is] == nil {
		return nil
	}
	before, err := decodeManifest(raw)
	if err != nil {
		return nil
	}
	return diffManifests(before, manifest(trees[is]))
}

// diffManifests lists what differs between two sorted manifests. A directory
// counts only for its mode: what changed in it is listed itself.
func diffManifests(was, is []manifestEntry) []fileChange {
	const typ = 0o170000 // S_IFMT
	var out []fileChange
	for len(was) > 0 || len(is) > 0 {
		switch {
		case len(is) == 0 || len(was) > 0 && was[0].path < is[0].path:
			out = append(out, fileChange{was[0].path, "removed"})
			was = was[1:]
		case len(was) == 0 || is[0].path < was[0].path:
			out = append(out, fileChange{is[0].path, "added"})
			is = is[1:]
		default:
			a, b := was[0], is[0]
			switch {
			case a.mode&typ != b.mode&typ:
				out = append(out, fileChange{b.path, "is of another type"})
			case a.digest != b.digest:
				out = append(out, fileChange{b.path, "changed"})
			case a.link != b.link:
				out = append(out, fileChange{b.path, "points to " + b.link})
			case a.mode != b.mode:
				out = append(out, fileChange{b.path, fmt.Sprintf("mode %04o→%04o", a.mode&0o7777, b.mode&0o7777)})
			}
			was, is = was[1:], is[1:]
		}
	}
	return out
}
