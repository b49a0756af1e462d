package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/frontend"
	"dhow/internal/llb"
	"dhow/internal/oci"
	"dhow/internal/provenance"
	"dhow/internal/sys"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	bkllb "github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/attestations"
	"github.com/moby/buildkit/frontend/attestations/sbom"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	types "github.com/moby/buildkit/solver/llbsolver/provenance/types"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/solver/result"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// ParseAttests reads the attributes attest:provenance and attest:sbom, as
// clients of BuildKit send them, and the build arguments that stand for them.
// ErrInvalid.
func ParseAttests(attrs map[string]string) (map[string]map[string]string, error) {
	a, err := attestations.Parse(attrs)
	if err != nil {
		return nil, errdef.As(errdef.ErrInvalid, err)
	}
	for kind, values := range a {
		if off := values["disabled"]; off == "true" || off == "1" {
			delete(a, kind)
		}
	}
	return a, nil
}

// attest makes what is stated of each target: what frontends said, a list of
// what is in it, and where it came from.
func (b *building) attest(ctx context.Context, br *bridge, res *frontend.Result) ([][]export.Attestation, error) {
	if err := b.scan(ctx, br, res); err != nil {
		return nil, err
	}
	var prov *provenance.Options
	if attrs, ok := b.job.Attests[attestations.KeyTypeProvenance]; ok {
		o, err := provenance.ParseOptions(attrs)
		if err != nil {
			return nil, err
		}
		prov = &o
	}
	all := make([][]export.Attestation, len(res.Targets))
	for i, t := range res.Targets {
		for _, a := range t.Attestations {
			list, err := b.unbundle(ctx, br, a)
			if err != nil {
				return nil, err
			}
			all[i] = append(all[i], list...)
		}
		// What describes the whole comes first.
		slices.SortStableFunc(all[i], func(x, y export.Attestation) int {
			switch {
			case x.Core == y.Core:
				return 0
			case x.Core:
				return -1
			}
			return 1
		})
		if prov == nil || t.Call == nil {
			continue
		}
		a, err := b.originOf(ctx, res, t, *prov)
		if err != nil {
			return nil, err
		}
		all[i] = append(all[i], a)
	}
	return all, nil
}

// recordOrigins is the provenance of each target for the record of the build. One
// that cannot be made is left out: nobody asked for it.
func (b *building) recordOrigins(res *frontend.Result) map[string][]byte {
	out := map[string][]byte{}
	o, err := provenance.ParseOptions(map[string]string{"builder-id": b.job.Attests[attestations.KeyTypeProvenance]["builder-id"]})
	if err != nil {
		return nil
	}
	for _, t := range res.Targets {
		if t.Call == nil {
			continue
		}
		if raw, err := provenance.Predicate(b.capture(res, t), o, b.facts(t)); err == nil {
			out[t.ID] = raw
		}
	}
	return out
}

// originOf is the provenance of a target.
func (b *building) originOf(ctx context.Context, res *frontend.Result, t frontend.Target, o provenance.Options) (export.Attestation, error) {
	c, facts := b.capture(res, t), b.facts(t)
	// Once now, for what is wrong with it; again when the layers are known.
	if _, err := provenance.Predicate(c, o, facts); err != nil {
		return export.Attestation{}, err
	}
	return export.Attestation{
		Name: o.Filename, PredicateType: o.PredicateType(), InlineOnly: o.InlineOnly,
		Predicate: func(_ context.Context, layers export.LayerFunc) ([]byte, error) {
			facts.Finished = time.Now()
			facts.Layers = func(v *llb.Vertex, output int) []ocispecs.Descriptor {
				rec, ok, err := b.solver.Peek(ctx, v)
				if err != nil || !ok || output >= len(rec.Outputs) {
					return nil
				}
				return layers(ctx, rec.Outputs[output].Chain)
			}
			return provenance.Predicate(c, o, facts)
		},
	}, nil
}

