package provenance

//lint:file-ignore SA1019 BuildKit's predicates have dependencies in this older form

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/llb"
	"dhow/internal/oci"

	slsa "github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/common"
	slsa02 "github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/v0.2"
	slsa1 "github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/v1"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/version"
	types "github.com/moby/buildkit/solver/llbsolver/provenance/types"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/urlutil"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/package-url/packageurl-go"
)

// Options are the values of --provenance.
type Options struct {
	Max               bool // tell all, not the least
	Version           types.ProvenanceSLSA
	Filename          string
	InlineOnly        bool // only where it costs nothing
	BuilderID         string
	Reproducible      bool
	CompleteMaterials bool // fail when a source cannot be named
}

// ParseOptions reads them. ErrInvalid.
func ParseOptions(attrs map[string]string) (Options, error) {
	o := Options{Max: true, Version: types.ProvenanceSLSA1, Filename: "provenance.json"}
	flag := func(k string, to *bool) error {
		v, ok := attrs[k]
		if !ok {
			return nil
		}
		b, err := strconv.ParseBool(v)
		if err != nil {
			return errdef.New(errdef.ErrInvalid, "failed to parse %s flag %q", k, v)
		}
		*to = b
		return nil
	}
	for k, v := range attrs {
		switch k {
		case "mode":
			switch v {
			case "min":
				o.Max = false
			case "max", "full":
			default:
				return o, errdef.New(errdef.ErrInvalid, "invalid mode %q", v)
			}
		case "version":
			o.Version = types.ProvenanceSLSA(v)
			if err := o.Version.Validate(); err != nil {
				return o, errdef.As(errdef.ErrInvalid, err)
			}
		case "filename":
			o.Filename = v
		case "builder-id":
			o.BuilderID = v
		case "inline-only":
			o.InlineOnly, _ = strconv.ParseBool(v) // as BuildKit: what is no truth is false
		}
	}
	if err := flag("reproducible", &o.Reproducible); err != nil {
		return o, err
	}
	return o, flag("complete-materials", &o.CompleteMaterials)
}

// PredicateType is the type of the predicate of that version.
func (o Options) PredicateType() string {
	if o.Version == types.ProvenanceSLSA02 {
		return slsa02.PredicateSLSAProvenance
	}
	return slsa1.PredicateSLSAProvenance
}

// Facts are what a predicate is made of beside its Capture.
type Facts struct {
	Builder           string // platform of the machine
	ID                string // of the build
	Started, Finished time.Time
	Custom            map[string]any // the operator's own parameters
	Definition        *pb.Definition // of the result; nil: empty
	// Layers are those that an operation's outputs have, where they are known.
	Layers func(v *llb.Vertex, output int) []ocispecs.Descriptor
}

// Predicate makes the statement's predicate, as indented JSON. ErrInvalid when
// complete materials are asked for and there are none.
func Predicate(c *Capture, o Options, f Facts) ([]byte, error) {
	p, err := c.predicate()
	if err != nil {
		return nil, err
	}
	meta := p.RunDetails.Metadata
	if o.CompleteMaterials && !meta.Completeness.ResolvedDependencies {
		return nil, incomplete(c)
	}
	meta.InvocationID, meta.StartedOn, meta.FinishedOn, meta.Reproducible = f.ID, &f.Started, &f.Finished, o.Reproducible
	p.RunDetails.Builder.ID = o.BuilderID
	p.BuildDefinition.InternalParameters.BuilderPlatform = f.Builder
	p.BuildDefinition.InternalParameters.ProvenanceCustomEnv = f.Custom
	req := &p.BuildDefinition.ExternalParameters.Request
	if req.Frontend == "dockerfile.v0" {
		p.BuildDefinition.InternalParameters.DockerfileVersion = dockerfile.Version()
	}
	if !o.Max {
		if minimise(req) {
			meta.Completeness.Request = false
		}
	} else if err := f.buildConfig(p); err != nil {
		return nil, err
	}
	if o.Version == types.ProvenanceSLSA02 {
		return json.MarshalIndent(p.ConvertToSLSA02(), "", "  ")
	}
	return json.MarshalIndent(p, "", "  ")
}

