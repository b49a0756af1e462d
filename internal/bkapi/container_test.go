package bkapi

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/internal/testkit"

	registryserver "github.com/google/go-containerregistry/pkg/registry"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sys/unix"
)

// The test's own binary, which needs no library, is the program in the
// containers of these tests.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv("BUILDKIT_SESSION_ID") != "":
		if err := grpcclient.RunFromEnvironment(context.Background(), testFrontend); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case len(os.Args) > 1 && os.Args[0] == "/prog":
		os.Exit(testProgram(os.Args[1:]))
	default:
		testkit.OwnNetwork() // steps may leave bridges behind
		os.Exit(m.Run())
	}
}

// testFrontend makes a file that tells what it was asked for.
func testFrontend(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	opts := c.BuildOpts().Opts
	if opts["fail"] != "" {
		return nil, errors.New(opts["fail"])
	}
	if _, err := os.Stat("/run/config/buildkit/metadata/frontend.bin"); err != nil {
		return nil, err
	}
	def, err := llb.Scratch().File(llb.Mkfile("/asked", 0o644, []byte(opts["word"]))).Marshal(ctx)
	if err != nil {
		return nil, err
	}
	return c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
}

// testProgram is what runs in containers.
func testProgram(args []string) int {
	switch args[0] {
	case "wait":
		got := make(chan os.Signal, 1)
		signal.Notify(got, syscall.SIGUSR1)
		fmt.Println("ready")
		<-got
		return 42
	case "upper":
		line, _ := io.ReadAll(os.Stdin)
		fmt.Print(strings.ToUpper(string(line)))
	case "env":
		fmt.Print(os.Getenv(args[1]))
	case "length":
		fmt.Print(len(os.Getenv(args[1])))
	case "agent":
		return listKeys()
	case "scan":
		return scan()
	case "size":
		for s := bufio.NewScanner(os.Stdin); s.Scan(); {
			ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
			fmt.Println(ws, err)
		}
	case "write":
		if err := os.WriteFile(args[1], []byte(args[2]), 0o644); err != nil {
			return 2
		}
		return 1
	}
	return 0
}

// program is a directory with the test's binary.
func program(t *testing.T) fsutil.FS {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	if f, err := elf.Open(self); err != nil || slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Skip("the test's binary is not static: set CGO_ENABLED=0")
	}
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "proc"), 0o755), os.Link(self, filepath.Join(dir, "prog")))
	fs, err := fsutil.NewFS(dir)
	must(t, err)
	return fs
}

// output is a buffer that can be waited for.
type output struct {
	bytes.Buffer
	wrote chan string
}

func (o *output) Write(b []byte) (int, error) {
	if o.wrote != nil {
		o.wrote <- string(b)
	}
	return o.Buffer.Write(b)
}
func (o *output) Close() error { return nil }

func TestContainer(t *testing.T) {
	c := serve(t)
	_, err := c.Build(t.Context(), client.SolveOpt{LocalMounts: map[string]fsutil.FS{"prog": program(t)}}, "test", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		def, err := llb.Local("prog").Marshal(ctx)
		must(t, err)
		root, err := g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
		must(t, err)
		ctr, err := g.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", Ref: root.Ref}, {Dest: "/tmp", MountType: pb.MountType_TMPFS}}})
		must(t, err)
		ready := &output{wrote: make(chan string, 1)}
		first, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"/prog", "wait"}, Stdout: ready})
		must(t, err)
		<-ready.wrote
		said := &output{}
		second, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"/prog", "upper"}, Stdin: io.NopCloser(strings.NewReader("hello")), Stdout: said})
		must(t, err, second.Wait())
		if said.String() != "HELLO" {
			t.Errorf("got %q, want HELLO", said.String())
		}
		env := &output{}
		third, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"/prog", "env", "WORD"}, Env: []string{"WORD=x"}, Stdout: env})
		must(t, err, third.Wait())
		if env.String() != "x" {
			t.Errorf("got %q, want x", env.String())
		}
		missing, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"/nothing"}})
		must(t, err)
		var exit *gwpb.ExitError
		if err := missing.Wait(); !errors.As(err, &exit) || exit.ExitCode != 127 {
			t.Errorf("got %v, want the exit code 127", err)
		}
		bad, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"/prog", "env", "WORD"}, Stdout: &output{}, SecurityMode: 7})
		must(t, err)
		if err := bad.Wait(); err == nil || !strings.Contains(err.Error(), "invalid security mode") {
			t.Errorf("got %v, want that the security mode is refused", err)
		}
		must(t, first.Signal(ctx, syscall.SIGUSR1))
		if err := first.Wait(); !errors.As(err, &exit) || exit.ExitCode != 42 {
			t.Errorf("got %v, want the exit code 42", err)
		}
		_ = ctr.Release(ctx) // returns the exit code of the first
		return gateway.NewResult(), nil
	}, nil)
	must(t, err)
}

