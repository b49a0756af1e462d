package creds

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"dhow/internal/errdef"

	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/unix"
)

func server(t *testing.T, s string) Server {
	t.Helper()
	srv, err := ParseServer(s)
	if err != nil {
		t.Fatal(err)
	}
	return srv
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestKeepPlain: what other programs keep in the file stays, and they can read
// what was added.
func TestKeepPlain(t *testing.T) {
	ctx := context.Background()
	dir := configDir(t, `{"HttpHeaders":{"X":"y"},"plugins":{"a":{"b":"c"}},"auths":{"old.example":{"auth":"b2xkOng=","email":"e"}},"unknown":[1,2.50]}`)
	o := testOptions(t, dir, nil)
	for _, name := range []string{"", "ghcr.io"} {
		k, err := Open(o).Keep(ctx, server(t, name), Login{User: "me", Secret: "pw"}, KeepOptions{PlainText: true})
		if err != nil || !k.Plain || !k.Others {
			t.Fatalf("got %+v, %v", k, err)
		}
	}
	path := filepath.Join(dir, "config.json")
	var got, want any
	if err := json.Unmarshal([]byte(read(t, path)), &got); err != nil {
		t.Fatal(err)
	}
	text := `{"HttpHeaders":{"X":"y"},"plugins":{"a":{"b":"c"}},"unknown":[1,2.5],"auths":{"old.example":{"auth":"b2xkOng=","email":"e"},"ghcr.io":{"auth":"bWU6cHc="},"https://index.docker.io/v1/":{"auth":"bWU6cHc="}}}`
	if err := json.Unmarshal([]byte(text), &want); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, %v, want 0600", info.Mode(), err)
	}
	from, err := Open(o).Forget(ctx, server(t, "ghcr.io"))
	if err != nil || len(from) != 1 || from[0] != path {
		t.Errorf("forget: got %q, %v, want %q", from, err, path)
	}
	if user, _, err := Open(o).For(ctx, "ghcr.io", "x"); err != nil || user != "" {
		t.Errorf("after logging out: got %q, %v", user, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("got %v, %v, want config.json alone", left, err)
	}
}

// TestKeepBroken: a file that was broken by hand is not written over.
func TestKeepBroken(t *testing.T) {
	const text = "{\n\t\"auths\": {\n\t\t\"a\": {}\n\t\t\"b\": {}\n\t}\n}"
	dir := configDir(t, text)
	_, err := Open(testOptions(t, dir, nil)).Keep(context.Background(), server(t, "ghcr.io"), Login{User: "me", Secret: "pw"}, KeepOptions{PlainText: true})
	if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), "config.json: line 4") {
		t.Errorf("got %v, want ErrInvalid with line 4", err)
	}
	if got := read(t, filepath.Join(dir, "config.json")); got != text {
		t.Errorf("the file was changed: %q", got)
	}
}

