package engine

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"dhow/internal/buildop"
	"dhow/internal/errdef"
	"dhow/internal/frontend"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/sourcepolicy"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// PolicyCheck asks somebody else about a source.
type PolicyCheck func(context.Context, *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error)

// policy decides what sources a build may use, and what is used in their place.
// Safe for concurrent use.
type policy struct {
	deps  *buildop.Deps
	check PolicyCheck // nil: nobody is asked

	mu     sync.Mutex
	rules  []*spb.Policy        // guarded by mu
	engine *sourcepolicy.Engine // guarded by mu; of rules
}

// ValidPolicy refuses policies with holes. ErrInvalid.
func ValidPolicy(p *spb.Policy) error {
	for _, r := range p.GetRules() {
		switch {
		case r == nil:
			return errdef.New(errdef.ErrInvalid, "invalid nil rule in policy")
		case r.Selector == nil:
			return errdef.New(errdef.ErrInvalid, "invalid nil selector in policy")
		case slices.Contains(r.Selector.Constraints, nil):
			return errdef.New(errdef.ErrInvalid, "invalid nil constraint in policy")
		}
	}
	return nil
}

// add adds policies, which hold for whatever is looked up from now on.
func (p *policy) add(list []*spb.Policy) error {
	for _, l := range list {
		if l == nil {
			return errdef.New(errdef.ErrInvalid, "invalid nil policy")
		}
		if err := ValidPolicy(l); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = append(p.rules, list...)
	p.engine = sourcepolicy.NewEngine(slices.Clone(p.rules))
	return nil
}

// maxPolicyRounds bounds how often a source is asked about.
const maxPolicyRounds = 10

// apply implements buildop.Options.Policy.
func (p *policy) apply(ctx context.Context, platform *pb.Platform, op *pb.SourceOp) (*pb.SourceOp, error) {
	op = op.CloneVT()
	for range maxPolicyRounds {
		op.Identifier = normalSource(op.Identifier)
		p.mu.Lock()
		engine := p.engine
		p.mu.Unlock()
		if _, err := engine.Evaluate(ctx, op); err != nil {
			return nil, errdef.As(errdef.ErrDenied, err)
		}
		if p.check == nil {
			return op, nil
		}
		again, err := p.ask(ctx, platform, op)
		if err != nil || !again {
			return op, err
		}
	}
	return nil, errdef.New(errdef.ErrInvalid, "too many policy requests")
}

// normalSource gives an image its full name, which is what policies know.
func normalSource(id string) string {
	name, ok := strings.CutPrefix(id, "docker-image://")
	if !ok {
		return id
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return id
	}
	return "docker-image://" + reference.TagNameOnly(ref).String()
}

// ask has the client decide, and tells it of the source what it wants to know.
// again says that the client put another source in its place.
func (p *policy) ask(ctx context.Context, platform *pb.Platform, op *pb.SourceOp) (again bool, err error) {
	req := &policysession.CheckPolicyRequest{Platform: platform, Source: &gwpb.ResolveSourceMetaResponse{Source: op}}
	for range maxPolicyRounds {
		res, err := p.check(ctx, req)
		if err != nil {
			return false, err
		}
		if want := res.GetRequest(); want != nil {
			if want.Source.GetIdentifier() != op.Identifier || !maps.Equal(want.Source.GetAttrs(), op.Attrs) {
				return false, errdef.New(errdef.ErrInvalid, "policy requested different source identifier: %q != %q", want.Source.GetIdentifier(), op.Identifier)
			}
			meta, err := p.deps.Describe(ctx, want.Source, policyOpt(want))
			if err != nil {
				return false, err
			}
			req.Source = frontend.MetaResponse(meta)
			continue
		}
		d := res.GetDecision()
		switch {
		case d == nil:
			return false, errdef.New(errdef.ErrInvalid, "no decision in policy response")
		case d.Action == spb.PolicyAction_CONVERT && d.Update == nil:
			return false, errdef.New(errdef.ErrInvalid, "convert action requires updated source")
		case d.Action == spb.PolicyAction_CONVERT:
			op.Identifier, op.Attrs = d.Update.Identifier, d.Update.Attrs
			return true, nil
		case d.Action != spb.PolicyAction_ALLOW:
			err := errdef.New(errdef.ErrDenied, "source %q not allowed by policy: action %s", op.Identifier, d.Action)
			return false, policysession.WrapDenyMessages(err, d.GetDenyMessages())
		}
		return false, nil
	}
	return false, errdef.New(errdef.ErrInvalid, "too many policy requests")
}

// policyOpt is what a policy wants to know of a source.
func policyOpt(want *gwpb.ResolveSourceMetaRequest) sourceresolver.Opt {
	o := sourceresolver.Opt{LogName: want.LogName, ImageOpt: frontend.ImageOpt(want, nil)}
	if pl := want.Platform; pl != nil {
		o.ImageOpt.Platform = &ocispecs.Platform{OS: pl.OS, Architecture: pl.Architecture, Variant: pl.Variant, OSVersion: pl.OSVersion, OSFeatures: pl.OSFeatures}
	}
	o.OCILayoutOpt = &sourceresolver.ResolveOCILayoutOpt{Platform: o.ImageOpt.Platform}
	if want.Git != nil {
		o.GitOpt = &sourceresolver.ResolveGitOpt{ReturnObject: want.Git.ReturnObject}
	}
	if c := want.HTTP.GetChecksumRequest(); c != nil {
		o.HTTPOpt = frontend.ChecksumOpt(c)
	}
	return o
}
