package creds

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"
)

// configDir writes a config.json.
func configDir(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// helper puts a credential helper into the path, which answers every question
// and writes down what it was asked for.
func helper(t *testing.T, script string) (asked func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "asked")
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte("#!/bin/sh\nread host; echo \"$1 $host\" >> "+log+"\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() string {
		b, _ := os.ReadFile(log) // no question, no file
		return string(b)
	}
}

// open finds the logins of a home of its own with that config.json.
func open(t *testing.T, config string, env map[string]string) *Logins {
	t.Helper()
	dir := t.TempDir()
	if config != "" {
		dir = configDir(t, config)
	}
	return Open(testOptions(t, dir, env))
}

func testOptions(t *testing.T, dir string, env map[string]string) Options {
	home := t.TempDir()
	return Options{Dir: dir, HelperTimeout: 5 * time.Second, Env: func(name string) string {
		if v, ok := env[name]; ok || name != "HOME" {
			return v
		}
		return home
	}}
}

func TestFor(t *testing.T) {
	asked := helper(t, `echo '{"Username":"helped","Secret":"h"}'`)
	c := open(t, `{
		"auths": {
			"https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldA=="},
			"ghcr.io": {"auth": "bWU6YTpi"},
			"ghcr.io/org": {"auth": "b3JnOm8="},
			"https://old.example/v2/": {"auth": "b2xkOng="},
			"work@ghcr.io": {"auth": "d29yazp3"},
			"token.example": {"auth": "eDp5", "identitytoken": "it"}
		},
		"credHelpers": {"helped.example": "test"}
	}`, nil)
	for name, want := range map[string][2]string{
		"docker.io/library/busybox": {"hub", "secret"},
		"ghcr.io/a/b":               {"me", "a:b"},
		"ghcr.io/org/b":             {"org", "o"},
		"ghcr.io/organic/b":         {"me", "a:b"},
		"old.example/x":             {"old", "x"},
		"token.example/x":           {"<token>", "it"},
		"helped.example/x":          {"helped", "h"},
		"helped.example/y":          {"helped", "h"},
		"other.example/x":           {"", ""},
	} {
		domain, path, _ := strings.Cut(name, "/")
		user, secret, err := c.For(context.Background(), domain, path)
		if err != nil || [2]string{user, secret} != want {
			t.Errorf("%s: got %q %q, %v, want %q", name, user, secret, err, want)
		}
	}
	if got, want := asked(), "get helped.example\n"; got != want {
		t.Errorf("the helper was asked %q, want %q", got, want)
	}
}

func TestProfile(t *testing.T) {
	dir := configDir(t, `{"auths": {"ghcr.io": {"auth": "bWU6YTpi"}, "work@ghcr.io": {"auth": "d29yazp3"}}}`)
	o := testOptions(t, dir, nil)
	o.Profile = "work"
	if user, _, err := Open(o).For(context.Background(), "ghcr.io", "a"); err != nil || user != "work" {
		t.Errorf("got %q, %v, want the profile's login", user, err)
	}
	if _, _, err := Open(o).For(context.Background(), "quay.io", "a"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound: nobody else's login serves a profile", err)
	}
}

