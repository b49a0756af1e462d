package bkapi

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	registryserver "github.com/google/go-containerregistry/pkg/registry"
	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"
)

// buffer takes an archive.
type buffer struct{ bytes.Buffer }

func (*buffer) Close() error { return nil }

// members are the regular files of an archive.
func members(t *testing.T, raw []byte) map[string]string {
	t.Helper()
	files := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		must(t, err)
		body, err := io.ReadAll(r)
		must(t, err)
		if h.Typeflag == tar.TypeReg {
			files[h.Name] = string(body)
		}
	}
}

// TestOutputs: every type of output, all in one build, is what it is said to be.
func TestOutputs(t *testing.T) {
	c := serve(t)
	reg := httptest.NewServer(registryserver.New(registryserver.Logger(quietLog())))
	t.Cleanup(reg.Close)
	name := strings.TrimPrefix(reg.URL, "http://") + "/app:1"
	src := tree(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY f /f\nLABEL a=b\n", "f": "body"})
	dir := t.TempDir()
	var oci, docker, files buffer
	to := func(b *buffer) func(map[string]string) (io.WriteCloser, error) {
		return func(map[string]string) (io.WriteCloser, error) { return b, nil }
	}
	res, err := c.Solve(t.Context(), nil, client.SolveOpt{
		Frontend: "dockerfile.v0", LocalMounts: map[string]fsutil.FS{"context": src, "dockerfile": src},
		Exports: []client.ExportEntry{
			{Type: client.ExporterOCI, Output: to(&oci), Attrs: map[string]string{"name": "app:2"}},
			{Type: client.ExporterDocker, Output: to(&docker), Attrs: map[string]string{"name": "app:3"}},
			{Type: client.ExporterTar, Output: to(&files)},
			{Type: client.ExporterLocal, OutputDir: dir},
			{Type: client.ExporterImage, Attrs: map[string]string{"name": name, "push": "true"}},
		},
	}, nil)
	must(t, err)
	if got := read(t, filepath.Join(dir, "f")); got != "body" {
		t.Errorf("local: got %q, want body", got)
	}
	if got := members(t, files.Bytes()); !maps.Equal(got, map[string]string{"f": "body"}) {
		t.Errorf("tar: got %v, want f alone", got)
	}
	layout := members(t, oci.Bytes())
	var index struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	must(t, json.Unmarshal([]byte(layout["index.json"]), &index))
	if len(index.Manifests) != 1 || layout["oci-layout"] == "" || index.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "2" {
		t.Errorf("oci: got the files %v and the index %+v, want one image, 2", slices.Sorted(maps.Keys(layout)), index)
	}
	if layout["blobs/sha256/"+strings.TrimPrefix(index.Manifests[0].Digest, "sha256:")] == "" {
		t.Errorf("oci: %s is missing", index.Manifests[0].Digest)
	}
	var images []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	archive := members(t, docker.Bytes())
	must(t, json.Unmarshal([]byte(archive["manifest.json"]), &images))
	if len(images) != 1 || !slices.Equal(images[0].RepoTags, []string{"app:3"}) || !strings.Contains(archive[images[0].Config], `"a":"b"`) || len(images[0].Layers) != 1 {
		t.Errorf("docker: got %+v, want app:3 with its label and layer", images)
	}
	var m struct{ Config struct{ Digest string } }
	fetch(t, reg.URL+"/v2/app/manifests/1", &m)
	if got, want := m.Config.Digest, res.ExporterResponse["containerimage.config.digest"]; got != want || want == "" {
		t.Errorf("image: got the configuration %q in the registry, want %q as the client was told", got, want)
	}
}

// TestRefusedOutputs: compressions that dhow does not write are refused by name.
func TestRefusedOutputs(t *testing.T) {
	c := serve(t)
	src := tree(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /f\n"})
	for _, compression := range []string{"estargz", "nydus"} {
		_, err := c.Solve(t.Context(), nil, client.SolveOpt{
			Frontend: "dockerfile.v0", LocalMounts: map[string]fsutil.FS{"context": src, "dockerfile": src},
			Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": "app", "compression": compression}}},
		}, nil)
		if err == nil || !strings.Contains(err.Error(), compression) || !strings.Contains(err.Error(), "zstd") {
			t.Errorf("%s: got %v, want it refused, and told what there is", compression, err)
		}
	}
}
