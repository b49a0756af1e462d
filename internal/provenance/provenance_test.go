package provenance

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/internal/llb"

	bkllb "github.com/moby/buildkit/client/llb"
	types "github.com/moby/buildkit/solver/llbsolver/provenance/types"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const busybox = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// captured is the capture of a small build, and its facts.
func captured(t *testing.T) (*Capture, Facts) {
	t.Helper()
	st := bkllb.Image("busybox:latest@"+busybox, bkllb.LinuxAmd64).Run(bkllb.Shlex("make"),
		bkllb.AddMount("/src", bkllb.Local("context")), bkllb.AddSecret("/s", bkllb.SecretID("token")), bkllb.AddMount("/g", bkllb.Git("https://me:pass@example.com/r.git", "main"))).Root()
	def, err := st.Marshal(context.Background(), bkllb.LinuxAmd64)
	if err != nil {
		t.Fatal(err)
	}
	g, err := llb.Decode(def.ToPB())
	if err != nil {
		t.Fatal(err)
	}
	c := &Capture{}
	for _, v := range g.Vertices {
		pin := ""
		if strings.HasPrefix(v.Op.GetSource().GetIdentifier(), "git://") {
			pin = strings.Repeat("c", 40)
		}
		c.AddVertex(v, pin)
	}
	c.Request.Frontend = "dockerfile.v0"
	c.Request.Args = Args(map[string]string{
		"build-arg:A": "b", "filename": "Dockerfile", "vcs:source": "https://u:p@example.com/x.git", "platform": "linux/amd64", "attest:sbom": "",
		"context:other": "https://u:p@example.com/o",
	})
	c.AddImage(types.ImageSource{Ref: "docker.io/library/busybox:latest", Platform: &ocispecs.Platform{OS: "linux", Architecture: "amd64"}, Digest: busybox})
	c.Tidy()
	layer := ocispecs.Descriptor{Digest: busybox, Size: 7}
	return c, Facts{
		Builder: "linux/amd64", ID: "id", Started: time.Unix(1, 0), Finished: time.Unix(2, 0), Custom: map[string]any{"site": "here"},
		Definition: def.ToPB(), Layers: func(v *llb.Vertex, output int) []ocispecs.Descriptor { return []ocispecs.Descriptor{layer} },
	}
}

func TestPredicate(t *testing.T) {
	c, f := captured(t)
	o, err := ParseOptions(nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := Predicate(c, o, f)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"me:pass", "u:p@"} {
		if strings.Contains(string(raw), secret) {
			t.Errorf("the predicate tells %q: %s", secret, raw)
		}
	}
	var p types.ProvenancePredicateSLSA1
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	var deps []string
	for _, d := range p.BuildDefinition.ResolvedDependencies {
		deps = append(deps, d.URI)
	}
	want := "pkg:docker/busybox@latest?platform=linux%2Famd64 https://xxxxx:xxxxx@example.com/r.git#main"
	if got := strings.Join(deps, " "); got != want {
		t.Errorf("dependencies: got %s, want %s", got, want)
	}
	req := p.BuildDefinition.ExternalParameters.Request
	if req.Args["build-arg:A"] != "b" || req.Args["platform"] != "" || req.Args["filename"] != "" || len(req.Locals) != 1 || !slices.ContainsFunc(req.Secrets, func(s *types.Secret) bool { return s.ID == "token" && !s.Optional }) {
		t.Errorf("request: got %+v", req)
	}
	if got := req.Args["context:other"]; strings.Contains(got, "u:p") {
		t.Errorf("got %s, want no password", got)
	}
	meta := p.RunDetails.Metadata
	if meta.BuildKitMetadata.VCS["source"] != "https://xxxxx:xxxxx@example.com/x.git" || meta.Hermetic || meta.Completeness.ResolvedDependencies {
		t.Errorf("metadata: got %+v", meta)
	}
	if got := len(p.BuildDefinition.InternalParameters.BuildConfig.Definition); got != 5 {
		t.Errorf("got %d steps, want 5: three sources, the command and the result", got)
	}
	if len(meta.BuildKitMetadata.Layers) == 0 || p.BuildDefinition.InternalParameters.ProvenanceCustomEnv["site"] != "here" {
		t.Errorf("got the layers %v and %v", meta.BuildKitMetadata.Layers, p.BuildDefinition.InternalParameters.ProvenanceCustomEnv)
	}
}

func TestMinimalTellsNoArguments(t *testing.T) {
	c, f := captured(t)
	o, err := ParseOptions(map[string]string{"mode": "min", "version": "v0.2"})
	if err != nil || o.PredicateType() != "https://slsa.dev/provenance/v0.2" {
		t.Fatalf("got %s, %v", o.PredicateType(), err)
	}
	raw, err := Predicate(c, o, f)
	if err != nil {
		t.Fatal(err)
	}
	var p types.ProvenancePredicateSLSA02
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Invocation.Parameters.Secrets) > 0 || p.Invocation.Parameters.Args["build-arg:A"] != "" || p.BuildConfig != nil || p.Metadata.Completeness.Parameters {
		t.Errorf("got %s", raw)
	}
}

func TestOptions(t *testing.T) {
	for _, attrs := range []map[string]string{{"mode": "most"}, {"version": "v9"}, {"reproducible": "perhaps"}} {
		if _, err := ParseOptions(attrs); err == nil {
			t.Errorf("%v: got no error", attrs)
		}
	}
	c, f := captured(t)
	o, err := ParseOptions(map[string]string{"complete-materials": "true"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Predicate(c, o, f); err == nil || !strings.Contains(err.Error(), "context\n    reason: local_source") {
		t.Errorf("got %v, want that the context has no name", err)
	}
}
