package image

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/google/go-cmp/cmp"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
)

// imported makes small images by name; each has one file and was made an hour
// after the one before.
func imported(t *testing.T, e *env, names ...string) []store.Image {
	t.Helper()
	var out []store.Image
	for i, name := range names {
		at := time.Date(2026, 1, 1, i, 0, 0, 0, time.UTC)
		img, err := e.ImportTar(context.Background(), bytes.NewReader(tarOf(t, file{name: "name", body: name})),
			ImportOptions{Name: name, Now: at, Changes: []string{"LABEL name=" + strings.ReplaceAll(name, ":", "-")}})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, img)
	}
	return out
}

func TestRemove(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t)
	img := imported(t, e, "app:1")[0]
	id, short := string(img.ID), img.ID.Encoded()[:12]
	tag := func(name string) {
		t.Helper()
		if err := e.Tag(ctx, "app:1", name); err != nil {
			t.Fatal(err)
		}
	}
	tag("app:2")
	tag("other:x")
	remove := func(name string, o RemoveOptions, want ...image.DeleteResponse) {
		t.Helper()
		got, err := e.Remove(ctx, name, o)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("remove %s (-want +got):\n%s", name, diff)
		}
	}
	remove("app:2", RemoveOptions{}, image.DeleteResponse{Untagged: "app:2"})
	if _, err := e.Remove(ctx, short, RemoveOptions{}); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("by an id with names in two repositories: got %v, want ErrConflict", err)
	}
	if _, err := e.Remove(ctx, "none", RemoveOptions{}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	remove("other:x", RemoveOptions{}, image.DeleteResponse{Untagged: "other:x"})
	used := func(running bool) RemoveOptions {
		return RemoveOptions{InUse: func(digest.Digest) (string, bool) { return "web", running }}
	}
	for _, name := range []string{"app:1", short} {
		if _, err := e.Remove(ctx, name, used(false)); !errors.Is(err, errdef.ErrConflict) || !strings.Contains(err.Error(), "stopped container web") {
			t.Errorf("%s under a stopped container: got %v", name, err)
		}
		forced := used(true)
		forced.Force = true
		if _, err := e.Remove(ctx, name, forced); !errors.Is(err, errdef.ErrConflict) || !strings.Contains(err.Error(), "running container web") {
			t.Errorf("%s under a running container: got %v", name, err)
		}
	}
	remove("app:1", RemoveOptions{}, image.DeleteResponse{Untagged: "app:1"}, image.DeleteResponse{Deleted: id})
	if _, err := e.Lookup(ctx, id, oci.Platform{}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

func TestRemoveByID(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t)
	img := imported(t, e, "app:1")[0]
	for _, n := range []string{"app:2", "other:x"} {
		if err := e.Tag(ctx, "app:1", n); err != nil {
			t.Fatal(err)
		}
	}
	got, err := e.Remove(ctx, string(img.ID), RemoveOptions{Force: true})
	want := []image.DeleteResponse{{Untagged: "app:1"}, {Untagged: "app:2"}, {Untagged: "other:x"}, {Deleted: string(img.ID)}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// TestRemovePulled: digests go with the last name, and the name is looked up anew
// the next time.
func TestRemovePulled(t *testing.T) {
	ctx := context.Background()
	e, srv := newEnv(t), newServer(t)
	srv.push(t, "app:1", makeImage(t, "linux/amd64", tarOf(t, file{name: "one"})))
	name, amd := srv.host+"/app:1", platform(t, "linux/amd64")
	p, err := e.Pull(ctx, name, PullOptions{Platform: amd})
	if err != nil {
		t.Fatal(err)
	}
	byDigest := srv.host + "/app@" + string(p.Digest)
	if _, err := e.Remove(ctx, byDigest, RemoveOptions{}); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("by a digest, with a tag left: got %v, want ErrConflict", err)
	}
	got, err := e.Remove(ctx, name, RemoveOptions{})
	want := []image.DeleteResponse{{Untagged: name}, {Untagged: byDigest}, {Deleted: string(p.Image.ID)}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	two := makeImage(t, "linux/amd64", tarOf(t, file{name: "two"}))
	srv.push(t, "app:1", two)
	if r, err := e.Resolve(ctx, name, amd, ResolveOptions{}); err != nil || r.ID != two.id() {
		t.Errorf("after the removal: got %v, %v, want what the registry has now", r.ID, err)
	}
}

func TestTagMoves(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t)
	imgs := imported(t, e, "a:1", "b:1")
	if err := e.Tag(ctx, "b:1", "a:1"); err != nil {
		t.Fatal(err)
	}
	if got, err := e.Lookup(ctx, "a:1", oci.Platform{}); err != nil || got.ID != imgs[1].ID {
		t.Errorf("got %s, %v, want %s", got.ID, err, imgs[1].ID)
	}
	if got, err := e.Lookup(ctx, string(imgs[0].ID)[:20], oci.Platform{}); err != nil || got.ID != imgs[0].ID {
		t.Errorf("the image that lost its name: got %s, %v", got.ID, err)
	}
	for _, bad := range []string{"UPPER", "x@" + string(imgs[0].ID), ""} {
		if err := e.Tag(ctx, "a:1", bad); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("tag %q: got %v, want ErrInvalid", bad, err)
		}
	}
	if err := e.Tag(ctx, "none", "x"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

func TestListFilters(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t)
	imported(t, e, "app:1", "app:2", "localhost:5000/team/app:3", "lost:1")
	if err := e.Tag(ctx, "app:1", "lost:1"); err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 1, 3, 30, 0, 0, time.UTC)
	// Images are told apart by their labels, newest first.
	all := []string{"lost-1", "localhost-5000/team/app-3", "app-2", "app-1"}
	for _, tt := range []struct {
		filters map[string][]string
		want    []string
	}{
		{nil, all},
		{map[string][]string{"dangling": {"true"}}, all[:1]},
		{map[string][]string{"dangling": {"false"}}, all[1:]},
		{map[string][]string{"reference": {"app"}}, all[2:]},
		{map[string][]string{"reference": {"app:2"}}, all[2:3]},
		{map[string][]string{"reference": {"*:1"}}, all[3:]},
		{map[string][]string{"reference": {"localhost:5000/*/app"}}, all[1:2]},
		{map[string][]string{"reference": {"docker.io/library/a*", "lost"}}, all[2:]},
		{map[string][]string{"before": {"app:2"}}, all[3:]},
		{map[string][]string{"since": {"app:2"}}, all[:2]},
		{map[string][]string{"label": {"name"}}, all},
		{map[string][]string{"label": {"name=app-2"}}, all[2:3]},
		{map[string][]string{"label": {"name", "name=app-1"}}, all[3:]},
		{map[string][]string{"label!": {"name=app-1"}}, all[:3]},
		{map[string][]string{"until": {"2h"}}, all[2:]},
		{map[string][]string{"until": {"2026-01-01T00:30:00Z"}}, all[3:]},
		{map[string][]string{"since": {"app:1"}, "reference": {"app"}}, all[2:3]},
	} {
		list, err := e.List(ctx, ListOptions{Filters: tt.filters, Now: now})
		if err != nil {
			t.Errorf("%v: %v", tt.filters, err)
			continue
		}
		got := []string{}
		for _, s := range list {
			got = append(got, s.Labels["name"])
		}
		if !cmp.Equal(got, tt.want) {
			t.Errorf("%v: got %q, want %q", tt.filters, got, tt.want)
		}
	}
	for _, bad := range []map[string][]string{{"nope": {"x"}}, {"dangling": {"maybe"}}, {"until": {"soon"}}, {"reference": {"[a"}}} {
		if _, err := e.List(ctx, ListOptions{Filters: bad}); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%v: got %v, want ErrInvalid", bad, err)
		}
	}
	list, err := e.List(ctx, ListOptions{Filters: map[string][]string{"reference": {"app:1"}}})
	if err != nil || len(list) != 1 || !cmp.Equal(list[0].RepoTags, []string{"app:1"}) || list[0].Size == 0 {
		t.Errorf("got %+v, %v", list, err)
	}
}

