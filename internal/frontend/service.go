package frontend

import (
	"context"
	"maps"
	"slices"
	"sync"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	apitypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Bridge is a gateway client that somebody uses over gRPC: a client that drives
// a build, or a frontend in a container. Safe for concurrent use.
type Bridge struct {
	client  gateway.Client
	ctx     context.Context // of the build: a call ends with it
	workers []*apitypes.WorkerRecord
	done    chan struct{} // closed by Return

	mu         sync.Mutex
	refs       map[string]gateway.Reference // guarded by mu; by the id the client has
	containers map[string]gateway.Container // guarded by mu; by the id that the client chose
	result     *gateway.Result              // guarded by mu
	err        error                        // guarded by mu
}

// NewBridge lends a client until ctx ends. The caller closes it.
func NewBridge(ctx context.Context, c gateway.Client, workers []*apitypes.WorkerRecord) *Bridge {
	return &Bridge{
		client: c, ctx: ctx, workers: workers, done: make(chan struct{}),
		refs: map[string]gateway.Reference{}, containers: map[string]gateway.Container{},
	}
}

// Wait returns what the other side returned, or how it failed, or why ctx ended.
func (g *Bridge) Wait(ctx context.Context) (*gateway.Result, error) {
	select {
	case <-g.done:
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.result, g.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Close releases the containers that the other side has left.
func (g *Bridge) Close() {
	g.mu.Lock()
	list := g.containers
	g.containers = map[string]gateway.Container{}
	g.mu.Unlock()
	for _, c := range list {
		_ = c.Release(g.ctx) // how its processes ended is nobody's business any more
	}
}

// Service is BuildKit's LLBBridge (frontend/gateway/pb).
type Service struct {
	gwpb.UnimplementedLLBBridgeServer
	// Find returns the bridge that a call is about.
	Find func(context.Context) (*Bridge, error)
}

// bridge finds the bridge that a call is about. The context it returns also ends
// with the build; the caller ends it.
func (s *Service) bridge(ctx context.Context) (*Bridge, context.Context, func(), error) {
	g, err := s.Find(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(g.ctx, func() { cancel(context.Cause(g.ctx)) })
	return g, ctx, func() { stop(); cancel(nil) }, nil
}

// Ping tells a frontend what it may use.
func (s *Service) Ping(ctx context.Context, _ *gwpb.PingRequest) (*gwpb.PongResponse, error) {
	g, _, end, err := s.bridge(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return &gwpb.PongResponse{FrontendAPICaps: gwpb.Caps.All(), LLBCaps: pb.Caps.All(), Workers: g.workers}, nil
}

// attested reads the attestations of the result that a client returns.
func (g *Bridge) attested(in *gwpb.Result, out *gateway.Result) error {
	for platform, list := range in.Attestations {
		for _, a := range list.GetAttestation() {
			made, err := gateway.AttestationFromPB[gateway.Reference](a)
			if err != nil {
				return errdef.As(errdef.ErrInvalid, err)
			}
			if made.Ref, err = g.ref(a.Ref.GetId()); err != nil {
				return err
			}
			out.AddAttestation(platform, *made)
		}
	}
	return nil
}

// answer gives references ids for the client.
func (g *Bridge) answer(res *gateway.Result) (*gwpb.Result, error) {
	out := &gwpb.Result{Metadata: res.Metadata}
	for platform, list := range res.Attestations {
		for i := range list {
			a, err := gateway.AttestationToPB(&list[i])
			if err != nil {
				return nil, err
			}
			a.Ref = g.name(list[i].Ref)
			if out.Attestations == nil {
				out.Attestations = map[string]*gwpb.Attestations{}
			}
			if out.Attestations[platform] == nil {
				out.Attestations[platform] = &gwpb.Attestations{}
			}
			out.Attestations[platform].Attestation = append(out.Attestations[platform].Attestation, a)
		}
	}
	if len(res.Refs) > 0 {
		refs := map[string]*gwpb.Ref{}
		for k, r := range res.Refs {
			refs[k] = g.name(r)
		}
		out.Result = &gwpb.Result_Refs{Refs: &gwpb.RefMap{Refs: refs}}
		return out, nil
	}
	out.Result = &gwpb.Result_Ref{Ref: g.name(res.Ref)}
	return out, nil
}

// maxRefs bounds the results that one client may hold on to.
const maxRefs = 100_000

func (g *Bridge) name(r gateway.Reference) *gwpb.Ref {
	def := Definition(r)
	if def == nil {
		return &gwpb.Ref{} // scratch
	}
	id := identity.NewID()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.refs) < maxRefs {
		g.refs[id] = r
	}
	return &gwpb.Ref{Id: id, Def: def}
}

// Names gives the references of a result ids that the other side can use; scratch
// has none.
func (g *Bridge) Names(res *gateway.Result) []string {
	var ids []string
	add := func(r gateway.Reference) {
		if id := g.name(r).Id; id != "" {
			ids = append(ids, id)
		}
	}
	add(res.Ref)
	for _, k := range slices.Sorted(maps.Keys(res.Refs)) {
		add(res.Refs[k])
	}
	return ids
}

// ref finds a reference by the id that the client was given; "" is scratch, nil.
func (g *Bridge) ref(id string) (gateway.Reference, error) {
	if id == "" {
		return nil, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	r, ok := g.refs[id]
	if !ok {
		return nil, errdef.New(errdef.ErrNotFound, "return reference %s not found", id)
	}
	return r, nil
}

// bridgeSolve decodes a definition, or runs a frontend.
func bridgeSolve(ctx context.Context, g *Bridge, req *gwpb.SolveRequest) (*gateway.Result, error) {
	return g.client.Solve(ctx, gateway.SolveRequest{
		Definition: req.Definition, Frontend: req.Frontend, FrontendOpt: req.FrontendOpt, FrontendInputs: req.FrontendInputs, Evaluate: req.Evaluate,
		CacheImports: cacheImports(req), SourcePolicies: req.SourcePolicies,
	})
}

// Return takes the client's result, or its failure, and so ends its part.
func (s *Service) Return(ctx context.Context, req *gwpb.ReturnRequest) (*gwpb.ReturnResponse, error) {
	g, _, end, err := s.bridge(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	res, failure := &gateway.Result{}, error(nil)
	switch {
	case req.Error != nil:
		failure = grpcerrors.FromGRPC(status.ErrorProto(req.Error))
	case req.Result == nil:
		return nil, errdef.New(errdef.ErrInvalid, "return: got neither a result nor an error")
	default:
		if res, err = g.returned(req.Result); err == nil {
			err = g.attested(req.Result, res)
		}
		if err != nil {
			return nil, err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.done:
		return nil, errdef.New(errdef.ErrConflict, "return: the build has a result already")
	default:
	}
	g.result, g.err = res, failure
	close(g.done)
	return &gwpb.ReturnResponse{}, nil
}

// returned reads the result that a client returns.
func (g *Bridge) returned(in *gwpb.Result) (*gateway.Result, error) {
	res := &gateway.Result{Metadata: in.Metadata}
	ids := map[string]string{}
	switch r := in.Result.(type) {
	case *gwpb.Result_RefDeprecated:
		ref, err := g.ref(r.RefDeprecated)
		res.Ref = ref
		return res, err
	case *gwpb.Result_Ref:
		ref, err := g.ref(r.Ref.GetId())
		res.Ref = ref
		return res, err
	case *gwpb.Result_RefsDeprecated:
		ids = r.RefsDeprecated.GetRefs()
	case *gwpb.Result_Refs:
		for k, ref := range r.Refs.GetRefs() {
			ids[k] = ref.GetId()
		}
	}
	for k, id := range ids {
		ref, err := g.ref(id)
		if err != nil {
			return nil, err
		}
		res.AddRef(k, ref)
	}
	return res, nil
}

// Inputs are the definitions that the client gave its frontend.
func (s *Service) Inputs(ctx context.Context, _ *gwpb.InputsRequest) (*gwpb.InputsResponse, error) {
	g, ctx, end, err := s.bridge(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	states, err := g.client.Inputs(ctx)
	if err != nil {
		return nil, err
	}
	defs := map[string]*pb.Definition{}
	for name, st := range states {
		def, err := st.Marshal(ctx)
		if err != nil {
			return nil, errdef.As(errdef.ErrInvalid, err)
		}
		defs[name] = def.ToPB()
	}
	return &gwpb.InputsResponse{Definitions: defs}, nil
}

// Warn passes a warning to whoever watches the build.
func (s *Service) Warn(ctx context.Context, req *gwpb.WarnRequest) (*gwpb.WarnResponse, error) {
	g, ctx, end, err := s.bridge(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	err = g.client.Warn(ctx, digest.Digest(req.Digest), string(req.Short), gateway.WarnOpts{
		Level: int(req.Level), SourceInfo: req.Info, Range: req.Ranges, Detail: req.Detail, URL: req.Url,
	})
	return &gwpb.WarnResponse{}, err
}

func platformOf(p *pb.Platform) *ocispecs.Platform {
	if p == nil {
		return nil
	}
	out := oci.NormalizePlatform(ocispecs.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures})
	return &out
}

// ResolveImageConfig finds an image and returns its configuration.
func (s *Service) ResolveImageConfig(ctx context.Context, req *gwpb.ResolveImageConfigRequest) (*gwpb.ResolveImageConfigResponse, error) {
	g, ctx, end, err := s.bridge(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if err := g.policies(req.SourcePolicies); err != nil {
		return nil, err
	}
	opt := sourceresolver.Opt{LogName: req.LogName}
	if sourceresolver.ResolverType(req.ResolverType) == sourceresolver.ResolverTypeOCILayout {
		opt.OCILayoutOpt = &sourceresolver.ResolveOCILayoutOpt{
			Platform: platformOf(req.Platform), Store: sourceresolver.ResolveImageConfigOptStore{SessionID: req.SessionID, StoreID: req.StoreID},
		}
	} else {
		opt.ImageOpt = &sourceresolver.ResolveImageOpt{Platform: platformOf(req.Platform), ResolveMode: req.ResolveMode}
	}
	ref, dgst, config, err := g.client.ResolveImageConfig(ctx, req.Ref, opt)
	if err != nil {
		return nil, err
	}
	return &gwpb.ResolveImageConfigResponse{Ref: ref, Digest: dgst.String(), Config: config}, nil
}

// ResolveSourceMeta pins a source and says what it is.
func (s *Service) ResolveSourceMeta(ctx context.Context, req *gwpb.ResolveSourceMetaRequest) (*gwpb.ResolveSourceMetaResponse, error) {
	g, ctx, end, err := s.bridge(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if req.Source == nil {
		return nil, errdef.New(errdef.ErrInvalid, "source is required")
	}
	if err := g.policies(req.SourcePolicies); err != nil {
		return nil, err
	}
	p := platformOf(req.Platform)
	opt := sourceresolver.Opt{
		LogName:      req.LogName,
		ImageOpt:     ImageOpt(req, p),
		OCILayoutOpt: &sourceresolver.ResolveOCILayoutOpt{Platform: p},
	}
	if req.Git != nil {
		opt.GitOpt = &sourceresolver.ResolveGitOpt{ReturnObject: req.Git.ReturnObject}
	}
	if c := req.HTTP.GetChecksumRequest(); c != nil {
		opt.HTTPOpt = ChecksumOpt(c)
	}
	meta, err := g.client.ResolveSourceMetadata(ctx, req.Source, opt)
	if err != nil {
		return nil, err
	}
	return MetaResponse(meta), nil
}

// policies adds those of one call.
func (g *Bridge) policies(list []*spb.Policy) error {
	if c, ok := g.client.(*gw); ok {
		return c.engine.AddPolicies(list)
	}
	return nil
}

// ImageOpt is what is asked about an image.
func ImageOpt(req *gwpb.ResolveSourceMetaRequest, p *ocispecs.Platform) *sourceresolver.ResolveImageOpt {
	return &sourceresolver.ResolveImageOpt{
		Platform: p, ResolveMode: req.ResolveMode, NoConfig: req.Image.GetNoConfig(),
		AttestationChain: req.Image.GetAttestationChain(), ResolveAttestations: req.Image.GetResolveAttestations(),
	}
}

// ChecksumOpt asks for the digest of a file with bytes put behind it.
func ChecksumOpt(c *gwpb.ChecksumRequest) *sourceresolver.ResolveHTTPOpt {
	algo := map[gwpb.ChecksumRequest_ChecksumAlgo]sourceresolver.ResolveHTTPChecksumAlgo{
		gwpb.ChecksumRequest_CHECKSUM_ALGO_SHA256: sourceresolver.ResolveHTTPChecksumAlgoSHA256,
		gwpb.ChecksumRequest_CHECKSUM_ALGO_SHA384: sourceresolver.ResolveHTTPChecksumAlgoSHA384,
		gwpb.ChecksumRequest_CHECKSUM_ALGO_SHA512: sourceresolver.ResolveHTTPChecksumAlgoSHA512,
	}
	want, ok := algo[c.Algo]
	if !ok {
		want = sourceresolver.ResolveHTTPChecksumAlgo(-1) // refused by who resolves it
	}
	return &sourceresolver.ResolveHTTPOpt{ChecksumReq: &sourceresolver.ResolveHTTPChecksumRequest{Algo: want, Suffix: c.Suffix}}
}

// MetaResponse is what is known of a source in the words of the gateway.
func MetaResponse(m *sourceresolver.MetaResponse) *gwpb.ResolveSourceMetaResponse {
	out := &gwpb.ResolveSourceMetaResponse{Source: m.Op}
	if m.Image != nil {
		out.Image = &gwpb.ResolveSourceImageResponse{Digest: m.Image.Digest.String(), Config: m.Image.Config, AttestationChain: attestationChain(m.Image.AttestationChain)}
	}
	if m.Git != nil {
		out.Git = &gwpb.ResolveSourceGitResponse{
			Checksum: m.Git.Checksum, Ref: m.Git.Ref, CommitChecksum: m.Git.CommitChecksum, CommitObject: m.Git.CommitObject, TagObject: m.Git.TagObject,
		}
	}
	if m.HTTP != nil {
		out.HTTP = &gwpb.ResolveSourceHTTPResponse{Checksum: m.HTTP.Digest.String(), Filename: m.HTTP.Filename}
		if c := m.HTTP.ChecksumResponse; c != nil {
			out.HTTP.ChecksumResponse = &gwpb.ChecksumResponse{Digest: c.Digest, Suffix: c.Suffix}
		}
		if m.HTTP.LastModified != nil {
			out.HTTP.LastModified = timestamppb.New(*m.HTTP.LastModified)
		}
	}
	return out
}

// attestationChain is what is stated of an image in the words of the gateway.
func attestationChain(c *sourceresolver.AttestationChain) *gwpb.AttestationChain {
	if c == nil {
		return nil
	}
	out := &gwpb.AttestationChain{
		Root: c.Root.String(), ImageManifest: c.ImageManifest.String(), AttestationManifest: c.AttestationManifest.String(), Blobs: map[string]*gwpb.Blob{},
	}
	for _, d := range c.SignatureManifests {
		out.SignatureManifests = append(out.SignatureManifests, d.String())
	}
	for k, b := range c.Blobs {
		out.Blobs[k.String()] = &gwpb.Blob{
			Data:        b.Data,
			Descriptor_: &gwpb.Descriptor{MediaType: b.Descriptor.MediaType, Digest: b.Descriptor.Digest.String(), Size: b.Descriptor.Size, Annotations: b.Descriptor.Annotations},
		}
	}
	return out
}

// withRef calls f with a reference that is no scratch.
func (s *Service) withRef(ctx context.Context, id string, f func(ctx context.Context, r gateway.Reference) error) error {
	g, ctx, end, err := s.bridge(ctx)
	if err != nil {
		return err
	}
	defer end()
	r, err := g.ref(id)
	if err != nil {
		return err
	}
	if r == nil {
		return errdef.New(errdef.ErrNotFound, "no such file: the tree is empty")
	}
	return f(ctx, r)
}

// ReadFile reads a file of a result, or a part of one.
func (s *Service) ReadFile(ctx context.Context, req *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	out := &gwpb.ReadFileResponse{}
	err := s.withRef(ctx, req.Ref, func(ctx context.Context, r gateway.Reference) (err error) {
		q, err := readRequest(req)
		if err != nil {
			return err
		}
		out.Data, err = r.ReadFile(ctx, q)
		return err
	})
	return out, err
}

// readRequest says which part of a file is wanted.
func readRequest(req *gwpb.ReadFileRequest) (gateway.ReadRequest, error) {
	q := gateway.ReadRequest{Filename: req.FilePath}
	if req.Range != nil {
		if req.Range.Offset < 0 || req.Range.Length < 0 {
			return q, errdef.New(errdef.ErrInvalid, "read %s: got a negative range", req.FilePath)
		}
		q.Range = &gateway.FileRange{Offset: int(req.Range.Offset), Length: int(req.Range.Length)}
	}
	return q, nil
}

// ReadDir lists a directory of a result.
func (s *Service) ReadDir(ctx context.Context, req *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	out := &gwpb.ReadDirResponse{}
	err := s.withRef(ctx, req.Ref, func(ctx context.Context, r gateway.Reference) (err error) {
		out.Entries, err = r.ReadDir(ctx, gateway.ReadDirRequest{Path: req.DirPath, IncludePattern: req.IncludePattern})
		return err
	})
	return out, err
}

// StatFile describes a file of a result.
func (s *Service) StatFile(ctx context.Context, req *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	out := &gwpb.StatFileResponse{}
	err := s.withRef(ctx, req.Ref, func(ctx context.Context, r gateway.Reference) (err error) {
		out.Stat, err = r.StatFile(ctx, gateway.StatRequest{Path: req.Path})
		return err
	})
	return out, err
}

// Evaluate makes a result.
func (s *Service) Evaluate(ctx context.Context, req *gwpb.EvaluateRequest) (*gwpb.EvaluateResponse, error) {
	err := s.withRef(ctx, req.Ref, func(ctx context.Context, r gateway.Reference) error { return r.Evaluate(ctx) })
	return &gwpb.EvaluateResponse{}, err
}

// Solve decodes a definition into a reference, or runs a frontend.
func (s *Service) Solve(ctx context.Context, req *gwpb.SolveRequest) (*gwpb.SolveResponse, error) {
	g, ctx, end, err := s.bridge(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	res, err := bridgeSolve(ctx, g, req)
	if err != nil {
		return nil, err
	}
	out, err := g.answer(res)
	if err != nil {
		return nil, err
	}
	if !req.AllowResultReturn {
		return &gwpb.SolveResponse{Ref: out.GetRef().GetId(), Result: out}, nil
	}
	return &gwpb.SolveResponse{Result: out}, nil
}

// cacheImports are those of one call of a gateway's Solve.
func cacheImports(req *gwpb.SolveRequest) []gateway.CacheOptionsEntry {
	var out []gateway.CacheOptionsEntry
	for _, e := range req.CacheImports {
		if e != nil {
			out = append(out, gateway.CacheOptionsEntry{Type: e.Type, Attrs: e.Attrs})
		}
	}
	return out
}
