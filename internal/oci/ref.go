package oci

import (
	"errors"
	"fmt"
	"strings"

	"dhow/internal/errdef"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// DockerHub is the domain that names without one belong to.
const DockerHub = "docker.io"

// DefaultTag is meant where neither tag nor digest is given.
const DefaultTag = "latest"

// Ref names an image in a registry: domain, path, and a tag or a digest or
// both or neither. Refs are values and compare with ==. The zero Ref names
// nothing.
type Ref struct {
	Domain string        // "docker.io", "localhost:5000"
	Path   string        // "library/busybox"
	Tag    string        // "" when none was given
	Digest digest.Digest // "" when none was given; sha256
}

// ParseRef reads a name as docker users write it: "busybox" is
// docker.io/library/busybox. No tag is added, see Ref.WithDefaultTag. The
// rules are those of distribution/reference. ErrInvalid, with a hint where the
// mistake is a common one.
func ParseRef(s string) (Ref, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Ref{}, refError(s, err)
	}
	r := Ref{Domain: reference.Domain(named), Path: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		if err := ValidDigest(d.Digest()); err != nil {
			return Ref{}, fmt.Errorf("reference %q: %w", s, err)
		}
		r.Digest = d.Digest()
	}
	return r, nil
}

// ParseTagged is ParseRef for names that an image is to be given: with the
// default tag, and refused when they carry a digest, which is not ours to give.
func ParseTagged(s string) (Ref, error) {
	r, err := ParseRef(s)
	if err != nil {
		return Ref{}, err
	}
	if r.Digest != "" {
		return Ref{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "tag %q: a digest names content and cannot be given", s),
			"leave out %q", "@"+string(r.Digest))
	}
	return r.WithDefaultTag(), nil
}

// String is the canonical form: docker.io/library/busybox:latest.
func (r Ref) String() string { return r.suffix(r.Name()) }

// Familiar is the short form people read: busybox:latest.
func (r Ref) Familiar() string { return r.suffix(r.FamiliarName()) }

// Name is the canonical repository: docker.io/library/busybox.
func (r Ref) Name() string {
	if r.Domain == "" {
		return r.Path
	}
	return r.Domain + "/" + r.Path
}

// FamiliarName is the repository as people read it: busybox.
func (r Ref) FamiliarName() string {
	if r.Domain != DockerHub {
		return r.Name()
	}
	if rest, ok := strings.CutPrefix(r.Path, "library/"); ok && !strings.Contains(rest, "/") {
		return rest
	}
	return r.Path
}

func (r Ref) suffix(name string) string {
	if r.Tag != "" {
		name += ":" + r.Tag
	}
	if r.Digest != "" {
		name += "@" + string(r.Digest)
	}
	return name
}

// WithDefaultTag adds "latest" where neither tag nor digest is given.
func (r Ref) WithDefaultTag() Ref {
	if r.Tag == "" && r.Digest == "" {
		r.Tag = DefaultTag
	}
	return r
}

// WithTag is the same repository with the tag alone. The tag is not checked;
// ParseTagged does.
func (r Ref) WithTag(tag string) Ref {
	return Ref{Domain: r.Domain, Path: r.Path, Tag: tag}
}

// WithDigest is the same repository with the digest alone.
func (r Ref) WithDigest(d digest.Digest) Ref {
	return Ref{Domain: r.Domain, Path: r.Path, Digest: d}
}

// Repo is the repository alone.
func (r Ref) Repo() Ref { return Ref{Domain: r.Domain, Path: r.Path} }

// IsID says whether s can be an image's id or the beginning of one, of four
// digits at least, as docker wants it. Most such
// strings are repository names, too: names are tried first, as docker does,
// unless all 64 digits or "sha256:" are given.
func IsID(s string) bool {
	s = strings.TrimPrefix(s, "sha256:")
	return 4 <= len(s) && len(s) <= 64 && consistsOf(s, "0123456789abcdef")
}

// ValidTag says whether the tag is well formed.
func ValidTag(tag string) bool {
	const word = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_"
	return tag != "" && len(tag) <= 128 && consistsOf(tag[:1], word) && consistsOf(tag, word+".-")
}

// consistsOf is what a regular expression would say: one that counts to 128 takes
// a tenth of a millisecond to compile, at the start of every process.
func consistsOf(s, letters string) bool { return strings.Trim(s, letters) == "" }

// refError turns the library's error into ours, with advice.
func refError(s string, err error) error {
	out := errdef.New(errdef.ErrInvalid, "reference %q: %w", s, err)
	name := s
	if i := strings.LastIndexByte(s, '/'); i >= 0 {
		name = s[i+1:]
	}
	_, tag, tagged := strings.Cut(name, ":")
	tag, _, _ = strings.Cut(tag, "@")
	switch {
	case s == "":
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "reference: the name is empty"), "give a name such as busybox:latest")
	case strings.ContainsAny(s, " \t\n"):
		return errdef.WithHint(out, "names have no spaces; give each its own argument")
	case strings.Contains(s, "://"):
		_, rest, _ := strings.Cut(s, "://")
		return errdef.WithHint(out, "leave out the scheme: %s", rest)
	case len(s) == 64 && IsID(s):
		return errdef.WithHint(out, "64 hexadecimal digits are an image id, not a name")
	case s != strings.ToLower(s) && validLower(s):
		return errdef.WithHint(out, "repository names are lower case: %s", lowerName(s))
	case tagged && tag == "":
		return errdef.WithHint(out, "give a tag after the colon, or leave the colon out")
	case tagged && !ValidTag(tag):
		return errdef.WithHint(out, "a tag has up to 128 letters, digits, '_', '.' and '-', and begins with none of the last two")
	case errors.Is(err, reference.ErrReferenceInvalidFormat):
		return errdef.WithHint(out, "a name is [registry[:port]/]path[:tag][@sha256:…], its parts of a-z, 0-9, and '.', '_', '-' between them")
	}
	return out
}

// lowerName lowers the repository's path but not the tag.
func lowerName(s string) string {
	slash := strings.LastIndexByte(s, '/')
	if i := strings.IndexByte(s[slash+1:], ':'); i >= 0 {
		return strings.ToLower(s[:slash+1+i]) + s[slash+1+i:]
	}
	return strings.ToLower(s)
}

func validLower(s string) bool {
	_, err := reference.ParseNormalizedNamed(lowerName(s))
	return err == nil
}
