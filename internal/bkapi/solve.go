package bkapi

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"dhow/internal/cdi"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/frontend"
	"dhow/internal/oci"

	controlapi "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/sourcepolicy/policysession"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// build is one Control.Solve under way, or lately ended.
type build struct {
	ref     string
	journal *journal
	cancel  context.CancelCauseFunc
	client  gateway.Client   // nil until the build has begun
	bridge  *frontend.Bridge // nil unless the client drives the build through the gateway
	ready   chan struct{}

	record   *controlapi.BuildHistoryRecord // as it began
	finished *controlapi.BuildHistoryRecord // as it ended; nil until then, and when it is not kept
}

// keepEnded is how long the events of an ended build can be asked for.
const keepEnded = time.Minute

// Solve builds what a client asks for. It returns when everything is exported.
func (s *Server) Solve(ctx context.Context, req *controlapi.SolveRequest) (*controlapi.SolveResponse, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := s.awaitTurn(ctx); err != nil {
		return nil, err
	}
	s.gate.RLock()
	defer s.built()
	b, err := s.enter(req.Ref, cancel)
	if err != nil {
		return nil, err
	}
	defer s.leave(b)
	if b.record = newRecord(req); !req.Internal {
		s.tell(controlapi.BuildHistoryEventType_STARTED, b.record)
		defer func() {
			if b.finished != nil {
				s.tell(controlapi.BuildHistoryEventType_COMPLETE, b.finished)
			}
		}()
	}
	sess := newRemote(s.sessions, s.engine.Store, req.Session, b.journal.add)
	defer sess.close()
	job, err := s.job(ctx, req, sess)
	if err != nil {
		return nil, err
	}
	job.Progress, job.Keep = b.journal.add, b.keep
	job.Solve = func(ctx context.Context, e frontend.Engine, _ string) (*frontend.Result, error) {
		res, err := s.ask(ctx, b, e, req)
		if err != nil {
			return nil, err
		}
		if req.EnableSessionExporter {
			if err := s.addOutputs(ctx, b, job, res, sess, req); err != nil {
				return nil, err
			}
		}
		return frontend.Convert(res)
	}
	res, err := s.engine.RunJob(ctx, job)
	if err != nil {
		return nil, err
	}
	answer := response(res)
	if req.EnableSessionExporter {
		err = sess.exported(ctx, answer)
	}
	return &controlapi.SolveResponse{ExporterResponse: answer}, err
}

// built tells the collector that a build has ended.
func (s *Server) built() {
	s.gate.RUnlock()
	select {
	case s.ended <- struct{}{}:
	default: // it has not looked yet
	}
}

// enter registers a build under the client's reference.
func (s *Server) enter(ref string, cancel context.CancelCauseFunc) (*build, error) {
	if ref == "" {
		return nil, errdef.New(errdef.ErrInvalid, "the request has no reference")
	}
	b := &build{ref: ref, journal: newJournal(), cancel: cancel, ready: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, twice := s.builds[ref]; twice {
		return nil, errdef.New(errdef.ErrConflict, "a build with the reference %s exists", ref)
	}
	s.builds[ref] = b
	s.active++
	close(s.met)
	s.met = make(chan struct{})
	return b, nil
}

// leave ends a build's events, and forgets it when nobody will ask any more.
func (s *Server) leave(b *build) {
	b.journal.close()
	b.cancel(nil)
	if b.client != nil {
		frontend.Forget(b.client)
		b.client = nil // it holds on to the trees of the build
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active--; s.active == 0 {
		// A server that does nothing keeps nobody from pruning.
		_ = s.engine.Store.Release() // closing a lock file loses nothing
	}
	time.AfterFunc(keepEnded, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.builds, b.ref)
	})
}

