package bkapi

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dhow/internal/errdef"
	bksession "dhow/internal/session"
	"dhow/internal/sys"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc"
)

// lender lends a directory and counts the files that it is asked for.
type lender struct {
	filesync.UnimplementedFileSyncServer
	fs    fsutil.FS
	asked atomic.Int64
}

func (l *lender) Register(s *grpc.Server) { filesync.RegisterFileSyncServer(s, l) }

func (l *lender) DiffCopy(stream filesync.FileSync_DiffCopyServer) error {
	return fsutil.Send(stream.Context(), &counted{stream, &l.asked}, l.fs, nil)
}

type counted struct {
	filesync.FileSync_DiffCopyServer
	asked *atomic.Int64
}

func (c *counted) RecvMsg(m any) error {
	err := c.FileSync_DiffCopyServer.RecvMsg(m)
	if p, ok := m.(*fstypes.Packet); ok && err == nil && p.Type == fstypes.PACKET_REQ {
		c.asked.Add(1)
	}
	return err
}

// solveLent builds with a session that lends directories as it likes: a client
// that is given a definition insists on lending them itself, through the gateway
// it does not.
func solveLent(t *testing.T, c *client.Client, lends session.Attachable, st llb.State, exports ...client.ExportEntry) error {
	t.Helper()
	_, err := c.Build(t.Context(), client.SolveOpt{Session: []session.Attachable{lends}, Exports: exports}, "test",
		func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
			def, err := st.Marshal(ctx)
			if err != nil {
				return nil, err
			}
			return g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		}, nil)
	return err
}

// TestUnchangedDirectory: a client that tells the same again is believed to have
// the same, without a look at the copy; one that tells anything else is not.
func TestUnchangedDirectory(t *testing.T) {
	root, c := serveWith(t, Options{})
	dir := t.TempDir()
	write := func(name, body string) {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644))
	}
	write("a/one", "1")
	write("a/two", "2")
	write("b", "b")
	must(t, os.Symlink("b", filepath.Join(dir, "z")))
	build := func(asked int64, files map[string]string) {
		t.Helper()
		fs, err := fsutil.NewFS(dir)
		must(t, err)
		l := &lender{fs: fs}
		out := t.TempDir()
		st := llb.Scratch().File(llb.Copy(llb.Local("src"), "/", "/"))
		must(t, solveLent(t, c, l, st, client.ExportEntry{Type: client.ExporterLocal, OutputDir: out}))
		if got := l.asked.Load(); got != asked {
			t.Errorf("got %d files asked for, want %d", got, asked)
		}
		for name, want := range files {
			if got := read(t, filepath.Join(out, name)); got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
	}
	build(3, map[string]string{"a/one": "1", "a/two": "2", "b": "b", "z": "b"})
	build(0, map[string]string{"a/two": "2"})

	// The copy is not compared again: what is wrong with it stays.
	copies, err := filepath.Glob(filepath.Join(root, "contexts", "copy-*", "files"))
	if err != nil || len(copies) != 1 {
		t.Fatalf("got the copies %v, %v, want one", copies, err)
	}
	must(t, os.Remove(filepath.Join(copies[0], "b")))
	build(0, map[string]string{"a/one": "1"})
	// It is when anything is told anew, and in another life of the machine.
	write("a/two", "22")
	build(2, map[string]string{"a/one": "1", "a/two": "22", "b": "b"})
	must(t, os.Remove(filepath.Join(copies[0], "b")))
	name := filepath.Join(filepath.Dir(copies[0]), listingName)
	otherLife := func() {
		t.Helper()
		listing := read(t, name)
		if !strings.Contains(listing, sys.BootID()) {
			t.Fatal("the listing does not name the boot")
		}
		must(t, os.WriteFile(name, []byte(strings.Replace(listing, sys.BootID(), "another", 1)), 0o600))
	}
	otherLife()
	build(1, map[string]string{"b": "b"})
	// Then files are read, too: a power cut leaves them with the right size and
	// nothing in them.
	otherLife()
	st, err := os.Stat(filepath.Join(copies[0], "b"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(copies[0], "b"), []byte("\x00"), 0o644), os.Chtimes(filepath.Join(copies[0], "b"), st.ModTime(), st.ModTime()))
	build(1, map[string]string{"b": "b"})
	// Fewer files, and more.
	must(t, os.Remove(filepath.Join(dir, "z")))
	build(0, map[string]string{"b": "b"})
	if _, err := os.Lstat(filepath.Join(copies[0], "z")); err == nil {
		t.Error("a file that the client removed is still in the copy")
	}
	write("c", "c")
	build(1, map[string]string{"b": "b", "c": "c"})
	// A directory takes the place of a file, and the other way round.
	must(t, os.Remove(filepath.Join(dir, "b")), os.RemoveAll(filepath.Join(dir, "a")))
	write("b/x/y", "y")
	write("a", "a")
	build(2, map[string]string{"a": "a", "b/x/y": "y", "c": "c"})
	must(t, os.RemoveAll(filepath.Join(dir, "b")), os.Symlink("a", filepath.Join(dir, "b")))
	build(0, map[string]string{"a": "a", "b": "a"})
	// A listing that is cut off is worth nothing.
	must(t, os.Truncate(name, 60))
	build(2, map[string]string{"a": "a", "b": "a", "c": "c"})
}

