package remotecache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/image"
	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/snapshot"
	"dhow/internal/solve"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Name is the export as the display shows it.
func (e *Export) Name() string {
	switch {
	case e.Type == TypeLocal:
		return "exporting cache to " + e.dir
	case e.ref.Path != "":
		return "exporting cache to " + e.ref.Familiar()
	}
	return "exporting cache to " + e.Type
}

// IgnoresErrors says that the build goes on when the export fails.
func (e *Export) IgnoresErrors() bool { return e.ignore }

// Export writes one cache of what a build knows. final are the trees that the
// build was asked for. It returns the manifest that the cache is found by; nil
// when there was nothing to write, and for dhow's own, which has many.
func (s *Set) Export(ctx context.Context, e *Export, list []solve.Known, final []snapshot.Chain, job solve.Job) (*ocispecs.Descriptor, error) {
	if e.deferred != nil {
		return nil, e.deferred
	}
	if e.Type == TypeDhow {
		s.mu.Lock()
		st := s.stepsAt(e.ref)
		s.mu.Unlock()
		return nil, st.finish(ctx, e, list, job)
	}
	w := &writer{set: s, export: e, job: job, began: time.Now()}
	if err := w.open(ctx); err != nil {
		return nil, err
	}
	if !e.max {
		w.only = map[string]bool{}
		for _, chain := range final {
			if err := w.allow(ctx, chain); err != nil {
				return nil, err
			}
		}
	}
	return w.write(ctx, list)
}

// writer writes one cache in BuildKit's format.
type writer struct {
	set    *Set
	export *Export
	job    solve.Job
	began  time.Time
	only   map[string]bool // layers here (by id) and elsewhere (by diffID) that may be sent; nil: all
	repo   oci.Ref
	blobs  BlobStore // nil: repo
	x      *export.Exporter
	sink   export.LayerSink

	mu   sync.Mutex
	sent map[digest.Digest]export.SentLayer // guarded by mu; by blob
}

func (w *writer) open(ctx context.Context) (err error) {
	w.sent = map[digest.Digest]export.SentLayer{}
	w.x = w.set.deps.exporter(func(id string, current, total int64, done bool) {
		w.job.Status(id, current, total, w.began, done)
	})
	if w.export.Type == TypeRegistry {
		w.repo = w.export.ref.Repo()
		w.sink = w.x.LayersTo(w.repo)
		return nil
	}
	w.blobs, err = w.set.deps.blobs(ctx, w.export.dir)
	w.sink = w.x.LayersInto(func(ctx context.Context, desc ocispecs.Descriptor, open func() (io.ReadCloser, error)) error {
		return w.blobs.Put(ctx, desc, open)
	})
	return err
}

// allow lets the layers of a final tree be sent.
func (w *writer) allow(ctx context.Context, chain snapshot.Chain) error {
	for _, id := range chain {
		diffID, _, err := w.set.deps.Snapshots.DiffID(ctx, id)
		if err != nil {
			return err
		}
		w.only[id], w.only[diffID.String()] = true, true
	}
	return nil
}

// place is where a layer is: here, or elsewhere.
type place struct {
	id   string // "": elsewhere
	far  image.Layer
	from image.LayersFrom
}

func (p place) name() string {
	if p.id != "" {
		return p.id
	}
	return p.far.DiffID.String()
}

// drafted is an entry whose layers have not been sent.
type drafted struct {
	entry
	outputs [][]place // nil: nowhere, or not to be sent
}

// draft finds out what there is to write of each vertex.
func (s *Set) draft(list []solve.Known) []drafted {
	var out []drafted
	for _, k := range list {
		d := drafted{entry: entry{definition: k.Definition}}
		for _, in := range k.Inputs {
			d.inputs = append(d.inputs, entryInput{in.Definition, in.Reads})
		}
		if isImage(k) {
			out = append(out, d) // it is had from where it is
			continue
		}
		d.key, d.links = k.Record.Key, k.Links
		switch far := s.elsewhere(d.key); {
		case k.Record.Outputs != nil:
			for _, o := range k.Record.Outputs {
				d.outputs = append(d.outputs, here(o))
			}
		case far != nil:
			for _, o := range far.outputs {
				d.outputs = append(d.outputs, far.places(o))
			}
		}
		out = append(out, d)
	}
	return out
}

func here(o solve.Result) []place {
	if o.Missing || o.Local != nil {
		return nil
	}
	places := make([]place, len(o.Chain))
	for i, id := range o.Chain {
		places[i].id = id
	}
	return places
}

