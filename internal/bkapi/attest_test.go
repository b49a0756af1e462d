package bkapi

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	registryserver "github.com/google/go-containerregistry/pkg/registry"
	"github.com/moby/buildkit/client"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
)

// fetch reads a JSON document of a registry.
func fetch(t *testing.T, url string, to any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	must(t, err)
	res, err := http.DefaultClient.Do(req)
	must(t, err)
	defer res.Body.Close()
	must(t, json.NewDecoder(res.Body).Decode(to))
}

func TestProvenance(t *testing.T) {
	c := serve(t)
	reg := httptest.NewServer(registryserver.New(registryserver.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(reg.Close)
	name := strings.TrimPrefix(reg.URL, "http://") + "/app"
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": "body"})
	for _, artifact := range []string{"true", "false"} {
		_, err := c.Solve(t.Context(), nil, client.SolveOpt{
			Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"attest:provenance": "mode=max", "build-arg:A": "b"},
			Exports:     []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": name + ":1", "push": "true", "store": "false", "oci-artifact": artifact}}},
			LocalMounts: map[string]fsutil.FS{"context": dir, "dockerfile": dir},
		}, nil)
		must(t, err)
		var index ocispecs.Index
		fetch(t, reg.URL+"/v2/app/manifests/1", &index)
		if len(index.Manifests) != 2 || index.Manifests[1].Annotations["vnd.docker.reference.digest"] != index.Manifests[0].Digest.String() {
			t.Fatalf("got %+v, want the image and what attests it", index.Manifests)
		}
		var m ocispecs.Manifest
		fetch(t, reg.URL+"/v2/app/manifests/"+index.Manifests[1].Digest.String(), &m)
		if got := m.Subject != nil; got != (artifact == "true") {
			t.Errorf("oci-artifact=%s: got the subject %v", artifact, m.Subject)
		}
		var s struct {
			Subject   []struct{ Digest map[string]string }
			Predicate struct {
				BuildDefinition struct {
					ExternalParameters struct {
						Request struct{ Args map[string]string }
					}
				}
				RunDetails struct {
					Metadata struct {
						Buildkit struct {
							Layers map[string]any
						} `json:"buildkit_metadata"`
					}
				}
			}
		}
		fetch(t, reg.URL+"/v2/app/blobs/"+m.Layers[0].Digest.String(), &s)
		if len(s.Subject) != 1 || s.Subject[0].Digest["sha256"] != index.Manifests[0].Digest.Encoded() {
			t.Errorf("got the subject %v, want the image", s.Subject)
		}
		if s.Predicate.BuildDefinition.ExternalParameters.Request.Args["build-arg:A"] != "b" || len(s.Predicate.RunDetails.Metadata.Buildkit.Layers) == 0 {
			t.Errorf("got %+v, want the argument and layers", s.Predicate)
		}
	}
}
