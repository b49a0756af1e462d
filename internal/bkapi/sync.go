package bkapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"dhow/internal/buildcontext"
	"dhow/internal/errdef"
	"dhow/internal/session"
	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/moby/buildkit/client"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// slot is a copy of a client's directory that stays from build to build, so
// that only what changed is sent. A build holds the slots it reads: another
// build of the same directory at the same time gets one of its own.
//
//	contexts/copy-HASH-N/files/    the copy; HASH of name, hint and the client's shared key
//	contexts/copy-HASH-N/listing   what the client told of it (listing.go)
//	locks: "sync HASH N"           held by the build that reads it
type slot struct {
	dir  string
	lock *sys.Lock
}

// filesName is the copy in a slot.
const filesName = "files"

func (s *slot) release() {
	now := time.Now()
	_ = os.Chtimes(s.dir, now, now) // old ones are removed first; the time is a hint
	_ = s.lock.Unlock()             // closing a lock file loses nothing
}

// maxSlots bounds the copies of one directory.
const maxSlots = 64

// takeSlot finds a copy that nobody reads, or makes one.
func takeSlot(st *store.Store, key string) (*slot, error) {
	for n := range maxSlots {
		lock, ok, err := st.TryLock(fmt.Sprintf("sync %s %d", key, n))
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		dir := filepath.Join(st.ContextsDir(), fmt.Sprintf("copy-%s-%d", key, n))
		s := &slot{dir: dir, lock: lock}
		if err := os.MkdirAll(filepath.Join(s.dir, filesName), 0o700); err != nil {
			_ = lock.Unlock()
			return nil, fmt.Errorf("make a copy of the build context: %w", err)
		}
		return s, nil
	}
	return nil, errdef.New(errdef.ErrUnavailable, "more than %d builds read the same build context", maxSlots)
}

// Dir implements session.Session: it brings a copy of the client's directory up
// to date.
func (r *remote) Dir(ctx context.Context, q session.DirRequest) (session.Dir, error) {
	same := q
	same.Vertex = "" // who waits for the files does not matter
	raw, err := json.Marshal(same)
	if err != nil {
		return session.Dir{}, err
	}
	// One at a time: two steps that want the same files shall not fetch them twice.
	r.mu.Lock()
	defer r.mu.Unlock()
	if dir, ok := r.dirs[string(raw)]; ok {
		return dir, nil
	}
	c, err := r.caller(ctx, q.Session)
	if err != nil && q.Session != "" && q.Session != r.id {
		c, err = r.caller(ctx, "")
	}
	if err != nil {
		return session.Dir{}, err
	}
	what := q.Name + "\x00" + q.SharedKeyHint + "\x00" + c.SharedKey()
	if q.MetadataOnly {
		what += "\x00metadata\x00" + strings.Join(q.Contents, "\x00")
	}
	key := digest.FromString(what).Encoded()[:32]
	s, err := takeSlot(r.store, key)
	if err != nil {
		return session.Dir{}, err
	}
	tree, err := r.receive(ctx, c, q, s.dir)
	if err != nil {
		s.release()
		return session.Dir{}, err
	}
	r.slots = append(r.slots, s)
	dir := session.Dir{Path: tree.Dir(), Tree: tree}
	r.dirs[string(raw)] = dir
	return dir, nil
}

// receive makes a slot hold what the client has, and nothing else. Files whose
// metadata are equal are not sent. Whatever paths and links a client tells of,
// nothing outside the slot is touched.
func (r *remote) receive(ctx context.Context, c bksession.Caller, q session.DirRequest, dir string) (*buildcontext.Tree, error) {
	if !c.Supports(bksession.MethodURL(filesync.FileSync_ServiceDesc.ServiceName, "diffcopy")) {
		return nil, errdef.New(errdef.ErrNotFound, "build context %q: the client lends no directories", q.Name)
	}
	ctx, cancel := context.WithCancel(c.Context(ctx))
	stream, err := filesync.NewFileSyncClient(c.Conn()).DiffCopy(metadata.NewOutgoingContext(ctx, syncOptions(q)), grpc.ForceCodecV2(packetCodec{}))
	if err != nil {
		cancel()
		return nil, err
	}
	tree, err := receiveTree(ctx, cancel, stream, q, dir, r.transferring(q))
	if err == nil {
		// The build goes on meanwhile: what the client still has to say is nothing.
		r.ends = append(r.ends, cancel)
		r.ending.Go(func() {
			defer cancel()
			letGo(stream)
			_ = stream.CloseSend() // the call has ended
		})
		return tree, nil
	}
	cancel()
	// What was received of it is in no known state.
	if rerr := r.discard(dir); rerr != nil {
		return nil, fmt.Errorf("%w; remove what was received: %w", err, rerr)
	}
	return nil, fmt.Errorf("build context %q: %w", q.Name, err)
}

// discard takes a slot away, in which something may still be written.
func (r *remote) discard(dir string) error {
	temp, err := r.store.TempPath("context")
	if err == nil {
		err = os.Rename(dir, temp)
	}
	if err == nil {
		_ = sys.RemoveAll(temp) // what is left goes with the process's temporary directory
	}
	return err
}

// syncOptions says in the headers of the call what is wanted. A header that is
// not ASCII is sent as in a URL, and another one says so.
func syncOptions(q session.DirRequest) metadata.MD {
	md := metadata.MD{}
	for key, list := range map[string][]string{
		"dir-name": {q.Name}, "include-patterns": q.Include, "exclude-patterns": q.Exclude, "followpaths": q.Follow,
	} {
		if list == nil {
			continue
		}
		plain := !slices.ContainsFunc(list, func(s string) bool {
			return strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII })
		})
		for _, v := range list {
			if !plain {
				v = url.QueryEscape(v)
			}
			md.Append(key, v)
		}
		if !plain {
			md.Set(key+"-encoded", "1")
		}
	}
	return md
}

// showEvery is the least time between two reports of a transfer's progress.
const showEvery = 100 * time.Millisecond

// transferring returns what reports how many bytes came so far.
func (r *remote) transferring(q session.DirRequest) func(n int, last bool) {
	if q.Vertex == "" {
		return nil
	}
	began := time.Now()
	var shown time.Time
	return func(n int, last bool) {
		now := time.Now()
		if !last && now.Sub(shown) < showEvery {
			return
		}
		shown = now
		st := &client.VertexStatus{
			ID: "transferring " + q.Name + ":", Vertex: q.Vertex, Name: "transferring", Current: int64(n), Timestamp: now, Started: &began,
		}
		if last {
			st.Completed = &now
		}
		r.progress(&client.SolveStatus{Statuses: []*client.VertexStatus{st}})
	}
}
