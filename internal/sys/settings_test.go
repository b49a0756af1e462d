package sys

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"dhow/internal/errdef"
)

func TestDockerDirs(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		want []string
	}{
		{name: "nobody's", want: []string{"/etc/docker"}},
		{name: "home", env: map[string]string{"HOME": "/h"}, want: []string{"/h/.config/docker", "/etc/docker"}},
		{name: "elsewhere", env: map[string]string{"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, want: []string{"/x/docker", "/etc/docker"}},
		{name: "docker's own", env: map[string]string{"HOME": "/h", "DOCKER_CONFIG": "/d"}, want: []string{"/d", "/h/.config/docker", "/etc/docker"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := DockerDirs(func(k string) string { return tt.env[k] }, "/etc"); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestReadSettings(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := ReadSettings(file); err != nil || string(data) != "{}" {
		t.Errorf("got %q, %v", data, err)
	}
	for _, none := range []string{filepath.Join(dir, "none"), filepath.Join(file, "below")} {
		if data, err := ReadSettings(none); err != nil || data != nil {
			t.Errorf("%s: got %q, %v, want nothing", none, data, err)
		}
	}
	if _, err := ReadSettings(dir); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v for a directory, want invalid", err)
	}
	if err := os.Truncate(file, maxSettings+1); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSettings(file); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v for a huge file, want invalid", err)
	}
}