// find waits for a build: clients ask for its status, and talk to its gateway,
// before they have asked for the build itself.
func (s *Server) find(ctx context.Context, ref string) (*build, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, sessionWait, noJob(ref))
	defer cancel()
	for {
		s.mu.Lock()
		b, met := s.builds[ref], s.met
		s.mu.Unlock()
		if b != nil {
			return b, nil
		}
		select {
		case <-met:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// plainRef is what may be part of a file name, if it has 8 to 64 characters.
var plainRef = regexp.MustCompile(`^[a-z0-9]+$`)

// job is the request in the engine's words.
func (s *Server) job(ctx context.Context, req *controlapi.SolveRequest, sess *remote) (*engine.Job, error) {
	if err := refuse(req); err != nil {
		return nil, err
	}
	j := &engine.Job{Name: buildName(req), Session: sess, Registry: s.registry(sess), Unrecorded: req.Internal}
	var err error
	if j.CacheTo, j.CacheFrom, err = caches(req.Cache); err != nil {
		return nil, err
	}
	j.CacheBlobs = sess.cacheBlobs
	if j.Attests, err = engine.ParseAttests(req.FrontendAttrs); err != nil {
		return nil, err
	}
	if req.SourcePolicy != nil {
		j.Policies = append(j.Policies, req.SourcePolicy)
	}
	if id := req.SourcePolicySession; id != "" {
		j.CheckPolicy = func(ctx context.Context, q *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error) {
			c, err := sess.caller(ctx, id)
			if err != nil {
				return nil, err
			}
			return policysession.NewPolicyVerifierClient(c.Conn()).CheckPolicy(c.Context(ctx), q)
		}
	}
	platforms := req.FrontendAttrs["platform"]
	j.Platforms = &platforms
	j.Devices = s.options.Devices
	j.ProvenanceEnv = s.options.ProvenanceEnv
	j.FreshCaches = true // as BuildKit; dhow build keeps them
	j.KeepFailed = req.Frontend == "" && req.Definition == nil
	j.Target = "bkapi " + j.Name + " " + req.FrontendAttrs["target"] + " " + req.FrontendAttrs["platform"]
	if 8 <= len(req.Ref) && len(req.Ref) <= 64 && plainRef.MatchString(req.Ref) {
		j.ID = req.Ref
	}
	for _, e := range req.Entitlements {
		if !slices.Contains(s.options.Entitlements, e) && (s.options.Devices.Disabled || !cdi.IsEntitlement(e)) {
			name, _, _ := strings.Cut(e, "=")
			return nil, errdef.New(errdef.ErrDenied, "granting entitlement %s is not allowed by build daemon configuration", name)
		}
		j.Allow = append(j.Allow, e)
	}
	for _, ex := range requestExporters(req) {
		if err := s.addOutput(j, sess, req, ex.Type, ex.Attrs); err != nil {
			return nil, err
		}
	}
	return j, nil
}

// addOutput adds an exporter to the job, under the next number.
func (s *Server) addOutput(j *engine.Job, sess *remote, req *controlapi.SolveRequest, kind string, attrs map[string]string) error {
	o, err := s.output(sess, len(j.Outputs), kind, attrs)
	if err != nil {
		return err
	}
	if v, ok := req.FrontendAttrs["build-arg:SOURCE_DATE_EPOCH"]; ok && !o.OwnEpoch {
		// Words such as "context" are the frontend's to resolve.
		if at, err := epochOf(v); err == nil {
			o.OwnEpoch, o.Epoch = true, at
		}
	}
	j.Outputs = append(j.Outputs, o)
	for _, n := range o.Names {
		j.Tags = append(j.Tags, n.String())
	}
	return nil
}

// requestExporters are the exporters, in either form that clients have for them.
func requestExporters(req *controlapi.SolveRequest) []*controlapi.Exporter {
	if len(req.Exporters) == 0 && req.ExporterDeprecated != "" {
		return []*controlapi.Exporter{{Type: req.ExporterDeprecated, Attrs: req.ExporterAttrsDeprecated}}
	}
	return req.Exporters
}

// buildName is what lists of builds call it.
func buildName(req *controlapi.SolveRequest) string {
	for _, key := range []string{"context", "vcs:source", "vcs:localdir:context"} {
		if v := req.FrontendAttrs[key]; v != "" {
			return v
		}
	}
	if req.Frontend != "" {
		return req.Frontend
	}
	return "LLB"
}

// ask finds out what is to be made: from a definition, from a frontend, or from
// the client, which then asks through the gateway until it returns a result.
func (s *Server) ask(ctx context.Context, b *build, e frontend.Engine, req *controlapi.SolveRequest) (*gateway.Result, error) {
	c := frontend.NewClient(e, frontend.Options{
		Attrs: maps.Clone(req.FrontendAttrs), Inputs: req.FrontendInputs, Platforms: []ocispecs.Platform{oci.HostPlatform()}, SessionID: req.Session,
		Frontend: req.Frontend, Producers: s.made,
	})
	b.client = c
	switch {
	case req.Definition != nil && req.Frontend != "":
		return nil, errdef.New(errdef.ErrInvalid, "the request has a definition and names the frontend %s, want one of them", req.Frontend)
	case req.Definition != nil:
		return c.Solve(ctx, gateway.SolveRequest{Definition: req.Definition})
	case req.Frontend != "":
		return c.Solve(ctx, gateway.SolveRequest{Frontend: req.Frontend, FrontendOpt: req.FrontendAttrs, FrontendInputs: req.FrontendInputs})
	}
	return s.forward(ctx, b, c)
}

// refuse names what is not supported rather than leave it out silently.
func refuse(req *controlapi.SolveRequest) error {
	if req.ProxyNetwork {
		return errdef.New(errdef.ErrUnsupported, "a proxy network is not supported")
	}
	return nil
}

// response is what the exports tell the client.
func response(res *engine.BuildResult) map[string]string {
	out := export.Text(export.Metadata(res.Exports))
	cacheResponse(res.Cache, out)
	for k, v := range res.Metadata {
		if strings.HasPrefix(k, "frontend.") {
			out[k] = string(v)
		}
	}
	return out
}
