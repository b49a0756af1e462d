package bkapi

import (
	"context"
	"errors"
	"slices"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/snapshot"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// DiskUsage lists what the build cache holds: steps and cache mounts.
func (s *Server) DiskUsage(ctx context.Context, req *controlapi.DiskUsageRequest) (*controlapi.DiskUsageResponse, error) {
	if filtered(req.Filter) {
		return nil, errdef.New(errdef.ErrUnsupported, "filters of the build cache are not supported")
	}
	records, err := s.engine.Store.CacheRecords(ctx)
	if err != nil {
		return nil, err
	}
	out := &controlapi.DiskUsageResponse{}
	oldest := time.Now().Add(-time.Duration(req.AgeLimit))
	for _, r := range records {
		if req.AgeLimit > 0 && r.LastUsed.After(oldest) {
			continue
		}
		out.Record = append(out.Record, &controlapi.UsageRecord{
			ID: r.Key, Size: r.Size, Description: r.Name, CreatedAt: timestamppb.New(r.Created), LastUsedAt: timestamppb.New(r.LastUsed), UsageCount: r.Uses,
			RecordType: string(client.UsageRecordTypeRegular),
		})
	}
	mounts, err := s.engine.Store.CacheMounts(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		out.Record = append(out.Record, &controlapi.UsageRecord{
			ID: m.ID, Size: m.Size, Mutable: true, Description: "cache mount", CreatedAt: timestamppb.New(m.Created), LastUsedAt: timestamppb.New(m.LastUsed),
			RecordType: string(client.UsageRecordTypeCacheMount),
		})
	}
	return out, nil
}

// Prune removes build cache, once no build runs in any process.
func (s *Server) Prune(req *controlapi.PruneRequest, stream controlapi.Control_PruneServer) error {
	switch {
	case filtered(req.Filter):
		return errdef.New(errdef.ErrUnsupported, "filters of the build cache are not supported")
	case req.MaxUsedSpace > 0 || req.MinFreeSpace > 0:
		return errdef.New(errdef.ErrUnsupported, "limits of the used or free space are not supported")
	}
	o := snapshot.PruneOptions{Cache: true, All: req.All, KeepBytes: req.ReservedSpace}
	if req.KeepDuration > 0 {
		o.Before = time.Now().Add(-time.Duration(req.KeepDuration))
	}
	res, err := s.prune(stream.Context(), o)
	if err != nil {
		return err
	}
	for _, r := range res.Removed {
		if err := stream.Send(&controlapi.UsageRecord{ID: r.ID, Size: r.Size, Description: r.Kind}); err != nil {
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