// TestHardLinkedFiles: names of one file are one file in the copy and in what is
// made of it, also when another file takes the place of the first.
func TestHardLinkedFiles(t *testing.T) {
	c := serve(t)
	dir := t.TempDir()
	build := func(want string) {
		t.Helper()
		fs, err := fsutil.NewFS(dir)
		must(t, err)
		out := filepath.Join(t.TempDir(), "out.tar")
		st := llb.Scratch().File(llb.Copy(llb.Local("src"), "/", "/"))
		must(t, solveLent(t, c, &lender{fs: fs}, st, client.ExportEntry{Type: client.ExporterTar, Output: func(map[string]string) (io.WriteCloser, error) { return os.Create(out) }}))
		f, err := os.Open(out)
		must(t, err)
		defer f.Close()
		got := ""
		for r := tar.NewReader(f); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			must(t, err)
			body, err := io.ReadAll(r)
			must(t, err)
			got += fmt.Sprintf("%s %s>%s\n", h.Name, body, h.Linkname)
		}
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	must(t, os.WriteFile(a, []byte("1"), 0o644), os.Link(a, b))
	build("a 1>\nb >a\n")
	must(t, os.WriteFile(a, []byte("two"), 0o644)) // and b
	build("a two>\nb >a\n")
	must(t, os.Remove(b), os.WriteFile(b, []byte("3"), 0o644))
	build("a two>\nb 3>\n")
	must(t, os.Remove(b), os.Link(a, b))
	build("a two>\nb >a\n")
}

// TestCopiedOnce: what a build copies of a directory onto other files are hard
// links of the copy, which stay what they are when the client's files change.
func TestCopiedOnce(t *testing.T) {
	root, c := serveWith(t, Options{})
	dir := t.TempDir()
	build := func(body string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(dir, "f"), []byte(body), 0o644))
		fs, err := fsutil.NewFS(dir)
		must(t, err)
		out := t.TempDir()
		st := llb.Scratch().File(llb.Mkdir("/dir", 0o755)).File(llb.Copy(llb.Local("src"), "/f", "/dir/f"))
		must(t, solveLent(t, c, &lender{fs: fs}, st, client.ExportEntry{Type: client.ExporterLocal, OutputDir: out}))
		if got := read(t, filepath.Join(out, "dir", "f")); got != body {
			t.Errorf("got %q, want %q", got, body)
		}
	}
	build("one")
	copies, err := filepath.Glob(filepath.Join(root, "contexts", "copy-*", "files", "f"))
	if err != nil || len(copies) != 1 {
		t.Fatalf("got the copies %v, %v, want one", copies, err)
	}
	first, err := filepath.Glob(filepath.Join(root, "layers", "*", "fs", "dir", "f"))
	if err != nil || len(first) != 1 {
		t.Fatalf("got the layers %v, %v, want one", first, err)
	}
	kept, err := os.Stat(first[0])
	must(t, err)
	own, err := os.Stat(copies[0])
	must(t, err)
	if !os.SameFile(kept, own) {
		t.Error("the layer has a file of its own")
	}
	build("two")
	if got := read(t, first[0]); got != "one" {
		t.Errorf("the older layer: got %q, want %q", got, "one")
	}
}

