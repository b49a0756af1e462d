package bkapi

import (
	"context"
	"errors"
	"io"

	"dhow/internal/engine"
	"dhow/internal/errdef"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// contentServer is containerd's content service, read-only, on what builds have
// kept: errors, logs, traces and attestations that records of builds refer to.
type contentServer struct {
	contentapi.UnimplementedContentServer
	engine *engine.Engine
}

func contentInfo(k engine.KeptBlob) *contentapi.Info {
	at := timestamppb.New(k.Created)
	return &contentapi.Info{Digest: k.Digest.String(), Size: k.Size, CreatedAt: at, UpdatedAt: at}
}

// Info tells a blob's size.
func (c *contentServer) Info(_ context.Context, req *contentapi.InfoRequest) (*contentapi.InfoResponse, error) {
	k, err := c.engine.FindKept(digest.Digest(req.Digest))
	if err != nil {
		return nil, err
	}
	return &contentapi.InfoResponse{Info: contentInfo(k)}, nil
}

// List sends all blobs.
func (c *contentServer) List(req *contentapi.ListContentRequest, stream contentapi.Content_ListServer) error {
	if filtered(req.Filters) {
		return errdef.New(errdef.ErrUnsupported, "filters of content are not supported")
	}
	list, err := c.engine.KeptBlobs()
	if err != nil {
		return err
	}
	seen := map[digest.Digest]bool{}
	res := &contentapi.ListContentResponse{}
	for _, k := range list {
		if !seen[k.Digest] {
			seen[k.Digest] = true
			res.Info = append(res.Info, contentInfo(k))
		}
	}
	return stream.Send(res)
}

// readChunk is how much of a blob goes into one message, in bytes.
const readChunk = 1 << 20

// Read sends a blob, or a part of one.
func (c *contentServer) Read(req *contentapi.ReadContentRequest, stream contentapi.Content_ReadServer) error {
	k, err := c.engine.FindKept(digest.Digest(req.Digest))
	if err != nil {
		return err
	}
	size := req.Size
	if size <= 0 {
		size = k.Size - req.Offset
	}
	if req.Offset < 0 || size < 0 || req.Offset > k.Size || size > k.Size-req.Offset {
		return errdef.New(errdef.ErrInvalid, "read %s: got %d bytes from %d, want a part of %d", k.Digest, req.Size, req.Offset, k.Size)
	}
	f, err := k.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, min(readChunk, size))
	for part := io.NewSectionReader(f, req.Offset, size); ; {
		at, _ := part.Seek(0, io.SeekCurrent) // it cannot fail
		n, err := part.Read(buf)
		if n > 0 {
			if err := stream.Send(&contentapi.ReadContentResponse{Offset: req.Offset + at, Data: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
