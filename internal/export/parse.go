package export

import (
	"encoding/csv"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/oci"
)

// ParseOutput reads a value of --output as docker does: "type=…,dest=…,…", "-"
// for a tar on standard output, or a directory. ErrInvalid for what it cannot
// mean, with the nearest key as the hint; ErrUnsupported for what docker has and
// dhow has not.
func ParseOutput(s string) (Output, error) {
	o, err := parseOutput(s)
	if err != nil {
		return Output{}, fmt.Errorf("output %q: %w", s, err)
	}
	return o, nil
}

func parseOutput(s string) (Output, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return Output{}, errdef.New(errdef.ErrInvalid, "it is no list of key=value: %w", err)
	}
	if len(fields) == 1 && fields[0] == s && s != "" {
		if s == "-" {
			return Output{Type: TypeTar, Dest: "-"}, nil
		}
		if key, _, _ := strings.Cut(s, "="); key == s || strings.ContainsAny(key, "/.") {
			return Output{Type: TypeLocal, Dest: s}, nil
		}
	}
	o := Output{}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return Output{}, errdef.New(errdef.ErrInvalid, "field %q: want key=value", f)
		}
		key = strings.TrimSpace(key)
		if lower := strings.ToLower(key); !strings.HasPrefix(lower, "annotation") {
			key = lower // annotations have keys of their own, where case counts
		}
		if err := o.set(key, value); err != nil {
			return Output{}, err
		}
	}
	return o, o.check()
}

// SetAll sets the values of an --output that were read already, on an output
// with a type. Errors are ParseOutput's.
func (o *Output) SetAll(values map[string]string) error {
	kind := string(o.Type)
	if err := o.setType(kind); err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(values)) {
		if err := o.set(k, values[k]); err != nil {
			return fmt.Errorf("output type=%s: %w", kind, err)
		}
	}
	if err := o.check(); err != nil {
		return fmt.Errorf("output type=%s: %w", kind, err)
	}
	return nil
}

// types are the values of type=, docker's aliases among them.
var types = []string{"image", "registry", "docker", "oci", "tar", "local", "cacheonly"}

// keys are the keys that dhow knows, for suggestions.
var keys = []string{
	"type", "dest", "name", "push", "push-by-digest", "store", "unpack", "tar", "compression", "compression-level", "force-compression",
	"mode", "oci-mediatypes", "rewrite-timestamp", "platform-split", "attestation-inline", "attestation-prefix", "oci-artifact", "annotation.KEY", "annotation-manifest.KEY",
	"annotation-manifest-descriptor.KEY", "annotation-index.KEY", "annotation-index-descriptor.KEY",
}

// refused are keys that docker has and that mean nothing here, with the reason.
var refused = map[string]string{
	"registry.insecure":       "registries on this machine are spoken to without TLS, others never",
	"dangling-name-prefix":    "images without a name have their id",
	"danging-name-empty-only": "images without a name have their id",
	"name-canonical":          "an image is found by its digest once it was pushed",
	"prefer-nondist-layers":   "layers keep the kind that they came with",
	"context":                 "no docker daemon is involved",
}

func (o *Output) set(key, value string) error {
	yes := func(to *bool) error {
		b, err := parseBool(key, value)
		*to = b
		return err
	}
	no := func(to *bool) error {
		b, err := parseBool(key, value)
		*to = !b
		return err
	}
	switch key {
	case "type":
		return o.setType(value)
	case "dest":
		o.Dest = value
	case "name":
		return o.setNames(value)
	case "push":
		return yes(&o.Push)
	case "push-by-digest":
		return yes(&o.PushByDigest)
	case "store":
		return no(&o.NoStore)
	case "unpack":
		return yes(new(bool)) // images in the store always are
	case "tar":
		return no(&o.Unpacked)
	case "compression":
		return o.setCompression(value)
	case "compression-level":
		n, err := strconv.Atoi(value)
		if err != nil {
			return errdef.New(errdef.ErrInvalid, "compression-level=%s: want a number", value)
		}
		o.Level = &n
	case "force-compression":
		return yes(&o.Force)
	case "mode":
		return o.setMode(value)
	case "oci-mediatypes":
		return no(&o.DockerTypes)
	case "rewrite-timestamp":
		return yes(&o.RewriteTimestamps)
	case "platform-split":
		if err := no(&o.NoSplit); err != nil {
			return err
		}
		o.ForceSplit = !o.NoSplit
	case "attestation-inline":
		return no(&o.AttestationsApart)
	case "attestation-prefix":
		o.AttestationPrefix = value
	case "oci-artifact":
		return no(&o.NoArtifact)
	default:
		return o.setOther(key, value)
	}
	return nil
}

