package export

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/store"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
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
		x.show("pushing layers", false)
		top, out, err := x.write(ctx, images, multi, o, x.repoSink(repo))
		if err != nil {
			return fmt.Errorf("push to %s: %w", repo.FamiliarName(), err)
		}
		x.show("pushing layers", true)
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
		id := fmt.Sprintf("pushing manifest for %s@%s", ref, top.desc.Digest)
		x.show(id, false)
		if _, err := x.Registry.PushManifest(ctx, ref, top.desc.MediaType, top.raw); err != nil {
			return err
		}
		x.show(id, true)
	}
	return nil
}

// show makes a part of the work visible.
func (x *Exporter) show(id string, done bool) {
	if x.Progress != nil {
		x.Progress(id, 0, 0, done)
	}
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
	x       *Exporter
	repo    oci.Ref
	sending *semaphore.Weighted
}

// parallelQuestions is how many layers a registry is asked about at once, which
// costs neither side much.
const parallelQuestions = 16

func (x *Exporter) repoSink(repo oci.Ref) *repoSink {
	return &repoSink{x: x, repo: repo, sending: semaphore.NewWeighted(parallelLayers)}
}

func (s *repoSink) parallel() int { return parallelQuestions }

func (s *repoSink) layer(ctx context.Context, b *blob) error {
	if len(b.desc.URLs) > 0 && oci.IsForeignLayer(b.desc.MediaType) {
		return nil // its licence keeps it with its maker, the URLs say where
	}
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
	}
	if err := s.sending.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.sending.Release(1)
	s.x.phase(b, PhasePushing)
	if err := s.send(ctx, b); err != nil {
		return err
	}
	s.x.phase(b, PhasePushed)
	return s.x.Store.PutBlobSource(ctx, b.desc.Digest, s.repo.Name())
}

// smallLayer is up to how many bytes of tar a layer is packed in memory, so that
// its digest is known when it is sent: that takes a request less.
const smallLayer = 1 << 20

// send sends a layer that the repository does not have.
func (s *repoSink) send(ctx context.Context, b *blob) error {
	open := func() (io.ReadCloser, error) { return b.open(ctx) }
	if !b.known() && b.size <= smallLayer {
		raw, err := readAll(open)
		if err != nil {
			return err
		}
		if err := s.x.wrote(ctx, b, describe("", raw)); err != nil {
			return err
		}
		open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
	}
	up, done, err := s.upload(ctx, b)
	if err != nil {
		return err
	}
	if b.known() {
		err = s.x.Registry.PushNew(ctx, s.repo, b.desc, up, open)
	} else {
		var desc ocispecs.Descriptor
		if desc, err = s.x.Registry.PushStream(ctx, s.repo, up, open); err == nil {
			err = s.x.wrote(ctx, b, desc)
		}
	}
	if err != nil {
		return err
	}
	return done()
}

func readAll(open func() (io.ReadCloser, error)) ([]byte, error) {
	rc, err := open()
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

// uploadKind is the kind under which it is remembered where uploads go on that
// are cut with this process; uploadWorth from which size in bytes.
const (
	uploadKind  = "upload"
	uploadWorth = 4 << 20
)

// upload finds out if an earlier process began to send the same bytes, and has it
// remembered that this one does, until done is called. Bytes that cannot be made
// again the same are not gone on with.
func (s *repoSink) upload(ctx context.Context, b *blob) (up registry.Upload, done func() error, err error) {
	done = func() error { return nil }
	if b.size < uploadWorth || !b.known() && !b.remember {
		return up, done, nil
	}
	key := s.repo.Name() + " " + string(b.desc.Digest)
	if !b.known() {
		key = s.repo.Name() + " " + packerVersion + " " + b.desc.MediaType + " " + string(b.diffID)
	}
	from, _, err := s.x.Store.Memo(ctx, uploadKind, key)
	if err != nil {
		return up, done, err
	}
	keep := func(location string) error { return s.x.Store.PutMemo(ctx, uploadKind, key, []byte(location)) }
	return registry.Upload{From: string(from), Begun: keep}, func() error { return keep("") }, nil
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

// config sends the configuration, which is small: where nothing is known of it, it
// is not asked for.
func (s *repoSink) config(ctx context.Context, d document) error {
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(d.raw)), nil }
	known, err := s.x.Store.BlobSources(ctx, d.desc.Digest)
	if err != nil {
		return err
	}
	if slices.Contains(known, s.repo.Name()) {
		return s.x.Registry.Push(ctx, s.repo, d.desc, open)
	}
	if err := s.x.Registry.PushNew(ctx, s.repo, d.desc, registry.Upload{}, open); err != nil {
		return err
	}
	return s.x.Store.PutBlobSource(ctx, d.desc.Digest, s.repo.Name())
}

func (s *repoSink) manifest(ctx context.Context, d document) error {
	_, err := s.x.Registry.PushManifest(ctx, s.repo, d.desc.MediaType, d.raw)
	return err
}
