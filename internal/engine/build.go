package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"dhow/internal/buildcontext"
	"dhow/internal/buildop"
	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/frontend"
	"dhow/internal/oci"
	"dhow/internal/session"
	"dhow/internal/snapshot"
	"dhow/internal/solve"

	bkerrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// BuildResult is what a build made and how it went. A failed build has one too,
// with what is known.
type BuildResult struct {
	ID       string
	Exports  []export.Result
	Answer   map[string][]byte // of the frontend, when BuildRequest.Call asked for one
	Steps    []StepRecord
	Context  *buildcontext.Totals // of the build context; nil when it is no directory or was not needed
	Warnings []string
	Took     time.Duration
	IO       IO
	LogDir   string // holds each step's whole output
}

// StepError is a failed step, with what its author needs to see.
type StepError struct {
	Step    string   // "" when the Dockerfile itself is at fault
	Log     []string // last lines of its output
	LogFile string   // all of it; "" when the step printed nothing
	Excerpt string   // the Dockerfile around the instruction
	Err     error
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

// building is one build under way.
type building struct {
	engine   *Engine
	request  *BuildRequest
	prepared *prepared
	id       string
	logDir   string
	solver   *solve.Solver
	progress *progress
	deps     *buildop.Deps
	session  *session.Session
	before   usage
	started  time.Time
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
	b, err := e.newBuilding(&r, p)
	if err != nil {
		return nil, err
	}
	release, err := b.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	res, err := b.run(ctx)
	if err != nil {
		err = b.explainFailure(err)
	}
	// The record is written even if the build was cancelled.
	if rerr := b.finish(context.WithoutCancel(ctx), res, err); err == nil {
		err = rerr
	}
	return res, err
}

func (e *Engine) newBuilding(r *BuildRequest, p *prepared) (*building, error) {
	sess, err := session.New(session.Options{Dirs: p.dirs, Layouts: p.layouts, Secrets: r.Secrets, SSH: r.SSH})
	if err != nil {
		return nil, err
	}
	b := &building{engine: e, request: r, prepared: p, session: sess, started: time.Now(), before: usageNow()}
	b.id = newBuildID()
	b.logDir = filepath.Join(e.Store.BuildsDir(), b.id)
	b.progress = newProgress(r.Progress, b.logDir)
	b.deps = &buildop.Deps{Store: e.Store, Snapshots: e.Snapshots, Images: e.Images, Session: sess}
	if b.deps.Options, err = buildOptions(r); err != nil {
		return nil, err
	}
	b.solver = solve.New(solve.Options{
		Resolve:  buildop.Resolve(b.deps),
		Cache:    solve.Local{Store: e.Store},
		Events:   b.progress,
		Parallel: r.Parallel,
	})
	return b, nil
}

func buildOptions(r *BuildRequest) (buildop.Options, error) {
	o := buildop.Options{Platform: oci.HostPlatform()}
	epoch := r.BuildArgs["SOURCE_DATE_EPOCH"]
	if epoch == "" {
		epoch = r.Epoch
	}
	// The frontend knows other words for an epoch, and refuses wrong ones.
	if sec, err := strconv.ParseInt(epoch, 10, 64); err == nil {
		at := time.Unix(sec, 0).UTC()
		o.Epoch = &at
	}
	for _, a := range r.Allow {
		id, isSecret := strings.CutPrefix(a, "secret-in-layer=")
		switch {
		case isSecret && id != "":
			o.AllowSecretInLayer = append(o.AllowSecretInLayer, id)
		case a == "network.host" || a == "security.insecure":
			o.Allow = append(o.Allow, a)
		default:
			err := errdef.New(errdef.ErrInvalid, "entitlement %q is not known", a)
			return o, errdef.WithHint(err, "use --allow network.host, security.insecure or secret-in-layer=ID")
		}
	}
	return o, nil
}

// run asks the frontend, makes what it wants, and exports it.
func (b *building) run(ctx context.Context) (*BuildResult, error) {
	out := &BuildResult{ID: b.id, LogDir: b.logDir}
	if err := b.checkPush(ctx); err != nil {
		return out, err
	}
	br := &bridge{solver: b.solver, snapshots: b.engine.Snapshots, deps: b.deps, progress: b.progress}
	res, err := frontend.Build(ctx, br, frontend.Options{Attrs: b.prepared.attrs, Platforms: []ocispecs.Platform{oci.HostPlatform()}, SessionID: b.id})
	if err != nil {
		return out, err
	}
	if len(res.Targets) == 0 && res.Metadata != nil {
		out.Answer = res.Metadata
		return out, nil
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
	out.Exports, err = b.export(ctx, res, chains)
	return out, err
}

// explainFailure gives a failed step its log and its place in the Dockerfile.
func (b *building) explainFailure(err error) error {
	var ve *solve.VertexError
	if errors.As(err, &ve) {
		se := &StepError{Step: ve.Vertex.Name, Log: b.progress.tail(ve.Vertex), Err: ve.Err}
		if len(se.Log) > 0 {
			se.LogFile = filepath.Join(b.logDir, logName(ve.Vertex.Digest))
		}
		var text strings.Builder
		for _, pos := range ve.Vertex.Sources {
			src := bkerrdefs.Source{Info: pos.Info, Ranges: []*pb.Range{{Start: &pb.Position{Line: int32(pos.Start)}, End: &pb.Position{Line: int32(pos.End)}}}}
			if src.Print(&text) == nil && text.Len() > 0 {
				break
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
	if err := b.engine.Store.PutBuild(ctx, b.record(statusRunning)); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

func buildLock(id string) string { return "build " + id }