func TestImport(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t)
	tree := tarOf(t, file{name: "./", mode: 0o755}, file{name: "./bin/"}, file{name: "./bin/sh", body: "#!", mode: 0o755, uid: 7})
	for packing, data := range map[string][]byte{"plain": tree, "gzip": gz(t, tree), "zstd": zst(t, tree)} {
		img, err := e.ImportTar(ctx, bytes.NewReader(data), ImportOptions{Now: time.Unix(1e9, 0), Platform: platform(t, "linux/arm64")})
		if err != nil {
			t.Fatalf("%s: %v", packing, err)
		}
		if diff := cmp.Diff(map[string]string{"bin": "dir -rwxr-xr-x", "bin/sh": "#!"}, e.tree(t, Chain(img))); diff != "" {
			t.Errorf("%s: tree (-want +got):\n%s", packing, diff)
		}
		if img.Platform != "linux/arm64" {
			t.Errorf("%s: platform %s", packing, img.Platform)
		}
	}
	if list, err := e.List(ctx, ListOptions{}); err != nil || len(list) != 1 {
		t.Errorf("the same tree made %d images, %v", len(list), err)
	}
	if _, err := e.ImportTar(ctx, strings.NewReader("no tar"), ImportOptions{}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
}

func TestChanges(t *testing.T) {
	cfg := &oci.Image{}
	cfg.Config.Env = []string{"PATH=/bin", "A=1"}
	err := ApplyChanges(cfg, []string{
		"CMD run it", `ENTRYPOINT ["/init"]`, "ENV PATH=$PATH:/sbin B=2", "EXPOSE 80 8000-8001/udp", "LABEL a=b c=\"d e\"",
		"HEALTHCHECK --interval=3s CMD check", "USER me", "VOLUME /data", "WORKDIR rel", "STOPSIGNAL SIGINT", "ONBUILD RUN x",
	})
	if err != nil {
		t.Fatal(err)
	}
	var want dockerspec.DockerOCIImageConfig
	want.Cmd, want.Entrypoint = []string{"/bin/sh", "-c", "run it"}, []string{"/init"}
	want.Env = []string{"PATH=/bin:/sbin", "A=1", "B=2"}
	want.ExposedPorts = map[string]struct{}{"80/tcp": {}, "8000/udp": {}, "8001/udp": {}}
	want.Labels = map[string]string{"a": "b", "c": "d e"}
	want.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD-SHELL", "check"}, Interval: 3 * time.Second}
	want.User, want.Volumes, want.WorkingDir, want.StopSignal = "me", map[string]struct{}{"/data": {}}, "/rel", "SIGINT"
	want.OnBuild = []string{"RUN x"}
	if diff := cmp.Diff(want, cfg.Config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	// Arguments for another entrypoint go with it.
	cfg.Config.Cmd = []string{"old"}
	if err := ApplyChanges(cfg, []string{`ENTRYPOINT ["/new"]`}); err != nil || cfg.Config.Cmd != nil {
		t.Errorf("a new entrypoint: got command %q and %v, want none", cfg.Config.Cmd, err)
	}
	for _, bad := range []string{"RUN x", "FROM y", "COPY a b", "NONSENSE", "EXPOSE x"} {
		if err := ApplyChanges(&oci.Image{}, []string{bad}); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", bad, err)
		}
	}
}

