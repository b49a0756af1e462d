package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dhow/internal/testkit"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"
	"github.com/vishvananda/netlink"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// buildkitd is dhow buildkitd with a store of its own, not started.
func buildkitd(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a server of an ordinary user is tested by hand")
	}
	cmd := exec.Command(filepath.Join(shared.bin, "dhow"), append([]string{"buildkitd"}, args...)...)
	cmd.Env = append(os.Environ(), "DHOW_ROOT="+t.TempDir(), "HOME="+t.TempDir(), "XDG_RUNTIME_DIR="+t.TempDir())
	return cmd
}

// serving starts dhow buildkitd at addr, for as long as the test runs.
func serving(t *testing.T, addr string, args ...string) {
	t.Helper()
	cmd := buildkitd(t, append([]string{"--addr", addr}, args...)...)
	said := &strings.Builder{}
	cmd.Stderr = said
	ok(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("buildkitd: %v\n%s", err, said)
		}
	})
	network, at, _ := strings.Cut(addr, "://")
	testkit.Until(t, "somebody listens at "+addr, func() bool {
		conn, err := net.Dial(network, at)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// An authority signs certificates, which are written as PEM files into dir.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir, name string) *authority {
	a := &authority{t: t, dir: dir}
	a.cert, a.key = a.sign(name, &x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true})
	return a
}

// sign makes NAME.pem and NAME-key.pem.
func (a *authority) sign(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	ok(a.t, err)
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	raw, err := x509.CreateCertificate(crand.Reader, c, parent, key.Public(), signer)
	ok(a.t, err)
	secret, err := x509.MarshalECPrivateKey(key)
	ok(a.t, err)
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: raw}, name + "-key.pem": {Type: "EC PRIVATE KEY", Bytes: secret}} {
		ok(a.t, os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(block), 0o600))
	}
	signed, err := x509.ParseCertificate(raw)
	ok(a.t, err)
	return signed, key
}

// TestBuildkitdTLS: on tcp both sides prove who they are.
func TestBuildkitdTLS(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name+".pem") }
	ours, theirs := newAuthority(t, dir, "ca"), newAuthority(t, dir, "ca2")
	ours.sign("server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	for name, by := range map[string]*authority{"client": ours, "stranger": theirs} {
		by.sign(name, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	}
	addr, err := freeAddress()
	ok(t, err)
	addr = "tcp://" + addr
	serving(t, addr, "--tlscert", file("server"), "--tlskey", file("server-key"), "--tlscacert", file("ca"))
	for name, c := range map[string]struct {
		options []client.ClientOpt
		works   bool
	}{
		"right":           {[]client.ClientOpt{client.WithServerConfig("127.0.0.1", file("ca")), client.WithCredentials(file("client"), file("client-key"))}, true},
		"no certificate":  {[]client.ClientOpt{client.WithServerConfig("127.0.0.1", file("ca"))}, false},
		"wrong authority": {[]client.ClientOpt{client.WithServerConfig("127.0.0.1", file("ca")), client.WithCredentials(file("stranger"), file("stranger-key"))}, false},
		"other server":    {[]client.ClientOpt{client.WithServerConfig("127.0.0.1", file("ca2")), client.WithCredentials(file("client"), file("client-key"))}, false},
		"no TLS":          {nil, false},
	} {
		bk, err := client.New(t.Context(), addr, c.options...)
		ok(t, err)
		if _, err = bk.Info(t.Context()); (err == nil) != c.works {
			t.Errorf("%s: got %v, want success: %t", name, err, c.works)
		}
		ok(t, bk.Close())
	}
}