// setOther takes the keys that carry a key of their own.
func (o *Output) setOther(key, value string) error {
	if a, ok, err := annotationKey(key, value); ok || err != nil {
		o.Annotations = append(o.Annotations, a)
		return err
	}
	if why, ok := refused[key]; ok {
		return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "key %q", key), "leave it out: %s", why)
	}
	err := errdef.New(errdef.ErrInvalid, "key %q is not known", key)
	if near := nearest(key, keys); near != "" {
		return errdef.WithHint(err, "did you mean %q?", near)
	}
	return errdef.WithHint(err, "keys: %s", strings.Join(keys, ", "))
}

func (o *Output) setType(value string) error {
	switch value {
	case "registry":
		o.Type, o.Push, o.NoStore = TypeImage, true, true
		return nil
	case "image", "docker", "oci", "tar", "local", "cacheonly":
		o.Type = Type(value)
		return nil
	}
	err := errdef.New(errdef.ErrInvalid, "type %q is not known", value)
	if near := nearest(value, types); near != "" {
		return errdef.WithHint(err, "did you mean %q?", near)
	}
	return errdef.WithHint(err, "types: %s", strings.Join(types, ", "))
}

// setMode decides what becomes of files in a directory that are not in the result.
func (o *Output) setMode(value string) error {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "", "copy":
		o.Delete = false
	case "delete":
		o.Delete = true
	default:
		return errdef.New(errdef.ErrInvalid, "mode=%s: want copy or delete", value)
	}
	return nil
}

func (o *Output) setNames(value string) error {
	for _, name := range strings.Split(value, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if name == "*" {
			o.NamedByFrontend = true
			continue
		}
		ref, err := oci.ParseTagged(name)
		if err != nil {
			return err
		}
		o.Names = append(o.Names, ref)
	}
	return nil
}

func (o *Output) setCompression(value string) error {
	switch value {
	case "gzip", "zstd", "uncompressed":
		o.Compression = oci.Compression(value)
		return nil
	case "estargz", "nydus":
		// BuildKit's clients see no hints.
		return errdef.New(errdef.ErrUnsupported, "compression %q is not supported, but gzip, zstd and uncompressed are", value)
	}
	return errdef.WithHint(errdef.New(errdef.ErrInvalid, "compression %q is not known", value), "use gzip, zstd or uncompressed")
}

func parseBool(key, value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, errdef.New(errdef.ErrInvalid, "%s=%s: want true or false", key, value)
	}
	return b, nil
}

// check finds what does not go together.
func (o *Output) check() error {
	switch o.Type {
	case "":
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "no type"), "add type=%s", strings.Join(types, "|"))
	case TypeLocal:
		if o.Dest == "" && o.Trees == nil {
			return errdef.New(errdef.ErrInvalid, "type=local needs dest=DIR")
		}
		if o.Dest == "-" {
			return errdef.WithHint(errdef.New(errdef.ErrInvalid, "a directory cannot go to standard output"), "use type=tar")
		}
	case TypeTar, TypeOCI:
		if o.Dest == "" && o.Stream == nil && o.Layout == nil {
			o.Dest = "-"
		}
	case TypeImage, TypeCacheOnly:
		if o.Dest != "" {
			return errdef.New(errdef.ErrInvalid, "type=%s takes no dest", o.Type)
		}
	}
	if o.Unpacked && o.Layout == nil && (o.Dest == "" || o.Dest == "-") {
		return errdef.New(errdef.ErrInvalid, "tar=false needs dest=DIR")
	}
	if o.Delete && o.Type != TypeLocal {
		return errdef.New(errdef.ErrInvalid, "mode=delete goes with type=local, not with type=%s", o.Type)
	}
	if o.Push && o.Type != TypeImage {
		return errdef.New(errdef.ErrInvalid, "push goes with type=image or type=registry, not with type=%s", o.Type)
	}
	if o.DockerTypes && len(o.Annotations) > 0 {
		return errdef.New(errdef.ErrInvalid, "annotations and oci-mediatypes=false exclude each other: docker's manifests have none")
	}
	return layer.CheckLevel(o.compression(), o.level())
}