// facts are what is known of a target beside what it was made from.
func (b *building) facts(t frontend.Target) provenance.Facts {
	return provenance.Facts{
		Builder: platforms.Format(platforms.Normalize(oci.HostPlatform())), ID: b.id, Started: b.started, Finished: time.Now(),
		Custom: b.job.ProvenanceEnv, Definition: t.Def,
	}
}

// capture collects what a target was made from.
func (b *building) capture(res *frontend.Result, t frontend.Target) *provenance.Capture {
	pins := b.pins()
	c := &provenance.Capture{}
	add := func(e llb.Edge) {
		for _, v := range llb.Below(e.Vertex) {
			c.AddVertex(v, pins[v.Digest.String()])
		}
	}
	add(*t.Edge)
	b.asked(c, t.Call, pins)
	for _, e := range t.Call.Used() {
		if !isTarget(res, e) {
			add(e)
		}
	}
	for _, i := range imagesOf(res, t) {
		c.AddImage(types.ImageSource{Ref: i.Ref, Platform: i.Platform, Digest: i.Digest, Local: i.Local})
	}
	c.Tidy()
	return c
}

// pins are what sources stood for, by vertex.
func (b *building) pins() map[string]string {
	pins := map[string]string{}
	for _, s := range b.solver.Steps() {
		if s.Pin != "" {
			pins[s.Vertex.Digest.String()] = s.Pin
		}
	}
	return pins
}

// isTarget reports whether an edge is, or attests, one of the results.
func isTarget(res *frontend.Result, e llb.Edge) bool {
	same := func(o *llb.Edge) bool { return o != nil && o.Vertex.Digest == e.Vertex.Digest && o.Index == e.Index }
	for _, t := range res.Targets {
		if same(t.Edge) || slices.ContainsFunc(t.Attestations, func(a frontend.Attestation) bool { return same(a.Edge) }) {
			return true
		}
	}
	return false
}

// imagesOf are the images that a target's frontend has asked about; of those
// that it asked about for every platform, the target's own.
func imagesOf(res *frontend.Result, t frontend.Target) []frontend.Image {
	all := t.Call.Images()
	if !res.Multi {
		return all
	}
	everywhere := func(ref string) bool {
		for _, other := range res.Targets {
			fits := platforms.NewMatcher(other.Platform)
			if !slices.ContainsFunc(all, func(i frontend.Image) bool { return i.Ref == ref && i.Platform != nil && fits.Match(*i.Platform) }) {
				return false
			}
		}
		return true
	}
	return slices.DeleteFunc(all, func(i frontend.Image) bool {
		other := i.Platform != nil && (i.Platform.OS != t.Platform.OS || i.Platform.Architecture != t.Platform.Architecture)
		return other && everywhere(i.Ref)
	})
}

// asked writes into c what the call's frontend was asked for.
func (b *building) asked(c *provenance.Capture, call *frontend.Call, pins map[string]string) {
	if call.Request == nil {
		return
	}
	c.Request.Frontend, c.Request.Args = call.Request.Frontend, provenance.Args(call.Request.Attrs)
	c.Request.Inputs = b.inputs(call, call.Request, pins, maxInputDepth)
	own := provenance.Asked(c.Request.Frontend, c.Request.Args, c.Sources)
	own.Request.Inputs = c.Request.Inputs
	if root := b.rootOf(call, c.Sources, pins, maxInputDepth); root != nil && !root.Equal(own) {
		c.Request.Root = root
	}
}

// maxInputDepth bounds how far inputs of inputs are followed.
const maxInputDepth = 8

// rootOf is what the client asked for; nil when it asked for nothing.
func (b *building) rootOf(call *frontend.Call, sources types.Sources, pins map[string]string, depth int) *types.RequestProvenance {
	if call.Root == nil {
		return nil
	}
	root := provenance.Asked(call.Root.Frontend, provenance.Args(call.Root.Attrs), sources)
	root.Request.Inputs = b.inputs(call, call.Root, pins, depth)
	if root.Request.Frontend == "" && len(root.Request.Args) == 0 && len(root.Request.Inputs) == 0 {
		return nil
	}
	return root
}