func (r *result) places(o resultOutput) []place {
	if !o.have {
		return nil
	}
	places := make([]place, len(o.layers))
	for i, l := range o.layers {
		places[i] = place{far: l, from: r.from}
	}
	return places
}

// isImage says whether a vertex brings an image, which has a place of its own.
func isImage(k solve.Known) bool {
	src := k.Vertex.Op.GetSource()
	return src != nil && (strings.HasPrefix(src.Identifier, "docker-image://") || strings.HasPrefix(src.Identifier, "oci-layout://"))
}

// wanted says whether a result may be sent.
func (w *writer) wanted(places []place) bool {
	if places == nil {
		return false
	}
	return w.only == nil || !slices.ContainsFunc(places, func(p place) bool { return !w.only[p.name()] })
}

func (w *writer) write(ctx context.Context, list []solve.Known) (*ocispecs.Descriptor, error) {
	drafts := w.set.draft(list)
	digests, err := w.sendAll(ctx, drafts)
	if err != nil {
		return nil, err
	}
	entries := make([]entry, len(drafts))
	for i, d := range drafts {
		entries[i] = w.entry(d, digests)
	}
	doc := encodeConfig(entries, func(blob digest.Digest) time.Time { return w.sent[blob].Created })
	if len(doc.Layers) == 0 {
		w.job.Status("nothing to export: no step has a result to keep", 0, 0, w.began, true)
		return nil, nil
	}
	return w.writeDocuments(ctx, doc)
}

// entry is a draft whose layers have been sent: digests tells what they became.
func (w *writer) entry(d drafted, digests map[string]digest.Digest) entry {
	en, some := d.entry, false
	en.outputs = make([]entryOutput, len(d.outputs))
	for i, places := range d.outputs {
		out := entryOutput{have: w.wanted(places)}
		for _, p := range places {
			blob, ok := digests[p.name()]
			out.have = out.have && ok
			out.layers = append(out.layers, blob)
		}
		if out.have {
			en.outputs[i], some = out, true
		}
	}
	if !some && !w.export.max {
		en.key, en.links = "", nil
	}
	return en
}

// sendAll sends each layer once. One that is elsewhere and gone is left out.
func (w *writer) sendAll(ctx context.Context, drafts []drafted) (map[string]digest.Digest, error) {
	var mu sync.Mutex
	digests := map[string]digest.Digest{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelPush)
	begun := map[string]bool{}
	for _, d := range drafts {
		for _, places := range d.outputs {
			if !w.wanted(places) {
				continue
			}
			for _, p := range places {
				if begun[p.name()] {
					continue
				}
				begun[p.name()] = true
				g.Go(func() error {
					sent, err := w.send(gctx, p)
					if p.id == "" && errors.Is(err, errdef.ErrNotFound) {
						return nil
					}
					if err != nil {
						return err
					}
					mu.Lock()
					defer mu.Unlock()
					digests[p.name()] = sent
					return nil
				})
			}
		}
	}
	return digests, g.Wait()
}

