package export

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"dhow/internal/image"
	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/snapshot"
	"dhow/internal/store"

	"github.com/opencontainers/go-digest"
)

// TestMain lets the test binary be the process that is killed: with
// DHOW_TEST_PUSH=root,name it pushes the image of that name.
func TestMain(m *testing.M) {
	if root, name, ok := strings.Cut(os.Getenv("DHOW_TEST_PUSH"), ","); ok {
		if err := pushOnly(root, name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func pushOnly(root, name string) error {
	ctx := context.Background()
	s, err := store.Open(ctx, root)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Lease(ctx); err != nil {
		return err
	}
	snaps, client := snapshot.New(s), registry.New(registry.Options{})
	x := &Exporter{Store: s, Snapshots: snaps, Images: image.New(s, snaps, client), Registry: client}
	ref, err := oci.ParseTagged(name)
	if err != nil {
		return err
	}
	img, err := x.Images.Lookup(ctx, name, oci.Platform{})
	if err != nil {
		return err
	}
	_, err = x.PushImages(ctx, ref, []store.Image{img})
	return err
}

// keeper is a registry of one repository that keeps what arrived of an upload that
// was cut, and says so. It stops reading after half of the layer, once.
type keeper struct {
	size int // of the layer, about

	mu       sync.Mutex
	got      map[string][]byte // guarded by mu, as are the following; by upload
	blobs    map[string]bool
	stalled  chan struct{} // closed when it stops reading
	killed   chan struct{} // closed when the client is gone
	cut      bool
	received int
}

func (k *keeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := filepath.Base(r.URL.Path)
	at := func(id string) { w.Header().Set("Location", "/v2/app/blobs/uploads/"+id) }
	switch {
	case r.URL.Path == "/v2/":
	case r.Method == http.MethodHead && k.blobs[id]:
	case r.Method == http.MethodHead:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodPost:
		id = fmt.Sprint(len(k.got))
		k.got[id] = nil
		at(id)
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodGet:
		at(id)
		w.Header().Set("Range", fmt.Sprintf("0-%d", len(k.got[id])-1))
		w.WriteHeader(http.StatusNoContent)
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPatch || r.Method == http.MethodPut:
		k.take(r, id)
		at(id)
		if d := r.URL.Query().Get("digest"); d != "" {
			if d != string(digest.FromBytes(k.got[id])) {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			k.blobs[d] = true
			w.WriteHeader(http.StatusCreated)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	}
}

// take reads a body; called with mu held.
func (k *keeper) take(r *http.Request, id string) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Body.Read(buf)
		k.got[id], k.received = append(k.got[id], buf[:n]...), k.received+n
		if !k.cut && len(k.got[id]) > k.size/2 {
			k.cut = true
			close(k.stalled)
			<-k.killed
			panic(http.ErrAbortHandler)
		}
		if err != nil {
			return
		}
	}
}

// TestKilledPushGoesOn: a push whose process was killed in the middle of a layer
// goes on there in another one.
func TestKilledPushGoesOn(t *testing.T) {
	const size = 8 << 20
	l := newLab(t)
	chain := l.layer(t, nil, func(dir string) error {
		noise := make([]byte, size)
		_, _ = rand.Read(noise) // never fails
		return os.WriteFile(filepath.Join(dir, "noise"), noise, 0o644)
	})
	k := &keeper{size: size, got: map[string][]byte{}, blobs: map[string]bool{}, stalled: make(chan struct{}), killed: make(chan struct{})}
	srv := httptest.NewServer(k)
	defer srv.Close()
	name := strings.TrimPrefix(srv.URL, "http://") + "/app:1"
	src := Source{Platforms: []Platform{{Platform: amd64, Chain: chain}}}
	l.export(t, src, Output{Type: TypeImage, Names: []oci.Ref{ref(t, name)}})

	cmd := exec.Command("/proc/self/exe")
	cmd.Env, cmd.Stderr = append(os.Environ(), "DHOW_TEST_PUSH="+l.root+","+name), os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-k.stalled
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
	close(k.killed)
	k.mu.Lock()
	before := k.received
	k.mu.Unlock()
	if err := pushOnly(l.root, name); err != nil {
		t.Fatal(err)
	}
	if sent := k.received - before; sent > size*6/10 || len(k.blobs) != 2 {
		t.Errorf("the second process sent %d bytes after %d of about %d, and there are %d blobs, want the rest and 2", sent, before, size, len(k.blobs))
	}
}
