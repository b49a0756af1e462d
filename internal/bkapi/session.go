package bkapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/session"
	"dhow/internal/store"
	"dhow/internal/sys"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/sshforward"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

// Session takes a client's connection as one to call it back on, until the
// client hangs up.
func (s *Server) Session(stream controlapi.Control_SessionServer) error {
	conn, closed, opts := grpchijack.Hijack(stream)
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	go func() {
		select {
		case <-closed:
			cancel(context.Canceled)
		case <-ctx.Done():
		}
	}()
	return s.sessions.HandleConn(ctx, conn, opts)
}

// sessionWait is how long a build waits for its client to call; both calls are
// made at the same time.
const sessionWait = 5 * time.Second

// remote is the session.Session of a client at the other end of a connection.
type remote struct {
	sessions *bksession.Manager
	store    *store.Store
	id       string

	// progress takes what is shown of transfers.
	progress func(*client.SolveStatus)

	mu        sync.Mutex
	dirs      map[string]session.Dir // guarded by mu; by what was asked for
	layouts   map[string]string      // guarded by mu; by name and image
	slots     []*slot                // guarded by mu; held until the build ends
	ends      []context.CancelFunc   // guarded by mu; of transfers that have brought all
	temporary []string               // guarded by mu; directories that go with the build

	ending sync.WaitGroup // the same transfers
}

var _ session.Session = (*remote)(nil)

func newRemote(m *bksession.Manager, st *store.Store, id string, progress func(*client.SolveStatus)) *remote {
	return &remote{progress: progress, sessions: m, store: st, id: id, dirs: map[string]session.Dir{}, layouts: map[string]string{}}
}

// caller finds the connection to a session; "" is the build's.
func (r *remote) caller(ctx context.Context, id string) (bksession.Caller, error) {
	if id == "" {
		id = r.id
	}
	if id == "" {
		return nil, errdef.New(errdef.ErrInvalid, "the build has no session")
	}
	ctx, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	c, err := r.sessions.Get(ctx, id, false)
	if err != nil {
		return nil, errdef.As(errdef.ErrUnavailable, err)
	}
	return c, nil
}

// Secret implements session.Session.
func (r *remote) Secret(ctx context.Context, id string) ([]byte, error) {
	c, err := r.caller(ctx, "")
	if err != nil {
		return nil, err
	}
	val, err := secrets.GetSecret(ctx, c, id)
	if errors.Is(err, secrets.ErrNotFound) {
		return nil, errdef.As(errdef.ErrNotFound, err)
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", id, err)
	}
	if len(val) > session.MaxSecret {
		return nil, errdef.New(errdef.ErrInvalid, "secret %s: it has more than %d KiB", id, session.MaxSecret>>10)
	}
	return val, nil
}

// HasSSH implements session.Session.
func (r *remote) HasSSH(ctx context.Context, id string) error {
	if id == "" {
		id = session.DefaultSSH
	}
	c, err := r.caller(ctx, "")
	if err != nil {
		return err
	}
	err = sshforward.CheckSSHID(ctx, c, id)
	switch grpcerrors.Code(err) {
	case codes.OK:
		return nil
	case codes.Unimplemented:
		return errdef.New(errdef.ErrNotFound, "no SSH key %q forwarded from the client", id)
	}
	return errdef.As(errdef.ErrNotFound, err)
}

// SSHAgent implements session.Session.
func (r *remote) SSHAgent(ctx context.Context, id string) (net.Conn, error) {
	if id == "" {
		id = session.DefaultSSH
	}
	c, err := r.caller(ctx, "")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(c.Context(context.WithoutCancel(ctx)))
	ctx = metadata.NewOutgoingContext(ctx, metadata.Pairs(sshforward.KeySSHID, id))
	stream, err := sshforward.NewSSHClient(c.Conn()).ForwardAgent(ctx)
	if err != nil {
		cancel()
		return nil, errdef.New(errdef.ErrUnavailable, "connect to the ssh agent %s: %w", id, err)
	}
	ours, theirs := net.Pipe()
	go func() {
		defer cancel()
		_ = sshforward.Copy(ctx, ours, stream, stream.CloseSend) // its end is the connection's end
	}()
	return theirs, nil
}

// Layout implements session.Session.
func (r *remote) Layout(ctx context.Context, name string, image digest.Digest) (string, error) {
	c, err := r.caller(ctx, "")
	if err != nil {
		return "", err
	}
	return r.fetchLayout(ctx, c, name, image)
}

// close lets go of the directories.
func (r *remote) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, end := range r.ends {
		end()
	}
	r.ending.Wait()
	for _, s := range r.slots {
		s.release()
	}
	r.slots = nil
	for _, dir := range r.temporary {
		_ = sys.RemoveAll(dir) // the process's temporary directory is removed in any case
	}
}
