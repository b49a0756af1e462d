package export

import (
	"errors"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/google/go-cmp/cmp"
)

func ref(t testing.TB, s string) oci.Ref {
	t.Helper()
	r, err := oci.ParseTagged(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestParseOutput(t *testing.T) {
	nine := 9
	for _, tt := range []struct {
		in   string
		want Output
	}{
		{"-", Output{Type: TypeTar, Dest: "-"}},
		{"out", Output{Type: TypeLocal, Dest: "out"}},
		{"./a=b", Output{Type: TypeLocal, Dest: "./a=b"}},
		{"type=local,dest=out", Output{Type: TypeLocal, Dest: "out"}},
		{"type=local,dest=out,platform-split=false", Output{Type: TypeLocal, Dest: "out", NoSplit: true}},
		{"type=local,dest=out,mode=delete", Output{Type: TypeLocal, Dest: "out", Delete: true}},
		{"type=local,dest=out,mode=copy", Output{Type: TypeLocal, Dest: "out"}},
		{"type=tar,dest=a.tar", Output{Type: TypeTar, Dest: "a.tar"}},
		{"type=oci", Output{Type: TypeOCI, Dest: "-"}},
		{"type=oci,dest=dir,tar=false", Output{Type: TypeOCI, Dest: "dir", Unpacked: true}},
		{"type=docker", Output{Type: TypeDocker}},
		{"TYPE=docker,dest=-", Output{Type: TypeDocker, Dest: "-"}},
		{"type=cacheonly", Output{Type: TypeCacheOnly}},
		{"type=image,\"name=a,localhost:5000/b:v1\",push=true", Output{Type: TypeImage, Push: true, Names: []oci.Ref{ref(t, "a"), ref(t, "localhost:5000/b:v1")}}},
		{"type=registry,name=x,push-by-digest=true", Output{Type: TypeImage, Push: true, NoStore: true, PushByDigest: true, Names: []oci.Ref{ref(t, "x")}}},
		{"type=image,compression=gzip,compression-level=9,force-compression=1", Output{Type: TypeImage, Compression: oci.Gzip, Level: &nine, Force: true}},
		{"type=image,compression=zstd,store=false", Output{Type: TypeImage, Compression: oci.Zstd, NoStore: true}},
		{"type=image,oci-mediatypes=false,unpack=true,rewrite-timestamp=true", Output{Type: TypeImage, DockerTypes: true, RewriteTimestamps: true}},
		{"type=image,annotation.org.Title=A,annotation-index.k=v=w,annotation-manifest-descriptor[linux/arm64/v8].x=y", Output{Type: TypeImage, Annotations: []Annotation{
			{LevelManifest, "", "org.Title", "A"}, {LevelIndex, "", "k", "v=w"}, {LevelManifestDescriptor, "linux/arm64", "x", "y"},
		}}},
	} {
		got, err := ParseOutput(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
		} else if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%q (-want +got):\n%s", tt.in, d)
		}
	}
}

func TestParseOutputRefuses(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want error
		text string // in the error or its hint
	}{
		{"", errdef.ErrInvalid, "key=value"},
		{"./a,b", errdef.ErrInvalid, `field "./a"`},
		{"dest=x", errdef.ErrInvalid, "no type"},
		{"type=", errdef.ErrInvalid, "types: image"},
		{"type=dokcer", errdef.ErrInvalid, `did you mean "docker"`},
		{"type=image,compresion=gzip", errdef.ErrInvalid, `did you mean "compression"`},
		{"type=image,nonsense=1", errdef.ErrInvalid, "keys: type"},
		{"type=image,push", errdef.ErrInvalid, `field "push"`},
		{"type=image,push=maybe", errdef.ErrInvalid, "want true or false"},
		{"type=image,dest=x", errdef.ErrInvalid, "takes no dest"},
		{"type=local", errdef.ErrInvalid, "needs dest"},
		{"type=local,dest=-", errdef.ErrInvalid, "type=tar"},
		{"type=local,dest=out,mode=move", errdef.ErrInvalid, "copy or delete"},
		{"type=tar,dest=out,mode=delete", errdef.ErrInvalid, "type=local"},
		{"type=oci,tar=false", errdef.ErrInvalid, "needs dest"},
		{"type=oci,push=true", errdef.ErrInvalid, "push goes with"},
		{"type=image,name=UPPER", errdef.ErrInvalid, "lower case"},
		{"type=image,compression=estargz", errdef.ErrUnsupported, "estargz"},
		{"type=image,compression=lzma", errdef.ErrInvalid, "use gzip"},
		{"type=image,compression-level=x", errdef.ErrInvalid, "want a number"},
		{"type=image,compression-level=10", errdef.ErrInvalid, "want 0 to 9"},
		{"type=image,compression=zstd,compression-level=23", errdef.ErrInvalid, "want 0 to 22"},
		{"type=image,annotation.a=b,oci-mediatypes=false", errdef.ErrInvalid, "exclude each other"},
		{"type=image,annotation-index[linux/amd64].a=b", errdef.ErrInvalid, "has no platform"},
		{"type=image,registry.insecure=true", errdef.ErrUnsupported, "without TLS"},
		{"type=image,oci-artifact=perhaps", errdef.ErrInvalid, "true or false"},
	} {
		_, err := ParseOutput(tt.in)
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error()+" "+errdef.Hint(err), tt.text) {
			t.Errorf("%q: got %v (hint %q), want %v with %q", tt.in, err, errdef.Hint(err), tt.want, tt.text)
		}
	}
}

func TestParseAnnotation(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []Annotation // nil: ErrInvalid
	}{
		{"k=v", []Annotation{{LevelManifest, "", "k", "v"}}},
		{"k=v:w=x", []Annotation{{LevelManifest, "", "k", "v:w=x"}}},
		{"index,manifest:k=", []Annotation{{LevelIndex, "", "k", ""}, {LevelManifest, "", "k", ""}}},
		{"manifest[linux/amd64]:k=v", []Annotation{{LevelManifest, "linux/amd64", "k", "v"}}},
		{"index-descriptor:k=v", []Annotation{{LevelIndexDescriptor, "", "k", "v"}}},
		{"k", nil}, {"=v", nil}, {"index:=v", nil}, {"indx:k=v", nil}, {"manifest[linux/amd64:k=v", nil}, {"index[linux/amd64]:k=v", nil}, {"manifest[a/b/c/d]:k=v", nil},
	} {
		got, err := ParseAnnotation(tt.in)
		if tt.want == nil && errors.Is(err, errdef.ErrInvalid) {
			continue
		}
		if d := cmp.Diff(tt.want, got); d != "" || err != nil {
			t.Errorf("%q: %v (-want +got):\n%s", tt.in, err, d)
		}
	}
}
