package lifecycle

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/sandbox/userns"

	dockertypes "github.com/moby/moby/api/types/container"
)

func TestSettings(t *testing.T) {
	etc, home := t.TempDir(), t.TempDir()
	env := func(name string) string { return map[string]string{"HOME": home}[name] }
	write := func(dir, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(driver, shm string) {
		t.Helper()
		d, err := readSettings(env, etc)
		if err != nil {
			t.Fatal(err)
		}
		r := container.Record{Host: &dockertypes.HostConfig{}}
		if err := d.Apply(&r); err != nil {
			t.Fatal(err)
		}
		if got := r.Host.LogConfig.Type; got != driver || (r.Host.ShmSize == 1<<20) != (shm == "1m") {
			t.Errorf("got driver %s, %d bytes, want %s, %s", got, r.Host.ShmSize, driver, shm)
		}
	}
	check("json-file", "")
	write(filepath.Join(etc, "dhow"), `{"log-driver": "local", "default-shm-size": "1m"}`)
	check("local", "1m")
	write(filepath.Join(home, ".config/dhow"), `{"log-driver": "none"}`)
	check("none", "1m")

	write(filepath.Join(home, ".config/dhow"), `{"log-drivers": "none"}`)
	if _, err := readSettings(env, etc); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), filepath.Join(home, ".config/dhow/config.json")) {
		t.Errorf("got %v, want the file named", err)
	}
	write(filepath.Join(etc, "dhow"), `{"log-driver": ["local", "loki"], "log-opts": {"loki.loki-url": "x"}}`)
	write(filepath.Join(home, ".config/dhow"), `{"log-driver": "local"}`)
	if _, err := readSettings(env, etc); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("options without their driver: got %v, want them refused", err)
	}
}

func TestFreeBlock(t *testing.T) {
	ranges := []userns.Range{{Start: 1000, Count: 65535}, {Start: 1 << 31, Count: 3 * idBlock}, {Start: 100, Count: idBlock}}
	for _, c := range []struct {
		taken []uint32
		want  uint32
		ok    bool
	}{
		{nil, 1 << 31, true},
		{[]uint32{1 << 31}, 1<<31 + idBlock, true},
		{[]uint32{1<<31 + idBlock/2}, 1<<31 + 2*idBlock, true}, // the range was another one once
		{[]uint32{1 << 31, 1<<31 + 2*idBlock, 1<<31 + idBlock}, 100, true},
		{[]uint32{1 << 31, 1<<31 + 2*idBlock, 1<<31 + idBlock, 99}, 0, false},
	} {
		if got, ok := freeBlock(ranges, c.taken); got != c.want || ok != c.ok {
			t.Errorf("%v taken: got %d, %v, want %d, %v", c.taken, got, ok, c.want, c.ok)
		}
	}
}
