package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"dhow/internal/errdef"
)

// Shares says which files of a layer are hard links to files of other layers, or
// of copies of clients' directories.
// Nobody can write to such a file, but two names of one in a tree would be the
// same file to whoever looks: cp refuses to copy one to the other, mv removes
// it, tar keeps them linked. Who links into a layer therefore has to know what
// the layers below hold.
type Shares struct {
	// Layers are those that the files were linked from, and those that these had
	// them from.
	Layers map[string]bool
	Inodes map[uint64]bool
}

// sharesName is a file beside the layer's tree: the number of layers, their ids
// with a line break each, then the inode numbers, 8 bytes little-endian.
const sharesName = "shares"

// Shares reads what the layer says of itself; most have none.
func (s *Snapshots) Shares(id string) (Shares, error) {
	sh := NewShares()
	if !validID(id) {
		return sh, errdef.New(errdef.ErrInvalid, "layer id %q is malformed", id)
	}
	raw, err := os.ReadFile(filepath.Join(s.store.LayersDir(), id, sharesName))
	if errors.Is(err, fs.ErrNotExist) {
		return sh, nil
	}
	if err == nil {
		err = sh.decode(raw)
	}
	if err != nil {
		return sh, fmt.Errorf("shared files of layer %s: %w", id, err)
	}
	return sh, nil
}

// Add notes that a file of the layer was linked; of is what that layer has from
// others.
func (sh Shares) Add(layer string, of Shares, ino uint64) {
	sh.Layers[layer], sh.Inodes[ino] = true, true
	if of.Inodes[ino] {
		maps.Copy(sh.Layers, of.Layers)
	}
}

// NewShares is of a layer that has nothing from others.
func NewShares() Shares {
	return Shares{Layers: map[string]bool{}, Inodes: map[uint64]bool{}}
}

// SetShares says which files of other layers were linked into Upper; Commit
// keeps it.
func (a *Active) SetShares(sh Shares) { a.shares = sh }

func (sh Shares) encode() []byte {
	b := fmt.Appendln(nil, len(sh.Layers))
	for _, id := range slices.Sorted(maps.Keys(sh.Layers)) {
		b = fmt.Appendln(b, id)
	}
	for _, ino := range slices.Sorted(maps.Keys(sh.Inodes)) {
		b = binary.LittleEndian.AppendUint64(b, ino)
	}
	return b
}

func (sh Shares) decode(raw []byte) error {
	var n int
	head, rest, ok := bytes.Cut(raw, []byte("\n"))
	if _, err := fmt.Sscan(string(head), &n); err != nil || !ok {
		return errdef.New(errdef.ErrIntegrity, "the file is damaged")
	}
	for range n {
		var id []byte
		if id, rest, ok = bytes.Cut(rest, []byte("\n")); !ok {
			return errdef.New(errdef.ErrIntegrity, "the file is damaged")
		}
		sh.Layers[string(id)] = true
	}
	if len(rest)%8 != 0 {
		return errdef.New(errdef.ErrIntegrity, "the file is damaged")
	}
	for ; len(rest) > 0; rest = rest[8:] {
		sh.Inodes[binary.LittleEndian.Uint64(rest)] = true
	}
	return nil
}

// write writes the file beside the tree in tmp.
func (sh Shares) write(tmp string) error {
	if len(sh.Inodes) == 0 {
		return nil
	}
	return os.WriteFile(filepath.Join(tmp, sharesName), sh.encode(), 0o600)
}
