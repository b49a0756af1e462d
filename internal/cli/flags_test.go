package cli

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"dhow/internal/cli/console"
	"dhow/internal/supervise"
)

// try runs a command line on an empty store.
func try(t *testing.T, args ...string) (stdout, stderr string, status int) {
	var out, errOut bytes.Buffer
	a := &app{&console.Console{In: strings.NewReader(""), Out: &out, Err: &errOut, Version: Version{Version: "1.2.3", Commit: "abc"}}}
	root := a.command(nil)
	root.SetArgs(append([]string{"--root", t.TempDir()}, args...))
	ctx := context.Background()
	status = a.Report(ctx, root.ExecuteContext(ctx))
	return out.String(), errOut.String(), status
}

// A command that goes further than a test expects may start the process beside a
// container, which is this program: it must not run the tests again.
func TestMain(m *testing.M) {
	if os.Getenv(supervise.RoleVar) != "" {
		os.Exit(supervise.Main())
	}
	os.Exit(m.Run())
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
		{"build --cache-from type=gha .", []string{"dhow keeps no cache in gha", "type=dhow"}, 1},
		{"build --progress fancy .", []string{`"fancy" is not known`, "hint: use auto"}, 1},
		{"build --add-host nonsense .", []string{"is no mapping", "hint: write --add-host HOST:IP"}, 1},
		{"build --secret src=x .", []string{"has no id"}, 1},
		{"build --ulimit nofile=x .", []string{"--ulimit"}, 1},
		{"build --cpus 1 --cpu-quota 5 .", []string{"--cpus goes with neither"}, 1},
		{"build --build-arg =x .", []string{"has no name"}, 1},
		{"run", []string{"requires at least 1 argument"}, 1},
		{"build --rm=false .", []string{"dhow has no --rm=false"}, 125},
		{"images --tree", []string{"dhow has no --tree"}, 125},
		{"rmi --platform linux/arm64 x", []string{"dhow has no --platform"}, 125},
		{"run --gpus all,capabilities=video busybox", []string{`device capability "video"`}, 125},
		{"run --storage-opt size=1g busybox", []string{"dhow has no --storage-opt"}, 125},
		{"run --wait busybox", []string{"--wait waits for a container in the background", "hint: add --detach"}, 125},
		{"run -d -a stdout busybox", []string{"cannot specify both --attach and --detach"}, 125},
		{"run --detach-keys ctrl-? busybox", []string{"--detach-keys"}, 125},
		{"manifest inspect --insecure x", []string{"dhow has no --insecure: --tls-verify=false"}, 125},
		{"exec x", []string{"requires at least 2 arguments"}, 1},
		{"ps --filter name", []string{"bad format of filter"}, 125},
		{"run --pull sometimes busybox", []string{`--pull "sometimes"`, "hint: use always, missing or never"}, 125},
		{"run -v a:b:c:d busybox", []string{"too many colons", "hint: write -v"}, 125},
		{"run -v /a:rel busybox", []string{"must be absolute"}, 125},
		{"run --env-file /nonexistent busybox", []string{"no such file"}, 125},
		{"run --rmm busybox", []string{"unknown flag: --rmm", "hint: did you mean --rm?"}, 125},
		{"build --call=check,fmt=json .", []string{"fmt"}, 1},
		{"inspect --type task x", []string{`"task" is not a valid value for --type`, "hint: use container"}, 1},
		{"update x", []string{"one or more flags"}, 1},
		{"cp a b", []string{"at least one container source"}, 1},
		{"cp a:b c:d", []string{"copying between containers is not supported", "hint: dhow cp a:b - | dhow cp - c:d"}, 1},
		{"logs", []string{"requires at least 1 argument"}, 1},
		{"logs --where x y", []string{"is no condition", "hint: write --where"}, 1},
		{"events --since never", []string{"--since", "is no time"}, 1},
		{"network create --ingress=true x", []string{"dhow has no --ingress: it is for swarms"}, 125},
		{"rm --link x", []string{"dhow has no --link"}, 125},
		{"health x walk", []string{"nothing that health does", "hint: dhow health x run"}, 1},
		{"system prune --volumes --filter until=1h", []string{"not supported"}, 1},
		{"builder prune --filter age=1", []string{`"age" is not known`}, 1},
		{"builder prune --filter until=x", []string{"is no time"}, 1},
	} {
		t.Run(c.args, func(t *testing.T) {
			_, stderr, code := try(t, strings.Fields(c.args)...)
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
	_, stderr, _ := try(t, "build", "--sbom=false", "--provenance=false", "/nonexistent/context")
	if strings.Contains(stderr, "dhow has no") {
		t.Errorf("got %q, want false to be accepted", stderr)
	}
}

func TestVersion(t *testing.T) {
	for _, args := range [][]string{{"version", "-f", "{{.Version}}"}, {"-v"}} {
		if out, _, code := try(t, args...); code != 0 || !strings.Contains(out, "1.2.3") {
			t.Errorf("%v: got %q, status %d", args, out, code)
		}
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

// TestOneCommandIsMade: a command that is called is the only one made, and the
// same as among all.
func TestOneCommandIsMade(t *testing.T) {
	a := &app{&console.Console{}}
	all := a.command(nil)
	for group, list := range a.commands() {
		for _, c := range list {
			want, _, err := all.Find([]string{c.Name})
			if err != nil {
				t.Fatal(err)
			}
			made := a.command([]string{c.Name}).Commands()
			if len(made) != 1 || made[0].Name() != c.Name || made[0].UsageString() != want.UsageString() || made[0].GroupID != group || want.GroupID != group {
				t.Errorf("%s: got %d commands and %q, want %q alone", c.Name, len(made), made[0].Name(), want.Name())
			}
		}
	}
	if one := a.command([]string{"b"}); len(one.Commands()) != len(all.Commands()) {
		t.Errorf("an alias finds %d commands, want all %d", len(one.Commands()), len(all.Commands()))
	}
}
