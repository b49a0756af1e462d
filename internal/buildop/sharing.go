package buildop

import (
	"sync"

	"dhow/internal/snapshot"
)

// sharing decides which files of other layers may be linked into a new one: a
// file may be in a tree once, or two of its names would be the same file to
// every program that looks at the tree (see snapshot.Shares).
type sharing struct {
	snaps *snapshot.Snapshots
	below map[string]bool // the layers that the new one lies on
	held  map[uint64]bool // what these have from others

	mu   sync.Mutex
	from map[string]snapshot.Shares // guarded by mu; of the layers that are linked from
	made snapshot.Shares            // guarded by mu; of the new layer
}

// newSharing reads what the layers below share. With none below nothing may be
// linked: such a layer can come to lie on any other (COPY --link), also on the
// one that its files would be linked from.
func newSharing(s *snapshot.Snapshots, below snapshot.Chain) (*sharing, error) {
	if len(below) == 0 {
		return nil, nil
	}
	sh := &sharing{snaps: s, below: map[string]bool{}, held: map[uint64]bool{}, from: map[string]snapshot.Shares{}, made: snapshot.NewShares()}
	for _, id := range below {
		sh.below[id] = true
		of, err := s.Shares(id)
		if err != nil {
			return nil, err
		}
		for ino := range of.Inodes {
			sh.held[ino] = true
		}
	}
	return sh, nil
}

// claim says whether the file of that layer, or of a client's directory, may be
// linked, once for each file.
func (sh *sharing) claim(layer string, ino uint64) (bool, error) {
	if sh == nil {
		return false, nil
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.below[layer] || sh.held[ino] || sh.made.Inodes[ino] {
		return false, nil
	}
	if layer == "" {
		sh.made.Inodes[ino] = true
		return true, nil
	}
	of, ok := sh.from[layer]
	if !ok {
		var err error
		if of, err = sh.snaps.Shares(layer); err != nil {
			return false, err
		}
		sh.from[layer] = of
	}
	if of.Inodes[ino] {
		// The layer has it from one of these, which may be below.
		for id := range of.Layers {
			if sh.below[id] {
				return false, nil
			}
		}
	}
	sh.made.Add(layer, of, ino)
	return true, nil
}
