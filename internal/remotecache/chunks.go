package remotecache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/registry"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/restic/chunker"
)

// A stream is cut where its contents say so, so that what is put in or taken out
// changes the chunks around it only. Each chunk is a blob of its own, compressed.

// cutting is how large chunks are, in bytes.
type cutting struct {
	min, max uint
	bits     int // 1<<bits is the average
}

// contentCutting is for the contents of so many bytes: small chunks, so that little
// is sent for a change, but no more of them than a manifest can list.
func contentCutting(total int64) cutting {
	if total > 4<<30 {
		return cutting{512 << 10, maxChunk / 2, 20}
	}
	return cutting{64 << 10, 1 << 20, 18}
}

// indexCutting is for text with a line for each file, of which few change.
func indexCutting() cutting { return cutting{8 << 10, 128 << 10, 15} }

// polynomial decides where chunks end. Another one makes other chunks of the same
// contents, none of which a registry has.
const polynomial = chunker.Pol(0x3abc9bff07d9e5)

// maxChunk bounds a chunk that somebody else made, in bytes.
const maxChunk = 8 << 20

// cut calls f for each chunk of a stream, in order; f may keep the bytes.
func (c cutting) cut(r io.Reader, f func(at int64, raw []byte) error) error {
	ch := chunker.NewWithBoundaries(r, polynomial, c.min, c.max)
	ch.SetAverageBits(c.bits)
	for {
		next, err := ch.Next(nil)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = f(int64(next.Start), next.Data)
		}
		if err != nil {
			return err
		}
	}
}

// chunks is the blobs of a repository as a place for chunks.
type chunks struct {
	reg     *registry.Client
	repo    oci.Ref
	encoder *zstd.Encoder // safe for concurrent use by EncodeAll

	mu    sync.Mutex
	there map[digest.Digest]bool // guarded by mu; blobs that the repository is known to have
	sent  int                    // guarded by mu
	bytes int64                  // guarded by mu; of those sent
}

func newChunks(reg *registry.Client, repo oci.Ref) (*chunks, error) {
	// One goroutine a call: calls are what runs in parallel.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &chunks{reg: reg, repo: repo, encoder: enc, there: map[digest.Digest]bool{}}, nil
}

// have notes blobs that the repository has.
func (c *chunks) have(list []ocispecs.Descriptor) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range list {
		c.there[d.Digest] = true
	}
}

// put stores a chunk and returns what describes it. Safe for concurrent use.
func (c *chunks) put(ctx context.Context, mediaType string, raw []byte) (ocispecs.Descriptor, error) {
	packed := c.encoder.EncodeAll(raw, nil)
	desc := describe(mediaType, packed)
	c.mu.Lock()
	there := c.there[desc.Digest]
	c.mu.Unlock()
	if there {
		return desc, nil
	}
	opened := false
	err := c.reg.Push(ctx, c.repo, desc, func() (io.ReadCloser, error) {
		opened = true
		return io.NopCloser(bytes.NewReader(packed)), nil
	})
	if err != nil {
		return desc, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if opened && !c.there[desc.Digest] {
		c.sent++
		c.bytes += desc.Size
	}
	c.there[desc.Digest] = true
	return desc, nil
}

// fetch brings a chunk back, at most limit bytes. The blob's digest is checked.
func fetchChunk(ctx context.Context, reg *registry.Client, repo oci.Ref, desc ocispecs.Descriptor, limit int) ([]byte, error) {
	if desc.Size > int64(limit)+1<<10 {
		return nil, errdef.New(errdef.ErrInvalid, "chunk %s: got %d bytes, want at most %d", desc.Digest, desc.Size, limit)
	}
	r, err := reg.Fetch(ctx, repo, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	packed, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return unpackChunk(packed, limit)
}

func unpackChunk(packed []byte, limit int) ([]byte, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(limit)))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	defer dec.Close()
	raw, err := dec.DecodeAll(packed, nil)
	if err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "unpack chunk: %w", err)
	}
	return raw, nil
}
