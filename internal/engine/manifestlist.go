package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/sys"
	"dhow/internal/transfer"

	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// ManifestList is an index over images of several platforms that is being put
// together, before it is pushed. It is kept in the state directory.
type ManifestList struct {
	Name    string // of the index, oci.Ref.String
	Entries []ListEntry
}

// ListEntry is one image of a ManifestList.
type ListEntry struct {
	From string // the name that it was given by, oci.Ref.String
	Desc ocispecs.Descriptor
}

// Index is the list as registries have it.
func (l *ManifestList) Index() ocispecs.Index {
	index := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex, Manifests: []ocispecs.Descriptor{}}
	for _, entry := range l.Entries {
		index.Manifests = append(index.Manifests, entry.Desc)
	}
	return index
}

// maxConfigSize is how many bytes of an image's configuration are read for its
// platform.
const maxConfigSize = 4 << 20

// listPath is the file of a list.
func (e *Engine) listPath(name oci.Ref) string {
	sum := sha256.Sum256([]byte(name.String()))
	return filepath.Join(e.Store.Root(), "manifests", hex.EncodeToString(sum[:16])+".json")
}

// ManifestList returns a list. ErrNotFound.
func (e *Engine) ManifestList(name oci.Ref) (*ManifestList, error) {
	raw, err := os.ReadFile(e.listPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdef.WithHint(errdef.New(errdef.ErrNotFound, "no such manifest list: %s", name.Familiar()), "dhow manifest create %s IMAGE…", name.Familiar())
	}
	var l ManifestList
	if err == nil {
		err = json.Unmarshal(raw, &l)
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest list %s: %w", name.Familiar(), err)
	}
	return &l, nil
}

// editList changes a list under its lock; f is given nil when there is none and
// returns what is kept.
func (e *Engine) editList(ctx context.Context, name oci.Ref, f func(*ManifestList) (*ManifestList, error)) error {
	path := e.listPath(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write manifest list: %w", err)
	}
	lock, err := sys.LockFile(ctx, path+".lock", true)
	if err != nil {
		return err
	}
	defer lock.RemoveOnUnlock().Unlock()
	now, err := e.ManifestList(name)
	if err != nil && !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	next, err := f(now)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(next)
	if err == nil {
		err = sys.WriteFileAtomic(path, raw, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write manifest list %s: %w", name.Familiar(), err)
	}
	return nil
}

// CreateManifestList makes a list of images that are in registries; an index
// among them stands for its images. amend adds to a list that is there, which is
// otherwise ErrConflict.
func (e *Engine) CreateManifestList(ctx context.Context, name oci.Ref, images []oci.Ref, amend bool) error {
	var entries []ListEntry
	for _, ref := range images {
		more, err := e.listEntries(ctx, ref)
		if err != nil {
			return err
		}
		entries = append(entries, more...)
	}
	return e.editList(ctx, name, func(now *ManifestList) (*ManifestList, error) {
		if now != nil && !amend {
			return nil, errdef.WithHint(errdef.New(errdef.ErrConflict, "there is a manifest list %s already", name.Familiar()), "add --amend, or dhow manifest rm it")
		}
		if now == nil {
			now = &ManifestList{Name: name.String()}
		}
		for _, entry := range entries {
			now.Entries = slices.DeleteFunc(now.Entries, func(old ListEntry) bool { return old.Desc.Digest == entry.Desc.Digest })
			now.Entries = append(now.Entries, entry)
		}
		return now, nil
	})
}

// listEntries describes an image, or the images of an index.
func (e *Engine) listEntries(ctx context.Context, ref oci.Ref) ([]ListEntry, error) {
	top, raw, err := e.remote(ctx, ref)
	if err != nil {
		return nil, err
	}
	if oci.IsIndex(top.MediaType) {
		var index ocispecs.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "index %s: %w", ref.Familiar(), err)
		}
		var out []ListEntry
		for _, desc := range index.Manifests {
			out = append(out, ListEntry{From: ref.String(), Desc: desc})
		}
		return out, nil
	}
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "manifest %s: %w", ref.Familiar(), err)
	}
	desc := ocispecs.Descriptor{MediaType: top.MediaType, Digest: top.Digest, Size: int64(len(raw))}
	if oci.IsConfig(m.Config.MediaType) && m.Config.Size <= maxConfigSize {
		rc, err := e.Registry.Fetch(ctx, ref, m.Config)
		if err != nil {
			return nil, err
		}
		defer rc.Close()
		config, err := io.ReadAll(rc)
		if err != nil {
			return nil, err
		}
		img, err := oci.ParseImage(config)
		if err != nil {
			return nil, err
		}
		p := oci.ConfigPlatform(img)
		desc.Platform = &p
	}
	return []ListEntry{{From: ref.String(), Desc: desc}}, nil
}

