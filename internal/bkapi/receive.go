package bkapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"dhow/internal/buildcontext"
	"dhow/internal/errdef"
	"dhow/internal/session"
	"dhow/internal/sys"

	"github.com/moby/patternmatcher"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
)

// packetStream is the transfer of a directory, as who receives it sees it. Package
// fsutil has the protocol: the client tells of all that it has, in tree order, is
// asked for files by their number in that list, and sends their bytes in parts
// with an empty one at the end.
type packetStream interface {
	RecvMsg(m any) error // a *rawPacket
	SendMsg(m any) error
}

// transfer makes a copy hold what the client tells of. The copy is of files alone:
// links, devices and attributes are in the tree that a transfer returns. A file
// of the copy is never written to again, only replaced: layers may have it as a
// hard link.
type transfer struct {
	stream packetStream
	dir    string   // of the slot
	root   *os.File // its files
	resend bool
	report func(bytes int, last bool) // may be nil
	// chosen tells files that the client sends; nil: all of them. The others are
	// only told of, in the file metadataName.
	chosen   func(path string) bool
	metadata bytes.Buffer

	old *listing
	new *listingWriter // nil as long as nothing has changed

	order fsutil.Validator

	entries []buildcontext.Entry
	numbers []uint32             // of the entries, in what the client told
	linked  []link               // hard links, ascending
	files   []*incoming          // asked for
	open    map[uint32]*incoming // those of them that have not come yet, by their number
	told    uint32               // files that the client told of
	size    int                  // bytes of that
	bytes   int                  // that came
	ended   bool                 // the list
	last    []byte               // the packet that ended it
	spare   []byte               // room for the next part of a file

	asker *asker
	disk  *writers
}

// link is an entry that is a hard link of another one before it.
type link struct {
	entry, target int
	made          bool // by an earlier transfer
}

// metadataName is a file that tells of all files, where not all are sent.
const metadataName = ".fsutil-metadata"

// receiveTree brings the copy in dir up to date and returns what it holds. After
// an error the copy is in no known state. giveUp ends the stream. The caller closes
// the tree.
func receiveTree(ctx context.Context, giveUp func(), s packetStream, q session.DirRequest, dir string, report func(int, bool)) (*buildcontext.Tree, error) {
	t := &transfer{stream: s, dir: dir, resend: q.Resend, report: report, open: map[uint32]*incoming{}}
	if q.MetadataOnly {
		m, err := patternmatcher.New(q.Contents)
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "%w", err)
		}
		t.chosen = func(p string) bool {
			ok, err := m.MatchesOrParentMatches(p)
			return err == nil && ok
		}
	}
	t.old = openListing(dir, t.own)
	defer t.old.close()
	if err := t.openRoot(); err != nil {
		return nil, err
	}
	defer t.root.Close()
	t.asker = startAsker(s)
	t.disk = startWriters(ctx, giveUp, t.root)
	err := t.run()
	if err != nil {
		giveUp()
	}
	t.asker.stop()
	if werr := t.disk.wait(); werr != nil && (err == nil || !errors.Is(werr, context.Canceled)) {
		err = werr // that the stream ended is its consequence
	}
	if err == nil {
		err = t.keep()
	}
	if t.new != nil && err != nil {
		t.new.discard()
	}
	if err != nil {
		return nil, err
	}
	if t.report != nil {
		t.report(t.bytes, true)
	}
	if err := t.selected(); err != nil {
		return nil, err
	}
	return buildcontext.NewTree(filepath.Join(dir, filesName), t.entries)
}

// openRoot opens the copy. One that no listing speaks for is thrown away.
func (t *transfer) openRoot() (err error) {
	files := filepath.Join(t.dir, filesName)
	if t.old.file == nil {
		if err := sys.RemoveAll(files); err != nil {
			return err
		}
		if err := os.Mkdir(files, 0o700); err != nil {
			return err
		}
	}
	t.root, err = os.OpenFile(files, unix.O_PATH|unix.O_DIRECTORY, 0)
	return err
}

// own reports whether the copy has the bytes of a file that was told of.
func (t *transfer) own(st *fstypes.Stat) bool {
	return os.FileMode(st.Mode).IsRegular() && st.Linkname == "" && (t.chosen == nil || t.chosen(st.Path) && st.Path != metadataName)
}