// TestKeepLink: a config.json that is kept elsewhere stays there.
func TestKeepLink(t *testing.T) {
	real := filepath.Join(configDir(t, `{}`), "config.json")
	dir := t.TempDir()
	if err := os.Symlink(real, filepath.Join(dir, "config.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(testOptions(t, dir, nil)).Keep(context.Background(), server(t, "ghcr.io"), Login{User: "me", Secret: "pw"}, KeepOptions{PlainText: true}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(read(t, real), "ghcr.io") {
		t.Error("the login is not in the file that is linked to")
	}
	if _, err := os.Readlink(filepath.Join(dir, "config.json")); err != nil {
		t.Errorf("the link is gone: %v", err)
	}
}

// TestKeepAtOnce: many logins at once lose none.
func TestKeepAtOnce(t *testing.T) {
	for _, plain := range []bool{true, false} {
		dir, phrase := t.TempDir(), filepath.Join(t.TempDir(), "p")
		if err := os.WriteFile(phrase, []byte("x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		o := testOptions(t, dir, map[string]string{"DHOW_PASSPHRASE_FILE": phrase})
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				_, err := Open(o).Keep(context.Background(), Server{Domain: fmt.Sprintf("r%d.example", i)}, Login{User: "me", Secret: "pw"}, KeepOptions{PlainText: plain, Key: map[bool]string{false: KeyPassphrase}[plain]})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		list, err := Open(o).List(context.Background())
		if err != nil || len(list) != 8 {
			t.Errorf("plain %v: got %d logins, %v, want 8", plain, len(list), err)
		}
	}
}

// TestKeepHelper: a configured helper keeps the login, and config.json has the
// mark of it that docker leaves.
func TestKeepHelper(t *testing.T) {
	asked := helper(t, "cat >/dev/null")
	dir := configDir(t, `{"credsStore":"test"}`)
	ctx := context.Background()
	o := testOptions(t, dir, nil)
	k, err := Open(o).Keep(ctx, server(t, ""), Login{User: "me", Secret: "pw"}, KeepOptions{})
	if err != nil || k.Where != "docker-credential-test" || k.Plain {
		t.Errorf("got %+v, %v", k, err)
	}
	if got, want := asked(), `store {"ServerURL":"https://index.docker.io/v1/","Username":"me","Secret":"pw"}`+"\n"; got != want {
		t.Errorf("the helper got %q, want %q", got, want)
	}
	text := read(t, filepath.Join(dir, "config.json"))
	if !strings.Contains(text, `"https://index.docker.io/v1/": {}`) || strings.Contains(text, "pw") {
		t.Errorf("config.json: %s", text)
	}
	if _, err := Open(o).Keep(ctx, server(t, ""), Login{User: "me", Secret: "pw"}, KeepOptions{PlainText: true}); !errors.Is(err, errdef.ErrConflict) {
		t.Errorf("plain text beside a helper: got %v, want ErrConflict", err)
	}
}

// sshAgent serves an agent with one key.
func sshAgent(t *testing.T) (socket string, ring agent.Agent) {
	t.Helper()
	ring = agent.NewKeyring()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(ring, c) }() // ends with the connection
		}
	}()
	return socket, ring
}

