package oci

import (
	"errors"
	"strings"
	"testing"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const someDigest = "sha256:7cc4b5aefd1d0cadf8d97d4350462ba51c694ebca145b08d7d41b41acc8db5aa"

func TestParseRef(t *testing.T) {
	for _, tt := range []struct {
		in, canonical, familiar string
	}{
		{"busybox", "docker.io/library/busybox", "busybox"},
		{"busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"},
		{"docker.io/busybox", "docker.io/library/busybox", "busybox"},
		{"index.docker.io/library/busybox", "docker.io/library/busybox", "busybox"},
		{"me/app:V1", "docker.io/me/app:V1", "me/app:V1"},
		{"docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"},
		{"localhost/x", "localhost/x", "localhost/x"},
		{"localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"},
		{"[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"},
		{"Registry/x", "Registry/x", "Registry/x"},
		{"ghcr.io/a/b@" + someDigest, "ghcr.io/a/b@" + someDigest, "ghcr.io/a/b@" + someDigest},
		{"a:b@" + someDigest, "docker.io/library/a:b@" + someDigest, "a:b@" + someDigest},
	} {
		r, err := ParseRef(tt.in)
		if err != nil {
			t.Errorf("ParseRef(%q): %v", tt.in, err)
			continue
		}
		if got := r.String(); got != tt.canonical {
			t.Errorf("ParseRef(%q) = %q, want %q", tt.in, got, tt.canonical)
		}
		if got := r.Familiar(); got != tt.familiar {
			t.Errorf("ParseRef(%q).Familiar() = %q, want %q", tt.in, got, tt.familiar)
		}
		again, err := ParseRef(r.Familiar())
		if err != nil || again != r {
			t.Errorf("ParseRef(%q) = %v, %v, want %v", r.Familiar(), again, err, r)
		}
	}
}

func TestParseRefErrors(t *testing.T) {
	for _, tt := range []struct{ in, hint string }{
		{"", "busybox:latest"},
		{"MyApp", "lower case: myapp"},
		{"docker.io/MyApp:Tag", "lower case: docker.io/myapp:Tag"},
		{"https://ghcr.io/a/b", "leave out the scheme: ghcr.io/a/b"},
		{strings.Repeat("a", 64), "image id"},
		{"a b", "spaces"},
		{"a:", "tag after the colon"},
		{"a:-x", "128 letters"},
		{"a@sha256:zz", "a name is"},
		{"-a", "a name is"},
	} {
		_, err := ParseRef(tt.in)
		if !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("ParseRef(%q) = %v, want ErrInvalid", tt.in, err)
		}
		if got := errdef.Hint(err); !strings.Contains(got, tt.hint) {
			t.Errorf("ParseRef(%q) hints %q, want %q in it", tt.in, got, tt.hint)
		}
	}
}

func TestRefParts(t *testing.T) {
	r, err := ParseRef("a/b")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.WithDefaultTag().String(), "docker.io/a/b:latest"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	d := r.WithDigest(someDigest)
	if got := d.WithDefaultTag(); got != d {
		t.Errorf("a digest got the tag %q", got.Tag)
	}
	if got := d.WithTag("x").Repo(); got != r {
		t.Errorf("got %v, want %v", got, r)
	}
	if _, err := ParseTagged("a@" + someDigest); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("ParseTagged of a digest: got %v, want ErrInvalid", err)
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"a", "a:b", "localhost:5/x", "[::1]/x:y", "a@" + someDigest, "A/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			if !errors.Is(err, errdef.ErrInvalid) && !errors.Is(err, errdef.ErrUnsupported) {
				t.Errorf("got the kind of %v, want ErrInvalid", err)
			}
			return
		}
		if again, err := ParseRef(r.String()); err != nil || again != r {
			t.Errorf("%q is %#v, its text %q is %#v, %v", s, r, r, again, err)
		}
	})
}

