package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/buildcontext"
	"dhow/internal/buildop"
	"dhow/internal/cdi"
	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/frontend"
	"dhow/internal/image"
	"dhow/internal/llb"
	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/remotecache"
	"dhow/internal/session"
	"dhow/internal/snapshot"
	"dhow/internal/solve"
	"dhow/internal/source"
	"dhow/internal/sys"

	"github.com/moby/buildkit/client"
	bkerrdefs "github.com/moby/buildkit/solver/errdefs"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// BuildResult is what a build made and how it went. A failed build has one too,
// with what is known.
type BuildResult struct {
	ID      string
	Exports []export.Result
	// Provenance is the SLSA predicate (v1, mode=max) of each target by its
	// platform, for who keeps it; Multi says that there may be several.
	Provenance map[string][]byte
	Multi      bool
	Answer     map[string][]byte // of the frontend, when BuildRequest.Call asked for one
	Metadata   map[string][]byte // what else the frontend said
	Steps      []StepRecord
	Context    *buildcontext.Totals // of the build context; nil when it is no directory or was not needed
	Warnings   []string
	Cache      *ocispecs.Descriptor // of the last cache in BuildKit's format that was exported; nil: none
	Took       time.Duration
	IO         IO
	LogDir     string // holds each step's whole output
}

// StepError is a failed step, with what its author needs to see.
type StepError struct {
	Step    string   // "" when the Dockerfile itself is at fault
	Log     []string // last lines of its output
	LogFile string   // all of it; "" when the step printed nothing
	Excerpt string   // the Dockerfile around the instruction
	Err     error    // carries the source positions as BuildKit's errdefs.Source
}

// Error names the step.
func (e *StepError) Error() string {
	if e.Step == "" {
		return e.Err.Error()
	}
	return e.Step + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *StepError) Unwrap() error { return e.Err }

// Job is a build that was made concrete: what a BuildRequest becomes, and what
// a client of BuildKit's protocol asks for.
type Job struct {
	ID     string // a file name; "" makes one up
	Name   string // what people call it: its context
	Target string // equal for "the same build, again"
	Tags   []string
	// Unrecorded builds are no part of the history: what tools ask on the way.
	Unrecorded bool
	Session    session.Session
	Allow      []string // entitlements, and secret-in-layer=ID
	// Devices says which devices steps can be given.
	Devices cdi.Settings
	Outputs []export.Output
	Epoch   *time.Time // SOURCE_DATE_EPOCH of the steps: nothing they write is newer; nil: none
	Stdout  io.Writer  // takes outputs with the destination "-"; nil is os.Stdout
	// Lock is what moving names of sources stand for, or while it is being filled
	// the only result; nil: what they stand for now.
	Lock    *source.Lock
	Offline bool // sources send nothing
	// CacheTo and CacheFrom are the remote caches; frontends may ask for more.
	CacheTo, CacheFrom []remotecache.Options
	// CacheBlobs opens the directory of a cache of type=local; nil: it is one of
	// this machine.
	CacheBlobs func(ctx context.Context, dir string) (remotecache.BlobStore, error)
	// Registry speaks with the credentials of who asked; nil is the engine's.
	Registry *registry.Client
	Parallel int // steps at a time; 0 decides by the cores
	// Keep, when not nil, makes what is kept with the record of the build, whose
	// failure is nil when it succeeded. It is not asked for an unrecorded build.
	Keep func(res *BuildResult, failure error) *Keepsake
	// Policies decide on sources, and CheckPolicy on what they let through; nil:
	// nobody.
	Policies    []*spb.Policy
	CheckPolicy PolicyCheck
	// Platforms are those asked for, with commas between; "" is this machine's. Nil:
	// whatever the frontend makes is right.
	Platforms *string
	// Attests are the attestations asked for, see ParseAttests.
	Attests map[string]map[string]string
	// ProvenanceEnv is what who runs the builder adds to provenance.
	ProvenanceEnv map[string]any
	// KeepFailed keeps what failed steps left until the next prune, for a client
	// who may look into it.
	KeepFailed bool
	// FreshCaches empties cache mounts where the cache is not to be used.
	FreshCaches bool
	// Progress takes the status stream; called from several goroutines.
	Progress func(*client.SolveStatus)
	// Solve says what is to be made. It asks the engine what it needs to know.
	Solve func(ctx context.Context, e frontend.Engine, buildID string) (*frontend.Result, error)
}

// building is one build under way.
type building struct {
	engine   *Engine
	job      *Job
	images   *image.Images
	registry *registry.Client
	id       string
	logDir   string
	solver   *solve.Solver
	progress *progress
	deps     *buildop.Deps
	policy   *policy
	caches   *remotecache.Set
	cacheTo  []*remotecache.Export
	before   usage
	started  time.Time
	result   *frontend.Result // once it is made; nil until then
}

