package hosts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/registry"
)

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if template, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &authority{template, key}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// issue makes a certificate and its key, both as PEM.
func (a *authority) issue(t *testing.T, name string) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// serveTLS serves with a certificate for name, and wants one of clients when
// that is not nil.
func serveTLS(t *testing.T, a *authority, name string, clients *authority) (host string) {
	t.Helper()
	cert, key := a.issue(t, name)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	if clients != nil {
		srv.TLS.ClientAuth, srv.TLS.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		srv.TLS.ClientCAs.AddCert(clients.cert)
	}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "https://")
}

func get(h *Hosts, host string) error {
	req, err := http.NewRequest(http.MethodGet, "https://"+host+"/v2/", nil)
	if err != nil {
		return err
	}
	base := registry.DefaultTransport()
	defer base.CloseIdleConnections()
	resp, err := h.Transport(base).RoundTrip(req)
	if err == nil {
		resp.Body.Close()
	}
	return err
}

func TestCertificates(t *testing.T) {
	ca, clients := newAuthority(t), newAuthority(t)
	open, closed := serveTLS(t, ca, "127.0.0.1", nil), serveTLS(t, ca, "127.0.0.1", clients)
	wrongName := serveTLS(t, ca, "other.example", nil)
	cert, key := clients.issue(t, "me")
	both := string(cert) + string(key)

	none, _ := tree(t, nil, Options{})
	if err := get(none, open); err == nil {
		t.Error("an unknown authority was believed")
	}
	h, _ := tree(t, map[string]string{
		"docker/certs.d/" + open + "/ca.crt":        string(ca.pem()),
		"docker/certs.d/" + closed + "/ca.crt":      string(ca.pem()),
		"docker/certs.d/" + closed + "/client.cert": string(cert),
		"docker/certs.d/" + closed + "/client.key":  string(key),
		"docker/certs.d/" + wrongName + "/ca.crt":   string(ca.pem()),
	}, Options{})
	for host, want := range map[string]bool{open: true, closed: true, wrongName: false} {
		if err := get(h, host); (err == nil) != want {
			t.Errorf("docker's certs.d: %s: got %v, want success %v", host, err, want)
		}
	}
	h, etc := tree(t, map[string]string{
		"containerd/certs.d/reg.example/hosts.toml": "[host.\"https://" + closed + "\"]\nca = \"ca.pem\"\nclient = [[\"both.pem\", \"both.pem\"]]\n",
		"containerd/certs.d/reg.example/ca.pem":     string(ca.pem()),
		"containerd/certs.d/reg.example/both.pem":   both,
	}, Options{})
	if _, err := h.Places("reg.example", "x"); err != nil {
		t.Fatal(err)
	}
	if err := get(h, closed); err != nil {
		t.Errorf("a mirror in hosts.toml below %s: %v", etc, err)
	}
	if err := get(h, open); err == nil {
		t.Error("an authority was believed for a host that it was not named for")
	}
	h, _ = tree(t, nil, Options{Unverified: []string{open}})
	if err := get(h, open); err != nil {
		t.Errorf("exempted by name: %v", err)
	}
	if err := get(h, wrongName); err == nil {
		t.Error("another host than the exempted one was believed")
	}
}

func TestCertificateErrors(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"no key":         {"docker/certs.d/h.example/client.cert": "x"},
		"no certificate": {"docker/certs.d/h.example/ca.crt": "x"},
	} {
		h, _ := tree(t, files, Options{})
		if err := get(h, "h.example"); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}
