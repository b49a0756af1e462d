package remotecache

import (
	"encoding/csv"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/oci"

	"github.com/opencontainers/go-digest"
)

// Options are one --cache-to or --cache-from, or one entry of BuildKit's
// CacheOptions.
type Options struct {
	Type  string
	Attrs map[string]string
}

// The types of caches.
const (
	TypeRegistry = "registry"
	TypeLocal    = "local"
	TypeInline   = "inline"
	TypeDhow     = "dhow"
)

// Parse reads "type=registry,ref=…", or a reference alone. ErrInvalid.
func Parse(s string) (Options, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return Options{}, errdef.New(errdef.ErrInvalid, "cache %q: %w", s, err)
	}
	if len(fields) == 1 && !strings.Contains(fields[0], "=") {
		return Options{Type: TypeRegistry, Attrs: map[string]string{"ref": fields[0]}}, nil
	}
	o := Options{Attrs: map[string]string{}}
	last := ""
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		switch key = strings.ToLower(strings.TrimSpace(key)); {
		case !ok && last == attrMounts:
			// cache-mounts=a,b is what people write; docker's list would want quotes.
			o.Attrs[last] += "," + strings.TrimSpace(f)
			continue
		case !ok:
			return Options{}, errdef.New(errdef.ErrInvalid, "cache %q: %q is no key=value", s, f)
		case key == "type":
			o.Type = value
		default:
			o.Attrs[key] = value
		}
		last = key
	}
	if o.Type == "" {
		return Options{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "cache %q: no type", s), "write type=registry,ref=…, type=local, type=inline or type=dhow,ref=…")
	}
	return o, nil
}

// id tells equal caches apart from others.
func (o Options) id() string {
	parts := []string{o.Type}
	for k, v := range o.Attrs {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts[1:])
	return strings.Join(parts, ",")
}

// The attributes, in BuildKit's words but for the last.
const (
	attrRef       = "ref"
	attrSrc       = "src"
	attrDest      = "dest"
	attrTag       = "tag"
	attrDigest    = "digest"
	attrMode      = "mode"
	attrIgnore    = "ignore-error"
	attrManifest  = "image-manifest"
	attrOCITypes  = "oci-mediatypes"
	attrReset     = "reset"
	attrInsecure  = "registry.insecure"
	attrMounts    = "cache-mounts"
	defaultTag    = "latest"
	attrOfLayers  = "compression compression-level force-compression"
	attrsToAnyOne = "mode ignore-error"
)

// Import is where results may be found.
type Import struct {
	Options
	ref    oci.Ref // of types registry and dhow
	dir    string  // of type local
	tag    string  // in dir
	digest digest.Digest
	mounts []string // ids of cache mounts
}

// ParseImport checks a --cache-from. ErrInvalid; ErrUnsupported with advice for
// the types that dhow does not have.
func ParseImport(o Options) (*Import, error) {
	im := &Import{Options: o}
	err := im.parse()
	if err != nil {
		return nil, wrap("import", o, err)
	}
	return im, nil
}

func (im *Import) parse() (err error) {
	a := im.Attrs
	switch im.Type {
	case TypeRegistry, TypeDhow:
		known := "ref " + attrInsecure
		if im.Type == TypeDhow {
			known += " " + attrMounts
			im.mounts = list(a[attrMounts])
		}
		if err := onlyKnown(a, known); err != nil {
			return err
		}
		im.ref, err = parseRef(im.Type, a)
		return err
	case TypeLocal:
		if err := onlyKnown(a, "src tag digest"); err != nil {
			return err
		}
		im.dir, im.tag, im.digest = a[attrSrc], a[attrTag], digest.Digest(a[attrDigest])
		if im.tag == "" {
			im.tag = defaultTag
		}
		if im.dir == "" {
			return errdef.New(errdef.ErrInvalid, "type=local needs src=DIR")
		}
		if im.digest != "" {
			return oci.ValidDigest(im.digest)
		}
		return nil
	case TypeInline:
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "type=inline is found through its image"), "use type=registry,ref=IMAGE")
	}
	return refuse(im.Type)
}

// Export is where results go.
type Export struct {
	Options
	ref      oci.Ref
	dir      string
	tag      string
	max      bool // all results, not just those that the final ones are made of
	ignore   bool // an error is a warning
	index    bool // write an index of layers as BuildKit did at first, no manifest
	reset    bool // remove from dir what no tag of it needs
	mounts   []string
	form     export.Output // how layers are written
	deferred error         // why it cannot be written, where that is to be a warning
}

// Inline says that the cache goes into the image.
func (e *Export) Inline() bool { return e.Type == TypeInline }

// ParseExport checks a --cache-to. ErrInvalid; ErrUnsupported with advice for the
// types that dhow does not have, unless its errors are to be ignored.
func ParseExport(o Options) (*Export, error) {
	e := &Export{Options: o}
	err := e.parse()
	if err != nil && e.ignore && errdef.Hint(err) != "" && !e.has() {
		e.deferred, err = wrap("export", o, err), nil
	}
	if err != nil {
		return nil, wrap("export", o, err)
	}
	return e, nil
}

// has says whether the type is one of dhow's.
func (e *Export) has() bool {
	return slices.Contains([]string{TypeRegistry, TypeLocal, TypeInline, TypeDhow}, e.Type)
}