// Build runs the request. On failure of a step the error is a *StepError.
func (e *Engine) Build(ctx context.Context, r BuildRequest) (*BuildResult, error) {
	if err := e.Store.Lease(ctx); err != nil {
		return nil, err
	}
	p, err := e.prepare(ctx, &r)
	if err != nil {
		return nil, err
	}
	defer p.cleanup()
	j, err := r.job(p)
	if err != nil {
		return nil, err
	}
	return e.RunJob(ctx, j)
}

// job is the request in its concrete form.
func (r *BuildRequest) job(p *prepared) (*Job, error) {
	sess, err := session.New(session.Options{Dirs: p.dirs, Layouts: p.layouts, Secrets: r.Secrets, SSH: r.SSH})
	if err != nil {
		return nil, err
	}
	outs, err := r.outputs()
	if err != nil {
		return nil, err
	}
	attests, err := ParseAttests(p.attrs)
	if err != nil {
		return nil, err
	}
	lock, err := readLock(r.LockFile)
	if err != nil {
		return nil, err
	}
	return &Job{
		Lock: lock, Offline: r.Offline, CacheTo: r.CacheTo, Attests: attests,
		Name: displayName(p.name), Target: p.target, Tags: r.Tags, Session: sess, Allow: r.Allow, Epoch: r.epoch(),
		Outputs: outs, Stdout: r.Stdout, Parallel: r.Parallel, Progress: r.Progress,
		Solve: func(ctx context.Context, e frontend.Engine, id string) (*frontend.Result, error) {
			return frontend.Build(ctx, e, frontend.Options{Attrs: p.attrs, Platforms: []ocispecs.Platform{oci.HostPlatform()}, SessionID: id})
		},
	}, nil
}

// epoch is the SOURCE_DATE_EPOCH of the request. The frontend knows other words
// for one, and refuses wrong ones.
func (r *BuildRequest) epoch() *time.Time {
	text := r.BuildArgs["SOURCE_DATE_EPOCH"]
	if text == "" {
		text = r.Epoch
	}
	sec, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil
	}
	at := time.Unix(sec, 0).UTC()
	return &at
}

// RunJob does the job and records it. On failure of a step the error is a
// *StepError.
func (e *Engine) RunJob(ctx context.Context, j *Job) (*BuildResult, error) {
	if err := e.Store.Lease(ctx); err != nil {
		return nil, err
	}
	b, err := e.newBuilding(ctx, j)
	if err != nil {
		return nil, err
	}
	defer b.caches.Close()
	defer b.closeTrees()
	release, err := b.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	res, err := b.run(ctx)
	if err != nil {
		b.caches.Settle(ctx)
		err = b.explainFailure(err)
	}
	if j.Unrecorded {
		return res, errors.Join(err, sys.RemoveAll(b.logDir))
	}
	// The record is written even if the build was cancelled.
	if rerr := b.finish(context.WithoutCancel(ctx), res, err); err == nil {
		err = rerr
	}
	return res, err
}

func (e *Engine) newBuilding(ctx context.Context, j *Job) (*building, error) {
	b := &building{engine: e, job: j, images: e.Images, registry: e.Registry, started: time.Now(), before: usageNow()}
	if j.Registry != nil {
		b.registry, b.images = j.Registry, image.New(e.Store, e.Snapshots, j.Registry)
	}
	if b.id = j.ID; b.id == "" {
		b.id = newBuildID()
	}
	b.logDir = filepath.Join(e.Store.BuildsDir(), b.id)
	b.progress = newProgress(j.Progress, b.logDir)
	b.deps = &buildop.Deps{Store: e.Store, Snapshots: e.Snapshots, Images: b.images, Session: j.Session}
	var err error
	if b.deps.Options, err = buildOptions(j.Allow); err != nil {
		return nil, err
	}
	b.deps.Devices = j.Devices
	b.deps.Epoch, b.deps.Lock, b.deps.Offline, b.deps.Asked = j.Epoch, j.Lock, j.Offline, &source.Asked{}
	b.deps.KeepFailed, b.deps.FreshCaches = j.KeepFailed, j.FreshCaches
	b.policy = &policy{deps: b.deps, check: j.CheckPolicy}
	b.deps.Policy = b.policy.apply
	if err := b.policy.add(j.Policies); err != nil {
		return nil, err
	}
	if err := b.openCaches(ctx); err != nil {
		return nil, err
	}
	b.deps.Mounts = b.caches
	b.solver = solve.New(solve.Options{
		Resolve:  buildop.Resolve(b.deps),
		Cache:    solve.Local{Store: e.Store},
		Events:   b.progress,
		Remote:   b.caches,
		Parallel: j.Parallel,
	})
	return b, nil
}