// predicate is what the capture alone decides.
func (c *Capture) predicate() (*types.ProvenancePredicateSLSA1, error) {
	deps, err := c.dependencies()
	if err != nil {
		return nil, err
	}
	asked := Asked(c.Request.Frontend, c.Request.Args, c.Sources)
	req := c.Request.Clone()
	req.Args = asked.Request.Args
	of := vcs(req.Args)
	for _, l := range c.Sources.Local {
		req.Locals = append(req.Locals, &types.LocalSource{Name: l.Name})
	}
	whole := !c.Incomplete && len(c.Sources.Local) == 0
	p := &types.ProvenancePredicateSLSA1{}
	p.BuildDefinition.BuildType = types.BuildKitBuildType1
	p.BuildDefinition.ResolvedDependencies = deps
	p.BuildDefinition.ExternalParameters = types.ProvenanceExternalParametersSLSA1{ConfigSource: asked.ConfigSource, Request: *req}
	p.RunDetails.Metadata = &types.ProvenanceMetadataSLSA1{
		Completeness: types.BuildKitComplete{Request: c.Request.Frontend != "", ResolvedDependencies: whole},
		Hermetic:     whole && !c.Network,
	}
	p.RunDetails.Metadata.BuildKitMetadata.VCS = of
	return p, nil
}

// dependencies are the sources as package URLs and addresses, with digests.
func (c *Capture) dependencies() ([]slsa1.ResourceDescriptor, error) {
	var out []slsa1.ResourceDescriptor
	add := func(uri string, d slsa.DigestSet) { out = append(out, slsa1.ResourceDescriptor{URI: uri, Digest: d}) }
	kind := func(local bool) string {
		if local {
			return packageurl.TypeOCI
		}
		return packageurl.TypeDocker
	}
	for _, i := range c.Sources.Images {
		uri, err := oci.PackageURL(kind(i.Local), i.Ref, i.Platform)
		if err != nil {
			return nil, err
		}
		add(uri, digestSet(i.Digest))
	}
	for _, b := range c.Sources.ImageBlobs {
		uri, err := blobURL(kind(b.Local), b.Ref, map[string]string{"ref_type": "blob"})
		if err != nil {
			return nil, err
		}
		add(uri, digestSet(b.Digest))
	}
	for _, g := range c.Sources.Git {
		add(g.URL, commitDigest(g.Commit))
		if g.Bundle == nil {
			continue
		}
		scheme, ref, _ := strings.Cut(g.Bundle.URL, "://")
		uri, err := blobURL(kind(scheme == "oci-layout+blob"), ref, map[string]string{"ref_type": "bundle", "vcs_url": g.URL})
		if err != nil {
			return nil, err
		}
		add(uri, digestSet(pinOf(ref, "")))
	}
	for _, h := range c.Sources.HTTP {
		add(h.URL, digestSet(h.Digest))
	}
	return out, nil
}

// blobURL is the package URL of a blob with qualifiers that say what it is.
func blobURL(kind, ref string, qualifiers map[string]string) (string, error) {
	uri, err := oci.PackageURL(kind, ref, nil)
	if err != nil {
		return "", err
	}
	u, err := packageurl.FromString(uri)
	if err != nil {
		return "", errdef.New(errdef.ErrInvalid, "name blob %s: %w", ref, err)
	}
	for _, k := range slices.Sorted(maps.Keys(qualifiers)) {
		u.Qualifiers = append(u.Qualifiers, packageurl.Qualifier{Key: k, Value: qualifiers[k]})
	}
	return u.ToString(), nil
}

func digestSet(d digest.Digest) slsa.DigestSet {
	if d.Validate() != nil {
		return nil
	}
	return slsa.DigestSet{d.Algorithm().String(): d.Encoded()}
}

// incomplete says which sources cannot be named.
func incomplete(c *Capture) error {
	var names []string
	for _, l := range c.Sources.Local {
		names = append(names, "\n  - "+cmp.Or(l.Name, "<unnamed>")+"\n    reason: local_source")
	}
	text := "provenance materials are incomplete\n\nThe build requested complete provenance materials, but not all dependencies could be captured."
	if len(names) > 0 {
		text += "\n\nUncaptured local sources:" + strings.Join(names, "")
	}
	return errdef.New(errdef.ErrInvalid, "%s", text)
}