func (w *writer) send(ctx context.Context, p place) (digest.Digest, error) {
	var sent export.SentLayer
	var err error
	if p.id != "" {
		sent, err = w.x.SendLayer(ctx, p.id, &w.export.form, w.sink)
	} else {
		sent = export.SentLayer{Desc: p.far.Desc, DiffID: p.far.DiffID, Created: p.far.Created}
		if w.export.form.Force || w.export.form.DockerTypes {
			sent, err = w.fetchAndSend(ctx, p)
		} else {
			err = w.copy(ctx, p)
		}
	}
	if err != nil {
		return "", err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent[sent.Desc.Digest] = sent
	return sent.Desc.Digest, nil
}

// fetchAndSend brings a layer here to send it in another form.
func (w *writer) fetchAndSend(ctx context.Context, p place) (export.SentLayer, error) {
	chain, err := w.set.deps.Images.EnsureLayers(ctx, []image.Layer{p.far}, p.from, nil)
	if err != nil {
		return export.SentLayer{}, err
	}
	return w.x.SendLayer(ctx, chain[0], &w.export.form, w.sink)
}

// copy sends a layer from elsewhere as it is, without keeping it here.
func (w *writer) copy(ctx context.Context, p place) error {
	open := func() (io.ReadCloser, error) { return w.set.deps.openFar(ctx, p) }
	if w.blobs != nil {
		return w.blobs.Put(ctx, p.far.Desc, open)
	}
	return w.set.deps.copyToRepo(ctx, w.repo, p, open)
}

// openFar opens a layer that is elsewhere. The digest is checked where the bytes
// go to.
func (d *Deps) openFar(ctx context.Context, p place) (io.ReadCloser, error) {
	if p.from.Open != nil {
		return p.from.Open(ctx, p.far.Desc, 0)
	}
	return d.Registry.Fetch(ctx, p.from.Repo, p.far.Desc)
}

// copyToRepo has the registry take the layer over from another of its
// repositories, where it can.
func (d *Deps) copyToRepo(ctx context.Context, repo oci.Ref, p place, open func() (io.ReadCloser, error)) error {
	desc := p.far.Desc
	have, err := d.Registry.Exists(ctx, repo, desc.Digest)
	if err != nil || have {
		return err
	}
	if p.from.Open == nil && p.from.Repo.Domain == repo.Domain {
		if done, err := d.Registry.Mount(ctx, repo, desc.Digest, p.from.Repo); err != nil || done {
			return err
		}
	}
	return d.Registry.PushNew(ctx, repo, desc, registry.Upload{}, open)
}

// writeDocuments writes the document of keys, then what refers to it, so that a
// cache is found when it is complete.
func (w *writer) writeDocuments(ctx context.Context, doc configDoc) (*ocispecs.Descriptor, error) {
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	config := describe(configType, raw)
	if err := w.put(ctx, config, raw); err != nil {
		return nil, fmt.Errorf("write the keys: %w", err)
	}
	var layers []ocispecs.Descriptor
	listed := map[digest.Digest]bool{}
	for _, l := range doc.Layers {
		if !listed[l.Blob] {
			listed[l.Blob] = true
			sent := w.sent[l.Blob]
			layers = append(layers, annotate(sent.Desc, sent.DiffID, sent.Created))
		}
	}
	mediaType, top := w.document(config, layers)
	if raw, err = json.Marshal(top); err != nil {
		return nil, err
	}
	desc := describe(mediaType, raw)
	if w.blobs == nil {
		_, err = w.set.deps.Registry.PushManifest(ctx, w.export.ref, mediaType, raw)
		return &desc, err
	}
	if err := w.put(ctx, desc, raw); err != nil {
		return nil, err
	}
	dir, ours := w.blobs.(Dir)
	if !ours {
		return &desc, nil // the client names it
	}
	var only map[digest.Digest]bool
	if w.export.reset {
		only = listed
		only[config.Digest], only[desc.Digest] = true, true
	}
	return &desc, dir.setTag(ctx, w.export.tag, desc, only)
}

// document is a manifest, or an index as BuildKit wrote at first.
func (w *writer) document(config ocispecs.Descriptor, layers []ocispecs.Descriptor) (string, any) {
	v := specs.Versioned{SchemaVersion: 2}
	if !w.export.index {
		m := ocispecs.Manifest{Versioned: v, MediaType: ocispecs.MediaTypeImageManifest, Config: config, Layers: layers}
		return m.MediaType, m
	}
	index := ocispecs.Index{Versioned: v, MediaType: ocispecs.MediaTypeImageIndex, Manifests: append(layers, config)}
	if w.export.form.DockerTypes {
		index.MediaType = oci.DockerManifestList
	}
	return index.MediaType, index
}

func (w *writer) put(ctx context.Context, desc ocispecs.Descriptor, raw []byte) error {
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
	if w.blobs != nil {
		return w.blobs.Put(ctx, desc, open)
	}
	return w.set.deps.Registry.Push(ctx, w.repo, desc, open)
}

func describe(mediaType string, raw []byte) ocispecs.Descriptor {
	return ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
}

// Inline makes what an image of the chain keeps of what the build knows; nil when
// none of it fits the image.
func (s *Set) Inline(ctx context.Context, list []solve.Known, chain snapshot.Chain) ([]byte, error) {
	diffIDs := make([]digest.Digest, len(chain))
	at := map[string]digest.Digest{}
	for i, id := range chain {
		diffID, _, err := s.deps.Snapshots.DiffID(ctx, id)
		if err != nil {
			return nil, err
		}
		diffIDs[i] = diffID
		at[id], at[diffID.String()] = diffID, diffID
	}
	drafts := s.draft(list)
	entries := make([]entry, len(drafts))
	for i, d := range drafts {
		entries[i] = d.entry
		for _, places := range d.outputs {
			out := entryOutput{have: places != nil}
			for _, p := range places {
				diffID, ok := at[p.name()]
				out.have = out.have && ok
				out.layers = append(out.layers, diffID)
			}
			entries[i].outputs = append(entries[i].outputs, out)
		}
	}
	return encodeInline(entries, diffIDs)
}
