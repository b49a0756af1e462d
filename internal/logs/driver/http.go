package driver

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/klauspost/compress/gzip"
)

// longestResponse bounds what is read of a response.
const longestResponse = 1 << 20

// HTTP posts batches to a server. It is used by one goroutine.
type HTTP struct {
	client http.Client
	level  int // of gzip; 0 for none
	packer *gzip.Writer
	packed bytes.Buffer
}

// NewHTTP makes a client with one connection, which it keeps. Proxies come from
// the environment. level is that of gzip for bodies, -1 to 9; 0 sends them as they
// are.
func NewHTTP(config *tls.Config, level int) *HTTP {
	return &HTTP{level: level, client: http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, ForceAttemptHTTP2: true,
			MaxIdleConns: 1, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second,
		},
		// A destination that moved is not what the user named, and would get the
		// credentials.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Post sends a body and returns that of the response. An error has the kind that
// HTTPStatus gives it.
func (h *HTTP) Post(ctx context.Context, url string, header http.Header, body []byte) ([]byte, error) {
	var encoding string
	if h.level != 0 && len(body) > 0 {
		var err error
		if body, err = h.pack(body); err != nil {
			return nil, err
		}
		encoding = "gzip"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	return h.Do(req)
}

func (h *HTTP) pack(body []byte) ([]byte, error) {
	h.packed.Reset()
	if h.packer == nil {
		var err error
		if h.packer, err = gzip.NewWriterLevel(&h.packed, h.level); err != nil {
			return nil, err
		}
	} else {
		h.packer.Reset(&h.packed)
	}
	if _, err := h.packer.Write(body); err != nil {
		return nil, err
	}
	if err := h.packer.Close(); err != nil {
		return nil, err
	}
	return h.packed.Bytes(), nil
}

// Do sends a request and returns the body of its response, as Post does; an error
// of the server comes with it.
func (h *HTTP) Do(req *http.Request) ([]byte, error) {
	resp, err := h.client.Do(req)
	if err != nil {
		return nil, Untrusted(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, longestResponse))
	if err != nil {
		return nil, fmt.Errorf("read the response of %s: %w", req.URL.Host, err)
	}
	return body, HTTPStatus(resp.StatusCode, body, resp.Header.Get("Retry-After"), time.Now())
}

// Close ends the connection.
func (h *HTTP) Close() error {
	h.client.CloseIdleConnections()
	return nil
}
