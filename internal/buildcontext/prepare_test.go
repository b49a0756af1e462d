package buildcontext

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"dhow/internal/errdef"

	"github.com/klauspost/compress/zstd"
)

const dockerfileText = "FROM scratch\nCOPY . /\n"

func tarOf(t *testing.T, name, body string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{Name: name, Size: int64(len(body)), Mode: 0o644, Typeflag: tar.TypeReg}))
	_, err := w.Write([]byte(body))
	must(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func gzipOf(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	must(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func zstdOf(t *testing.T, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	must(t, err)
	return w.EncodeAll(data, nil)
}

// options returns options whose Unpack stores what it is given in got.
func options(t *testing.T, got *[]byte) PrepareOptions {
	return PrepareOptions{Dir: t.TempDir(), Unpack: func(_ context.Context, dir string, r io.Reader) error {
		st, err := os.Stat(dir)
		if err != nil || !st.IsDir() {
			t.Errorf("unpack into %s: %v", dir, err)
		}
		*got, err = io.ReadAll(r)
		return err
	}}
}

func TestFromReader(t *testing.T) {
	plain := tarOf(t, "Dockerfile", dockerfileText)
	for name, input := range map[string][]byte{
		"tar": plain, "gzip": gzipOf(t, plain), "zstd": zstdOf(t, plain), "bzip2": []byte("BZh91AY&SY"), "xz": []byte("\xfd7zXZ\x00rest"),
	} {
		var got []byte
		o := options(t, &got)
		o.DockerfileGiven = true
		p, err := FromReader(context.Background(), bytes.NewReader(input), o)
		if err != nil || p.Dockerfile != "" || !bytes.Equal(got, input) {
			t.Errorf("%s: got %+v and %d bytes unpacked, %v, want %d bytes", name, p, len(got), err, len(input))
		}
	}
	var got []byte
	p, err := FromReader(context.Background(), strings.NewReader(dockerfileText), options(t, &got))
	must(t, err)
	text, err := os.ReadFile(p.Dockerfile)
	must(t, err)
	if string(text) != dockerfileText || got != nil {
		t.Errorf("Dockerfile: got %q", text)
	}
	if left, err := os.ReadDir(p.Dir); err != nil || len(left) > 0 {
		t.Errorf("context of a Dockerfile: got %v, %v, want an empty directory", left, err)
	}
}

func TestFromReaderRefuses(t *testing.T) {
	archive := tarOf(t, "f", strings.Repeat("x", 5000))
	for name, test := range map[string]struct {
		input io.Reader
		set   func(*PrepareOptions)
		want  string
	}{
		"nothing":          {strings.NewReader(""), nil, "it is empty"},
		"two Dockerfiles":  {strings.NewReader(dockerfileText), func(o *PrepareOptions) { o.DockerfileGiven = true }, "-f names another"},
		"binary":           {bytes.NewReader(make([]byte, 3000)), nil, "neither text nor a tar archive"},
		"large Dockerfile": {io.LimitReader(endless{}, maxDockerfile+1), nil, "larger than 16 MiB"},
		"large archive": {bytes.NewReader(archive), func(o *PrepareOptions) {
			o.MaxArchive = int64(len(archive)) - 1
		}, "larger than"},
	} {
		var got []byte
		o := options(t, &got)
		if test.set != nil {
			test.set(&o)
		}
		_, err := FromReader(context.Background(), test.input, o)
		if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want invalid: %s", name, err, test.want)
		}
	}
	var got []byte
	o := options(t, &got)
	o.MaxArchive = int64(len(archive))
	if _, err := FromReader(context.Background(), bytes.NewReader(archive), o); err != nil || !bytes.Equal(got, archive) {
		t.Errorf("archive just within its limit: %v", err)
	}
}

// endless is text without end.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '#'
	}
	return len(b), nil
}

func TestDockerfileFromReader(t *testing.T) {
	path, err := DockerfileFromReader(strings.NewReader(dockerfileText), t.TempDir())
	must(t, err)
	if text, err := os.ReadFile(path); string(text) != dockerfileText || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
}
