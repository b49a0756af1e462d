package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// fixtures is what the rows work on: contexts, an image in a registry, base
// image archives. Contents come from a seeded generator: the same every time.
type fixtures struct {
	work       string
	archives   string // of the base image stand-ins
	steps1     string // contexts
	steps21    string
	project    string
	toolchain  string
	big        string
	huge       string
	cached     string // a context whose step fills a cache mount
	layerFiles string // the compressed layers of the big image, for gunzip
	registry   string // HOST:PORT
	app        string // the big image's context, with a layer of one small file on top
	slow       string // HOST:PORT of the same registry over slow connections
	servers    []*httptest.Server
	sent       atomic.Int64 // bytes of the bodies that the registry was sent
	given      atomic.Int64 // and of those that it answered with
}

func newFixtures(work string) (*fixtures, error) {
	f := &fixtures{work: work, archives: filepath.Join(work, "archives"), huge: filepath.Join(work, "huge")}
	blobs := filepath.Join(work, "registry")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return nil, err
	}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)))
	counted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = &countedBody{r.Body, &f.sent}
		handler.ServeHTTP(&countedAnswer{w, &f.given}, r)
	})
	fast, slow := httptest.NewServer(counted), httptest.NewUnstartedServer(counted)
	slow.Listener = slowListener{slow.Listener}
	slow.Start()
	f.servers = []*httptest.Server{fast, slow}
	f.registry, f.slow = strings.TrimPrefix(fast.URL, "http://"), strings.TrimPrefix(slow.URL, "http://")
	for _, step := range []func() error{f.makeArchives, f.makeSteps, f.makeProject, f.makeCached, f.makeToolchain, f.makeBig, f.makeSmall} {
		if err := step(); err != nil {
			f.close()
			return nil, err
		}
	}
	return f, nil
}

// countedBody counts what is read of a request.
type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *countedBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// slowRate is how many bytes a second a connection of slowListener takes.
const slowRate = 8 << 20

type slowListener struct{ net.Listener }

func (l slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &slowConn{Conn: c}, err
}

// slowConn is written to by one goroutine at a time, as net/http does.
type slowConn struct {
	net.Conn
	free time.Time // when what was written has gone out
}

func (c *slowConn) Write(p []byte) (n int, err error) {
	const chunk = 64 << 10
	for len(p) > 0 && err == nil {
		time.Sleep(time.Until(c.free))
		if now := time.Now(); c.free.Before(now) {
			c.free = now
		}
		k := 0
		k, err = c.Conn.Write(p[:min(chunk, len(p))])
		c.free = c.free.Add(time.Duration(k) * time.Second / slowRate)
		p, n = p[k:], n+k
	}
	return n, err
}

func (f *fixtures) close() {
	for _, s := range f.servers {
		s.Close()
	}
}

func (f *fixtures) makeArchives() error {
	_, err := command{args: []string{"go", "run", "./scripts/baseimages", "-o", f.archives, "-only", "busybox", "-push", f.registry}}.run()
	return err
}

func (f *fixtures) context(dir, dockerfile string) (string, error) {
	dir = filepath.Join(f.work, dir)
	if err := os.RemoveAll(dir); err != nil { // of an earlier run with the same -work
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644)
}

func (f *fixtures) makeSteps() (err error) {
	if f.steps1, err = f.context("steps1", "FROM busybox\nRUN true\n"); err != nil {
		return err
	}
	text := "FROM busybox\n"
	for i := range 21 {
		text += fmt.Sprintf("RUN true %d\n", i)
	}
	f.steps21, err = f.context("steps21", text)
	return err
}

