package session

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/testkit"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func TestParseSecret(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want SecretSource
		err  string // part of the error or its hint
	}{
		{in: "id=a,src=/tmp/a", want: SecretSource{ID: "a", File: "/tmp/a"}},
		{in: "id=a,source=/tmp/a", want: SecretSource{ID: "a", File: "/tmp/a"}},
		{in: `id=a,"src=/tmp/a,b"`, want: SecretSource{ID: "a", File: "/tmp/a,b"}},
		{in: "ID=a,env=TOKEN", want: SecretSource{ID: "a", Env: "TOKEN"}},
		{in: "type=env,id=a,src=TOKEN", want: SecretSource{ID: "a", Env: "TOKEN"}},
		{in: "type=env,id=a", want: SecretSource{ID: "a"}},
		{in: "type=file,id=a,src=x=y", want: SecretSource{ID: "a", File: "x=y"}},
		{in: "id=a", want: SecretSource{ID: "a"}},
		{in: "", err: "empty"},
		{in: "src=/tmp/a", err: "no id"},
		{in: "a", err: "unknown key"},
		{in: "id", err: "must be key=value"},
		{in: "id=a,scr=/tmp/a", err: `did you mean "src"`},
		{in: "id=a,type=fiel", err: `did you mean "file"`},
		{in: "id=a,src=x,env=Y", err: "a file and a variable"},
		{in: `id="a`, err: "quote"},
	} {
		got, err := ParseSecret(tt.in)
		checkParse(t, tt.in, got, tt.want, err, tt.err)
	}
}

func TestParseSSH(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want SSHSource
		err  string
	}{
		{in: "default", want: SSHSource{ID: "default"}},
		{in: "default=/sock", want: SSHSource{ID: "default", Paths: []string{"/sock"}}},
		{in: "git=/k1,/k2", want: SSHSource{ID: "git", Paths: []string{"/k1", "/k2"}}},
		{in: "git=/sock,raw=true", want: SSHSource{ID: "git", Paths: []string{"/sock"}, Raw: true}},
		{in: "git=/a=b", want: SSHSource{ID: "git", Paths: []string{"/a=b"}}},
		{in: "=/sock", err: "no id"},
		{in: "", err: "no id"},
		{in: "git=/sock,raw=maybe", err: "true or false"},
		{in: "git=/sock,rwa=true", err: `did you mean "raw"`},
	} {
		got, err := ParseSSH(tt.in)
		checkParse(t, tt.in, got, tt.want, err, tt.err)
	}
}

func checkParse[T any](t *testing.T, in string, got, want T, err error, part string) {
	t.Helper()
	if part != "" {
		if err == nil || !strings.Contains(err.Error()+" "+errdef.Hint(err), part) {
			t.Errorf("%q: got error %v (hint %q), want one with %q", in, err, errdef.Hint(err), part)
		}
		if !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%q: got error %v, want ErrInvalid", in, err)
		}
		return
	}
	if err != nil {
		t.Errorf("%q: %v", in, err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(SecretSource{})); d != "" {
		t.Errorf("%q: got +, want -:\n%s", in, d)
	}
}

