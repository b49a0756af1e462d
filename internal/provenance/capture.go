// Package provenance says where a result of a build came from, as SLSA's
// provenance predicate in the form that BuildKit gives it
// (docs/attestations/slsa-definitions.md, v0.34), which `docker buildx imagetools
// inspect` and policy engines read. It is pure: facts in, statement out.
//
// Invariant: no password of an address, and no value of a secret, is in what it
// returns.
package provenance

import (
	"cmp"
	"slices"
	"strings"

	"dhow/internal/llb"

	"github.com/distribution/reference"
	types "github.com/moby/buildkit/solver/llbsolver/provenance/types"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/urlutil"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Capture is what one result of a build was made from. The zero value is a
// result made from nothing.
type Capture struct {
	Request types.Parameters
	Sources types.Sources
	// Network says that a step could reach it, Incomplete that not all sources can
	// be named.
	Network, Incomplete bool
}

// AddVertex adds what one operation used. pin is what a source stood for.
func (c *Capture) AddVertex(v *llb.Vertex, pin string) {
	switch op := v.Op.Op.(type) {
	case *pb.Op_Source:
		c.addSource(v, op.Source, pin)
	case *pb.Op_Exec:
		c.addExec(op.Exec)
	case *pb.Op_Build:
		c.Incomplete = true
	}
}

func (c *Capture) addSource(v *llb.Vertex, op *pb.SourceOp, pin string) {
	scheme, rest, _ := strings.Cut(op.Identifier, "://")
	switch scheme {
	case "docker-image", "oci-layout":
		c.AddImage(types.ImageSource{Ref: rest, Platform: platform(v.Op.Platform), Digest: pinOf(rest, pin), Local: scheme == "oci-layout"})
	case "docker-image+blob", "oci-layout+blob":
		b := types.ImageBlobSource{Ref: rest, Digest: pinOf(rest, pin), Local: scheme == "oci-layout+blob"}
		if !slices.Contains(c.Sources.ImageBlobs, b) {
			c.Sources.ImageBlobs = append(c.Sources.ImageBlobs, b)
		}
	case "local":
		if l := (types.LocalSource{Name: rest}); !slices.Contains(c.Sources.Local, l) {
			c.Sources.Local = append(c.Sources.Local, l)
		}
	case "http", "https":
		c.addHTTP(types.HTTPSource{URL: op.Identifier, Digest: digest.Digest(pin)})
		c.optionalSecret(op.Attrs[pb.AttrHTTPAuthHeaderSecret])
	case "git":
		c.addGit(op, rest, pin)
	}
}

func (c *Capture) addGit(op *pb.SourceOp, rest, commit string) {
	at := op.Attrs[pb.AttrFullRemoteURL]
	if at == "" {
		at = "https://" + rest
	}
	at, _, _ = strings.Cut(at, "#")
	if _, ref, ok := strings.Cut(rest, "#"); ok {
		if ref, _, _ = strings.Cut(ref, ":"); ref != "" {
			at += "#" + ref
		}
	}
	g := types.GitSource{URL: urlutil.RedactCredentials(at), Commit: commit}
	if bundle := op.Attrs[pb.AttrGitBundle]; bundle != "" {
		g.Bundle = &types.GitBundle{URL: bundle}
	}
	if !slices.ContainsFunc(c.Sources.Git, func(o types.GitSource) bool { return o.URL == g.URL }) {
		c.Sources.Git = append(c.Sources.Git, g)
	}
	c.optionalSecret(op.Attrs[pb.AttrAuthTokenSecret])
	c.optionalSecret(op.Attrs[pb.AttrAuthHeaderSecret])
	if id := op.Attrs[pb.AttrMountSSHSock]; id != "" {
		c.addSSH(types.SSH{ID: id, Optional: true})
	}
}

func (c *Capture) optionalSecret(id string) {
	if id != "" {
		c.addSecret(types.Secret{ID: id, Optional: true})
	}
}

func (c *Capture) addExec(op *pb.ExecOp) {
	for _, m := range op.Mounts {
		switch m.MountType {
		case pb.MountType_SECRET:
			c.addSecret(types.Secret{ID: m.SecretOpt.GetID(), Optional: m.SecretOpt.GetOptional()})
		case pb.MountType_SSH:
			c.addSSH(types.SSH{ID: m.SSHOpt.GetID(), Optional: m.SSHOpt.GetOptional()})
		}
	}
	for _, s := range op.Secretenv {
		c.addSecret(types.Secret{ID: s.GetID(), Optional: s.GetOptional()})
	}
	c.Network = c.Network || op.Network != pb.NetMode_NONE
}

// platform is one that a vertex names.
func platform(p *pb.Platform) *ocispecs.Platform {
	if p == nil {
		return nil
	}
	return &ocispecs.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}

// pinOf is the digest that a reference names, else what it stood for.
func pinOf(ref, pin string) digest.Digest {
	if r, err := reference.Parse(ref); err == nil {
		if d, ok := r.(reference.Digested); ok {
			return d.Digest()
		}
	}
	return digest.Digest(pin)
}

// AddImage adds an image unless it is there for that platform.
func (c *Capture) AddImage(i types.ImageSource) {
	same := func(o types.ImageSource) bool {
		if o.Ref != i.Ref || o.Local != i.Local || (o.Platform == nil) != (i.Platform == nil) {
			return false
		}
		a, b := o.Platform, i.Platform
		return a == nil || a.OS == b.OS && a.Architecture == b.Architecture && a.Variant == b.Variant && a.OSVersion == b.OSVersion
	}
	if !slices.ContainsFunc(c.Sources.Images, same) {
		c.Sources.Images = append(c.Sources.Images, i)
	}
}

func (c *Capture) addHTTP(h types.HTTPSource) {
	h.URL = urlutil.RedactCredentials(h.URL)
	if !slices.ContainsFunc(c.Sources.HTTP, func(o types.HTTPSource) bool { return o.URL == h.URL }) {
		c.Sources.HTTP = append(c.Sources.HTTP, h)
	}
}

// addSecret keeps one entry an id, optional if it is so everywhere.
func (c *Capture) addSecret(s types.Secret) {
	for _, o := range c.Request.Secrets {
		if o.ID == s.ID {
			o.Optional = o.Optional && s.Optional
			return
		}
	}
	c.Request.Secrets = append(c.Request.Secrets, &s)
}

func (c *Capture) addSSH(s types.SSH) {
	s.ID = cmp.Or(s.ID, "default")
	for _, o := range c.Request.SSH {
		if o.ID == s.ID {
			o.Optional = o.Optional && s.Optional
			return
		}
	}
	c.Request.SSH = append(c.Request.SSH, &s)
}

// Tidy leaves out images that are named by digest where the tag is named too,
// and sorts.
func (c *Capture) Tidy() {
	tagged := map[string]bool{}
	for _, i := range c.Sources.Images {
		if name, byDigest := imageName(i.Ref); !byDigest {
			tagged[name] = true
		}
	}
	c.Sources.Images = slices.DeleteFunc(c.Sources.Images, func(i types.ImageSource) bool {
		name, byDigest := imageName(i.Ref)
		return byDigest && tagged[name]
	})
	slices.SortFunc(c.Sources.Images, func(a, b types.ImageSource) int { return cmp.Compare(a.Ref, b.Ref) })
	slices.SortFunc(c.Sources.ImageBlobs, func(a, b types.ImageBlobSource) int { return cmp.Compare(a.Ref, b.Ref) })
	slices.SortFunc(c.Sources.Local, func(a, b types.LocalSource) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(c.Sources.Git, func(a, b types.GitSource) int { return cmp.Compare(a.URL, b.URL) })
	slices.SortFunc(c.Sources.HTTP, func(a, b types.HTTPSource) int { return cmp.Compare(a.URL, b.URL) })
	slices.SortFunc(c.Request.Secrets, func(a, b *types.Secret) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(c.Request.SSH, func(a, b *types.SSH) int { return cmp.Compare(a.ID, b.ID) })
}

// imageName is a reference's name and tag, and whether it has a digest.
func imageName(ref string) (string, bool) {
	r, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref, false
	}
	tag := "latest"
	if t, ok := r.(reference.Tagged); ok {
		tag = t.Tag()
	}
	_, byDigest := r.(reference.Digested)
	return r.Name() + ":" + tag, byDigest
}
