package export

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/store"
)

// push sends the images to the repositories of all their names. The first
// repository gets the bytes; later ones of the same registry take them over.
func (x *Exporter) push(ctx context.Context, images []*assembled, multi bool, o *Output, r *Result) error {
	if len(o.Names) == 0 {
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "push: the image has no name"), "add -t REGISTRY/NAME:TAG")
	}
	var repos []oci.Ref
	for _, name := range o.Names {
		if repo := name.Repo(); !slices.Contains(repos, repo) {
			repos = append(repos, repo)
		}
	}
	for _, repo := range repos {
		top, out, err := x.write(ctx, images, multi, o, &repoSink{x: x, repo: repo})
		if err != nil {
			return fmt.Errorf("push to %s: %w", repo.FamiliarName(), err)
		}
		if err := x.name(ctx, repo, top, o); err != nil {
			return err
		}
		if err := x.remember(ctx, repo, top, out, multi, o); err != nil {
			return err
		}
		r.Descriptor = &top.desc
	}
	return nil
}

// name puts the manifest or index under the repository's tags.
func (x *Exporter) name(ctx context.Context, repo oci.Ref, top document, o *Output) error {
	refs := []oci.Ref{repo}
	if !o.PushByDigest {
		refs = refs[:0]
		for _, name := range o.Names {
			if name.Repo() == repo {
				refs = append(refs, name)
			}
		}
	}
	for _, ref := range refs {
		if _, err := x.Registry.PushManifest(ctx, ref, top.desc.MediaType, top.raw); err != nil {
			return err
		}
	}
	return nil
}

// remember records by which digests the registry now knows the images.
func (x *Exporter) remember(ctx context.Context, repo oci.Ref, top document, out []written, multi bool, o *Output) error {
	if o.NoStore {
		return nil
	}
	for _, w := range out {
		digests := []document{w.manifest}
		if multi {
			digests = append(digests, top)
		}
		for _, d := range digests {
			err := x.Store.PutRepoDigest(ctx, store.RepoDigest{Name: repo.Name(), Digest: d.desc.Digest, Platform: oci.FormatPlatform(w.img.platform), ID: w.img.digest})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// The phases of a layer on its way to a registry, in docker's words.
const (
	PhasePushing = "Pushing"
	PhasePushed  = "Pushed"
	PhaseExists  = "Layer already exists"
	PhaseMounted = "Mounted from" // followed by the repository
)

// phase tells what happens to a layer.
func (x *Exporter) phase(b *blob, phase string) {
	if x.Phase != nil {
		x.Phase(layerName(b), phase)
	}
}

// repoSink writes into a registry's repository.
type repoSink struct {
	x    *Exporter
	repo oci.Ref
}

func (s *repoSink) serial() bool { return false }

func (s *repoSink) layer(ctx context.Context, b *blob) error {
	if len(b.desc.URLs) > 0 && oci.IsForeignLayer(b.desc.MediaType) {
		return nil // its licence keeps it with its maker, the URLs say where
	}
	open := func() (io.ReadCloser, error) { return b.open(ctx) }
	if b.known() {
		from, ok, err := s.takeOver(ctx, b)
		switch {
		case err != nil:
			return err
		case ok && from == "":
			s.x.phase(b, PhaseExists)
			return nil
		case ok:
			s.x.phase(b, PhaseMounted+" "+from)
			return nil
		}
		s.x.phase(b, PhasePushing)
		if err := s.x.Registry.PushNew(ctx, s.repo, b.desc, open); err != nil {
			return err
		}
	} else {
		s.x.phase(b, PhasePushing)
		desc, err := s.x.Registry.PushStream(ctx, s.repo, open)
		if err != nil {
			return err
		}
		if err := s.x.wrote(ctx, b, desc); err != nil {
			return err
		}
	}
	s.x.phase(b, PhasePushed)
	return s.x.Store.PutBlobSource(ctx, b.desc.Digest, s.repo.Name())
}

// takeOver finds the blob in the repository already, or has the registry take it
// from another of its repositories, which it names.
func (s *repoSink) takeOver(ctx context.Context, b *blob) (mounted string, ok bool, err error) {
	if ok, err := s.x.Registry.Exists(ctx, s.repo, b.desc.Digest); err != nil || ok {
		return "", ok, err
	}
	sources, err := s.x.Store.BlobSources(ctx, b.desc.Digest)
	if err != nil {
		return "", false, err
	}
	for _, name := range sources {
		from, err := oci.ParseRef(name)
		if err != nil || from.Domain != s.repo.Domain || from == s.repo {
			continue
		}
		ok, err := s.x.Registry.Mount(ctx, s.repo, b.desc.Digest, from)
		if err != nil {
			return "", false, err
		}
		if ok {
			return from.Path, true, s.x.Store.PutBlobSource(ctx, b.desc.Digest, s.repo.Name())
		}
	}
	return "", false, nil
}

func (s *repoSink) config(ctx context.Context, d document) error {
	return s.x.Registry.Push(ctx, s.repo, d.desc, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(d.raw)), nil })
}

func (s *repoSink) manifest(ctx context.Context, d document) error {
	_, err := s.x.Registry.PushManifest(ctx, s.repo, d.desc.MediaType, d.raw)
	return err
}