func (e *Export) parse() (err error) {
	a := e.Attrs
	e.ignore = e.Type == TypeDhow
	if v, ok := a[attrIgnore]; ok {
		if e.ignore, err = boolean(attrIgnore, v); err != nil {
			return err
		}
	}
	switch a[attrMode] {
	case "", "min":
	case "max":
		e.max = true
	default:
		return errdef.New(errdef.ErrInvalid, "mode=%s: want min or max", a[attrMode])
	}
	known := attrsToAnyOne + " " + attrOfLayers
	switch e.Type {
	case TypeInline:
		return onlyKnown(a, attrsToAnyOne)
	case TypeDhow:
		if a[attrMode] == "min" {
			return errdef.New(errdef.ErrInvalid, "mode=min: a cache of type=dhow has all steps")
		}
		e.max, e.mounts = true, list(a[attrMounts])
		known += " ref " + attrMounts + " " + attrInsecure
	case TypeRegistry:
		known += " ref oci-mediatypes image-manifest " + attrInsecure
	case TypeLocal:
		known += " dest tag reset oci-mediatypes image-manifest"
	default:
		return refuse(e.Type)
	}
	if err := onlyKnown(a, known); err != nil {
		return err
	}
	if err := e.parseForm(); err != nil {
		return err
	}
	if e.Type == TypeLocal {
		return e.parseLocal()
	}
	e.form.Push = e.form.Compression != oci.Uncompressed
	e.ref, err = parseRef(e.Type, a)
	return err
}

// parseForm reads how layers and their list are written.
func (e *Export) parseForm() error {
	e.form.Type = export.TypeImage
	layers := map[string]string{}
	for _, key := range append(strings.Fields(attrOfLayers), attrOCITypes) {
		if v, ok := e.Attrs[key]; ok {
			layers[key] = v
		}
	}
	if err := e.form.SetAll(layers); err != nil {
		return err
	}
	e.index = e.form.DockerTypes
	if v, ok := e.Attrs[attrManifest]; ok {
		manifest, err := boolean(attrManifest, v)
		if err != nil {
			return err
		}
		if manifest && e.form.DockerTypes {
			return errdef.New(errdef.ErrInvalid, "image-manifest=true and oci-mediatypes=false exclude each other")
		}
		e.index = !manifest
	}
	return nil
}

func (e *Export) parseLocal() (err error) {
	if e.dir = e.Attrs[attrDest]; e.dir == "" {
		return errdef.New(errdef.ErrInvalid, "type=local needs dest=DIR")
	}
	if e.tag = e.Attrs[attrTag]; e.tag == "" {
		e.tag = defaultTag
	}
	if v, ok := e.Attrs[attrReset]; ok {
		e.reset, err = boolean(attrReset, v)
	}
	return err
}

// plain says whether the registry may be spoken to without TLS.
func (o Options) plain() bool {
	yes, err := strconv.ParseBool(o.Attrs[attrInsecure])
	return yes && err == nil
}

func parseRef(kind string, a map[string]string) (oci.Ref, error) {
	if v, ok := a[attrInsecure]; ok {
		if _, err := boolean(attrInsecure, v); err != nil {
			return oci.Ref{}, err
		}
	}
	if a[attrRef] == "" {
		return oci.Ref{}, errdef.New(errdef.ErrInvalid, "type=%s needs ref=REPOSITORY", kind)
	}
	ref, err := oci.ParseRef(a[attrRef])
	if err != nil {
		return oci.Ref{}, err
	}
	if kind == TypeDhow {
		if ref.Tag != "" || ref.Digest != "" {
			return oci.Ref{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "ref=%s: a cache of type=dhow fills a repository with tags of its own", a[attrRef]),
				"write ref=%s", ref.Repo().Familiar())
		}
		return ref, nil
	}
	return ref.WithDefaultTag(), nil
}

// refuse names what dhow does not have, and what to do instead.
func refuse(kind string) error {
	switch kind {
	case "gha", "s3", "azblob":
		return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "dhow keeps no cache in %s", kind),
			"use a registry: type=dhow,ref=REGISTRY/REPOSITORY (every step by itself), or type=registry; with a store of files that is mounted or synchronised, type=local")
	}
	return errdef.WithHint(errdef.New(errdef.ErrInvalid, "cache type %q is not known", kind), "use type=registry, local, inline or dhow")
}

func onlyKnown(attrs map[string]string, known string) error {
	for key := range attrs {
		if !slices.Contains(strings.Fields(known), key) {
			return errdef.WithHint(errdef.New(errdef.ErrInvalid, "key %q is not known", key), "keys: %s", strings.Join(strings.Fields(known), ", "))
		}
	}
	return nil
}

func boolean(key, value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, errdef.New(errdef.ErrInvalid, "%s=%s: want true or false", key, value)
	}
	return b, nil
}

func list(s string) []string {
	var out []string
	for id := range strings.SplitSeq(s, ",") {
		if id = strings.TrimPrefix(strings.TrimSpace(id), "/"); id != "" {
			out = append(out, id)
		}
	}
	return out
}

func wrap(what string, o Options, err error) error {
	return fmt.Errorf("cache %s type=%s: %w", what, o.Type, err)
}