// makeProject is a source tree with a Dockerfile of 13 steps.
func (f *fixtures) makeProject() (err error) {
	f.project, err = f.context("project", `FROM busybox AS deps
WORKDIR /src
COPY go.mod ./
RUN echo deps > /deps
FROM busybox AS build
WORKDIR /src
COPY --from=deps /deps /deps
COPY . .
RUN find . -type f | wc -l > /count
RUN cp -r dir0 /out
FROM busybox
RUN mkdir /app
WORKDIR /app
COPY --from=build /out /app/out
COPY --from=build /count /app/count
RUN echo app:x:1000:1000::/:/bin/sh >> /etc/passwd
CMD ["cat", "/app/count"]
`)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(f.project, "go.mod"), []byte("module project\n"), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(f.project, ".dockerignore"), []byte(".git\n"), 0o644); err != nil {
		return err
	}
	if err := fill(f.project, 100, 100, 6<<10); err != nil {
		return err
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=bench", "-c", "user.email=bench@example.com", "commit", "-q", "-m", "fixture"}} {
		if _, err := (command{args: append([]string{"git"}, args...), dir: f.project}).run(); err != nil {
			return err
		}
	}
	return nil
}

// makeCached has a step with a cache mount of 60 MB, of which each change of the
// file "change" changes 6 KB.
func (f *fixtures) makeCached() (err error) {
	f.cached, err = f.context("cached", `FROM busybox
COPY data /data
COPY change /change
RUN --mount=type=cache,id=bench,target=/c [ -e /c/data ] || cp -a /data /c/; cp /change /c/data/dir7/file7.txt
`)
	if err != nil {
		return err
	}
	if err := f.change("first"); err != nil {
		return err
	}
	return fill(filepath.Join(f.cached, "data"), 100, 100, 6<<10)
}

