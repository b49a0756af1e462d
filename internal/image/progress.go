package image

import (
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Progress is a step of work on one part of an image. Phase is one of docker's
// words; Total 0 is unknown.
type Progress struct {
	ID             string // first 12 digits of the layer blob's digest
	Phase          string // see the Phase constants
	Current, Total int64  // bytes
}

// The phases of a layer, in docker's words.
const (
	PhaseWaiting     = "Pulling fs layer"
	PhaseDownloading = "Downloading"
	PhaseExtracting  = "Extracting"
	PhaseDone        = "Pull complete"
	PhaseExists      = "Already exists"
	PhaseLoading     = "Loading layer"
)

// ProgressFunc is told of progress; one call at a time. It may be nil.
type ProgressFunc func(Progress)

// reporter tells a ProgressFunc of many layers, one call at a time.
type reporter struct {
	mu sync.Mutex
	f  ProgressFunc // guarded by mu: called with it held
}

func (r *reporter) tell(p Progress) {
	if r.f == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.f(p)
}

// shortID is how docker's display names a layer.
func shortID(d digest.Digest) string {
	s := d.Encoded()
	return s[:min(12, len(s))]
}

// reportEvery is the least time between two reports on the same bytes.
const reportEvery = 100 * time.Millisecond

// counted reports how much has been read.
type counted struct {
	r    io.Reader
	to   *reporter
	p    Progress // Current is where it stands
	last time.Time
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.p.Current += int64(n)
	if now := time.Now(); c.to.f != nil && (now.Sub(c.last) >= reportEvery || err == io.EOF) {
		c.last = now
		c.to.tell(c.p)
	}
	return n, err
}
