package bkapi

import (
	"context"
	"errors"

	"dhow/internal/engine"
	"dhow/internal/errdef"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// ListenBuildHistory sends the builds of the store, the oldest first, and ends.
// BuildKit's clients that want to hear of later ones are refused.
func (s *Server) ListenBuildHistory(req *controlapi.BuildHistoryRequest, stream controlapi.Control_ListenBuildHistoryServer) error {
	if !req.EarlyExit {
		return errdef.New(errdef.ErrUnsupported, "listening to later builds is not supported")
	}
	if filtered(req.Filter) {
		return errdef.New(errdef.ErrUnsupported, "filters of the build history are not supported")
	}
	builds, err := s.engine.Builds(stream.Context(), int(req.Limit))
	if err != nil {
		return err
	}
	for i := range builds {
		b := builds[len(builds)-1-i]
		if req.Ref != "" && b.ID != req.Ref || req.ActiveOnly && !b.Finished.IsZero() {
			continue
		}
		event := &controlapi.BuildHistoryEvent{Type: controlapi.BuildHistoryEventType_COMPLETE, Record: historyRecord(b)}
		if b.Finished.IsZero() {
			event.Type = controlapi.BuildHistoryEventType_STARTED
		}
		if err := stream.Send(event); err != nil {
			return err
		}
	}
	return nil
}

func historyRecord(b engine.BuildInfo) *controlapi.BuildHistoryRecord {
	r := &controlapi.BuildHistoryRecord{
		Ref: b.ID, CreatedAt: timestamppb.New(b.Started), FrontendAttrs: map[string]string{"context": b.Name},
		NumTotalSteps: int32(b.Summary.Steps), NumCachedSteps: int32(b.Summary.Cached), NumCompletedSteps: int32(b.Summary.Cached + b.Summary.Ran),
	}
	if !b.Finished.IsZero() {
		r.CompletedAt = timestamppb.New(b.Finished)
	}
	if b.Summary.Error != "" {
		r.Error = status.New(codes.Unknown, b.Summary.Error).Proto()
	}
	return r
}

// UpdateBuildHistory removes a build from the history. There is nothing to
// finalize: a record is whole when its build has ended.
func (s *Server) UpdateBuildHistory(ctx context.Context, req *controlapi.UpdateBuildHistoryRequest) (*controlapi.UpdateBuildHistoryResponse, error) {
	switch {
	case req.Pinned:
		return nil, errdef.New(errdef.ErrUnsupported, "pinning builds is not supported")
	case req.Delete:
		err := s.engine.RemoveBuild(ctx, req.Ref)
		if errors.Is(err, errdef.ErrNotFound) {
			err = nil
		}
		return &controlapi.UpdateBuildHistoryResponse{}, err
	}
	_, _, err := s.engine.BuildSteps(ctx, req.Ref)
	return &controlapi.UpdateBuildHistoryResponse{}, err
}
