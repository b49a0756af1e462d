package cli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"dhow/internal/container"
	"dhow/internal/engine"
	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
)

// try runs a command line that must not get as far as the store.
func try(args ...string) (stdout, stderr string, status int) {
	var out, errOut bytes.Buffer
	a := &app{in: strings.NewReader(""), out: &out, err: &errOut, version: Version{"1.2.3", "abc"}, root: "/nonexistent/store"}
	root := a.command()
	root.SetArgs(args)
	ctx := context.Background()
	status = a.report(ctx, root.ExecuteContext(ctx))
	return out.String(), errOut.String(), status
}

func TestMistakesGetAdvice(t *testing.T) {
	for _, c := range []struct {
		args string
		want []string
		code int
	}{
		{"biuld .", []string{`"biuld" is not a dhow command`, "hint: did you mean: dhow build"}, 1},
		{"image lss", []string{`"lss" is not a dhow command`, "hint:"}, 1},
		{"build", []string{"requires 1 argument, got 0", "hint: usage: dhow build"}, 1},
		{"build --tga x .", []string{"unknown flag: --tga", "hint: did you mean --tag?"}, 125},
		{"build --sbom=true .", []string{"dhow has no --sbom: attestations are not made"}, 125},
		{"build --cache-from x .", []string{"dhow has no --cache-from"}, 125},
		{"build --progress fancy .", []string{`"fancy" is not known`, "hint: use auto"}, 1},
		{"build --add-host nonsense .", []string{"is no mapping", "hint: write --add-host HOST:IP"}, 1},
		{"build --secret src=x .", []string{"has no id"}, 1},
		{"build --ulimit nofile=x .", []string{"--ulimit"}, 1},
		{"build --cpus 1 --cpu-quota 5 .", []string{"--cpus goes with neither"}, 1},
		{"build --build-arg =x .", []string{"has no name"}, 1},
		{"run", []string{"requires at least 1 argument"}, 1},
		{"run -d busybox", []string{"dhow has no --detach"}, 125},
		{"run --label a=b busybox", []string{"dhow: dhow has no --label: "}, 125},
		{"run --device-read-bps /dev/sda:1 busybox", []string{"dhow has no --device-read-bps"}, 125},
		{"run --annotation a=b busybox", []string{"dhow has no --annotation"}, 125},
		{"run --cpus 100000 busybox", []string{"CPUs available"}, 125},
		{"run --network none --add-host h:host-gateway busybox", []string{"cannot reach the host", "hint: use --network host"}, 125},
		{"build --rm=false .", []string{"dhow has no --rm=false"}, 125},
		{"system df -v", []string{"dhow has no --verbose"}, 125},
		{"images --tree", []string{"dhow has no --tree"}, 125},
		{"rmi --platform linux/arm64 x", []string{"dhow has no --platform"}, 125},
		{"run -p 80:80 busybox", []string{"dhow has no --publish"}, 125},
		{"run --pull sometimes busybox", []string{`--pull "sometimes"`, "hint: use always, missing or never"}, 125},
		{"run --network bridge0 busybox", []string{`network "bridge0"`}, 125},
		{"run -v a:b:c:d busybox", []string{"too many colons", "hint: write -v"}, 125},
		{"run -v /a:rel busybox", []string{"must be absolute"}, 125},
		{"run --env-file /nonexistent busybox", []string{"no such file"}, 125},
		{"run --rmm busybox", []string{"unknown flag: --rmm", "hint: did you mean --rm?"}, 125},
		{"build --call=check,fmt=json .", []string{"fmt"}, 1},
		{"inspect --type container x", []string{"only images"}, 1},
		{"builder prune --filter age=1", []string{`"age" is not known`}, 1},
		{"builder prune --filter until=x", []string{"is no time"}, 1},
	} {
		t.Run(c.args, func(t *testing.T) {
			_, stderr, code := try(strings.Fields(c.args)...)
			if code != c.code {
				t.Errorf("status: got %d, want %d", code, c.code)
			}
			if !strings.HasPrefix(stderr, "dhow: ") {
				t.Errorf("got %q, want it to begin with dhow:", stderr)
			}
			for _, w := range c.want {
				if !strings.Contains(stderr, w) {
					t.Errorf("got %q, want %q in it", stderr, w)
				}
			}
		})
	}
}