func TestPlatforms(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "linux/x86_64": "linux/amd64", "linux/arm64/v8": "linux/arm64",
		"linux/aarch64": "linux/arm64", "linux/arm": "linux/arm/v7", "linux/armhf": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6",
	} {
		p, err := ParsePlatform(in)
		if err != nil {
			t.Errorf("ParsePlatform(%q): %v", in, err)
			continue
		}
		if got := FormatPlatform(p); got != want {
			t.Errorf("ParsePlatform(%q) = %q, want %q", in, got, want)
		}
	}
	for _, in := range []string{"linux/a/b/c", "nonsense", "lin*x/amd64"} {
		if _, err := ParsePlatform(in); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("ParsePlatform(%q) = %v, want ErrInvalid", in, err)
		}
	}
	if p, err := ParsePlatform(""); err != nil || FormatPlatform(p) != FormatPlatform(HostPlatform()) {
		t.Errorf("the empty platform is %v, %v, want the host's", p, err)
	}
}

func TestBestPlatform(t *testing.T) {
	for _, tt := range []struct {
		want string
		have []string
		best int
	}{
		{"linux/amd64", []string{"linux/arm64", "linux/amd64"}, 1},
		{"linux/amd64", []string{"linux/386", "linux/amd64"}, 1},
		{"linux/amd64", []string{"linux/386"}, 0},
		{"linux/amd64", []string{"linux/amd64/v3", "linux/amd64"}, 1},
		{"linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v2"}, 1},
		{"linux/arm/v7", []string{"linux/arm/v5", "linux/arm/v6", "linux/arm64"}, 1},
		{"linux/arm/v6", []string{"linux/arm/v7"}, -1},
		{"linux/arm64", []string{"linux/amd64", "windows/arm64"}, -1},
	} {
		want, err := ParsePlatform(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		var have []Platform
		for _, s := range tt.have {
			os, rest, _ := strings.Cut(s, "/")
			arch, variant, _ := strings.Cut(rest, "/")
			have = append(have, Platform{OS: os, Architecture: arch, Variant: variant})
		}
		if got := BestPlatform(want, have); got != tt.best {
			t.Errorf("BestPlatform(%s, %v) = %d, want %d", tt.want, tt.have, got, tt.best)
		}
	}
	if got := BestPlatform(HostPlatform(), []Platform{{}}); got != -1 {
		t.Errorf("a platform without a name matched")
	}
}

func TestLayerMediaTypes(t *testing.T) {
	for _, docker := range []bool{false, true} {
		for _, c := range []Compression{Uncompressed, Gzip, Zstd} {
			if got, ok := LayerCompression(LayerMediaType(c, docker)); !ok || got != c {
				t.Errorf("docker %v: got %q, want %q", docker, got, c)
			}
		}
	}
	if _, ok := LayerCompression(ocispecs.MediaTypeImageConfig); ok {
		t.Error("a config passed for a layer")
	}
}

func TestManifestType(t *testing.T) {
	for in, want := range map[string]string{
		`{"mediaType":"x"}`:                 "x",
		`{"schemaVersion":2,"config":{}}`:   ocispecs.MediaTypeImageManifest,
		`{"manifests":[]}`:                  ocispecs.MediaTypeImageIndex,
		`{"manifests":[],"config":{}}`:      "", // which of the two is not for us to guess
		`{"schemaVersion":1,"fsLayers":[]}`: DockerSchema1,
		`[]`:                                "",
	} {
		if got := ManifestType([]byte(in)); got != want {
			t.Errorf("ManifestType(%s) = %q, want %q", in, got, want)
		}
	}
}

func TestParseImage(t *testing.T) {
	img, err := ParseImage([]byte(`{"os":"linux","architecture":"arm","variant":"v6","config":{"Healthcheck":{"Test":["CMD","x"]},"Shell":["sh"]},"rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"CMD", "x"}, img.Config.Healthcheck.Test); diff != "" {
		t.Errorf("health check (-want +got):\n%s", diff)
	}
	if got, want := FormatPlatform(ConfigPlatform(img)), "linux/arm/v6"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if diff := cmp.Diff([]digest.Digest{someDigest}, img.RootFS.DiffIDs); diff != "" {
		t.Errorf("diff ids (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"", "[]", `{"rootfs":{"type":"squash"}}`, `{"rootfs":{"type":"layers","diff_ids":["sha256:../../x"]}}`} {
		if _, err := ParseImage([]byte(bad)); err == nil {
			t.Errorf("ParseImage(%s) passed", bad)
		}
	}
}
