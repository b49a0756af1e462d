package provenance

import (
	"maps"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	types "github.com/moby/buildkit/solver/llbsolver/provenance/types"
	"github.com/moby/buildkit/util/urlutil"

	slsa "github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/common"
)

// Args are the attributes of a request that say what was built, without those
// that say how this machine does it. Addresses lose their passwords.
func Args(attrs map[string]string) map[string]string {
	context := contextKey(attrs, false)
	out := map[string]string{}
	for k, v := range attrs {
		switch k {
		case "cgroup-parent", "image-resolve-mode", "platform", "cache-imports":
			continue
		}
		if strings.HasPrefix(k, "attest:") {
			continue
		}
		if k == context || strings.HasPrefix(k, "context:") {
			v = urlutil.RedactCredentials(v)
		}
		out[k] = v
	}
	return out
}

// contextKey is the attribute that names the build context.
func contextKey(attrs map[string]string, orInput bool) string {
	switch {
	case attrs["contextkey"] != "":
		return attrs["contextkey"]
	case orInput && attrs["input:context"] != "":
		return "input:context"
	}
	return "context"
}

// Asked is a request as provenance shows it: where the Dockerfile came from, and
// the rest of what was asked for.
func Asked(frontend string, attrs map[string]string, sources types.Sources) *types.RequestProvenance {
	args := Args(attrs)
	r := &types.RequestProvenance{Request: &types.Parameters{Frontend: frontend}}
	context := contextKey(args, true)
	if uri := args[context]; uri != "" {
		r.ConfigSource.URI, r.ConfigSource.Digest = material(sources, uri)
		delete(args, context)
	}
	if name := args["filename"]; name != "" {
		r.ConfigSource.Path = name
		delete(args, "filename")
	}
	if len(args) > 0 {
		r.Request.Args = args
	}
	return r
}

// material is a context's address, and what it stood for where that is known.
func material(sources types.Sources, uri string) (string, slsa.DigestSet) {
	plain, _ := dfgitutil.FragmentFormat(uri, false)
	for _, g := range sources.Git {
		if g.URL == plain || g.URL == urlutil.RedactCredentials(plain) {
			if shown, ok := dfgitutil.FragmentFormat(uri, true); ok {
				uri = shown
			}
			return urlutil.RedactCredentials(uri), commitDigest(g.Commit)
		}
	}
	for _, h := range sources.HTTP {
		if h.URL == uri || h.URL == urlutil.RedactCredentials(uri) {
			return h.URL, slsa.DigestSet{h.Digest.Algorithm().String(): h.Digest.Encoded()}
		}
	}
	return urlutil.RedactCredentials(uri), nil
}

// commitDigest names a commit by the hash that its repository uses.
func commitDigest(commit string) slsa.DigestSet {
	if len(commit) == 64 {
		return slsa.DigestSet{"sha256": commit}
	}
	return slsa.DigestSet{"sha1": commit}
}

// vcs takes what a client says of its working copy out of the arguments.
func vcs(args map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range maps.Clone(args) {
		name, ok := strings.CutPrefix(k, "vcs:")
		if !ok {
			continue
		}
		delete(args, k)
		if name == "source" {
			v = urlutil.RedactCredentials(v)
		}
		if v != "" {
			out[name] = v
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// minimise leaves out what mode=min does not tell: values of arguments and
// labels, secrets and agents. It reports whether something was left out that
// belongs to the request.
func minimise(p *types.Parameters) (incomplete bool) {
	if p == nil {
		return false
	}
	args := map[string]string{}
	for k, v := range p.Args {
		if strings.HasPrefix(k, "build-arg:") || strings.HasPrefix(k, "label:") {
			incomplete = true
			continue
		}
		args[k] = v
	}
	p.Args, p.Secrets, p.SSH = args, nil, nil
	for _, in := range p.Inputs {
		if in != nil && minimise(in.Request) {
			incomplete = true
		}
	}
	return p.Root != nil && minimise(p.Root.Request) || incomplete
}