func TestHistoryAndInspect(t *testing.T) {
	ctx := context.Background()
	e, img := pulled(t)
	history, err := e.History(ctx, "app:v1", oci.Platform{})
	if err != nil {
		t.Fatal(err)
	}
	if len(history) != 4 || history[0].ID != string(img.ID) || history[0].CreatedBy != "CMD" || history[0].Size != 0 || history[3].Size == 0 || history[1].ID != "<missing>" {
		t.Errorf("history: %+v", history)
	}
	if !slices.Contains(history[0].Tags, "app:v1") {
		t.Errorf("tags: %v", history[0].Tags)
	}
	got, err := e.Inspect(ctx, "app:v1", oci.Platform{})
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != string(img.ID) || got.Architecture != "amd64" || got.Os != "linux" || len(got.RootFS.Layers) != 3 || got.Config.Cmd[0] != "/bin/sh" ||
		len(got.RepoDigests) != 1 || len(got.RepoTags) != 2 || got.Created != "2001-09-09T01:46:40Z" || got.Size == 0 || got.Metadata.LastTagTime.IsZero() {
		t.Errorf("inspect: %+v", got)
	}
}

// TestCreate: a config's unknown fields survive, and one that is right already is
// left as it is, byte for byte.
func TestCreate(t *testing.T) {
	ctx := context.Background()
	e, img := built(t)
	cfg, err := oci.ParseImage(img.Config)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.RootFS.DiffIDs) != 1 || cfg.Config.Healthcheck == nil || !strings.Contains(string(img.Config), "moby.unknown") {
		t.Errorf("config: %s", img.Config)
	}
	spaced := append([]byte(" "), img.Config...)
	again, err := e.Create(ctx, CreateOptions{Config: spaced, Chain: Chain(img)})
	if err != nil || again.ID != digest.FromBytes(spaced) {
		t.Errorf("got %s, %v, want the digest of the bytes given", again.ID, err)
	}
}