// run receives until everything is here.
func (t *transfer) run() error {
	if t.old.doubt {
		if err := t.change(); err != nil {
			return err
		}
	}
	var raw rawPacket
	var p fstypes.Packet
	for !t.ended || len(t.open) > 0 {
		if err := t.stream.RecvMsg(&raw); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if t.bytes += len(raw); t.report != nil {
			t.report(t.bytes, false)
		}
		if t.spare == nil {
			t.spare = t.disk.buffer()
		}
		p = fstypes.Packet{Data: t.spare}
		if err := decodePacket(&p, raw); err != nil {
			return err
		}
		t.spare = p.Data[:0]
		var err error
		switch p.Type {
		case fstypes.PACKET_STAT:
			err = t.tell(raw, p.Stat)
		case fstypes.PACKET_DATA:
			err = t.data(p.ID, p.Data)
		case fstypes.PACKET_ERR:
			err = fmt.Errorf("error from sender: %s", p.Data)
		default:
			err = errdef.New(errdef.ErrInvalid, "the client sent a packet of type %v before it had sent its files", p.Type)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tell takes note of what was told of a file; nil is the end of the list.
func (t *transfer) tell(raw []byte, st *fstypes.Stat) error {
	if t.size += len(raw); t.size > maxTold || t.told > maxEntries {
		return errdef.New(errdef.ErrInvalid, "the client's directory has more than %d files, or names of more than %d MiB", maxEntries, maxTold>>20)
	}
	if t.ended {
		return errdef.New(errdef.ErrInvalid, "the client told of more files after it had said that there were no more")
	}
	if st != nil {
		if err := t.check(st); err != nil {
			return err
		}
	}
	if err := t.pass(st); err != nil {
		return err
	}
	before, err := t.old.next()
	if err != nil {
		return err
	}
	if st == nil {
		t.ended, t.last = true, slices.Clone(raw)
		t.asker.flush()
		return t.write(raw)
	}
	number := t.told
	t.told++
	known := before != nil && before.Path == st.Path
	same := known && bytes.Equal(t.old.raw, raw)
	if !same {
		if err := t.change(); err != nil {
			return err
		}
	}
	var sum [32]byte
	if known {
		wasDir, wasFile := os.FileMode(before.Mode).IsDir(), os.FileMode(before.Mode).IsRegular()
		if sum, err = t.old.take(); err != nil {
			return err
		}
		if !same {
			if err := t.makeWay(st, wasDir, wasFile); err != nil {
				return err
			}
		}
	}
	if err := t.write(raw); err != nil {
		return err
	}
	return t.add(st, number, same, sum)
}

// check refuses paths that lead anywhere else, and lists out of order.
func (t *transfer) check(st *fstypes.Stat) error {
	if st.Path == "." || strings.ContainsRune(st.Path, 0) {
		return errdef.New(errdef.ErrInvalid, "the client told of a file with the invalid name %q", st.Path)
	}
	if err := t.order.HandleChange(fsutil.ChangeKindAdd, st.Path, &fsutil.StatInfo{Stat: st}, nil); err != nil {
		return errdef.As(errdef.ErrInvalid, err)
	}
	return nil
}

// write adds to the new listing, when there will be one.
func (t *transfer) write(raw []byte) error {
	if t.new == nil {
		return nil
	}
	return t.new.add(raw)
}

// pass removes what stands in the old listing before a file that was told of; all
// that is left for nil.
func (t *transfer) pass(st *fstypes.Stat) error {
	for {
		before, err := t.old.next()
		if err != nil || before == nil || st != nil && fsutil.ComparePath(before.Path, st.Path) >= 0 {
			return err
		}
		if err := t.change(); err != nil {
			return err
		}
		name, mode := before.Path, os.FileMode(before.Mode)
		if _, err := t.old.take(); err != nil {
			return err
		}
		if err := t.remove(name, mode.IsDir(), mode.IsRegular()); err != nil {
			return err
		}
	}
}

// change is called before the copy is changed.
func (t *transfer) change() (err error) {
	if t.new != nil {
		return nil
	}
	if t.new, err = replaceListing(t.dir, t.old); err == nil && t.ended {
		err = t.new.add(t.last)
	}
	if err != nil || t.resend {
		return err
	}
	for i := range t.entries {
		t.examine(i)
	}
	return nil
}

// examine asks for a file that was believed to be here and is not.
func (t *transfer) examine(i int) {
	if t.isOwn(i) && !holds(t.root, &t.entries[i], t.old.doubt) {
		t.ask(i, nil)
	}
}

// isOwn reports whether the copy has the bytes of an entry under its own name.
func (t *transfer) isOwn(i int) bool {
	e := &t.entries[i]
	if e.Mode&unix.S_IFMT != unix.S_IFREG || t.chosen != nil && !t.chosen(e.Path) {
		return false
	}
	_, linked := slices.BinarySearchFunc(t.linked, i, func(l link, i int) int { return l.entry - i })
	return !linked
}

// makeWay removes what was at the place of a file when that cannot just be replaced.
func (t *transfer) makeWay(st *fstypes.Stat, wasDir, wasFile bool) error {
	is := os.FileMode(st.Mode)
	if wasDir == is.IsDir() && wasFile == is.IsRegular() {
		return nil
	}
	return t.remove(st.Path, wasDir, wasFile)
}

// remove takes a file of the old listing away, and all that the listing has below it.
func (t *transfer) remove(name string, isDir, isFile bool) error {
	if isFile {
		return unlink(t.root, name, 0)
	}
	if !isDir {
		return nil // it is only told of
	}
	dirs := []string{name}
	for {
		st, err := t.old.next()
		if err != nil {
			return err
		}
		if st == nil || !strings.HasPrefix(st.Path, name+"/") {
			break
		}
		below, mode := st.Path, os.FileMode(st.Mode)
		if _, err := t.old.take(); err != nil {
			return err
		}
		switch {
		case mode.IsDir():
			dirs = append(dirs, below)
		case mode.IsRegular():
			if err := unlink(t.root, below, 0); err != nil {
				return err
			}
		}
	}
	for _, d := range slices.Backward(dirs) {
		if err := unlink(t.root, d, unix.AT_REMOVEDIR); err != nil {
			return err
		}
	}
	return nil
}

// add makes an entry of what was told, and asks for the file where it has to.
func (t *transfer) add(st *fstypes.Stat, number uint32, same bool, sum [32]byte) error {
	if t.chosen != nil {
		if st.Path == metadataName {
			return nil // ours takes its place
		}
		t.note(st)
	}
	i := len(t.entries)
	t.entries, t.numbers = append(t.entries, entryOf(st)), append(t.numbers, number)
	e := &t.entries[i]
	switch {
	case e.Mode&unix.S_IFMT == unix.S_IFDIR:
		if same {
			return nil
		}
		return mkdir(t.root, st.Path)
	case st.Linkname != "" && e.Mode&unix.S_IFMT != unix.S_IFLNK:
		return t.addLink(i, st.Linkname, same)
	case !t.own(st):
		return nil
	case !same:
		t.ask(i, nil)
	case t.resend && e.Size <= maxCompared && holds(t.root, e, false):
		t.ask(i, &sum)
	case t.resend:
		if err := t.change(); err != nil {
			return err
		}
		t.ask(i, nil)
	default:
		e.Digest = sum
		if t.new != nil {
			t.examine(i)
		}
	}
	return nil
}

// addLink makes an entry what the one is that it is a hard link of.
func (t *transfer) addLink(i int, target string, same bool) error {
	n, ok := slices.BinarySearchFunc(t.entries[:i], target, func(e buildcontext.Entry, p string) int { return fsutil.ComparePath(e.Path, p) })
	if !ok || t.entries[n].Mode&unix.S_IFMT == unix.S_IFDIR || t.entries[n].Mode&unix.S_IFMT == unix.S_IFREG && t.chosen == nil && !t.isOwn(n) {
		return errdef.New(errdef.ErrInvalid, "invalid link %s to unknown path: %q", t.entries[i].Path, target)
	}
	t.linked = append(t.linked, link{entry: i, target: n, made: same})
	return nil
}

// note tells of a file in metadataName: its stat after its length.
func (t *transfer) note(st *fstypes.Stat) {
	raw, err := st.MarshalVT()
	if err != nil {
		return // what came decoded is encoded again
	}
	n := len(raw)
	t.metadata.Write([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
	t.metadata.Write(raw)
}

// ask asks for a file; known, when not nil, is what it is expected to hold, as the
// copy does. Otherwise the copy changes, which has been said.
func (t *transfer) ask(i int, known *[32]byte) {
	e := &t.entries[i]
	f := &incoming{entry: i, name: e.Path, mode: e.Mode & 0o7777, mtime: e.MTime, left: e.Size, known: known}
	t.files = append(t.files, f)
	t.open[t.numbers[i]] = f
	t.asker.ask(t.numbers[i])
}

// maxCompared bounds the files that are kept in memory until it is known whether
// they differ from what is here, in bytes.
const maxCompared = 64 << 10

// data takes a part of a file, whose size has to be what was told.
func (t *transfer) data(number uint32, part []byte) error {
	f, ok := t.open[number]
	if !ok {
		return errdef.New(errdef.ErrInvalid, "the client sent a file that it was not asked for")
	}
	f.left -= int64(len(part))
	if f.left < 0 || f.left > 0 && len(part) == 0 {
		err := errdef.New(errdef.ErrConflict, "the client's file %q had another size when it was sent, want %d bytes", f.name, t.entries[f.entry].Size)
		return errdef.WithHint(err, "a file changed meanwhile, or the client may not read it")
	}
	last := len(part) == 0
	if last {
		delete(t.open, number)
	}
	if f.known == nil {
		if t.disk.write(f, part); !last {
			t.spare = nil
		}
		return nil
	}
	if !last {
		f.body = append(f.body, part...)
		return nil
	}
	if f.sum = sha256.Sum256(f.body); f.sum == *f.known {
		return nil
	}
	if err := t.change(); err != nil {
		return err
	}
	t.disk.write(f, f.body)
	t.disk.write(f, nil)
	return nil
}

// keep completes the copy and the listing.
func (t *transfer) keep() error {
	replaced := map[int]bool{}
	for _, f := range t.files {
		t.entries[f.entry].Digest = f.sum
		replaced[f.entry] = true
	}
	for _, l := range t.linked {
		e, first := &t.entries[l.entry], &t.entries[l.target]
		name := e.Path
		if first.Mode&unix.S_IFMT == unix.S_IFREG {
			if !t.isOwn(l.target) { // it was not chosen
				if t.chosen(name) {
					return errdef.New(errdef.ErrInvalid, "invalid link %s to unknown path: %q", name, first.Path)
				}
				continue
			}
			if !l.made || replaced[l.target] {
				if err := t.change(); err != nil {
					return err
				}
				if err := hardLink(t.root, first.Path, name); err != nil {
					return err
				}
			}
			// Any number does, as long as no two have the same.
			first.Nlink, first.Ino = 2, uint64(l.target)+1
		}
		*e = *first
		e.Path = name
	}
	if t.new == nil {
		return nil
	}
	return t.new.keep(func(yield func([32]byte) bool) {
		for i := range t.entries {
			if t.isOwn(i) && !yield(t.entries[i].Digest) {
				return
			}
		}
	})
}

// letGo ends a transfer that has brought all: the client is told, and listened to
// until it has ended its side.
func letGo(s packetStream) {
	if s.SendMsg(&fstypes.Packet{Type: fstypes.PACKET_FIN}) != nil {
		return
	}
	var raw rawPacket
	for s.RecvMsg(&raw) == nil {
	}
}

// selected leaves the chosen files, what they are in, and the file that tells of
// all, which it writes.
func (t *transfer) selected() error {
	if t.chosen == nil {
		return nil
	}
	need := map[string]bool{}
	for i := range t.entries {
		if p := t.entries[i].Path; t.chosen(p) {
			for ; p != "." && !need[p]; p = path.Dir(p) {
				need[p] = true
			}
		}
	}
	t.entries = slices.DeleteFunc(t.entries, func(e buildcontext.Entry) bool { return !need[e.Path] })
	e := buildcontext.Entry{Path: metadataName, Mode: unix.S_IFREG | 0o644, Nlink: 1, Size: int64(t.metadata.Len()), Digest: sha256.Sum256(t.metadata.Bytes())}
	if !holds(t.root, &e, true) {
		if err := writeFile(t.root, &e, t.metadata.Bytes()); err != nil {
			return err
		}
	}
	at, _ := slices.BinarySearchFunc(t.entries, metadataName, func(e buildcontext.Entry, p string) int { return fsutil.ComparePath(e.Path, p) })
	t.entries = slices.Insert(t.entries, at, e)
	return nil
}

// entryOf is what was told of a file in the form of a tree.
func entryOf(st *fstypes.Stat) buildcontext.Entry {
	e := buildcontext.Entry{Path: st.Path, Mode: sys.UnixMode(os.FileMode(st.Mode)), Nlink: 1, MTime: st.ModTime}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFIFO:
	case unix.S_IFLNK:
		e.Mode, e.Link = unix.S_IFLNK|0o777, st.Linkname
	case unix.S_IFBLK, unix.S_IFCHR:
		e.Rdev = unix.Mkdev(uint32(st.Devmajor), uint32(st.Devminor))
	default:
		e.Mode = e.Mode&0o7777 | unix.S_IFREG
		e.Size = st.Size
	}
	for name, value := range st.Xattrs {
		if buildcontext.CarriedXattr(name) {
			if e.Xattrs == nil {
				e.Xattrs = map[string][]byte{}
			}
			e.Xattrs[name] = value
		}
	}
	return e
}