func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, "plain", []byte("from a file\n"))
	write(t, "huge", bytes.Repeat([]byte("x"), MaxSecret+1))
	write(t, "full", bytes.Repeat([]byte("x"), MaxSecret))
	write(t, "BOTH", []byte("the file"))
	t.Setenv("TOKEN", "from a variable")
	t.Setenv("BOTH", "the variable")
	s, err := New(Options{Secrets: []SecretSource{
		{ID: "f", File: "plain"}, {ID: "e", Env: "TOKEN"}, {ID: "unset", Env: "NO_SUCH_VARIABLE"},
		{ID: "TOKEN"}, {ID: "plain"}, {ID: "BOTH"}, {ID: "full"},
		{ID: "twice", File: "plain"}, {ID: "twice", Env: "TOKEN"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{
		"f": "from a file\n", "e": "from a variable", "unset": "", "TOKEN": "from a variable",
		"plain": "from a file\n", "BOTH": "the variable", "twice": "from a variable",
	} {
		got, err := s.Secret(context.Background(), id)
		if err != nil || string(got) != want {
			t.Errorf("secret %s: got %q, %v, want %q", id, got, err, want)
		}
	}
	if got, err := s.Secret(context.Background(), "full"); err != nil || len(got) != MaxSecret {
		t.Errorf("secret at the limit: got %d bytes, %v", len(got), err)
	}
	_, err = s.Secret(context.Background(), "TOKEM")
	if !errors.Is(err, errdef.ErrNotFound) || err.Error() != "secret TOKEM: not found" || !strings.Contains(errdef.Hint(err), `"TOKEN"`) {
		t.Errorf("missing secret: got %v (hint %q)", err, errdef.Hint(err))
	}
	// What grew after the start is refused, too.
	write(t, "plain", bytes.Repeat([]byte("x"), MaxSecret+1))
	if _, err := s.Secret(context.Background(), "f"); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("grown secret: got %v, want ErrInvalid", err)
	}
	for name, src := range map[string]SecretSource{"missing": {ID: "m", File: "no/such"}, "huge": {ID: "h", File: "huge"}, "dir": {ID: "d", File: dir}} {
		if _, err := New(Options{Secrets: []SecretSource{src}}); err == nil || !strings.Contains(err.Error(), src.File) {
			t.Errorf("%s: got %v, want an error that names %s", name, err, src.File)
		}
	}
}

// A pipe, as of a shell's <(command), can be read only once.
func TestSecretFromPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.WriteString("piped")
	w.Close()
	s, err := New(Options{Secrets: []SecretSource{{ID: "p", File: fmt.Sprintf("/proc/self/fd/%d", r.Fd())}}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, err := s.Secret(context.Background(), "p"); err != nil || string(got) != "piped" {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

func TestDirs(t *testing.T) {
	t.Chdir(t.TempDir())
	wd, _ := os.Getwd()
	s, err := New(Options{Dirs: map[string]string{"context": "sub"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Dir(context.Background(), DirRequest{Name: "context"}); err != nil || got.Path != filepath.Join(wd, "sub") {
		t.Errorf("got %q, %v", got.Path, err)
	}
	if _, err := s.Dir(context.Background(), DirRequest{Name: "other"}); !errors.Is(err, errdef.ErrNotFound) {
		t.Error("a directory that was not given is found")
	}
}

// TestAgentOfKeys signs with a key file through the agent in this process, and
// tries what a build must not do.
func TestAgentOfKeys(t *testing.T) {
	dir := t.TempDir()
	pub := writeKey(t, filepath.Join(dir, "key"), "")
	writeKey(t, filepath.Join(dir, "locked"), "passphrase")
	write(t, filepath.Join(dir, "junk"), []byte("no key"))
	s, err := New(Options{SSH: []SSHSource{{ID: "git", Paths: []string{filepath.Join(dir, "key")}}}})
	if err != nil {
		t.Fatal(err)
	}
	checkReadOnly(t, s, "git", pub)
	if err := s.HasSSH(context.Background(), ""); !errors.Is(err, errdef.ErrNotFound) || err.Error() != "unset ssh forward key default" {
		t.Errorf("got %v", err)
	}
	_, err = New(Options{SSH: []SSHSource{{Paths: []string{filepath.Join(dir, "locked")}}}})
	if err == nil || !strings.Contains(err.Error(), "protected by a passphrase") || !strings.Contains(errdef.Hint(err), "ssh-add") {
		t.Errorf("locked key: got %v (hint %q)", err, errdef.Hint(err))
	}
	for _, src := range [][]string{{filepath.Join(dir, "junk")}, {filepath.Join(dir, "missing")}} {
		if _, err := New(Options{SSH: []SSHSource{{Paths: src}}}); err == nil || !strings.Contains(err.Error(), src[0]) {
			t.Errorf("got %v, want an error that names %s", err, src[0])
		}
	}
	t.Setenv("SSH_AUTH_SOCK", "")
	if _, err := New(Options{SSH: []SSHSource{{}}}); err == nil || !strings.Contains(err.Error(), "SSH_AUTH_SOCK") {
		t.Errorf("no agent: got %v", err)
	}
	key := filepath.Join(dir, "key")
	if _, err := New(Options{SSH: []SSHSource{{Paths: []string{key}}, {ID: "default", Paths: []string{key}}}}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("an id given twice: got %v", err)
	}
}

// TestRealAgent passes requests on to an ssh-agent.
func TestRealAgent(t *testing.T) {
	bin, err := exec.LookPath("ssh-agent")
	if err != nil {
		t.Skip("ssh-agent is not installed (package openssh-client)")
	}
	sock := filepath.Join(t.TempDir(), "agent")
	cmd := exec.Command(bin, "-D", "-a", sock)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	testkit.Until(t, "ssh-agent", func() bool {
		conn, err := net.Dial("unix", sock)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	t.Setenv("SSH_AUTH_SOCK", sock)
	s, err := New(Options{SSH: []SSHSource{{ID: "default"}, {ID: "raw", Paths: []string{sock}, Raw: true}}})
	if err != nil {
		t.Fatal(err)
	}
	pub, priv, _ := ed25519.GenerateKey(rand.Reader)
	raw, err := s.SSHAgent(context.Background(), "raw")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if err := agent.NewClient(raw).Add(agent.AddedKey{PrivateKey: priv}); err != nil {
		t.Fatalf("raw agents take keys: %v", err)
	}
	sshPub, _ := ssh.NewPublicKey(pub)
	checkReadOnly(t, s, "", sshPub)
}

func checkReadOnly(t *testing.T, s *Local, id string, pub ssh.PublicKey) {
	t.Helper()
	conn, err := s.SSHAgent(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := agent.NewClient(conn)
	keys, err := c.List()
	if err != nil || len(keys) != 1 {
		t.Fatalf("got %d keys, %v, want 1", len(keys), err)
	}
	sig, err := c.Sign(pub, []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	if err := pub.Verify([]byte("data"), sig); err != nil {
		t.Error(err)
	}
	_, priv, _ := ed25519.GenerateKey(rand.Reader)
	for name, try := range map[string]func() error{
		"add":        func() error { return c.Add(agent.AddedKey{PrivateKey: priv}) },
		"remove":     func() error { return c.Remove(pub) },
		"remove all": c.RemoveAll,
		"lock":       func() error { return c.Lock([]byte("x")) },
		"unlock":     func() error { return c.Unlock([]byte("x")) },
		"extension":  func() error { _, err := c.Extension("session-bind@openssh.com", nil); return err },
	} {
		if try() == nil {
			t.Errorf("a build may %s", name)
		}
	}
	if keys, err := c.List(); err != nil || len(keys) != 1 {
		t.Errorf("after all that: got %d keys, %v", len(keys), err)
	}
}

func TestParseLayout(t *testing.T) {
	dir := t.TempDir()
	a, b := strings.Repeat("a", 64), strings.Repeat("b", 64)
	write(t, filepath.Join(dir, "index.json"), []byte(`{"schemaVersion":2,"manifests":[
		{"digest":"sha256:`+a+`","size":1,"annotations":{"org.opencontainers.image.ref.name":"v1"}},
		{"digest":"sha256:`+b+`","size":1,"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}`))
	for in, want := range map[string]string{
		"oci-layout://" + dir:                  b,
		"oci-layout://" + dir + ":v1":          a,
		"oci-layout://" + dir + "@sha256:" + a: a,
	} {
		l, err := ParseLayout(in)
		if err != nil || l.Dir != dir || l.Digest.Encoded() != want {
			t.Errorf("%s: got %+v, %v", in, l, err)
		}
		s, err := New(Options{Layouts: []Layout{l}})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Layout(context.Background(), l.LayoutID(), l.Digest); err != nil || got != dir {
			t.Errorf("%s: got %q, %v", in, got, err)
		}
	}
	only := t.TempDir()
	write(t, filepath.Join(only, "index.json"), []byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:`+a+`","size":1}]}`))
	for _, tag := range []string{"", ":latest", ":v7"} {
		if l, err := ParseLayout("oci-layout://" + only + tag); err != nil || l.Digest.Encoded() != a {
			t.Errorf("the only image, without a name, as %q: got %+v, %v", tag, l, err)
		}
	}
	if _, err := ParseLayout("oci-layout://" + dir + ":v2"); !errors.Is(err, errdef.ErrNotFound) || errdef.Hint(err) != `did you mean "v1"?` {
		t.Errorf("got %v (hint %q)", err, errdef.Hint(err))
	}
	for _, in := range []string{"", "dir", "oci-layout://", "oci-layout://" + dir + "@sha256:12"} {
		if _, err := ParseLayout(in); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", in, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("id=a,src=b")
	f.Add("default=/a,/b,raw=1")
	f.Add("oci-layout://x:y@sha256:z")
	f.Fuzz(func(t *testing.T, in string) {
		if s, err := ParseSecret(in); err == nil && s.ID == "" {
			t.Errorf("%q: a secret without id", in)
		}
		if s, err := ParseSSH(in); err == nil && s.ID == "" {
			t.Errorf("%q: an agent without id", in)
		}
	})
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func writeKey(t *testing.T, path, passphrase string) ssh.PublicKey {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(priv, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(priv, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, pem.EncodeToMemory(block))
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return sshPub
}
