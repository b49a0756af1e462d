// Package buildop is what the vertices of a build do: sources bring trees in,
// exec runs a command in one, file copies and edits, merge and diff stack and
// subtract layers. It implements solve.Op for each operation of LLB (as of
// moby/buildkit v0.34). When it runs, in which order and whether at all, is
// the business of package solve.
//
// Trees are read and written as directories of layers (tree.go): every step of
// a path is one openat(2) of a single name that follows no link, and links are
// resolved by this package against the tree's own root. Nothing is mounted for
// file operations.
//
// Invariant: no operation writes outside the snapshot it makes, whatever links
// its inputs hold; and two results with equal cache keys are equal trees but
// for times.
package buildop

import (
	"context"
	"time"

	"dhow/internal/cdi"
	"dhow/internal/image"
	"dhow/internal/session"
	"dhow/internal/snapshot"
	"dhow/internal/source"
	"dhow/internal/step"
	"dhow/internal/store"

	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Deps is what the operations of one build work with. It is not modified
// after the first Resolve and safe for concurrent use.
type Deps struct {
	Store     *store.Store
	Snapshots *snapshot.Snapshots
	Images    *image.Images
	Session   session.Session
	Mounts    step.CacheMounts // nil: cache mounts begin empty
	Options
}

// Options are the choices of one build that its definition does not carry.
// What the definition carries (ulimits, added hosts, the size of /dev/shm, the
// parent cgroup) is not repeated here. The zero value is docker's default.
type Options struct {
	// Platform is that of operations which name none; empty means the host's.
	Platform ocispecs.Platform
	// MemoryBytes and NanoCPUs limit each RUN step; 0 means no limit.
	MemoryBytes int64
	NanoCPUs    int64
	// Allow holds the entitlements granted with --allow: "network.host",
	// "security.insecure", "device", "device=NAME".
	Allow []string
	// Devices says which devices RUN steps can be given.
	Devices cdi.Settings
	// AllowSecretInLayer names secrets whose value may end up in a layer.
	AllowSecretInLayer []string
	// Epoch is SOURCE_DATE_EPOCH: nothing that file operations write is newer.
	// Nil means that times are kept.
	Epoch *time.Time
	// Lock says what moving names of sources stand for; nil: what they do now.
	Lock *source.Lock
	// Offline keeps sources from sending anything.
	Offline bool
	// Asked has what names stood for that this build has asked about; nil asks anew.
	Asked *source.Asked
	// Policy returns the source that is used in place of op, or why there is none;
	// nil: all are used as they are.
	Policy func(ctx context.Context, platform *pb.Platform, op *pb.SourceOp) (*pb.SourceOp, error)
	// KeepFailed makes a failed operation's error a *solve.Failure, with the trees
	// that it left.
	KeepFailed bool
	// FreshCaches is step.Deps.FreshCaches.
	FreshCaches bool
}