func buildOptions(allow []string) (buildop.Options, error) {
	o := buildop.Options{Platform: oci.HostPlatform()}
	for _, a := range allow {
		id, isSecret := strings.CutPrefix(a, "secret-in-layer=")
		switch {
		case isSecret && id != "":
			o.AllowSecretInLayer = append(o.AllowSecretInLayer, id)
		case a == "network.host" || a == "security.insecure":
			o.Allow = append(o.Allow, a)
		case cdi.IsEntitlement(a):
			if err := cdi.CheckEntitlement(a); err != nil {
				return o, err
			}
			o.Allow = append(o.Allow, a)
		default:
			err := errdef.New(errdef.ErrInvalid, "entitlement %q is not known", a)
			return o, errdef.WithHint(err, "use --allow network.host, security.insecure, device, device=NAME or secret-in-layer=ID")
		}
	}
	return o, nil
}

// run asks the frontend, makes what it wants, and exports it.
func (b *building) run(ctx context.Context) (*BuildResult, error) {
	out := &BuildResult{ID: b.id, LogDir: b.logDir}
	defer b.registry.Release(ctx)
	if err := b.checkPush(ctx); err != nil {
		return out, err
	}
	br := &bridge{solver: b.solver, snapshots: b.engine.Snapshots, deps: b.deps, progress: b.progress, importCaches: b.importCaches, policies: b.policy}
	res, err := b.job.Solve(ctx, br, b.id)
	if err != nil {
		return out, err
	}
	out.Metadata = res.Metadata
	if len(res.Targets) == 0 && res.Metadata != nil {
		out.Answer = res.Metadata
		return out, nil
	}
	if b.job.Lock.Recording() {
		return out, b.pinSources(ctx, res)
	}
	if b.job.Platforms != nil && slices.ContainsFunc(res.Targets, func(t frontend.Target) bool { return t.Edge != nil }) {
		if text := platformWarning(*b.job.Platforms, res); text != "" {
			b.progress.warn(frontend.Warning{Short: text})
		}
	}
	chains := make([]snapshot.Chain, len(res.Targets))
	g, gctx := errgroup.WithContext(ctx)
	for i, t := range res.Targets {
		if t.Edge == nil {
			continue
		}
		g.Go(func() error {
			made, err := br.solve(gctx, *t.Edge)
			if err != nil {
				return err
			}
			chains[i], err = b.deps.Materialise(gctx, made)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return out, err
	}
	attests, err := b.attest(ctx, br, res)
	if err != nil {
		return out, err
	}
	b.result = res
	if out.Exports, err = b.export(ctx, res, chains, attests); err != nil {
		return out, err
	}
	return out, b.exportCaches(ctx, chains, out)
}

// closeTrees lets go of the directories that the build read in place.
func (b *building) closeTrees() {
	closed := map[*buildcontext.Tree]bool{}
	for _, s := range b.solver.Steps() {
		if s.Local != nil && !closed[s.Local] {
			closed[s.Local] = true
			_ = s.Local.Close() // it was read only
		}
	}
}

// explainFailure gives a failed step its log and its place in the Dockerfile.
func (b *building) explainFailure(err error) error {
	var ve *solve.VertexError
	if errors.As(err, &ve) {
		se := &StepError{Step: ve.Vertex.Name, Log: b.progress.tail(ve.Vertex), Err: bkerrdefs.WrapVertex(ve.Err, ve.Vertex.Digest)}
		if len(se.Log) > 0 {
			se.LogFile = filepath.Join(b.logDir, logName(ve.Vertex.Digest))
		}
		var text strings.Builder
		for _, src := range sources(ve.Vertex) {
			se.Err = bkerrdefs.WithSource(se.Err, src)
			if text.Len() == 0 {
				_ = src.Print(&text) // an excerpt that cannot be made is left out
			}
		}
		se.Excerpt = text.String()
		return se
	}
	if sources := bkerrdefs.Sources(err); len(sources) > 0 {
		var text strings.Builder
		if sources[len(sources)-1].Print(&text) == nil {
			return &StepError{Excerpt: text.String(), Err: errdef.As(errdef.ErrInvalid, err)}
		}
	}
	return err
}

// sources are the places of a step in its files, one for each location that its
// definition names.
func sources(v *llb.Vertex) []*bkerrdefs.Source {
	var list []*bkerrdefs.Source
	place := -1
	for _, pos := range v.Sources {
		if pos.Place != place {
			place = pos.Place
			list = append(list, &bkerrdefs.Source{Info: pos.Info})
		}
		last := list[len(list)-1]
		last.Ranges = append(last.Ranges, pos.Range)
	}
	return list
}

// begin records the build as running, which it is as long as it holds its lock.
func (b *building) begin(ctx context.Context) (release func(), err error) {
	lock, err := b.engine.Store.Lock(ctx, buildLock(b.id))
	if err != nil {
		return nil, err
	}
	release = func() { _ = lock.Unlock() } // closing a lock file loses nothing
	if err := os.MkdirAll(b.logDir, 0o700); err != nil {
		release()
		return nil, fmt.Errorf("make the log directory: %w", err)
	}
	if b.job.Unrecorded {
		return release, nil
	}
	if err := b.engine.Store.PutBuild(ctx, b.record(StatusRunning)); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

func buildLock(id string) string { return "build " + id }
