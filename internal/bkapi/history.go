package bkapi

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"slices"
	"strings"
	"time"

	"dhow/internal/engine"
	"dhow/internal/errdef"

	"github.com/containerd/containerd/v2/pkg/filters"
	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// ListenBuildHistory sends the builds that run, then those that have ended, and
// then, unless the client leaves early, what happens from now on.
func (s *Server) ListenBuildHistory(req *controlapi.BuildHistoryRequest, stream controlapi.Control_ListenBuildHistoryServer) error {
	match, err := historyFilter(req.Filter, time.Now())
	if err != nil {
		return err
	}
	heard, stop := s.listen()
	defer stop()
	// From here on nothing is missed, which a client can wait for.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	events, err := s.history(stream.Context(), req)
	if err != nil {
		return err
	}
	events = slices.DeleteFunc(events, func(e *controlapi.BuildHistoryEvent) bool {
		return e.Type == controlapi.BuildHistoryEventType_COMPLETE && !match(e.Record)
	})
	if n := int(req.Limit); n > 0 && len(events) > n {
		events = events[len(events)-n:]
	}
	told := toldBuilds{}
	for _, e := range events {
		told[e.Record.Ref] = e.Type
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	for !req.EarlyExit {
		select {
		case e, ok := <-heard:
			if !ok {
				return errdef.New(errdef.ErrUnavailable, "the client listens too slowly")
			}
			if told.news(e) && (req.Ref == "" || e.Record.Ref == req.Ref) {
				if err := stream.Send(e); err != nil {
					return err
				}
			}
		case <-stream.Context().Done():
			return context.Cause(stream.Context())
		}
	}
	return nil
}

// toldBuilds is how far builds had come in the history that a client was sent. What
// happened while that was read is heard, too.
type toldBuilds map[string]controlapi.BuildHistoryEventType

// news tells events that say more than the history did.
func (t toldBuilds) news(e *controlapi.BuildHistoryEvent) bool {
	last, ok := t[e.Record.Ref]
	switch {
	case !ok:
		return true
	case e.Type == controlapi.BuildHistoryEventType_DELETED:
		delete(t, e.Record.Ref) // a build of that name is another one
		return true
	}
	return last == controlapi.BuildHistoryEventType_STARTED && e.Type == controlapi.BuildHistoryEventType_COMPLETE
}

// history is what the store and this server know of builds, the oldest first.
func (s *Server) history(ctx context.Context, req *controlapi.BuildHistoryRequest) ([]*controlapi.BuildHistoryEvent, error) {
	builds, err := s.engine.Builds(ctx, 0)
	if err != nil {
		return nil, err
	}
	var events []*controlapi.BuildHistoryEvent
	for _, b := range slices.Backward(builds) {
		if req.Ref != "" && b.ID != req.Ref || req.ActiveOnly && b.Status != engine.StatusRunning {
			continue
		}
		e := &controlapi.BuildHistoryEvent{Type: controlapi.BuildHistoryEventType_COMPLETE, Record: s.historyRecord(b)}
		if b.Status == engine.StatusRunning {
			e.Type = controlapi.BuildHistoryEventType_STARTED
		}
		events = append(events, e)
	}
	slices.SortStableFunc(events, func(a, b *controlapi.BuildHistoryEvent) int { return cmp.Compare(b.Type, a.Type) })
	return events, nil
}

// historyRecord is the record that a client of this protocol left, or one made
// of what is known of another build.
func (s *Server) historyRecord(b engine.BuildInfo) *controlapi.BuildHistoryRecord {
	if r, err := s.recordOf(b.ID); err == nil && r != nil {
		r.Pinned = b.Summary.Pinned
		return r
	}
	r := &controlapi.BuildHistoryRecord{
		Ref: b.ID, CreatedAt: timestamppb.New(b.Started), FrontendAttrs: map[string]string{"context": b.Name}, Pinned: b.Summary.Pinned,
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

// recordOf reads what was kept of a build; nil when nothing was.
func (s *Server) recordOf(ref string) (*controlapi.BuildHistoryRecord, error) {
	raw, err := s.engine.Kept(ref)
	if err != nil || raw == nil {
		return nil, err
	}
	r := &controlapi.BuildHistoryRecord{}
	if err := r.UnmarshalVT(raw); err != nil {
		return nil, errdef.New(errdef.ErrIntegrity, "read the record of build %s: %w", ref, err)
	}
	if r.Ref == "" {
		return nil, nil // a power cut took it
	}
	return r, nil
}

// UpdateBuildHistory pins a build or removes it. There is nothing to finalize: a
// record is whole when its build has ended.
func (s *Server) UpdateBuildHistory(ctx context.Context, req *controlapi.UpdateBuildHistoryRequest) (*controlapi.UpdateBuildHistoryResponse, error) {
	var err error
	switch {
	case req.Delete:
		if err = s.engine.RemoveBuild(ctx, req.Ref); err == nil {
			s.tell(controlapi.BuildHistoryEventType_DELETED, &controlapi.BuildHistoryRecord{Ref: req.Ref})
		}
		if errors.Is(err, errdef.ErrNotFound) {
			err = nil
		}
	case req.Finalize:
		_, _, err = s.engine.BuildSteps(ctx, req.Ref)
	default:
		err = s.engine.PinBuild(ctx, req.Ref, req.Pinned)
	}
	return &controlapi.UpdateBuildHistoryResponse{}, err
}

// maxUnheard is how many events a listener may be behind before it is dropped.
const maxUnheard = 1000

// listen returns what happens to builds of this server from now on. The channel
// is closed when nobody takes from it.
func (s *Server) listen() (<-chan *controlapi.BuildHistoryEvent, func()) {
	c := make(chan *controlapi.BuildHistoryEvent, maxUnheard)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners[c] = true
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.listeners, c)
	}
}

// tell all listeners of an event.
func (s *Server) tell(kind controlapi.BuildHistoryEventType, r *controlapi.BuildHistoryRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.listeners {
		select {
		case c <- &controlapi.BuildHistoryEvent{Type: kind, Record: r}:
		default:
			delete(s.listeners, c)
			close(c)
		}
	}
}

// historyFilter reads the filters of `buildx history ls`: fields of a record, and
// times as "startedAt>=2006-01-02T15:04:05Z" or "duration<1m". A record matches
// when it fits all parts of one of them.
func historyFilter(list []string, now time.Time) (func(*controlapi.BuildHistoryRecord) bool, error) {
	type filter = func(*controlapi.BuildHistoryRecord) bool
	var any []filter
	for _, text := range list {
		if text == "" {
			continue
		}
		parts, err := csv.NewReader(strings.NewReader(text)).Read()
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "filter %q: %w", text, err)
		}
		var all []filter
		var fields []string
		for _, p := range parts {
			f, err := timeFilter(p, now)
			switch {
			case err != nil:
				return nil, err
			case f != nil:
				all = append(all, f)
			default:
				fields = append(fields, p)
			}
		}
		static, err := filters.ParseAll(strings.Join(fields, ","))
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "filter %q: %w", text, err)
		}
		all = append(all, func(r *controlapi.BuildHistoryRecord) bool { return static.Match(recordFields(r)) })
		any = append(any, func(r *controlapi.BuildHistoryRecord) bool {
			return !slices.ContainsFunc(all, func(f filter) bool { return !f(r) })
		})
	}
	return func(r *controlapi.BuildHistoryRecord) bool {
		return len(any) == 0 || slices.ContainsFunc(any, func(f filter) bool { return f(r) })
	}, nil
}

