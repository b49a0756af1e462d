package creds

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

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

func TestFor(t *testing.T) {
	asked := helper(t, `echo '{"Username":"helped","Secret":"h"}'`)
	dir := configDir(t, `{
		"auths": {
			"https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldA=="},
			"ghcr.io": {"auth": "bWU6YTpi"},
			"https://old.example/v2/": {"auth": "b2xkOng="},
			"token.example": {"auth": "eDp5", "identitytoken": "it"}
		},
		"credHelpers": {"helped.example": "test"}
	}`)
	c := Docker(dir)
	for domain, want := range map[string][2]string{
		"docker.io":      {"hub", "secret"},
		"ghcr.io":        {"me", "a:b"},
		"old.example":    {"old", "x"},
		"token.example":  {"<token>", "it"},
		"helped.example": {"helped", "h"},
		"other.example":  {"", ""},
	} {
		user, secret, err := c.For(context.Background(), domain)
		if err != nil || [2]string{user, secret} != want {
			t.Errorf("%s: got %q %q, %v, want %q", domain, user, secret, err, want)
		}
	}
	if got, want := asked(), "get helped.example\n"; got != want {
		t.Errorf("the helper was asked %q, want %q", got, want)
	}
}

func TestForErrors(t *testing.T) {
	helper(t, "echo it is locked; exit 1")
	if _, _, err := Docker(configDir(t, `{"credsStore":"test"}`)).For(context.Background(), "a.example"); !errors.Is(err, errdef.ErrUnavailable) || !strings.Contains(err.Error(), "it is locked") {
		t.Errorf("a failing helper: got %v", err)
	}
	if _, _, err := Docker(configDir(t, `{`)).For(context.Background(), "a.example"); !errors.Is(err, errdef.ErrInvalid) || errdef.Hint(err) == "" {
		t.Errorf("a malformed config: got %v", err)
	}
	if user, _, err := Docker(t.TempDir()).For(context.Background(), "a.example"); err != nil || user != "" {
		t.Errorf("no config: got %q, %v", user, err)
	}
}