// TestBuildkitdRefuses: how it does not start, and what it says.
func TestBuildkitdRefuses(t *testing.T) {
	dir := t.TempDir()
	newAuthority(t, dir, "ca")
	cert := filepath.Join(dir, "ca.pem")
	config := func(text string) string {
		f, err := os.CreateTemp(dir, "*.toml")
		ok(t, err)
		_, err = f.WriteString(text)
		ok(t, err)
		ok(t, f.Close())
		return f.Name()
	}
	taken := filepath.Join(dir, "s")
	serving(t, "unix://"+taken)
	for want, args := range map[string][]string{
		"without TLS, whoever reaches it can build":               {"--addr", "tcp://127.0.0.1:0"},
		"hint: name --tlscert, --tlskey and --tlscacert":          {"--addr", "tcp://127.0.0.1:0"},
		"TLS needs a certificate and a key":                       {"--addr", "tcp://127.0.0.1:0", "--tlscert", cert},
		"want unix://PATH or tcp://HOST:PORT":                     {"--addr", "fd://3"},
		"somebody else does":                                      {"--addr", "unix://" + taken},
		`entitlement "everything" is not known`:                   {"--allow-insecure-entitlement", "everything"},
		"the keys worker.oci.snapshotter":                         {"--config", config("[worker.oci]\nsnapshotter = \"native\"\n")},
		"dhow needs no containerd":                                {"--config", config("[worker.containerd]\nenabled = true\n")},
		"dhow has no --containerd-worker: it needs no containerd": {"--containerd-worker=true"},
		`entitlement "all" is not known`:                          {"--config", config("insecure-entitlements = [\"all\"]\n")},
		"read the configuration":                                  {"--config", filepath.Join(dir, "missing.toml")},
		"buildkitd without its worker":                            {"--oci-worker=false"},
		`--registry-mirror "x": want DOMAIN=HOST`:                 {"--registry-mirror", "x"},
		"it holds none":                                           {"--addr", "tcp://127.0.0.1:0", "--tlscert", cert, "--tlskey", filepath.Join(dir, "ca-key.pem"), "--tlscacert", config("")},
	} {
		cmd := buildkitd(t, args...)
		hung := time.AfterFunc(testkit.Patience, func() { _ = cmd.Process.Kill() })
		out, err := cmd.CombinedOutput()
		hung.Stop()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: got %v, %s; want %q", args, err, out, want)
		}
	}
	// Anybody may come where that was said.
	addr, err := freeAddress()
	ok(t, err)
	addr = "tcp://" + addr
	serving(t, addr, "--allow-tcp-without-tls")
	bk, err := client.New(t.Context(), addr)
	ok(t, err)
	defer bk.Close()
	_, err = bk.Info(t.Context())
	ok(t, err)
}

// TestBuildkitdRegistries: mirrors, and registries without TLS, are those of
// buildkitd.toml.
func TestBuildkitdRegistries(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs an address that is not loopback's")
	}
	lo, err := netlink.LinkByName("lo")
	ok(t, err)
	addr, err := netlink.ParseAddr("192.0.2.77/32")
	ok(t, err)
	ok(t, netlink.AddrAdd(lo, addr))
	t.Cleanup(func() { ok(t, netlink.AddrDel(lo, addr)) })
	l, err := net.Listen("tcp", "192.0.2.77:0")
	ok(t, err)
	var asked atomic.Int64
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		inner.ServeHTTP(w, r)
	})}
	go func() { _ = srv.Serve(l) }() // it ends with Close
	t.Cleanup(func() { ok(t, srv.Close()) })
	host := l.Addr().String()
	img, err := tarball.ImageFromPath(filepath.Join(shared.images, "busybox.tar"), nil)
	ok(t, err)
	ref, err := name.ParseReference(host+"/library/busybox:mirrored", name.Insecure)
	ok(t, err)
	ok(t, remote.Write(ref, img))

	dir := t.TempDir()
	build := func(config, from string) error {
		toml := filepath.Join(dir, "buildkitd.toml")
		ok(t, os.WriteFile(toml, []byte(config), 0o600))
		sock, err := os.MkdirTemp("", "dhow-bk-")
		ok(t, err)
		defer os.RemoveAll(sock)
		at := "unix://" + filepath.Join(sock, "s")
		failed := error(nil)
		t.Run(from, func(t *testing.T) {
			serving(t, at, "--config", toml)
			bk, err := client.New(t.Context(), at)
			ok(t, err)
			defer bk.Close()
			ctx := t.TempDir()
			ok(t, os.WriteFile(filepath.Join(ctx, "Dockerfile"), []byte("FROM "+from+"\nCOPY Dockerfile /f\n"), 0o600))
			fs, err := fsutil.NewFS(ctx)
			ok(t, err)
			_, failed = bk.Solve(t.Context(), nil, client.SolveOpt{
				Frontend: "dockerfile.v0", LocalMounts: map[string]fsutil.FS{"context": fs, "dockerfile": fs},
			}, nil)
		})
		return failed
	}
	plain := fmt.Sprintf("[registry.%q]\n  http = true\n", host)
	mirror := fmt.Sprintf("[registry.\"registry.invalid\"]\n  mirrors = [%q]\n", host)
	if err := build(plain, host+"/library/busybox:mirrored"); err != nil {
		t.Errorf("without TLS: %v", err)
	}
	if err := build("", host+"/library/busybox:mirrored"); err == nil || !strings.Contains(err.Error(), "HTTP") {
		t.Errorf("a registry that was not said to be without TLS: got %v, want that it has none", err)
	}
	before := asked.Load()
	if err := build(plain+mirror, "registry.invalid/library/busybox:mirrored"); err != nil || asked.Load() == before {
		t.Errorf("through a mirror: got %v, and the mirror was asked %d times", err, asked.Load()-before)
	}
	if err := build(plain, "registry.invalid/library/busybox:mirrored"); err == nil {
		t.Error("without its mirror, a registry that is not there was reached")
	}
}