func TestEncrypted(t *testing.T) {
	socket, ring := sshAgent(t)
	phrase := filepath.Join(t.TempDir(), "p")
	if err := os.WriteFile(phrase, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fakeSystemd(t)
	for _, kind := range KeyKinds() {
		t.Run(kind, func(t *testing.T) {
			ctx, dir := context.Background(), t.TempDir()
			dropKey(t, dir)
			o := testOptions(t, dir, map[string]string{"SSH_AUTH_SOCK": socket, "DHOW_PASSPHRASE_FILE": phrase})
			k, err := Open(o).Keep(ctx, server(t, "ghcr.io"), Login{User: "me", Secret: "hunter2"}, KeepOptions{Key: kind})
			if kind == KeyKeyring && errors.Is(err, errdef.ErrUnsupported) {
				t.Skipf("no kernel keyring: %v", err)
			}
			if err != nil || k.Key != kind || k.Plain {
				t.Fatalf("got %+v, %v", k, err)
			}
			path := filepath.Join(dir, vaultName)
			if text := read(t, path); strings.Contains(text, "hunter2") || strings.Contains(text, "aHVudGVyMg") || strings.Contains(text, "AGE-SECRET") {
				t.Errorf("the secret is readable: %s", text)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("got mode %v, %v, want 0600", info.Mode(), err)
			}
			if user, secret, err := Open(o).For(ctx, "ghcr.io", "x"); err != nil || user != "me" || secret != "hunter2" {
				t.Errorf("got %q %q, %v", user, secret, err)
			}
			if from, err := Open(o).Forget(ctx, server(t, "ghcr.io")); err != nil || len(from) != 1 {
				t.Errorf("forget: got %q, %v", from, err)
			}
			if user, _, err := Open(o).For(ctx, "ghcr.io", "x"); err != nil || user != "" {
				t.Errorf("after logging out: got %q, %v", user, err)
			}
		})
	}
	t.Run("a wrong passphrase, an agent without the key", func(t *testing.T) {
		ctx := context.Background()
		for kind, spoil := range map[string]func(){
			KeyPassphrase: func() { _ = os.WriteFile(phrase, []byte("wrong\n"), 0o600) },
			KeySSHAgent:   func() { _ = ring.RemoveAll() },
		} {
			o := testOptions(t, t.TempDir(), map[string]string{"SSH_AUTH_SOCK": socket, "DHOW_PASSPHRASE_FILE": phrase})
			if _, err := Open(o).Keep(ctx, server(t, "ghcr.io"), Login{User: "me", Secret: "hunter2"}, KeepOptions{Key: kind}); err != nil {
				t.Fatal(err)
			}
			spoil()
			if user, _, err := Open(o).For(ctx, "ghcr.io", "x"); err == nil || user != "" {
				t.Errorf("%s: got %q, %v, want a failure", kind, user, err)
			}
		}
	})
}

// dropKey takes the store's key out of the kernel's keyring after the test.
func dropKey(t *testing.T, dir string) {
	t.Cleanup(func() {
		var f vaultFile
		raw, err := os.ReadFile(filepath.Join(dir, vaultName))
		if err == nil && json.Unmarshal(raw, &f) == nil && f.Lock.Kind == KeyKeyring {
			_, _ = unix.KeyctlInt(unix.KEYCTL_UNLINK, f.Lock.Serial, unix.KEY_SPEC_USER_KEYRING, 0, 0) // it may be gone
		}
	})
}

// fakeSystemd stands for systemd-creds where there is none that works: it only
// turns the text around.
func fakeSystemd(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "systemd-creds"), []byte("#!/bin/sh\nrev\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// TestNeverPlain: where nothing can encrypt, nothing is kept.
func TestNeverPlain(t *testing.T) {
	dir := t.TempDir()
	for _, kind := range []string{KeySSHAgent, KeyPassphrase} {
		_, err := Open(testOptions(t, dir, nil)).Keep(context.Background(), server(t, "ghcr.io"), Login{User: "me", Secret: "pw"}, KeepOptions{Key: kind})
		if !errors.Is(err, errdef.ErrUnsupported) || !strings.Contains(errdef.Hint(err), "--plain-text") {
			t.Errorf("%s: got %v, want ErrUnsupported and advice", kind, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("got %v, %v, want nothing kept", left, err)
	}
}

// TestMoved: a sealed login does not serve another registry than its own.
func TestMoved(t *testing.T) {
	socket, _ := sshAgent(t)
	ctx, dir := context.Background(), t.TempDir()
	o := testOptions(t, dir, map[string]string{"SSH_AUTH_SOCK": socket})
	if _, err := Open(o).Keep(ctx, server(t, "ghcr.io"), Login{User: "me", Secret: "pw"}, KeepOptions{Key: KeySSHAgent}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, vaultName)
	moved := strings.Replace(read(t, path), `"ghcr.io"`, `"evil.example"`, 1)
	if err := os.WriteFile(path, []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	if user, secret, err := Open(o).For(ctx, "evil.example", "x"); !errors.Is(err, errdef.ErrIntegrity) || user != "" || secret != "" {
		t.Errorf("got %q, %v, want ErrIntegrity", user, err)
	}
}

// TestLostKey: after a restart the kernel has no key any more; the next login
// makes a new store and says so.
func TestLostKey(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	o := testOptions(t, dir, nil)
	if _, err := Open(o).Keep(ctx, server(t, "ghcr.io"), Login{User: "me", Secret: "pw"}, KeepOptions{Key: KeyKeyring}); err != nil {
		t.Skipf("no kernel keyring: %v", err)
	}
	path := filepath.Join(dir, vaultName)
	var f vaultFile
	if err := json.Unmarshal([]byte(read(t, path)), &f); err != nil {
		t.Fatal(err)
	}
	_, _ = unix.KeyctlInt(unix.KEYCTL_UNLINK, f.Lock.Serial, unix.KEY_SPEC_USER_KEYRING, 0, 0) // the restart
	dropKey(t, dir)
	f.Lock.Serial = 1<<31 - 1
	raw, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(o).For(ctx, "ghcr.io", "x"); !errors.Is(err, errdef.ErrNotFound) || errdef.Hint(err) == "" {
		t.Errorf("got %v, want ErrNotFound with advice", err)
	}
	k, err := Open(o).Keep(ctx, server(t, "quay.io"), Login{User: "me", Secret: "pw"}, KeepOptions{Key: KeyKeyring})
	if err != nil || !k.Lost {
		t.Errorf("got %+v, %v, want Lost", k, err)
	}
}