// nearest is the candidate that s is likely a misspelling of, or "".
func nearest(s string, candidates []string) string {
	best, least := "", 1+len(s)/3
	for _, c := range candidates {
		if d := distance(s, c); d <= least && (best == "" || d < distance(s, best)) {
			best = c
		}
	}
	return best
}

// distance is the number of letters to insert, delete or replace (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// annotationKey reads annotation[-LEVEL][\[PLATFORM\]].KEY.
func annotationKey(key, value string) (a Annotation, ok bool, err error) {
	rest, ok := strings.CutPrefix(key, "annotation")
	if !ok {
		return a, false, nil
	}
	level := LevelManifest
	if r, found := strings.CutPrefix(rest, "-"); found {
		end := strings.IndexAny(r, "[.")
		if end < 0 {
			return a, false, nil
		}
		level, rest = Level(r[:end]), r[end:]
		if !slices.Contains(levels, level) {
			return a, false, nil
		}
	}
	platform := ""
	if r, found := strings.CutPrefix(rest, "["); found {
		if platform, rest, found = strings.Cut(r, "]"); !found {
			return a, false, nil
		}
	}
	name, found := strings.CutPrefix(rest, ".")
	if !found || name == "" {
		return a, false, nil
	}
	a, err = annotation(level, platform, name, value)
	return a, true, err
}

// NameBy takes the frontend's names for an output that wants them.
func (o *Output) NameBy(names string) error {
	if !o.NamedByFrontend {
		return nil
	}
	return o.setNames(names)
}

// Annotate adds what a frontend wants annotated, in the keys of --output, which go
// before what the output itself says. ErrInvalid.
func (o *Output) Annotate(metadata map[string][]byte) error {
	var list []Annotation
	for _, k := range slices.Sorted(maps.Keys(metadata)) {
		a, ok, err := annotationKey(k, string(metadata[k]))
		if err != nil {
			return err
		}
		if ok {
			list = append(list, a)
		}
	}
	o.Annotations = append(list, o.Annotations...)
	return nil
}

var levels = []Level{LevelManifest, LevelManifestDescriptor, LevelIndex, LevelIndexDescriptor}

func annotation(level Level, platform, key, value string) (Annotation, error) {
	a := Annotation{Level: level, Key: key, Value: value}
	if platform != "" {
		p, err := oci.ParsePlatform(platform)
		if err != nil {
			return a, err
		}
		if level == LevelIndex || level == LevelIndexDescriptor {
			return a, errdef.New(errdef.ErrInvalid, "annotation %s: an %s has no platform", key, level)
		}
		a.Platform = oci.FormatPlatform(p)
	}
	return a, nil
}

// ParseAnnotation reads a value of --annotation: [level[,level…][\[platform\]]:]key=value,
// for example "index,manifest[linux/amd64]:org.opencontainers.image.title=x".
// Without a level it goes on the manifest. ErrInvalid.
func ParseAnnotation(s string) ([]Annotation, error) {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" {
		return nil, errdef.New(errdef.ErrInvalid, "annotation %q: want key=value", s)
	}
	where, name, found := strings.Cut(key, ":")
	if !found {
		where, name = string(LevelManifest), key
	}
	if name == "" {
		return nil, errdef.New(errdef.ErrInvalid, "annotation %q: the key is empty", s)
	}
	var out []Annotation
	for _, w := range strings.Split(where, ",") {
		level, platform, bracket := strings.Cut(w, "[")
		if bracket {
			if platform, bracket = strings.CutSuffix(platform, "]"); !bracket {
				return nil, errdef.New(errdef.ErrInvalid, "annotation %q: %q lacks a closing bracket", s, w)
			}
		}
		if !slices.Contains(levels, Level(level)) {
			err := errdef.New(errdef.ErrInvalid, "annotation %q: level %q is not known", s, level)
			return nil, errdef.WithHint(err, "levels: manifest, manifest-descriptor, index, index-descriptor")
		}
		a, err := annotation(Level(level), platform, name, value)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}