func TestContainerTerminal(t *testing.T) {
	c := serve(t)
	_, err := c.Build(t.Context(), client.SolveOpt{LocalMounts: map[string]fsutil.FS{"prog": program(t)}}, "test", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		def, err := llb.Local("prog").Marshal(ctx)
		must(t, err)
		root, err := g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
		must(t, err)
		ctr, err := g.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", Ref: root.Ref}}})
		must(t, err)
		in, typed := io.Pipe()
		shown := &output{wrote: make(chan string, 100)}
		p, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"/prog", "size"}, Tty: true, Stdin: in, Stdout: shown})
		must(t, err, p.Resize(ctx, gateway.WinSize{Rows: 33, Cols: 99}))
		all := ""
		for deadline := time.After(testkit.Patience); !strings.Contains(all, "&{33 99"); {
			_, _ = typed.Write([]byte("\n"))
			select {
			case s := <-shown.wrote:
				all += s
			case <-time.After(50 * time.Millisecond):
			case <-deadline:
				t.Fatalf("got %q, want the size of the terminal", all)
			}
		}
		if err := ctr.Release(ctx); err == nil {
			t.Error("got no error, want that a process was canceled")
		}
		typed.Close()
		return gateway.NewResult(), nil
	}, nil)
	must(t, err)
}

func TestFailedStepCanBeEntered(t *testing.T) {
	c := serve(t)
	_, err := c.Build(t.Context(), client.SolveOpt{LocalMounts: map[string]fsutil.FS{"prog": program(t)}}, "test", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		def, err := llb.Local("prog").Run(llb.Args([]string{"/prog", "write", "/left", "this"})).Marshal(ctx)
		must(t, err)
		_, err = g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		var se *errdefs.SolveError
		if !errors.As(err, &se) || len(se.MountIDs) != 1 || se.Op.GetExec() == nil {
			t.Fatalf("got %v, want a failed step that can be looked into", err)
		}
		ctr, err := g.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", ResultID: se.MountIDs[0]}}})
		must(t, err)
		raw, err := ctr.ReadFile(ctx, gateway.ReadContainerRequest{ReadRequest: gateway.ReadRequest{Filename: "/left"}})
		if err != nil || string(raw) != "this" {
			t.Errorf("got %q, %v; want what the failed step wrote", raw, err)
		}
		return gateway.NewResult(), ctr.Release(ctx)
	}, nil)
	must(t, err)
}

func TestExternalFrontend(t *testing.T) {
	c := serve(t)
	reg := httptest.NewServer(registryserver.New(registryserver.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(reg.Close)
	image := strings.TrimPrefix(reg.URL, "http://") + "/front:1"
	_, err := c.Solve(t.Context(), nil, client.SolveOpt{
		Frontend: "dockerfile.v0", Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": image, "push": "true", "store": "false"}}},
		LocalMounts: map[string]fsutil.FS{"context": program(t), "dockerfile": tree(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY prog /prog\nENTRYPOINT [\"/prog\"]\n"})},
	}, nil)
	must(t, err)
	out := t.TempDir()
	solve := func(attrs map[string]string) error {
		_, err := c.Solve(t.Context(), nil, client.SolveOpt{
			Frontend: "gateway.v0", FrontendAttrs: attrs, Exports: []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
		}, nil)
		return err
	}
	must(t, solve(map[string]string{"source": image, "word": "bread"}))
	if got := read(t, filepath.Join(out, "asked")); got != "bread" {
		t.Errorf("got %q, want what the frontend was asked for", got)
	}
	if err := solve(map[string]string{"source": image, "fail": "no flour"}); err == nil || !strings.Contains(err.Error(), "no flour") {
		t.Errorf("got %v, want the frontend's own error", err)
	}
	if err := solve(map[string]string{"source": image, "frontend.caps": "moby.buildkit.frontend.subrequests"}); err == nil || !strings.Contains(err.Error(), "unsupported frontend capability") {
		t.Errorf("got %v, want that the capability is missing", err)
	}
}
