package bkapi

import (
	"context"
	"errors"
	"slices"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/snapshot"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// DiskUsage lists what the build cache holds: steps and cache mounts.
func (s *Server) DiskUsage(ctx context.Context, req *controlapi.DiskUsageRequest) (*controlapi.DiskUsageResponse, error) {
	list, err := s.engine.Snapshots.Entries(ctx)
	if err != nil {
		return nil, err
	}
	if list, err = snapshot.Matching(list, req.Filter); err != nil {
		return nil, err
	}
	out := &controlapi.DiskUsageResponse{}
	oldest := time.Now().Add(-time.Duration(req.AgeLimit))
	for _, e := range list {
		if req.AgeLimit <= 0 || !e.LastUsed.After(oldest) {
			out.Record = append(out.Record, usageRecord(e))
		}
	}
	return out, nil
}

func usageRecord(e snapshot.Entry) *controlapi.UsageRecord {
	return &controlapi.UsageRecord{
		ID: e.ID, RecordType: e.Type, Description: e.Description, Size: e.Size, Parents: e.Parents,
		CreatedAt: timestamppb.New(e.Created), LastUsedAt: timestamppb.New(e.LastUsed), UsageCount: e.Uses,
		Mutable: e.Mutable, InUse: e.InUse, Shared: e.Shared,
	}
}

// Prune removes build cache, once no build runs in any process.
func (s *Server) Prune(req *controlapi.PruneRequest, stream controlapi.Control_PruneServer) error {
	if _, err := snapshot.Matching(nil, req.Filter); err != nil {
		return err
	}
	rule := snapshot.Rule{
		All: req.All, Filters: req.Filter, KeepFor: time.Duration(req.KeepDuration),
		Reserved: req.ReservedSpace, MaxUsed: req.MaxUsedSpace, MinFree: req.MinFreeSpace,
	}
	res, err := s.prune(stream.Context(), snapshot.PruneOptions{Cache: []snapshot.Rule{rule}})
	if err != nil {
		return err
	}
	for _, r := range res.Removed {
		u := &controlapi.UsageRecord{ID: r.ID, Size: r.Size, Description: r.Kind}
		if r.Entry.ID != "" {
			u = usageRecord(r.Entry)
			u.InUse = false
		}
		if err := stream.Send(u); err != nil {
			return err
		}
	}
	return nil
}

// pruneWait is how long pruning waits for builds of this server.
const pruneWait = 10 * time.Second

// prune waits for the builds under way, but not for ever: it may be one of them
// that asks.
func (s *Server) prune(ctx context.Context, o snapshot.PruneOptions) (snapshot.PruneResult, error) {
	for end := time.Now().Add(pruneWait); !s.gate.TryLock(); {
		if time.Now().After(end) {
			return snapshot.PruneResult{}, errdef.WithHint(errdef.New(errdef.ErrUnavailable, "builds are under way, nothing was removed"), "prune when they have ended")
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return snapshot.PruneResult{}, context.Cause(ctx)
		}
	}
	defer s.gate.Unlock()
	for {
		if err := s.engine.Store.Release(); err != nil {
			return snapshot.PruneResult{}, err
		}
		res, err := s.engine.Snapshots.Prune(ctx, o)
		// A late call of a build that has ended may hold the store once more.
		if !errors.Is(err, errdef.ErrConflict) || ctx.Err() != nil {
			return res, err
		}
	}
}

// filtered reports whether there is a filter; clients send empty ones.
func filtered(list []string) bool {
	return slices.ContainsFunc(list, func(f string) bool { return f != "" })
}
