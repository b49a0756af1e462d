package transfer

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"dhow/internal/errdef"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Two machines exchange an image over a pair of streams, one of them the giver:
//
//	giver                                  taker
//	Offer: name, config, manifest  ──────▶
//	                               ◀────── Want: the layers that it lacks
//	Layers: descriptors of those   ──────▶
//	                               ◀────── Fetch: a layer, from an offset on   ┐ for each
//	data, data, …, end             ──────▶                                     ┘
//	                               ◀────── Done: the image's id
//
// A side that fails says Error instead of its next message. Messages are frames:
// a kind, a length of four bytes (big-endian), then JSON or bytes. Layers that are
// not packed travel as zstd. A cut leaves the taker with a partial blob, which the
// next Fetch goes on after.

const (
	wireVersion = 1
	frameJSON   = 'j'
	frameData   = 'd'
	frameEnd    = 'e' // of a layer's data
	maxFrame    = 64 << 20
	dataFrame   = 256 << 10 // bytes in one frame of data at most
)

// message is one step of the exchange; one of its fields is set.
type message struct {
	Offer  *wireOffer            `json:"offer,omitempty"`
	Want   *[]int                `json:"want,omitempty"` // numbers of layers, from the bottom
	Layers []ocispecs.Descriptor `json:"layers,omitempty"`
	Fetch  *wireFetch            `json:"fetch,omitempty"`
	Done   digest.Digest         `json:"done,omitempty"`
	Error  *wireError            `json:"error,omitempty"`
}

type wireOffer struct {
	Version  int                 `json:"version"`
	Name     string              `json:"name"`
	Config   []byte              `json:"config"`
	Manifest []byte              `json:"manifest,omitempty"`
	Desc     ocispecs.Descriptor `json:"desc"`
	// Sources are repositories that are known to have blobs.
	Sources map[digest.Digest][]string `json:"sources,omitempty"`
}

type wireFetch struct {
	Layer  int   `json:"layer"`
	Offset int64 `json:"offset"`
}

type wireError struct {
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// wire reads and writes frames. One side uses it from one goroutine at a time.
type wire struct {
	r io.Reader
	w io.Writer
}

func (c *wire) send(m message) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(raw) > maxFrame {
		return errdef.New(errdef.ErrInvalid, "a message of %d bytes, at most %d are allowed", len(raw), maxFrame)
	}
	return c.frame(frameJSON, raw)
}

func (c *wire) frame(kind byte, body []byte) error {
	head := append(make([]byte, 0, 5+len(body)), kind)
	head = binary.BigEndian.AppendUint32(head, uint32(len(body)))
	_, err := c.w.Write(append(head, body...))
	return err
}

// next reads the head of a frame.
func (c *wire) next() (kind byte, size uint32, err error) {
	var head [5]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, 0, err
	}
	kind, size = head[0], binary.BigEndian.Uint32(head[1:])
	if kind != frameJSON && kind != frameData && kind != frameEnd || size > maxFrame {
		return 0, 0, errdef.New(errdef.ErrInvalid, "the other side does not speak dhow's protocol: got %q", head[:])
	}
	return kind, size, nil
}

// receive reads a message. An Error of the other side is returned as one.
func (c *wire) receive() (message, error) {
	kind, size, err := c.next()
	if err != nil {
		return message{}, err
	}
	if kind != frameJSON {
		return message{}, errdef.New(errdef.ErrInvalid, "got a frame of kind %q, want a message", kind)
	}
	return c.message(size)
}

func (c *wire) message(size uint32) (message, error) {
	raw := make([]byte, size)
	if _, err := io.ReadFull(c.r, raw); err != nil {
		return message{}, err
	}
	var m message
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, errdef.New(errdef.ErrInvalid, "decode message: %w", err)
	}
	if m.Error != nil {
		err := errdef.New(errdef.ErrUnavailable, "the other side: %s", m.Error.Message)
		if m.Error.Hint != "" {
			err = errdef.WithHint(err, "%s", m.Error.Hint)
		}
		return m, err
	}
	return m, nil
}

// fail tells the other side why there is no next message. It may be gone.
func (c *wire) fail(err error) {
	_ = c.send(message{Error: &wireError{Message: err.Error(), Hint: errdef.Hint(err)}})
}

// dataWriter sends what is written as frames of data.
type dataWriter struct{ c *wire }

func (w dataWriter) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		part := p[n:min(n+dataFrame, len(p))]
		if err := w.c.frame(frameData, part); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// dataReader reads frames of data up to the end frame.
type dataReader struct {
	c    *wire
	left uint32
	done bool
	err  error
}

func (r *dataReader) Read(p []byte) (int, error) {
	for r.left == 0 {
		if r.done {
			return 0, io.EOF
		}
		if r.err == nil {
			r.err = r.frame()
		}
		if r.err != nil {
			return 0, r.err
		}
	}
	n, err := r.c.r.Read(p[:min(uint32(len(p)), r.left)])
	r.left -= uint32(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		r.err = errdef.New(errdef.ErrUnavailable, "the other side is gone: %w", err)
		err = r.err
	}
	return n, err
}

// frame goes on to the next frame.
func (r *dataReader) frame() error {
	kind, size, err := r.c.next()
	switch {
	case err != nil:
		return errdef.New(errdef.ErrUnavailable, "the other side is gone: %w", err)
	case kind == frameEnd && size == 0:
		r.done = true
	case kind == frameData:
		r.left = size
	case kind == frameJSON: // an Error is all that may come between
		if _, err := r.c.message(size); err != nil {
			return err
		}
		return errdef.New(errdef.ErrInvalid, "got a message in the middle of a layer")
	default:
		return fmt.Errorf("end of data with %d bytes", size)
	}
	return nil
}