// TestSentAgain: files that are always sent are taken as they come, whatever their
// size and time say, also when the copy has lost them.
func TestSentAgain(t *testing.T) {
	root, c := serveWith(t, Options{})
	dir, at := t.TempDir(), time.Unix(1e9, 0)
	big := strings.Repeat("x", maxCompared)
	build := func(small, large string) {
		t.Helper()
		for name, body := range map[string]string{"small": small, "large": large} {
			name = filepath.Join(dir, name)
			must(t, os.WriteFile(name, []byte(body), 0o644), os.Chtimes(name, at, at))
		}
		fs, err := fsutil.NewFS(dir)
		must(t, err)
		l, out := &lender{fs: fs}, t.TempDir()
		st := llb.Scratch().File(llb.Copy(llb.Local("src", llb.Differ(llb.DiffNone, true)), "/", "/"))
		must(t, solveLent(t, c, l, st, client.ExportEntry{Type: client.ExporterLocal, OutputDir: out}))
		if got := l.asked.Load(); got != 2 {
			t.Errorf("got %d files asked for, want 2", got)
		}
		if got := read(t, filepath.Join(out, "small")); got != small {
			t.Errorf("small: got %q, want %q", got, small)
		}
		if got := read(t, filepath.Join(out, "large")); got != large {
			t.Errorf("large: got %d bytes, not those of this build", len(got))
		}
	}
	build("one", big+"1")
	build("one", big+"1")
	build("two", big+"2")
	for _, name := range []string{"small", "large"} {
		copies, err := filepath.Glob(filepath.Join(root, "contexts", "copy-*", "files", name))
		if err != nil || len(copies) != 1 {
			t.Fatalf("got the copies %v, %v, want one", copies, err)
		}
		must(t, os.Remove(copies[0]))
		build("six", big+"3")
	}
}

// TestUnwritten: a transfer whose end comes before its files are written has failed,
// though all has been received.
func TestUnwritten(t *testing.T) {
	root, err := os.Open(t.TempDir())
	must(t, err)
	defer root.Close()
	for range 20 { // either end of a lane may be ready
		ctx, cancel := context.WithCancel(t.Context())
		w := startWriters(ctx, func() {}, root)
		var files []*incoming
		for i := range 20 {
			f := &incoming{name: fmt.Sprint(i), mode: 0o644, mtime: 1}
			w.write(f, []byte("x"))
			w.write(f, nil)
			files = append(files, f)
		}
		cancel()
		err := w.wait()
		for _, f := range files {
			if err == nil && f.sum == [32]byte{} {
				t.Fatal("a file was not written, and nobody says so")
			}
		}
	}
}