// AnnotateManifestList changes the platform of the images that the list has
// under a name: non-empty fields of p replace theirs. ErrNotFound.
func (e *Engine) AnnotateManifestList(ctx context.Context, name, image oci.Ref, p oci.Platform) error {
	return e.editList(ctx, name, func(now *ManifestList) (*ManifestList, error) {
		if now == nil {
			return nil, errdef.New(errdef.ErrNotFound, "no such manifest list: %s", name.Familiar())
		}
		found := false
		for i := range now.Entries {
			entry := &now.Entries[i]
			if entry.From != image.String() && (image.Digest == "" || entry.Desc.Digest != image.Digest) {
				continue
			}
			found = true
			entry.Desc.Platform = mergePlatform(entry.Desc.Platform, p)
		}
		if !found {
			return nil, errdef.New(errdef.ErrNotFound, "manifest list %s does not have %s", name.Familiar(), image.Familiar())
		}
		return now, nil
	})
}

func mergePlatform(old *oci.Platform, p oci.Platform) *oci.Platform {
	var out oci.Platform
	if old != nil {
		out = *old
	}
	for _, f := range []struct{ to, from *string }{
		{&out.OS, &p.OS}, {&out.Architecture, &p.Architecture}, {&out.Variant, &p.Variant}, {&out.OSVersion, &p.OSVersion},
	} {
		if *f.from != "" {
			*f.to = *f.from
		}
	}
	if len(p.OSFeatures) > 0 {
		out.OSFeatures = p.OSFeatures
	}
	return &out
}

// PushManifestList puts the list under its name into the registry, with its
// images where the repository lacks them.
func (e *Engine) PushManifestList(ctx context.Context, name oci.Ref) (ocispecs.Descriptor, error) {
	l, err := e.ManifestList(name)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	defer e.Registry.Release(ctx)
	if err := e.Registry.CheckPush(ctx, name.Repo()); err != nil {
		return ocispecs.Descriptor{}, err
	}
	for _, entry := range l.Entries {
		from, err := oci.ParseRef(entry.From)
		if err == nil {
			err = transfer.Manifest(ctx, &transfer.Registry{Client: e.Registry, Ref: from.Repo()}, &transfer.Registry{Client: e.Registry, Ref: name}, entry.Desc)
		}
		if err != nil {
			return ocispecs.Descriptor{}, fmt.Errorf("push manifest list %s: %w", name.Familiar(), err)
		}
	}
	raw, err := json.Marshal(l.Index())
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	return e.Registry.PushManifest(ctx, name, ocispecs.MediaTypeImageIndex, raw)
}

// RemoveManifestList forgets a list here; what was pushed stays. ErrNotFound.
func (e *Engine) RemoveManifestList(name oci.Ref) error {
	err := os.Remove(e.listPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return errdef.New(errdef.ErrNotFound, "no such manifest list: %s", name.Familiar())
	}
	return err
}

// RemoteManifest is a manifest or an index as a registry has it.
type RemoteManifest struct {
	Ref        string
	Descriptor ocispecs.Descriptor
	Manifest   json.RawMessage // exact
}

// InspectManifest returns what a name stands for in its registry; with all, the
// manifests of an index instead of it.
func (e *Engine) InspectManifest(ctx context.Context, ref oci.Ref, all bool) ([]RemoteManifest, error) {
	top, raw, err := e.remote(ctx, ref)
	if err != nil {
		return nil, err
	}
	if !all || !oci.IsIndex(top.MediaType) {
		return []RemoteManifest{{Ref: ref.String(), Descriptor: top, Manifest: raw}}, nil
	}
	var index ocispecs.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "index %s: %w", ref.Familiar(), err)
	}
	var out []RemoteManifest
	for _, desc := range index.Manifests {
		if err := oci.ValidDescriptor(desc); err != nil {
			return nil, err
		}
		raw, err := e.Registry.Manifest(ctx, ref, desc)
		if err != nil {
			return nil, err
		}
		out = append(out, RemoteManifest{Ref: ref.WithDigest(desc.Digest).String(), Descriptor: desc, Manifest: raw})
	}
	return out, nil
}
