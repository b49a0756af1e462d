package test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/bcrypt"
)

// The one who may log in to the registries below.
const (
	registryUser     = "alice"
	registryPassword = "s3cret"
)

// cmdDistribution starts the distribution project's registry on a free loopback
// port and sets REGISTRY (or the named variable) to HOST:PORT:
//
//	distribution open|htpasswd|token [VARIABLE]
//	distribution mirror URL [VARIABLE]
//
// htpasswd and token want user alice with the password s3cret. htpasswd speaks
// TLS under a private authority, whose certificate it writes to $WORK/ca.crt;
// token has a token server of its own; mirror is a pull-through cache of URL.
func cmdDistribution(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: distribution FORM [VARIABLE]")
	}
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		ts.Fatalf("%v; scripts guard this with [exec:docker-registry]", err)
	}
	dir, err := os.MkdirTemp("", "dhow-registry-")
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(dir) })
	form, rest := args[0], args[1:]
	env := []string{"REGISTRY_LOG_LEVEL=error", "REGISTRY_STORAGE_DELETE_ENABLED=true", "OTEL_TRACES_EXPORTER=none"}
	switch form {
	case "open":
	case "htpasswd":
		hash, err := bcrypt.GenerateFromPassword([]byte(registryPassword), bcrypt.MinCost)
		ts.Check(err)
		ts.Check(os.WriteFile(filepath.Join(dir, "htpasswd"), []byte(registryUser+":"+string(hash)+"\n"), 0o600))
		ca := makeCertificates(ts, dir)
		ts.Check(os.WriteFile(ts.MkAbs("ca.crt"), ca, 0o644))
		env = append(env, "REGISTRY_AUTH=htpasswd", "REGISTRY_AUTH_HTPASSWD_REALM=test", "REGISTRY_AUTH_HTPASSWD_PATH="+dir+"/htpasswd",
			"REGISTRY_HTTP_TLS_CERTIFICATE="+dir+"/server.crt", "REGISTRY_HTTP_TLS_KEY="+dir+"/server.key")
	case "token":
		makeCertificates(ts, dir)
		server := httptest.NewServer(tokenServer(ts, dir))
		ts.Defer(server.Close)
		env = append(env, "REGISTRY_AUTH=token", "REGISTRY_AUTH_TOKEN_REALM="+strings.Replace(server.URL, "127.0.0.1", "localhost", 1)+"/token",
			"REGISTRY_AUTH_TOKEN_SERVICE=test", "REGISTRY_AUTH_TOKEN_ISSUER=test", "REGISTRY_AUTH_TOKEN_ROOTCERTBUNDLE="+dir+"/server.crt")
	case "mirror":
		env, rest = append(env, "REGISTRY_PROXY_REMOTEURL="+rest[0]), rest[1:]
	default:
		ts.Fatalf("unknown form %q", form)
	}
	variable := "REGISTRY"
	if len(rest) > 0 {
		variable = rest[0]
	}
	ts.Setenv(variable, startDistribution(ts, program, dir, env))
}

// startDistribution runs the registry until the script ends.
func startDistribution(ts *testscript.TestScript, program, dir string, env []string) string {
	config := filepath.Join(dir, "config.yml")
	ts.Check(os.WriteFile(config, []byte("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: "+dir+"/data\nhttp:\n  addr: 127.0.0.1:0\n"), 0o600))
	addr, err := freeAddress()
	ts.Check(err)
	cmd := exec.Command(program, "serve", config)
	cmd.Env = append(append(os.Environ(), env...), "REGISTRY_HTTP_ADDR="+addr)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	awaitListener(ts, "tcp", addr, &log)
	return addr
}

// makeCertificates makes an authority and a server's certificate under it,
// server.crt and server.key in dir, and returns the authority's.
func makeCertificates(ts *testscript.TestScript, dir string) (ca []byte) {
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ts.Check(err)
		return key
	}
	caKey, key := newKey(), newKey()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, &caKey.PublicKey, caKey)
	ts.Check(err)
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, &key.PublicKey, caKey)
	ts.Check(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, "server.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafDER}), 0o600))
	ts.Check(os.WriteFile(filepath.Join(dir, "server.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})
}

// tokenServer issues tokens (distribution's docs/spec/auth/token.md and jwt.md),
// signed with dir's server.key: all rights for alice, pulling for everybody. A
// password can be exchanged for a refresh token, and that for tokens (oauth.md).
func tokenServer(ts *testscript.TestScript, dir string) http.Handler {
	raw, err := os.ReadFile(filepath.Join(dir, "server.key"))
	ts.Check(err)
	block, _ := pem.Decode(raw)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	ts.Check(err)
	key := parsed.(*ecdsa.PrivateKey)
	const refresh = "refresh-of-alice"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, given := r.BasicAuth()
		known := given && user == registryUser && password == registryPassword
		if r.FormValue("grant_type") == "refresh_token" {
			given, known = true, r.FormValue("refresh_token") == refresh
		}
		if given && !known {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}`)
			return
		}
		token, err := signToken(key, r.Form["scope"], known)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer := map[string]any{"token": token, "access_token": token, "expires_in": 60}
		if r.FormValue("offline_token") == "true" {
			answer["refresh_token"] = refresh
		}
		_ = json.NewEncoder(w).Encode(answer) // the client may be gone
	})
}

func signToken(key *ecdsa.PrivateKey, scopes []string, known bool) (string, error) {
	type access struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	granted := []access{}
	for _, scope := range strings.Fields(strings.Join(scopes, " ")) {
		part := strings.SplitN(scope, ":", 3)
		if len(part) != 3 {
			continue
		}
		actions := []string{"pull"}
		if known {
			actions = strings.Split(part[2], ",")
		}
		granted = append(granted, access{part[0], part[1], actions})
	}
	id, err := keyID(key.Public())
	if err != nil {
		return "", err
	}
	now := time.Now()
	head, err := json.Marshal(map[string]any{"typ": "JWT", "alg": "ES256", "kid": id})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]any{
		"iss": "test", "sub": registryUser, "aud": "test", "jti": fmt.Sprint(now.UnixNano()),
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(time.Minute).Unix(), "access": granted,
	})
	if err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding
	text := b64.EncodeToString(head) + "." + b64.EncodeToString(body)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return "", err
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + b64.EncodeToString(sig), nil
}

// keyID is how the registry names a key: base32 of the first 240 bits of the
// public key's digest, in groups of four.
func keyID(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	text := strings.TrimRight(base32.StdEncoding.EncodeToString(sum[:30]), "=")
	var groups []string
	for ; len(text) > 0; text = text[min(4, len(text)):] {
		groups = append(groups, text[:min(4, len(text))])
	}
	return strings.Join(groups, ":"), nil
}