// TestMetadataOnly: only chosen files are sent, and one file tells of all.
func TestMetadataOnly(t *testing.T) {
	c := serve(t)
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755), os.Mkdir(filepath.Join(dir, "c"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "a", "b", "chosen"), []byte("x"), 0o644), os.WriteFile(filepath.Join(dir, "c", "other"), []byte("y"), 0o644))
	fs, err := fsutil.NewFS(dir)
	must(t, err)
	for _, asked := range []int64{1, 0} {
		l, out := &lender{fs: fs}, t.TempDir()
		st := llb.Scratch().File(llb.Copy(llb.Local("src", llb.MetadataOnlyTransfer([]string{"a/b/chosen"})), "/", "/"))
		must(t, solveLent(t, c, l, st, client.ExportEntry{Type: client.ExporterLocal, OutputDir: out}))
		if got := l.asked.Load(); got != asked {
			t.Errorf("got %d files asked for, want %d", got, asked)
		}
		if got := read(t, filepath.Join(out, "a", "b", "chosen")); got != "x" {
			t.Errorf("the chosen file: got %q", got)
		}
		if _, err := os.Lstat(filepath.Join(out, "c")); err == nil {
			t.Error("what is not chosen is there")
		}
		var names []string
		for raw := []byte(read(t, filepath.Join(out, metadataName))); len(raw) > 4; {
			n := binary.LittleEndian.Uint32(raw)
			var st fstypes.Stat
			must(t, st.UnmarshalVT(raw[4:4+n]))
			names, raw = append(names, st.Path), raw[4+n:]
		}
		if got, want := strings.Join(names, " "), "a a/b a/b/chosen c c/other"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// liar lends a directory whose entries are as stats say. Each file has the parts,
// however large it is said to be, the last of them empty; after them it says
// so once more, unless it has no end.
type liar struct {
	filesync.UnimplementedFileSyncServer
	stats   []*fstypes.Stat
	parts   []string
	endless bool
}

func (l *liar) Register(s *grpc.Server) { filesync.RegisterFileSyncServer(s, l) }

func (l *liar) DiffCopy(stream filesync.FileSync_DiffCopyServer) error {
	for _, st := range l.stats {
		if err := stream.SendMsg(&fstypes.Packet{Type: fstypes.PACKET_STAT, Stat: st}); err != nil {
			return err
		}
	}
	if err := stream.SendMsg(&fstypes.Packet{Type: fstypes.PACKET_STAT}); err != nil {
		return err
	}
	for {
		var p fstypes.Packet
		if err := stream.RecvMsg(&p); err != nil {
			return err
		}
		if p.Type == fstypes.PACKET_FIN {
			return stream.SendMsg(&fstypes.Packet{Type: fstypes.PACKET_FIN})
		}
		if p.Type != fstypes.PACKET_REQ {
			continue
		}
		for {
			for _, part := range l.parts {
				if err := stream.SendMsg(&fstypes.Packet{Type: fstypes.PACKET_DATA, ID: p.ID, Data: []byte(part)}); err != nil {
					return err
				}
			}
			if !l.endless {
				break
			}
		}
	}
}

// TestClientLies: paths that lead out of the copy are refused, or stay inside;
// files are as long as was told; the server lives on.
func TestClientLies(t *testing.T) {
	c := serve(t)
	outside := t.TempDir()
	link := uint32(os.ModeSymlink | 0o777)
	file := []*fstypes.Stat{{Path: "f", Mode: 0o644, Size: 4}}
	whole := []string{"evil", ""}
	for name, lie := range map[string]struct {
		liar
		want string // "": no error needed, as long as nothing is outside
	}{
		"honest":   {liar: liar{stats: file, parts: whole}},
		"absolute": {liar: liar{stats: []*fstypes.Stat{{Path: filepath.Join(outside, "evil"), Mode: 0o644, Size: 4}}, parts: whole}},
		"dots":     {liar{stats: []*fstypes.Stat{{Path: "../../../evil", Mode: 0o644, Size: 4}}, parts: whole}, "invalid"},
		"link":     {liar{stats: []*fstypes.Stat{{Path: "a", Mode: link, Linkname: outside}, {Path: "a/evil", Mode: 0o644, Size: 4}}, parts: whole}, "a"},
		"order":    {liar{stats: []*fstypes.Stat{{Path: "b", Mode: 0o644}, {Path: "a", Mode: 0o644}}, parts: []string{""}}, "order"},
		"hardlink": {liar{stats: []*fstypes.Stat{{Path: "a", Mode: 0o644, Linkname: "/etc/passwd"}}, parts: whole}, "invalid link"},
		"short":    {liar{stats: file, parts: []string{"ev", ""}}, "had another size"},
		"long":     {liar{stats: file, parts: []string{"evil", "er", ""}}, "had another size"},
		"endless":  {liar{stats: file, parts: []string{strings.Repeat("evil", 8<<10)}, endless: true}, "had another size"},
		"twice":    {liar{stats: []*fstypes.Stat{{Path: "f", Mode: 0o644, Size: 4}, nil}, parts: whole}, "no more"},
		"negative": {liar{stats: []*fstypes.Stat{{Path: "f", Mode: 0o644, Size: -4}}, parts: whole}, "had another size"},
	} {
		err := solveLent(t, c, &lie.liar, llb.Scratch().File(llb.Copy(llb.Local("src", llb.SharedKeyHint(name)), "/", "/")))
		if lie.want != "" && (err == nil || !strings.Contains(err.Error(), lie.want)) {
			t.Errorf("%s: got %v, want %q", name, err, lie.want)
		}
		if name == "honest" {
			must(t, err)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside: got %v, %v", left, err)
	}
	if _, err := c.ListWorkers(t.Context()); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// TestEndlessListing: what a client tells of a directory has an end.
func TestEndlessListing(t *testing.T) {
	st := &fstypes.Stat{Path: "f", Mode: 0o644}
	for name, tr := range map[string]*transfer{"many": {told: maxEntries + 1}, "large": {size: maxTold}} {
		if err := tr.tell([]byte{1}, st); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}

// told is a transfer that was recorded: packets, each after its length.
type told struct {
	rest *bufio.Reader
	buf  []byte
}

func (s *told) SendMsg(any) error { return nil }
func (s *told) RecvMsg(m any) (err error) {
	s.buf, err = readPacket(s.rest, s.buf)
	if to, ok := m.(*rawPacket); ok {
		*to = append((*to)[:0], s.buf...)
	}
	return err
}

// breaking is a transfer that ends after the first file that was asked for.
type breaking struct {
	told
	asked chan uint32
	after [][]byte
}

func (s *breaking) SendMsg(m any) error {
	if p, ok := m.(*fstypes.Packet); ok && p.Type == fstypes.PACKET_REQ {
		select {
		case s.asked <- p.ID:
		default:
		}
	}
	return nil
}

func (s *breaking) RecvMsg(m any) error {
	if err := s.told.RecvMsg(m); err == nil {
		return nil
	}
	if s.after == nil {
		id := <-s.asked
		for _, body := range []string{"x", ""} {
			raw, err := (&fstypes.Packet{Type: fstypes.PACKET_DATA, ID: id, Data: []byte(body)}).MarshalVT()
			if err != nil {
				return err
			}
			s.after = append(s.after, raw)
		}
	}
	if len(s.after) == 0 {
		return io.EOF
	}
	to, ok := m.(*rawPacket)
	if !ok {
		return io.ErrUnexpectedEOF
	}
	*to, s.after = s.after[0], s.after[1:]
	return nil
}

// TestTransferBreaksOff: a transfer that ends early brings nothing down.
func TestTransferBreaksOff(t *testing.T) {
	var sent []byte
	for i := range 50 {
		raw, err := (&fstypes.Packet{Type: fstypes.PACKET_STAT, Stat: &fstypes.Stat{Path: fmt.Sprintf("f%03d", i), Mode: 0o644, Size: 1}}).MarshalVT()
		must(t, err)
		sent = append(binary.AppendUvarint(sent, uint64(len(raw))), raw...)
	}
	sent = append(sent, 0) // the end of the list
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		s := &breaking{told: told{rest: bufio.NewReader(bytes.NewReader(sent))}, asked: make(chan uint32, 1)}
		if _, err := receiveTree(ctx, cancel, s, bksession.DirRequest{Name: "x"}, t.TempDir(), nil); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("got %v, want the end of the stream", err)
		}
	}
}

// FuzzReceive: whatever a client sends in place of a directory, nothing outside of
// the copy is touched, and the transfer ends.
func FuzzReceive(f *testing.F) {
	record := func(packets ...*fstypes.Packet) (all []byte) {
		for _, p := range packets {
			raw, err := p.MarshalVT()
			if err != nil {
				f.Fatal(err)
			}
			all = append(binary.AppendUvarint(all, uint64(len(raw))), raw...)
		}
		return all
	}
	stat := func(st *fstypes.Stat) *fstypes.Packet { return &fstypes.Packet{Type: fstypes.PACKET_STAT, Stat: st} }
	data := func(id uint32, s string) *fstypes.Packet {
		return &fstypes.Packet{Type: fstypes.PACKET_DATA, ID: id, Data: []byte(s)}
	}
	file := stat(&fstypes.Stat{Path: "f", Mode: 0o644, Size: 2})
	link := stat(&fstypes.Stat{Path: "a", Mode: uint32(os.ModeSymlink | 0o777), Linkname: "../outside"})
	end, fin := &fstypes.Packet{}, &fstypes.Packet{Type: fstypes.PACKET_FIN}
	// kept is what stands in a listing after its packets.
	kept := func(packets []byte, files int) []byte {
		return binary.LittleEndian.AppendUint64(append(packets, make([]byte, 32*files)...), uint64(files))
	}
	f.Add(record(file, end, data(0, "ab"), data(0, ""), fin), kept(record(file, end), 1))
	f.Add(record(link, stat(&fstypes.Stat{Path: "a/b", Mode: 0o644, Size: 2}), end, data(1, "ab"), data(1, ""), fin), []byte{})
	f.Add(record(stat(&fstypes.Stat{Path: "../outside/x", Mode: 0o644}), end, fin), kept(record(link, file), 1))
	f.Add(record(stat(&fstypes.Stat{Path: "d", Mode: uint32(os.ModeDir | 0o755)}), stat(&fstypes.Stat{Path: "d/f", Mode: 0o644, Linkname: "../../outside/kept"}), end, fin), kept(record(stat(&fstypes.Stat{Path: "d", Mode: 0o644}), end), 1))
	f.Fuzz(func(t *testing.T, sent, before []byte) {
		top := t.TempDir()
		dir, outside := filepath.Join(top, "copy"), filepath.Join(top, "outside")
		must(t, os.MkdirAll(filepath.Join(dir, "files"), 0o755), os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "kept"), []byte("kept"), 0o600))
		must(t, os.WriteFile(filepath.Join(dir, listingName), append([]byte(listingMagic+"\n"+sys.BootID()+"\n"), before...), 0o600))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := &told{rest: bufio.NewReader(bytes.NewReader(sent))}
		tree, err := receiveTree(ctx, cancel, s, bksession.DirRequest{Name: "x"}, dir, nil)
		if err == nil {
			for e := range tree.Children("") {
				if f, err := tree.Open(e.Path); err == nil {
					f.Close()
				}
			}
			must(t, tree.Close())
		}
		for name, want := range map[string]int{top: 2, outside: 1} {
			if list, err := os.ReadDir(name); err != nil || len(list) != want {
				t.Errorf("%s: got %v, %v, want %d entries", name, list, err, want)
			}
		}
		if got := read(t, filepath.Join(outside, "kept")); got != "kept" {
			t.Errorf("outside: got %q", got)
		}
	})
}
