package lifecycle

import (
	"context"
	"fmt"
	"os/user"
	"slices"
	"strings"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/sandbox/userns"
	"dhow/internal/supervise"
	"dhow/internal/sys"
)

// idBlock is how many ids a container gets, as many as 16 bits name.
const idBlock = 1 << 16

// Users whose ranges in /etc/subuid and /etc/subgid containers get: docker's for
// the remapping that its daemon does by itself, and Podman's for --userns auto.
const (
	remapUser = "dockremap"
	ownUser   = "containers"
)

// decideIDs finds the ids of the machine that a container's are to stand for, as
// it asks or the settings say. Until unlock, which is never nil, is called, no
// other container is given any.
func (cs *Containers) decideIDs(ctx context.Context, rec *container.Record, remap string) (unlock func(), err error) {
	unlock = func() {}
	mode := rec.Host.UsernsMode
	if sys.InUserNS() {
		if mode == container.OwnIDs {
			return unlock, errdef.WithHint(errdef.New(errdef.ErrUnsupported, "--userns %s: it needs root", mode),
				"leave it out: root inside is an ordinary user outside already")
		}
		return unlock, nil // an ordinary user's containers have no ids of the machine's but that user's
	}
	if mode == "" && remap == string(container.OwnIDs) {
		mode = container.OwnIDs
	}
	if mode.IsHost() || mode == "" && remap == "" {
		return unlock, nil
	}
	if err := rec.CheckIDs(); err != nil {
		return unlock, err
	}
	if mode != container.OwnIDs {
		rec.IDs, err = remapIDs(remap)
		return unlock, err
	}
	lock, err := cs.store.Lock(ctx, "ids")
	if err != nil {
		return unlock, err
	}
	unlock = func() { _ = lock.Unlock() } // the process's end does it otherwise
	rec.IDs, err = cs.freeIDs(ctx)
	return unlock, err
}

// remapIDs is what docker's daemon does with "userns-remap": USER[:GROUP], names or
// numbers, or "default".
func remapIDs(remap string) (*sys.IDMap, error) {
	name, group, ok := strings.Cut(remap, ":")
	if remap == "default" {
		name = remapUser
	}
	if !ok {
		group = name
	}
	uids, gids, err := subordinate(name, group)
	if err != nil {
		return nil, fmt.Errorf("userns-remap %q of the settings: %w", remap, err)
	}
	size := min(uids[0].Count, gids[0].Count, idBlock)
	return &sys.IDMap{UID: uids[0].Start, GID: gids[0].Start, Size: size}, nil
}

func subordinate(name, group string) (uids, gids []userns.Range, err error) {
	for _, f := range []struct {
		path, name string
		ranges     *[]userns.Range
	}{{"/etc/subuid", name, &uids}, {"/etc/subgid", group, &gids}} {
		if *f.ranges = userns.Subordinate(f.path, called(f.name)...); len(*f.ranges) == 0 {
			return nil, nil, errdef.WithHint(errdef.New(errdef.ErrNotFound, "%s has no range for %s", f.path, f.name),
				"add one, such as %s:2147483648:1073741824", f.name)
		}
	}
	return uids, gids, nil
}

// freeIDs finds a block of ids that no container has.
func (cs *Containers) freeIDs(ctx context.Context) (*sys.IDMap, error) {
	uids, gids, err := subordinate(ownUser, ownUser)
	if err != nil {
		return nil, fmt.Errorf("--userns %s: %w", container.OwnIDs, err)
	}
	rows, err := cs.store.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var takenUIDs, takenGIDs []uint32
	for _, row := range rows {
		rec, _, err := supervise.Parse(row)
		if err != nil {
			return nil, err
		}
		if rec.IDs != nil {
			takenUIDs, takenGIDs = append(takenUIDs, rec.IDs.UID), append(takenGIDs, rec.IDs.GID)
		}
	}
	uid, ok1 := freeBlock(uids, takenUIDs)
	gid, ok2 := freeBlock(gids, takenGIDs)
	if !ok1 || !ok2 {
		return nil, errdef.WithHint(errdef.New(errdef.ErrUnavailable, "--userns %s: all ids of user %s in /etc/subuid and /etc/subgid are other containers'", container.OwnIDs, ownUser),
			"remove containers, or make the range larger")
	}
	return &sys.IDMap{UID: uid, GID: gid, Size: idBlock}, nil
}

// freeBlock is the beginning of the first block that none of those overlaps that
// begin at taken.
func freeBlock(ranges []userns.Range, taken []uint32) (uint32, bool) {
	for _, r := range ranges {
		for ; r.Count >= idBlock; r.Start, r.Count = r.Start+idBlock, r.Count-idBlock {
			if !slices.ContainsFunc(taken, func(t uint32) bool { return t < r.Start+idBlock && r.Start < t+idBlock }) {
				return r.Start, true
			}
		}
	}
	return 0, false
}

// called is what a user or group may be called in the files: a number goes for
// the user's name, and the other way round.
func called(s string) []string {
	if u, err := user.Lookup(s); err == nil {
		return []string{s, u.Uid}
	}
	if u, err := user.LookupId(s); err == nil {
		return []string{s, u.Username}
	}
	return []string{s}
}