// buildConfig adds every operation, its place in the Dockerfile and its layers.
func (f Facts) buildConfig(p *types.ProvenancePredicateSLSA1) error {
	steps, numbers, graph, err := buildSteps(f.Definition)
	if err != nil || graph == nil {
		return err
	}
	p.BuildDefinition.InternalParameters.BuildConfig = &types.BuildConfig{Definition: steps, DigestMapping: mapping(numbers)}
	meta := &p.RunDetails.Metadata.BuildKitMetadata
	if src := f.Definition.Source; src != nil && len(src.Infos) > 0 {
		meta.Source = &types.Source{Locations: map[string]*pb.Locations{}}
		for _, info := range src.Infos {
			def, of, _, err := buildSteps(info.Definition)
			if err != nil {
				return err
			}
			s := types.SourceInfo{Filename: info.Filename, Language: info.Language, Data: info.Data, Definition: def}
			if of != nil {
				s.DigestMapping = mapping(of)
			}
			meta.Source.Infos = append(meta.Source.Infos, s)
		}
		for d, l := range src.Locations {
			if n, ok := numbers[digest.Digest(d)]; ok {
				meta.Source.Locations[stepID(n)] = l
			}
		}
	}
	if f.Layers == nil {
		return nil
	}
	for _, v := range graph.Vertices {
		for output := range llb.Outputs(v) {
			list := f.Layers(v, output)
			if len(list) == 0 {
				continue
			}
			if meta.Layers == nil {
				meta.Layers = map[string][][]ocispecs.Descriptor{}
			}
			meta.Layers[fmt.Sprintf("%s:%d", stepID(numbers[v.Digest]), output)] = [][]ocispecs.Descriptor{list}
		}
	}
	return nil
}

func stepID(n int) string { return "step" + strconv.Itoa(n) }

func mapping(numbers map[digest.Digest]int) map[digest.Digest]string {
	out := map[digest.Digest]string{}
	for d, n := range numbers {
		out[d] = stepID(n)
	}
	return out
}

// buildSteps numbers the operations of a definition, inputs before users, the
// last being the one that names the result. What differs from client to client
// and changes no result is left out.
func buildSteps(def *pb.Definition) ([]types.BuildStep, map[digest.Digest]int, *llb.Graph, error) {
	g, err := llb.Decode(def)
	if err != nil || g.Root == nil {
		return nil, nil, nil, err
	}
	numbers := map[digest.Digest]int{}
	var steps []types.BuildStep
	add := func(d digest.Digest, op *pb.Op) {
		s := types.BuildStep{ID: stepID(len(steps)), Op: op, Inputs: []string{}}
		for _, in := range op.Inputs {
			s.Inputs = append(s.Inputs, fmt.Sprintf("%s:%d", stepID(numbers[digest.Digest(in.Digest)]), in.Index))
		}
		op.Inputs = nil
		numbers[d] = len(steps)
		steps = append(steps, s)
	}
	for _, v := range g.Vertices {
		op := v.Op.CloneVT()
		if src := op.GetSource(); src != nil {
			delete(src.Attrs, pb.AttrLocalSessionID)
			delete(src.Attrs, pb.AttrLocalUniqueID)
			src.Identifier = urlutil.RedactCredentials(src.Identifier)
			if at, ok := src.Attrs[pb.AttrFullRemoteURL]; ok {
				src.Attrs[pb.AttrFullRemoteURL] = urlutil.RedactCredentials(at)
			}
		}
		add(v.Digest, op)
	}
	end := def.Def[len(def.Def)-1]
	last := &pb.Op{}
	if err := last.UnmarshalVT(end); err != nil {
		return nil, nil, nil, errdef.New(errdef.ErrInvalid, "decode the last operation: %w", err)
	}
	add(digest.FromBytes(end), last)
	return steps, numbers, g, nil
}