func TestSources(t *testing.T) {
	podman := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(podman, []byte(`{"auths":{"quay.io":{"auth":"cG9kOnA="},"ghcr.io":{"auth":"cG9kOnA="},"ghcr.io/org":{"auth":"cG9kb3JnOnA="}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	run := t.TempDir()
	if err := os.MkdirAll(filepath.Join(run, "containers"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(run, "containers/auth.json"), []byte(`{"auths":{"run.example":{"auth":"cnVuOnI="}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	config := `{"auths":{"quay.io":{"auth":"ZG9ja2VyOmQ="},"ghcr.io":{"auth":"ZG9ja2VyOmQ="}}}`
	env := `{"auths":{"ghcr.io":{"auth":"ZW52OmU="}}}`
	for _, tt := range []struct {
		name, domain, path, want string
		env                      map[string]string
	}{
		{"config.json", "quay.io", "a", "docker", nil},
		{"the variable comes first", "ghcr.io", "a", "env", map[string]string{"DOCKER_AUTH_CONFIG": env}},
		{"then the explicit file", "quay.io", "a", "pod", map[string]string{"REGISTRY_AUTH_FILE": podman}},
		{"the longest scope wins", "ghcr.io", "org/x", "podorg", map[string]string{"DOCKER_AUTH_CONFIG": env, "REGISTRY_AUTH_FILE": podman}},
		{"Podman's own", "run.example", "a", "run", map[string]string{"XDG_RUNTIME_DIR": run}},
		{"not beside an explicit one", "run.example", "a", "", map[string]string{"XDG_RUNTIME_DIR": run, "REGISTRY_AUTH_FILE": podman}},
	} {
		user, _, err := open(t, config, tt.env).For(context.Background(), tt.domain, tt.path)
		if err != nil || user != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.name, user, err, tt.want)
		}
	}
}

func TestForErrors(t *testing.T) {
	helper(t, "echo it is locked; exit 1")
	ctx := context.Background()
	if _, _, err := open(t, `{"credsStore":"test"}`, nil).For(ctx, "a.example", "x"); !errors.Is(err, errdef.ErrUnavailable) || !strings.Contains(err.Error(), "it is locked") {
		t.Errorf("a failing helper: got %v", err)
	}
	if _, _, err := open(t, `{"credsStore":"no-such"}`, nil).For(ctx, "a.example", "x"); !errors.Is(err, errdef.ErrUnavailable) || !strings.Contains(err.Error(), "docker-credential-no-such") {
		t.Errorf("a missing helper: got %v", err)
	}
	if user, _, err := open(t, "", nil).For(ctx, "a.example", "x"); err != nil || user != "" {
		t.Errorf("no config: got %q, %v", user, err)
	}
	for text, line := range map[string]string{
		"{":                                "line 1",
		"{\n\"auths\": {\n\t\"a\": {},\n}": "line 4",
		"{\n\"auths\": {\n\t\"a.example\": {\"auth\": \"!\"}}}": "line 3",
		"{\n\"auths\": []}": "line 2",
	} {
		_, _, err := open(t, text, nil).For(ctx, "a.example", "x")
		if !errors.Is(err, errdef.ErrInvalid) || errdef.Hint(err) == "" || !strings.Contains(err.Error(), "config.json: "+line) {
			t.Errorf("%q: got %v, want ErrInvalid with %s", text, err, line)
		}
	}
}

// TestHelperTimeout: a helper that hangs, and one that leaves a child behind
// with its pipes, are given up.
func TestHelperTimeout(t *testing.T) {
	helper(t, "sleep 60 & wait")
	o := testOptions(t, configDir(t, `{"credsStore":"test"}`), nil)
	o.HelperTimeout = 200 * time.Millisecond
	started := time.Now()
	_, _, err := Open(o).For(context.Background(), "a.example", "x")
	if !errors.Is(err, errdef.ErrUnavailable) || !strings.Contains(err.Error(), "no answer within") {
		t.Errorf("got %v, want the time limit", err)
	}
	if took := time.Since(started); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestHelperNotFound(t *testing.T) {
	helper(t, "echo credentials not found in native keychain; exit 1")
	if user, _, err := open(t, `{"credsStore":"test"}`, nil).For(context.Background(), "a.example", "x"); err != nil || user != "" {
		t.Errorf("got %q, %v, want nobody", user, err)
	}
}

func TestParseServer(t *testing.T) {
	for in, want := range map[string]string{
		"":                               "docker.io",
		"docker.io":                      "docker.io",
		"https://index.docker.io/v1/":    "docker.io",
		"registry-1.docker.io":           "docker.io",
		"GHCR.io":                        "ghcr.io",
		"https://ghcr.io/":               "ghcr.io",
		"http://localhost:5000":          "localhost:5000",
		"https://registry.example:5/v2/": "registry.example:5",
		"ghcr.io/org/team/":              "ghcr.io/org/team",
		"registry.example/v2/org":        "registry.example/org",
		"[::1]:5000":                     "[::1]:5000",
	} {
		got, err := ParseServer(in)
		if err != nil || got.String() != want {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"ftp://x", "user:pw@ghcr.io", "a b", "ghcr.io/UPPER", "ghcr.io?x"} {
		got, err := ParseServer(in)
		if !errors.Is(err, errdef.ErrInvalid) || strings.Contains(err.Error(), "pw") {
			t.Errorf("%q: got %q, %v, want ErrInvalid", in, got, err)
		}
	}
}
