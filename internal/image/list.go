package image

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
)

// ListOptions filters a list by docker's filters: dangling, reference, before,
// since, until, label and label!. The values of one filter are alternatives,
// but for labels, where all must hold.
type ListOptions struct {
	Filters map[string][]string
	Now     time.Time // what "until=10m" counts from; zero is the clock's
}

// entry is an image with its names and labels, as filters see it.
type entry struct {
	store.Image
	names
	labels map[string]string
}

// List returns the images, newest first; with a reference filter, only the names
// that it fits. ErrInvalid for a filter that is unknown
// or malformed.
func (im *Images) List(ctx context.Context, o ListOptions) ([]image.Summary, error) {
	keep, err := im.filter(ctx, o.Filters, o.Now, listFilters)
	if err != nil {
		return nil, err
	}
	entries, err := im.entries(ctx)
	if err != nil {
		return nil, err
	}
	out := []image.Summary{}
	for _, e := range entries {
		if !keep(&e) {
			continue
		}
		if refs := o.Filters["reference"]; len(refs) > 0 {
			e.names = e.matching(refs)
		}
		out = append(out, image.Summary{
			ID: string(e.ID), Created: unix(e.Created), Labels: e.labels, Size: e.Size,
			Containers: -1, SharedSize: -1, RepoTags: e.repoTags(), RepoDigests: e.repoDigests(), Descriptor: e.ManifestDesc,
		})
	}
	return out, nil
}

// unix is a time in seconds, 0 for the zero time.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// entries are all images, newest first, joined with their names.
func (im *Images) entries(ctx context.Context) ([]entry, error) {
	images, err := im.store.Images(ctx)
	if err != nil {
		return nil, err
	}
	tags, err := im.store.Tags(ctx)
	if err != nil {
		return nil, err
	}
	digests, err := im.store.RepoDigests(ctx)
	if err != nil {
		return nil, err
	}
	byID := map[digest.Digest]*names{}
	of := func(id digest.Digest) *names {
		if byID[id] == nil {
			byID[id] = &names{}
		}
		return byID[id]
	}
	for _, t := range tags {
		of(t.ID).tags = append(of(t.ID).tags, t)
	}
	for _, d := range digests {
		of(d.ID).digests = append(of(d.ID).digests, d)
	}
	out := make([]entry, 0, len(images))
	for _, img := range images {
		e := entry{Image: img, names: *of(img.ID)}
		if cfg, err := oci.ParseImage(img.Config); err == nil {
			e.labels = cfg.Config.Labels
		}
		out = append(out, e)
	}
	slices.SortStableFunc(out, func(a, b entry) int { return b.Created.Compare(a.Created) })
	return out, nil
}

// repoTags are the names as docker prints them.
func (n names) repoTags() []string {
	out := []string{}
	for _, t := range n.tags {
		if ref, err := oci.ParseRef(t.Name); err == nil {
			out = append(out, ref.Familiar())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (n names) repoDigests() []string {
	out := []string{}
	for _, d := range n.digests {
		out = append(out, digestName(d))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Which filters a command takes.
const (
	listFilters  = "before dangling label label! reference since until"
	pruneFilters = "label label! until"
)

// predicate decides on one image.
type predicate func(*entry) bool

// filter turns docker's filters into one predicate.
func (im *Images) filter(ctx context.Context, filters map[string][]string, now time.Time, known string) (predicate, error) {
	if now.IsZero() {
		now = time.Now()
	}
	var all []predicate
	for key, values := range filters {
		if !slices.Contains(strings.Fields(known), key) {
			return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "invalid filter %q", key), "known filters: %s", strings.ReplaceAll(known, " ", ", "))
		}
		any := []predicate{}
		for _, v := range values {
			p, err := im.filterOne(ctx, key, v, now)
			if err != nil {
				return nil, fmt.Errorf("filter %s=%s: %w", key, v, err)
			}
			any = append(any, p)
		}
		if strings.HasPrefix(key, "label") {
			all = append(all, any...)
			continue
		}
		all = append(all, func(e *entry) bool {
			return slices.ContainsFunc(any, func(p predicate) bool { return p(e) })
		})
	}
	return func(e *entry) bool {
		return !slices.ContainsFunc(all, func(p predicate) bool { return !p(e) })
	}, nil
}

func (im *Images) filterOne(ctx context.Context, key, value string, now time.Time) (predicate, error) {
	switch key {
	case "dangling":
		want, err := strconv.ParseBool(value)
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "want true or false")
		}
		return func(e *entry) bool { return (len(e.tags) == 0) == want }, nil
	case "label", "label!":
		return labelFilter(value, key == "label"), nil
	case "reference":
		if _, err := path.Match(value, ""); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "malformed pattern")
		}
		return func(e *entry) bool { return e.matchesReference(value) }, nil
	case "before", "since":
		img, err := im.Lookup(ctx, value, oci.Platform{})
		if err != nil {
			return nil, err
		}
		sign := -1
		if key == "since" {
			sign = 1
		}
		return func(e *entry) bool { return e.Created.Compare(img.Created) == sign }, nil
	default: // until
		at, err := until(value, now)
		if err != nil {
			return nil, err
		}
		return func(e *entry) bool { return e.Created.Before(at) }, nil
	}
}

// labelFilter holds for images that have the label "key" or "key=value", or do
// not.
func labelFilter(value string, want bool) predicate {
	k, v, exact := strings.Cut(value, "=")
	return func(e *entry) bool {
		got, ok := e.labels[k]
		return (ok && (!exact || got == v)) == want
	}
}

// matchesReference says whether one of the image's names does.
func (e *entry) matchesReference(pattern string) bool {
	m := e.matching([]string{pattern})
	return len(m.tags)+len(m.digests) > 0
}

// matching are the names that one of the patterns fits in one of their forms:
// familiar with and without tag, and canonical.
func (n names) matching(patterns []string) names {
	fits := func(name, suffix string) bool {
		ref, err := oci.ParseRef(name)
		if err != nil {
			return false
		}
		for _, form := range []string{ref.FamiliarName(), ref.FamiliarName() + suffix, ref.Name(), ref.Name() + suffix} {
			for _, p := range patterns {
				if ok, _ := path.Match(p, form); ok { // the pattern was checked
					return true
				}
			}
		}
		return false
	}
	var out names
	for _, t := range n.tags {
		if i := strings.LastIndexByte(t.Name, ':'); fits(t.Name[:i], t.Name[i:]) {
			out.tags = append(out.tags, t)
		}
	}
	for _, d := range n.digests {
		if fits(d.Name, "@"+string(d.Digest)) {
			out.digests = append(out.digests, d)
		}
	}
	return out
}

// until reads a point in time: a duration before now, seconds since 1970, or a
// date.
func until(value string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(value); err == nil {
		return now.Add(-d), nil
	}
	if sec, err := strconv.ParseInt(value, 10, 64); err == nil {
		return time.Unix(sec, 0), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, value, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "malformed time"), "examples: 24h, 2026-01-02, 2026-01-02T15:04:05Z")
}
