package step

import (
	"context"
	"fmt"
	"path"
	"runtime"
	"slices"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// keyVersion changes when steps do something else than before with equal keys.
const keyVersion = "dhow.step.1"

// CacheMap implements solve.Op.
func (e *Op) CacheMap(context.Context) (*solve.CacheMap, error) {
	op := keyForm(e.op)
	op.CdiDevices = nil
	for _, name := range e.devices.names { // those it has, not those it would like
		op.CdiDevices = append(op.CdiDevices, &pb.CDIDevice{Name: name})
	}
	raw, err := op.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encode the step: %w", err)
	}
	head := keyVersion + " " + oci.FormatPlatform(e.platform)
	if e.deps.Epoch != nil {
		head += fmt.Sprintf(" epoch %d", e.deps.Epoch.Unix())
	}
	dgst := digest.FromString(head + "\n" + string(raw))
	deps, err := mountDeps(e.op.Mounts, e.ins)
	if err != nil {
		return nil, err
	}
	cm := &solve.CacheMap{Digest: dgst, Deps: make([]solve.Dep, e.ins)}
	for i, dep := range deps {
		if dep.content {
			cm.Deps[i].Content = func(ctx context.Context, in solve.Result) (digest.Digest, error) {
				return e.deps.Trees.Content(ctx, in, dep.selectors)
			}
		}
	}
	return cm, nil
}

// keyForm is the operation without what must not change its result: proxies,
// the addresses behind added hosts, and which cache directory it uses. That it
// uses a secret, an agent or a cache, and where, stays; their contents never
// were part of it. Selectors stay, too: they tell operations apart whose inputs
// have not been made yet.
func keyForm(op *pb.ExecOp) *pb.ExecOp {
	op = op.CloneVT()
	op.Meta.ProxyEnv = nil
	for _, h := range op.Meta.ExtraHosts {
		h.IP = ""
	}
	for _, m := range op.Mounts {
		if m.CacheOpt != nil {
			m.CacheOpt = &pb.CacheOpt{}
		}
		m.ResultID = ""
	}
	return op
}

// dep says what of an input a step can read: all of it by its identity, or the
// contents of the selected paths (none: of the root).
type dep struct {
	content   bool
	selectors []string
}

// mountDeps decides where the contents of an input may stand for the input.
// That needs a mount whose changes cannot be seen by a later step, or that
// shows the whole input: else a file outside the selection would be missing
// from a result found by the selected files alone. The root file system goes
// by its identity, because hashing it costs more than it saves.
func mountDeps(mounts []*pb.Mount, ins int) ([]dep, error) {
	deps := make([]dep, ins)
	for i := range deps {
		deps[i].content = true
	}
	used := make([]bool, ins)
	for _, m := range mounts {
		if m.Input < 0 || m.MountType != pb.MountType_BIND && m.MountType != pb.MountType_CACHE {
			continue
		}
		d := &deps[m.Input]
		used[m.Input] = true
		sel := path.Join("/", m.Selector)
		d.selectors = append(d.selectors, sel)
		safe := m.Output == int64(pb.SkipOutput) || m.Readonly || sel == pb.RootMount
		switch m.ContentCache {
		case pb.MountContentCache_OFF:
			safe = false
		case pb.MountContentCache_ON:
			if !safe {
				return nil, errdef.New(errdef.ErrInvalid, "mount %s: its content cannot be part of the cache key", m.Dest)
			}
		default:
			safe = safe && m.Dest != pb.RootMount
		}
		d.content = d.content && safe
	}
	for i := range deps {
		deps[i].content = deps[i].content && used[i]
		slices.Sort(deps[i].selectors)
		deps[i].selectors = slices.Compact(deps[i].selectors)
		if slices.Contains(deps[i].selectors, "/") {
			deps[i].selectors = []string{"/"}
		}
	}
	return deps, nil
}

// native says whether this machine runs programs for the platform by itself.
func native(p oci.Platform) bool {
	switch {
	case p.Architecture == runtime.GOARCH:
		return true
	case runtime.GOARCH == "amd64":
		return p.Architecture == "386"
	}
	return false
}
