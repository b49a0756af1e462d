package buildop

import (
	"context"
	"fmt"

	"dhow/internal/snapshot"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
)

// openResult opens a result to read. The caller closes it; a local tree stays
// the caller's.
func (d *Deps) openResult(in solve.Result) (dir, error) {
	if in.Local != nil {
		return openLocal(in.Local), nil
	}
	return d.openChain(in.Chain)
}

// Materialise makes a snapshot of a result for those who need a tree that can
// be mounted or stacked. Of a local tree that takes a copy, which is made once:
// the store remembers it by the tree's digest.
func (d *Deps) Materialise(ctx context.Context, in solve.Result) (snapshot.Chain, error) {
	if in.Local == nil {
		return in.Chain, nil
	}
	const kind = "dhow.local.1"
	key := in.Local.Digest().String()
	if d.Epoch != nil {
		key += fmt.Sprintf(" %d", d.Epoch.Unix())
	}
	lock, err := d.Store.Lock(ctx, "local tree "+key)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if val, ok, err := d.Store.Memo(ctx, kind, key); err != nil {
		return nil, err
	} else if ok {
		if c, ok := d.intact(ctx, string(val)); ok {
			return c, nil
		}
	}
	c, err := d.copyLocal(ctx, in)
	if err != nil {
		return nil, d.explain(fmt.Errorf("copy the build context: %w", err))
	}
	return c, d.Store.PutMemo(ctx, kind, key, []byte(c.String()))
}

// intact reads a remembered chain; false when a layer of it is gone.
func (d *Deps) intact(ctx context.Context, text string) (snapshot.Chain, bool) {
	c, err := snapshot.ParseChain(text)
	if err != nil {
		return nil, false
	}
	for _, id := range c {
		if _, err := d.Store.LayerByID(ctx, id); err != nil {
			return nil, false
		}
	}
	return c, true
}

func (d *Deps) copyLocal(ctx context.Context, in solve.Result) (snapshot.Chain, error) {
	t, err := d.openTarget(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer t.discard()
	c, err := newCopier(t, &pb.FileActionCopy{Src: "/", Dest: "/", Mode: -1, Timestamp: -1, DirCopyContents: true}, nil)
	if err != nil {
		return nil, err
	}
	src := openLocal(in.Local)
	defer src.close()
	if err := c.one(ctx, src, "/", "/"); err != nil {
		return nil, err
	}
	return t.commit(ctx)
}