// Somebody else may remove what a prune is about to.
func TestPruneBesideRemove(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t)
	imgs := imported(t, e, "one:1", "two:1")
	inUse := func(id digest.Digest) (string, bool) {
		if err := e.store.RemoveImage(ctx, imgs[0].ID); err != nil && !errors.Is(err, errdef.ErrNotFound) {
			t.Error(err)
		}
		return "", false
	}
	report, err := e.Prune(ctx, PruneOptions{All: true, InUse: inUse})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]image.DeleteResponse{{Untagged: "two:1"}, {Deleted: string(imgs[1].ID)}}, report.ImagesDeleted); diff != "" {
		t.Errorf("deleted (-want +got):\n%s", diff)
	}
}

func TestPrune(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t)
	imgs := imported(t, e, "kept:1", "lost:1", "used:1", "newer:1")
	for _, n := range []string{"lost:1", "used:1"} {
		if err := e.Tag(ctx, "kept:1", n); err != nil {
			t.Fatal(err)
		}
	}
	inUse := func(id digest.Digest) (string, bool) {
		if id == imgs[2].ID {
			return "web", true
		}
		return "", false
	}
	report, err := e.Prune(ctx, PruneOptions{InUse: inUse})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]image.DeleteResponse{{Deleted: string(imgs[1].ID)}}, report.ImagesDeleted); diff != "" {
		t.Errorf("deleted (-want +got):\n%s", diff)
	}
	if report.SpaceReclaimed == 0 {
		t.Error("nothing was freed")
	}
	report, err = e.Prune(ctx, PruneOptions{All: true, InUse: inUse, Filters: map[string][]string{"label": {"name=newer-1"}}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]image.DeleteResponse{{Untagged: "newer:1"}, {Deleted: string(imgs[3].ID)}}, report.ImagesDeleted); diff != "" {
		t.Errorf("deleted (-want +got):\n%s", diff)
	}
	if img, err := e.Lookup(ctx, "kept:1", oci.Platform{}); err != nil || len(e.tree(t, Chain(img))) != 1 {
		t.Errorf("what was kept: %v", err)
	}
}
