package hosts

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/registry"

	"github.com/google/go-cmp/cmp"
)

// tree writes files and returns settings that read them as /etc.
func tree(t *testing.T, files map[string]string, o Options) (*Hosts, string) {
	t.Helper()
	etc := t.TempDir()
	for name, text := range files {
		path := filepath.Join(etc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o.Etc = etc
	if o.Env == nil {
		o.Env = func(string) string { return "" }
	}
	return Open(o), etc
}

func TestPlaces(t *testing.T) {
	h, _ := tree(t, map[string]string{
		"docker/daemon.json": `{"registry-mirrors":["https://hub-mirror.example/","http://plain.example:5000"],"insecure-registries":["lan.example:5000","10.0.0.0/8"]}`,
		"containers/registries.conf": `
unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "quay.io/org"
location = "inner.example/quay-org"
[[registry.mirror]]
location = "m1.example/q"
insecure = true
[[registry.mirror]]
location = "m2.example"
pull-from-mirror = "digest-only"
[[registry]]
location = "evil.example"
blocked = true
[[registry]]
prefix = "*.corp.example"
insecure = false
`,
		"containers/registries.conf.d/10.conf": "[[registry]]\nlocation = \"later.example\"\n[[registry.mirror]]\nlocation = \"m3.example\"\n",
		"containerd/certs.d/ghcr.io/hosts.toml": `
server = "https://ghcr.io"
[host."https://b.example"]
  capabilities = ["pull", "resolve"]
[host."http://a.example:80/v2/ghcr"]
  capabilities = ["pull"]
  override_path = true
[host."https://push.example"]
  capabilities = ["push"]
`,
	}, Options{})
	for _, tt := range []struct {
		domain, path string
		want         []registry.Place
	}{
		{"docker.io", "library/busybox", []registry.Place{
			{Domain: "hub-mirror.example", Path: "library/busybox"}, {Domain: "plain.example:5000", Path: "library/busybox"}, {Domain: "docker.io", Path: "library/busybox"},
		}},
		{"quay.io", "org/a", []registry.Place{
			{Domain: "m1.example", Path: "q/a"}, {Domain: "m2.example", Path: "a", OnlyDigests: true}, {Domain: "inner.example", Path: "quay-org/a"},
		}},
		{"quay.io", "organic/a", []registry.Place{{Domain: "quay.io", Path: "organic/a"}}},
		{"later.example", "x/y", []registry.Place{{Domain: "m3.example", Path: "x/y"}, {Domain: "later.example", Path: "x/y"}}},
		{"a.corp.example", "x", []registry.Place{{Domain: "a.corp.example", Path: "x"}}},
		{"ghcr.io", "o/r", []registry.Place{
			{Domain: "b.example", Path: "o/r", Namespace: "ghcr.io"},
			{Domain: "a.example:80", Path: "ghcr/o/r", Namespace: "ghcr.io", OnlyDigests: true},
			{Domain: "ghcr.io", Path: "o/r"},
		}},
	} {
		got, err := h.Places(tt.domain, tt.path)
		if err != nil {
			t.Errorf("%s/%s: %v", tt.domain, tt.path, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s/%s (-want +got):\n%s", tt.domain, tt.path, diff)
		}
	}
	if _, err := h.Places("evil.example", "x"); !errors.Is(err, errdef.ErrDenied) {
		t.Errorf("a blocked registry: got %v, want ErrDenied", err)
	}
	for host, want := range map[string]bool{
		"lan.example:5000": true, "10.1.2.3:5000": true, "10.1.2.3": true, "11.1.2.3": false, "m1.example": true, "m2.example": false,
		"a.example:80": true, "b.example": false, "plain.example:5000": true, "hub-mirror.example": false, "lan.example": false,
	} {
		if got := h.Insecure(host); got != want {
			t.Errorf("%s: got insecure %v, want %v", host, got, want)
		}
	}
}

func TestMalformed(t *testing.T) {
	for name, text := range map[string]string{
		"docker/daemon.json":                 `{"registry-mirrors": [}`,
		"containers/registries.conf":         "\n[[registry]\n",
		"containerd/certs.d/x.io/hosts.toml": "\n[host.\"https://a\"\n",
	} {
		h, _ := tree(t, map[string]string{name: text}, Options{})
		_, err := h.Places("x.io", "a")
		if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, want ErrInvalid with the file's name", name, err)
		}
		if filepath.Ext(name) != ".json" && err != nil && !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%s: got %v, want the line", name, err)
		}
	}
}

// TestNothingRead: settings are not read before they are needed.
func TestNothingRead(t *testing.T) {
	asked := false
	h, _ := tree(t, nil, Options{Env: func(string) string { asked = true; return "" }})
	h.Transport(registry.DefaultTransport())
	if asked {
		t.Error("settings were looked for before a registry was spoken to")
	}
}