func TestFlagsThatAskForNothing(t *testing.T) {
	_, stderr, _ := try("build", "--sbom=false", "--provenance=false", "/nonexistent/context")
	if strings.Contains(stderr, "dhow has no") {
		t.Errorf("got %q, want false to be accepted", stderr)
	}
}

func TestVersion(t *testing.T) {
	for _, args := range [][]string{{"version", "-f", "{{.Version}}"}, {"-v"}} {
		if out, _, code := try(args...); code != 0 || !strings.Contains(out, "1.2.3") {
			t.Errorf("%v: got %q, status %d", args, out, code)
		}
	}
}

func TestParseVolume(t *testing.T) {
	for _, c := range []struct {
		in   string
		want engine.Volume
	}{
		{"/data", engine.Volume{Target: "/data", Create: true}},
		{"name:/data", engine.Volume{Source: "name", Target: "/data", Create: true}},
		{"/h:/c:ro", engine.Volume{Source: "/h", Target: "/c", ReadOnly: true, Create: true}},
		{"/h:/c:ro,rslave,z", engine.Volume{Source: "/h", Target: "/c", ReadOnly: true, Propagation: "rslave", Create: true}},
		{"v:/c:nocopy", engine.Volume{Source: "v", Target: "/c", NoCopy: true, Create: true}},
	} {
		got, err := parseVolume(c.in)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.in, d)
		}
	}
	for _, bad := range []string{":/c", "a:b", "/h:/c:xx", "/h:/"} {
		if _, err := parseVolume(bad); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want it refused", bad, err)
		}
	}
}

func TestRunRequest(t *testing.T) {
	f := runFlags{network: "none", pull: "missing", entrypoint: "", hasEntrypoint: true, env: []string{"A=1"}, ulimits: []string{"nofile=10:20"}, tmpfs: []string{"/t:size=1m"}}
	if err := f.mounts.Set("type=tmpfs,target=/m,tmpfs-size=1m,tmpfs-mode=1770"); err != nil {
		t.Fatal(err)
	}
	if err := f.cpus.Set("1.5"); err != nil {
		t.Fatal(err)
	}
	r, err := f.request([]string{"img", "cmd", "arg"})
	if err != nil {
		t.Fatal(err)
	}
	o := r.Options
	if o.Network != container.NetworkNone || o.Entrypoint == nil || len(o.Entrypoint) != 0 || o.Resources.CPUs != 1.5 {
		t.Errorf("got %+v", o)
	}
	want := map[string]string{"/t": "size=1m", "/m": "size=1048576,mode=1770"}
	if d := cmp.Diff(want, o.Tmpfs); d != "" {
		t.Errorf("tmpfs (-want +got):\n%s", d)
	}
	if len(o.Ulimits) != 1 || o.Ulimits[0].Type != "RLIMIT_NOFILE" || o.Ulimits[0].Soft != 10 || o.Ulimits[0].Hard != 20 {
		t.Errorf("ulimits: got %+v", o.Ulimits)
	}
}

func TestShort(t *testing.T) {
	for in, want := range map[string]string{
		"[build 2/3] RUN make":    "RUN make",
		"[internal] load context": "load context",
		"RUN x":                   "RUN x",
	} {
		if got := short(in); got != want {
			t.Errorf("short(%q): got %q, want %q", in, got, want)
		}
	}
	if got := short(strings.Repeat("ä", 100)); len([]rune(got)) != 60 {
		t.Errorf("got %d characters", len([]rune(got)))
	}
}