// inputs says of each input of a request which frontend made it, as far as that
// is known and unambiguous.
func (b *building) inputs(call *frontend.Call, r *frontend.Request, pins map[string]string, depth int) map[string]*types.RequestProvenance {
	out := map[string]*types.RequestProvenance{}
	for name, def := range r.Inputs {
		var made *types.RequestProvenance
		same := true
		for _, p := range call.Producers(def) {
			req := b.produced(p, def, pins, depth-1)
			if req == nil {
				continue
			}
			same = same && (made == nil || made.Equal(req))
			made = req
		}
		if made != nil && same {
			out[name] = made
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// produced is the request for which a call made a definition.
func (b *building) produced(p *frontend.Call, def *pb.Definition, pins map[string]string, depth int) *types.RequestProvenance {
	if p.Request == nil || depth < 0 {
		return nil
	}
	c := &provenance.Capture{}
	if g, err := llb.Decode(def); err == nil {
		for _, v := range g.Vertices {
			c.AddVertex(v, pins[v.Digest.String()])
		}
	}
	req := provenance.Asked(p.Request.Frontend, provenance.Args(p.Request.Attrs), c.Sources)
	req.Request.Inputs = b.inputs(p, p.Request, pins, depth)
	return req
}

// scan runs the scanner on targets that no frontend has scanned.
func (b *building) scan(ctx context.Context, br *bridge, res *frontend.Result) error {
	attrs, ok := b.job.Attests[attestations.KeyTypeSbom]
	if !ok {
		return nil
	}
	for _, t := range res.Targets {
		for _, a := range t.Attestations {
			if a.InToto.PredicateType == predicateSPDX {
				return nil
			}
		}
	}
	generator, err := reference.ParseNormalizedNamed(attrs["generator"])
	if err != nil {
		return errdef.New(errdef.ErrInvalid, "failed to parse sbom generator %s: %w", attrs["generator"], err)
	}
	params := map[string]string{}
	for k, v := range attrs {
		if k != "generator" {
			params[k] = v
		}
	}
	host := oci.HostPlatform()
	client := frontend.NewClient(br, frontend.Options{Platforms: []ocispecs.Platform{host}})
	scanner, err := sbom.CreateSBOMScanner(ctx, client, reference.TagNameOnly(generator).String(), host, sourceresolver.Opt{
		ImageOpt: &sourceresolver.ResolveImageOpt{Platform: &host},
	}, params)
	if err != nil {
		return err
	}
	for i := range res.Targets {
		t := &res.Targets[i]
		if t.Edge == nil {
			continue
		}
		op, err := bkllb.NewDefinitionOp(t.Def)
		if err != nil {
			return errdef.As(errdef.ErrInvalid, err)
		}
		a, err := scanner(ctx, t.ID, bkllb.NewState(op), nil)
		if err != nil {
			return err
		}
		def, err := a.Ref.Marshal(ctx)
		if err != nil {
			return errdef.As(errdef.ErrInvalid, err)
		}
		g, err := llb.Decode(def.ToPB())
		if err != nil {
			return err
		}
		made := frontend.Attestation{Edge: g.Root}
		made.Kind, made.Metadata, made.Path, made.InToto = a.Kind, a.Metadata, a.Path, a.InToto
		t.Attestations = append(t.Attestations, made)
	}
	return nil
}

// predicateSPDX is the type of statements that list what is in a tree.
const predicateSPDX = "https://spdx.dev/Document"

// unbundle reads the statements that an attestation of a frontend stands for.
func (b *building) unbundle(ctx context.Context, br *bridge, a frontend.Attestation) ([]export.Attestation, error) {
	inline := string(a.Metadata[result.AttestationInlineOnlyKey]) == "true"
	core := string(a.Metadata[result.AttestationSBOMCore])
	isCore := func(name string) bool {
		stem, _, _ := strings.Cut(path.Base(name), ".")
		return core != "" && stem == core
	}
	if a.Edge == nil {
		return nil, errdef.New(errdef.ErrInvalid, "attestation %s: no available content for attestation", a.Path)
	}
	switch a.Kind {
	case gwpb.AttestationKind_InToto:
		if strings.HasPrefix(a.InToto.PredicateType, provenancePrefix) {
			return nil, errdef.New(errdef.ErrInvalid, "frontend may not set provenance attestations")
		}
		raw, err := br.attested(ctx, *a.Edge, a.Path)
		if err != nil {
			return nil, err
		}
		out := export.Attestation{Name: a.Path, PredicateType: a.InToto.PredicateType, InlineOnly: inline, Predicate: stated(raw)}
		out.Core = out.PredicateType == predicateSPDX && isCore(a.Path)
		for _, s := range a.InToto.Subjects {
			out.Subjects = append(out.Subjects, export.Subject{Self: s.Kind == gwpb.InTotoSubjectKind_Self, Name: s.Name, Digest: result.ToDigestMap(s.Digest...)})
		}
		return []export.Attestation{out}, nil
	case gwpb.AttestationKind_Bundle:
	default:
		return nil, errdef.New(errdef.ErrInvalid, "attestation %s: kind %d is not known", a.Path, a.Kind)
	}
	entries, err := br.ReadDir(ctx, *a.Edge, inTree(a.Path), "")
	if err != nil {
		return nil, err
	}
	var list []export.Attestation
	for _, e := range entries {
		name := path.Join(a.Path, e.Path)
		raw, err := br.attested(ctx, *a.Edge, name)
		if err != nil {
			return nil, err
		}
		s, err := statement(raw, name)
		if err != nil {
			return nil, err
		}
		switch {
		case strings.HasPrefix(s.PredicateType, provenancePrefix):
			return nil, errdef.New(errdef.ErrInvalid, "frontend may not bundle provenance attestations")
		case a.InToto.PredicateType != "" && s.PredicateType != a.InToto.PredicateType:
			return nil, errdef.New(errdef.ErrInvalid, "bundle entry %s does not match required predicate type %s", s.PredicateType, a.InToto.PredicateType)
		}
		out := export.Attestation{Name: name, PredicateType: s.PredicateType, InlineOnly: inline, Predicate: stated(s.Predicate)}
		out.Core = out.PredicateType == predicateSPDX && isCore(name)
		for _, sub := range s.Subject {
			out.Subjects = append(out.Subjects, export.Subject{Name: sub.Name, Digest: sub.Digest})
		}
		list = append(list, out)
	}
	return list, nil
}

// provenancePrefix begins the types that only the builder may state.
const provenancePrefix = "https://slsa.dev/provenance/"

// stated is a predicate that is known.
func stated(raw []byte) func(context.Context, export.LayerFunc) ([]byte, error) {
	return func(context.Context, export.LayerFunc) ([]byte, error) { return raw, nil }
}

// maxAttestation bounds one statement of a frontend, in bytes.
const maxAttestation = 40 << 20

// attested reads one file of a frontend's statements.
func (b *bridge) attested(ctx context.Context, e llb.Edge, name string) ([]byte, error) {
	res, err := b.solve(ctx, e)
	if err != nil {
		return nil, err
	}
	tree, err := b.root(ctx, res)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	f, err := sys.OpenInRoot(tree, inTree(name), unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot read in-toto attestation: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, errdef.New(errdef.ErrInvalid, "%s is not a regular file", name))
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxAttestation+1))
	if err == nil && len(raw) > maxAttestation {
		err = errdef.New(errdef.ErrInvalid, "%s exceeds %d bytes", name, maxAttestation)
	}
	return raw, err
}

// inTotoStatement is what is read of a statement.
type inTotoStatement struct {
	PredicateType string `json:"predicateType"`
	Subject       []struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	} `json:"subject"`
	Predicate json.RawMessage `json:"predicate"`
}

func statement(raw []byte, name string) (s inTotoStatement, err error) {
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, errdef.New(errdef.ErrInvalid, "cannot decode in-toto statement %s: %w", name, err)
	}
	return s, nil
}