// change edits one file of each context that is built for its cache.
func (f *fixtures) change(text string) error {
	for _, name := range []string{filepath.Join(f.cached, "change"), filepath.Join(f.project, "dir50", "file50.txt")} {
		if err := os.WriteFile(name, []byte(strings.Repeat(text+"\n", 512)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (f *fixtures) makeToolchain() (err error) {
	if f.toolchain, err = f.context("toolchain", "FROM scratch\nCOPY go /usr/local/go\n"); err != nil {
		return err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return err
	}
	_, err = command{args: []string{"cp", "-a", strings.TrimSpace(string(root)), filepath.Join(f.toolchain, "go")}}.run()
	return err
}

// makeBig has two layers of 480 MB together: the toolchain, and data of which
// about half compresses away.
func (f *fixtures) makeBig() (err error) {
	if f.big, err = f.context("big", "FROM scratch\nCOPY one /one\nCOPY two /two\n"); err != nil {
		return err
	}
	one, two := filepath.Join(f.big, "one"), filepath.Join(f.big, "two")
	if _, err := (command{args: []string{"cp", "-a", filepath.Join(f.toolchain, "go"), one}}).run(); err != nil {
		return err
	}
	if err := fill(two, 21, 100, 100<<10); err != nil {
		return err
	}
	img := empty.Image
	for i, dir := range []string{one, two} {
		file := filepath.Join(f.work, fmt.Sprintf("layer%d.tar.gz", i))
		if _, err := (command{args: []string{"sh", "-c", `tar --numeric-owner -C "$0" -cf - . | gzip -1 > "$1"`, dir, file}}).run(); err != nil {
			return err
		}
		layer, err := tarball.LayerFromFile(file)
		if err != nil {
			return err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return err
		}
		f.layerFiles += " " + file
	}
	if err := f.push(img, f.registry+"/bench/big:1"); err != nil {
		return err
	}
	return f.makeNext(img)
}

// makeNext is a later version of the big image, which differs in its last layer,
// and the context of an image whose last layer is one small file.
func (f *fixtures) makeNext(img v1.Image) (err error) {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	next, err := mutate.AppendLayers(empty.Image, layers[0])
	if err != nil {
		return err
	}
	more, err := f.layer("next", func(dir string) error { return fill(dir, 5, 100, 100<<10) })
	if err != nil {
		return err
	}
	if next, err = mutate.AppendLayers(next, more); err != nil {
		return err
	}
	if err := f.push(next, f.registry+"/bench/big:2"); err != nil {
		return err
	}
	if f.app, err = f.context("app", "FROM scratch\nCOPY one /one\nCOPY two /two\nCOPY app /app\n"); err != nil {
		return err
	}
	for _, dir := range []string{"one", "two"} {
		if _, err := (command{args: []string{"cp", "-a", filepath.Join(f.big, dir), filepath.Join(f.app, dir)}}).run(); err != nil {
			return err
		}
	}
	return os.Mkdir(filepath.Join(f.app, "app"), 0o755)
}

// layer makes a gzip layer of a directory that fill fills.
func (f *fixtures) layer(name string, fill func(dir string) error) (v1.Layer, error) {
	dir, file := filepath.Join(f.work, "layer-"+name), filepath.Join(f.work, name+".tar.gz")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := fill(dir); err != nil {
		return nil, err
	}
	if _, err := (command{args: []string{"sh", "-c", `tar --numeric-owner -C "$0" -cf - . | gzip -1 > "$1"`, dir, file}}).run(); err != nil {
		return nil, err
	}
	return tarball.LayerFromFile(file)
}

// smallImages is how many small images are pulled at once.
const smallImages = 40

// makeSmall makes images of a layer of their own over one that all have.
func (f *fixtures) makeSmall() error {
	shared, err := f.layer("shared", func(dir string) error { return fill(dir, 5, 20, 20<<10) })
	if err != nil {
		return err
	}
	for i := range smallImages {
		own, err := f.layer(fmt.Sprintf("small%d", i), func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "own"), bytes.Repeat([]byte(fmt.Sprintf("image %d\n", i)), 50_000), 0o644)
		})
		if err != nil {
			return err
		}
		img, err := mutate.AppendLayers(empty.Image, shared, own)
		if err != nil {
			return err
		}
		if err := f.push(img, fmt.Sprintf("%s/bench/small%d:1", f.registry, i)); err != nil {
			return err
		}
	}
	return nil
}

// changeApp gives the app context another version of its one small file.
func (f *fixtures) changeApp(nonce string) error {
	return os.WriteFile(filepath.Join(f.app, "app", "version"), []byte(nonce), 0o644)
}

func (f *fixtures) push(img v1.Image, to string) error {
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{Architecture: "amd64", OS: "linux", RootFS: rootFS(img), Config: v1.Config{Cmd: []string{"/nothing"}}})
	if err != nil {
		return err
	}
	ref, err := name.ParseReference(to, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(ref, img)
}

func rootFS(img v1.Image) v1.RootFS {
	config, err := img.ConfigFile()
	if err != nil {
		return v1.RootFS{Type: "layers"}
	}
	return config.RootFS
}

// touch changes both layers of the big image.
func (f *fixtures) touch(nonce string) error {
	for _, dir := range []string{"one", "two"} {
		if err := os.WriteFile(filepath.Join(f.big, dir, "nonce"), []byte(nonce), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// makeHuge makes the context of 2 GB, once.
func (f *fixtures) makeHuge() error {
	if _, err := os.Stat(f.huge); err == nil {
		return nil
	}
	if _, err := f.context("huge", "FROM scratch\nCOPY . /\n"); err != nil {
		return err
	}
	return fill(f.huge, 20, 100, 1<<20)
}

// fill makes dirs × files files of the given size, half of whose bytes are
// random and half are text.
func fill(root string, dirs, files, size int) error {
	source := rand.NewChaCha8([32]byte{7})
	block := make([]byte, size)
	for i := range block {
		block[i] = "the quick brown fox jumps over the lazy dog\n"[i%44]
	}
	for d := range dirs {
		dir := filepath.Join(root, fmt.Sprintf("dir%d", d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for n := range files {
			if _, err := source.Read(block[:size/2]); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%d.txt", n)), block, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// countedAnswer counts the bytes of an answer's body.
type countedAnswer struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (a *countedAnswer) Write(p []byte) (int, error) {
	n, err := a.ResponseWriter.Write(p)
	a.n.Add(int64(n))
	return n, err
}
