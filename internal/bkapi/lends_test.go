package bkapi

import (
	"archive/tar"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	registryserver "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	ggremote "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/crypto/ssh/agent"
)

func quietLog() *log.Logger { return log.New(io.Discard, "", 0) }

// listKeys prints the keys of the agent that a step was lent.
func listKeys() int {
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer conn.Close()
	keys, err := agent.NewClient(conn).List()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, k := range keys {
		fmt.Print(k.Comment)
	}
	return 0
}

// TestSecretsAndAgents: a step gets what the client lends, and no output shows it.
func TestSecretsAndAgents(t *testing.T) {
	c := serve(t)
	keys := agent.NewKeyring()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err, keys.Add(agent.AddedKey{PrivateKey: key, Comment: "a test's key"}))
	dir, err := os.MkdirTemp("", "agent") // sockets have short names
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	sock := filepath.Join(dir, "s")
	l, err := net.Listen("unix", sock)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(keys, conn) }() // its end is the connection's
		}
	}()
	agents, err := sshprovider.NewSSHAgentProvider([]sshprovider.AgentConfig{{Paths: []string{sock}}})
	must(t, err)
	mounts := map[string]fsutil.FS{"prog": program(t)}
	lent := []session.Attachable{agents, secretsprovider.FromMap(map[string][]byte{"word": []byte("speak-friend")})}
	secret := llb.AddSecret("WORD", llb.SecretID("word"), llb.SecretAsEnv(true))
	step := func(args []string, o ...llb.RunOption) *llb.Definition {
		def, err := llb.Local("prog", llb.SharedKeyHint("x")).Run(append(o, llb.Args(append([]string{"/prog"}, args...)))...).Root().Marshal(t.Context())
		must(t, err)
		return def
	}
	for name, test := range map[string]struct {
		def       *llb.Definition
		session   []session.Attachable
		out, fail string
	}{
		"secret":         {step([]string{"length", "WORD"}, secret), lent, "12", ""},
		"printed":        {step([]string{"env", "WORD"}, secret), lent, "*****", ""},
		"no secret":      {step([]string{"length", "WORD"}, llb.AddSecret("WORD", llb.SecretID("other"), llb.SecretAsEnv(true))), lent, "", "secret other: not found"},
		"nobody lends":   {step([]string{"length", "WORD", "again"}, secret), nil, "", "secret"},
		"agent":          {step([]string{"agent"}, llb.AddSSHSocket()), lent, "a test's key", ""},
		"no such agent":  {step([]string{"agent"}, llb.AddSSHSocket(llb.SSHID("other"))), lent, "", "other"},
		"optional agent": {step([]string{"length", "SSH_AUTH_SOCK"}, llb.AddSSHSocket(llb.SSHID("other"), llb.SSHOptional)), lent, "25", ""}, // /run/buildkit/ssh_agent.0, which is not there
	} {
		seen, err := solve(t, c, test.def, client.SolveOpt{LocalMounts: mounts, Session: test.session})
		switch {
		case test.fail != "" && (err == nil || !strings.Contains(err.Error(), test.fail)):
			t.Errorf("%s: got %v, want %q", name, err, test.fail)
		case test.fail == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.fail == "" && printed(seen) != test.out:
			t.Errorf("%s: got %q, want %q", name, printed(seen), test.out)
		}
	}
}

// TestSourcePolicy: what the request says of sources holds for all of them.
func TestSourcePolicy(t *testing.T) {
	c := serve(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "from "+r.URL.Path) }))
	t.Cleanup(srv.Close)
	def, err := llb.Scratch().File(llb.Copy(llb.HTTP(srv.URL+"/one", llb.Filename("f")), "f", "/f")).Marshal(t.Context())
	must(t, err)
	rule := func(action spb.PolicyAction, to string) *spb.Policy {
		r := &spb.Rule{Action: action, Selector: &spb.Selector{Identifier: srv.URL + "/one"}}
		if to != "" {
			r.Updates = &spb.Update{Identifier: to}
		}
		return &spb.Policy{Rules: []*spb.Rule{r}}
	}
	for name, test := range map[string]struct {
		policy    *spb.Policy
		out, fail string
	}{
		"none":    {nil, "from /one", ""},
		"allow":   {rule(spb.PolicyAction_ALLOW, ""), "from /one", ""},
		"convert": {rule(spb.PolicyAction_CONVERT, srv.URL+"/two"), "from /two", ""},
		"deny":    {rule(spb.PolicyAction_DENY, ""), "", "denied by policy"},
	} {
		out := t.TempDir()
		_, err := c.Solve(t.Context(), def, client.SolveOpt{SourcePolicy: test.policy, Exports: []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}}}, nil)
		if test.fail != "" {
			if err == nil || !strings.Contains(err.Error(), test.fail) {
				t.Errorf("%s: got %v, want %q", name, err, test.fail)
			}
			continue
		}
		must(t, err)
		if got := read(t, filepath.Join(out, "f")); got != test.out {
			t.Errorf("%s: got %q, want %q", name, got, test.out)
		}
	}
}

// scan is a scanner that finds one package, named for a file that it looks at.
func scan() int {
	dir := os.Getenv("BUILDKIT_SCAN_SOURCE")
	body, err := os.ReadFile(filepath.Join(dir, "f"))
	if err == nil {
		doc := `{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":{"name":"` + string(body) + `"}}`
		err = os.WriteFile(filepath.Join(os.Getenv("BUILDKIT_SCAN_DESTINATION"), "found.spdx.json"), []byte(doc), 0o644)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// TestSBOM: the scanner that is named looks at the result, and what it says goes
// with it.
func TestSBOM(t *testing.T) {
	c := serve(t)
	reg := httptest.NewServer(registryserver.New(registryserver.Logger(quietLog())))
	t.Cleanup(reg.Close)
	program(t) // skips where the binary needs libraries
	self, err := os.Executable()
	must(t, err)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() { w.CloseWithError(tarOf(w, self)) }()
		return r, nil
	})
	must(t, err)
	img, err := mutate.AppendLayers(empty.Image, layer)
	must(t, err)
	img, err = mutate.Config(img, v1.Config{Entrypoint: []string{"/prog", "scan"}})
	must(t, err)
	ref, err := name.ParseReference(strings.TrimPrefix(reg.URL, "http://") + "/scanner:1")
	must(t, err, ggremote.Write(ref, img, ggremote.WithContext(context.Background())))

	src := tree(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": "a-package"})
	out := t.TempDir()
	build := func(generator string) error {
		_, err := c.Solve(t.Context(), nil, client.SolveOpt{
			Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"attest:sbom": "generator=" + generator},
			LocalMounts: map[string]fsutil.FS{"context": src, "dockerfile": src},
			Exports:     []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
		}, nil)
		return err
	}
	must(t, build(ref.Name()))
	files, err := filepath.Glob(filepath.Join(out, "*.spdx.json"))
	if err != nil || len(files) != 1 || !strings.Contains(read(t, files[0]), `"a-package"`) {
		t.Errorf("got the files %v, %v, want one that names the package", files, err)
	}
	if err := build(ref.Context().Name() + ":missing"); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("a scanner that is not there: got %v", err)
	}
}

// tarOf writes a layer whose one file, /prog, is the program at a path.
func tarOf(w io.Writer, path string) error {
	body, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	if err := t.WriteHeader(&tar.Header{Name: "prog", Mode: 0o755, Size: int64(len(body)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	if _, err := t.Write(body); err != nil {
		return err
	}
	return t.Close()
}