// timeFilter reads a part of a filter that compares times; nil for another.
func timeFilter(part string, now time.Time) (func(*controlapi.BuildHistoryRecord) bool, error) {
	at := strings.IndexAny(part, "<>")
	if at < 0 {
		return nil, nil
	}
	key, op := part[:at], part[at:at+1]
	value, orEqual := strings.CutPrefix(part[at+1:], "=")
	var of func(*controlapi.BuildHistoryRecord) int64
	var want int64
	d, err := time.ParseDuration(value)
	switch key {
	case "startedAt", "completedAt":
		want = now.Add(-d).Unix()
		if err != nil {
			t, err := time.Parse(time.RFC3339, value)
			if err != nil {
				return nil, errdef.New(errdef.ErrInvalid, "invalid time %s", value)
			}
			want = t.Unix()
		}
		of = func(r *controlapi.BuildHistoryRecord) int64 {
			if key == "startedAt" {
				return r.CreatedAt.AsTime().Unix()
			}
			return r.CompletedAt.AsTime().Unix() // 0 while it runs
		}
	case "duration":
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "invalid duration %s", value)
		}
		want = int64(d)
		of = func(r *controlapi.BuildHistoryRecord) int64 {
			if r.CompletedAt == nil {
				return 0
			}
			return int64(r.CompletedAt.AsTime().Sub(r.CreatedAt.AsTime()))
		}
	default:
		return nil, nil
	}
	return func(r *controlapi.BuildHistoryRecord) bool {
		c := cmp.Compare(of(r), want)
		return orEqual && c == 0 || op == "<" && c < 0 || op == ">" && c > 0
	}, nil
}

// recordFields are what filters can name.
func recordFields(r *controlapi.BuildHistoryRecord) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "ref":
			return r.Ref, r.Ref != ""
		case "status":
			switch {
			case r.CompletedAt == nil:
				return "running", true
			case r.Error == nil:
				return "completed", true
			case codes.Code(r.Error.Code) == codes.Canceled:
				return "canceled", true
			}
			return "error", true
		case "repository":
			for _, k := range []string{"vcs:source", "context"} {
				if v := r.FrontendAttrs[k]; v != "" {
					return v, true
				}
			}
		}
		return "", false
	})
}
