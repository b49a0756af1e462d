package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/store"
	"dhow/internal/sys"
)

// Active is a tree being changed. For one goroutine; the mount may be shared.
//
//	tmp/<procid>/active-…/fs     changes: becomes layers/<id>/fs by a rename of the
//	                     /work   parent directory, once work is gone
type Active struct {
	s      *Snapshots
	parent Chain
	lowers []string
	tmp    string
	shares Shares
	mount  *os.File // nil until Mount
	latest *time.Time
	done   bool
}

// Begin starts a tree on top of parent, in the process's temporary directory.
// End it with Commit or Discard. ErrNotFound when a layer is gone;
// ErrUnsupported when it has more layers than can be mounted.
func (s *Snapshots) Begin(ctx context.Context, parent Chain) (*Active, error) {
	a := &Active{s: s, parent: parent}
	if err := a.begin(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("begin on %s: %w", parent.brief(), s.store.FileError(err)), a.Discard())
	}
	return a, nil
}

func (a *Active) begin(ctx context.Context) (err error) {
	if err := a.s.store.Lease(ctx); err != nil {
		return err
	}
	if a.lowers, err = a.s.dirs(a.parent); err != nil {
		return err
	}
	if len(a.lowers) > sys.MaxLowers {
		return tooHigh()
	}
	if a.tmp, err = a.s.store.TempDir("active"); err != nil {
		return err
	}
	if err := os.Mkdir(a.Upper(), 0o755); err != nil {
		return err
	}
	return rootAttrsFrom(a.lowers, a.Upper())
}

// tooHigh is for trees that nothing could mount.
func tooHigh() error {
	return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "the kernel stacks at most %d layers", sys.MaxLowers),
		"join instructions, or copy what is needed into a new stage: each RUN, COPY and ADD is a layer")
}

// Clamp makes Commit set every time of the changes that is after t back to t.
func (a *Active) Clamp(t time.Time) { a.latest = &t }

func (a *Active) work() string { return filepath.Join(a.tmp, "work") }

// Mount is the writable tree, mounted detached, without devices. The same file
// at every call; Commit and Discard close it.
func (a *Active) Mount() (*os.File, error) {
	if a.mount != nil {
		return a.mount, nil
	}
	err := os.Mkdir(a.work(), 0o700)
	if err == nil {
		// Volatile: overlayfs would sync the whole file system of the upper directory
		// when it is unmounted, after every step. The directory is of use only to
		// this process until it is committed, and a commit promises no more.
		a.mount, err = sys.MountOverlay(sys.Overlay{Lowers: a.lowers, Upper: a.Upper(), Work: a.work(), Volatile: true})
	}
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", a.parent.brief(), a.s.store.FileError(err))
	}
	return a.mount, nil
}

// Upper is the directory of changes in overlayfs's format, for writers that
// know it: to be written to before the first Mount only. Its root has the
// attributes of the parent's root.
func (a *Active) Upper() string { return filepath.Join(a.tmp, layerFS) }

// Parent is the chain the tree began on.
func (a *Active) Parent() Chain { return a.parent }

// Commit turns the changes into a layer and returns its id. No changes make an
// empty layer, as docker's builder does: an image's history has one layer for
// each step that may write. The chain of the changed tree is
// a.Parent().Append(id). After an error the caller discards. ErrUnsupported
// when nothing could mount that chain. Nothing may write
// to the mount any more.
func (a *Active) Commit(ctx context.Context) (id string, err error) {
	id, err = a.commit(ctx)
	if err != nil {
		return "", fmt.Errorf("commit on %s: %w", a.parent.brief(), a.s.store.FileError(err))
	}
	return id, nil
}

func (a *Active) commit(ctx context.Context) (string, error) {
	if len(a.lowers) >= sys.MaxLowers {
		return "", tooHigh()
	}
	mounted := a.mount != nil
	if err := a.unmount(); err != nil {
		return "", err
	}
	n := &normaliser{census: newCensus(ctx), strip: mounted, latest: a.latest}
	if len(a.parent) > 0 {
		n.below = func() (*os.File, error) { return a.s.view(ctx, a.parent, nil) }
	}
	if err := n.run(a.Upper()); err != nil {
		return "", err
	}
	if err := sys.RemoveAll(a.work()); err != nil {
		return "", err
	}
	if err := a.shares.write(a.tmp); err != nil {
		return "", err
	}
	id, err := a.s.publish(ctx, a.tmp, store.Layer{Size: n.bytes, Files: n.files, Marks: n.marks})
	a.done = err == nil
	return id, err
}

func (a *Active) unmount() error {
	if a.mount == nil {
		return nil
	}
	err := a.mount.Close()
	a.mount = nil
	return err
}

// Discard throws the changes away. After Commit it does nothing, so that it can
// be deferred.
func (a *Active) Discard() error {
	if a.done || a.tmp == "" {
		return nil
	}
	a.done = true
	return errors.Join(a.unmount(), sys.RemoveAll(a.tmp))
}
