package bkapi

import (
	"context"
	"errors"
	"sync"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/snapshot"

	apitypes "github.com/moby/buildkit/api/types"
)

// pace is when garbage is collected:
//
//	build ends ── delay ──▶ more than the rules allow?  ── no ──▶ pause
//	                          │ yes
//	                          ▼
//	                        a moment without a build, of this server or another process?
//	                          │ no: look again when one ends, or after retry
//	                          │ still none after patience: new builds wait for those
//	                          │ that run, for no longer than turn; then patience anew
//	                          ▼ yes
//	                        collect ──▶ pause
type pace struct {
	delay, pause, retry, patience, turn time.Duration
}

func usualPace() pace {
	return pace{delay: time.Second, pause: time.Minute, retry: time.Second, patience: 5 * time.Minute, turn: 10 * time.Second}
}

// Collect keeps the build cache within the rules of Options.GC until ctx ends. It
// never waits while it keeps builds out.
func (s *Server) Collect(ctx context.Context) {
	if len(s.options.GC) == 0 {
		return
	}
	for sleep(ctx, 0, s.ended) && sleep(ctx, s.pace.delay, nil) {
		err := s.collect(ctx)
		if err != nil && ctx.Err() == nil && s.options.CollectFailed != nil {
			s.options.CollectFailed(err)
		}
		if !sleep(ctx, s.pace.pause, nil) {
			return
		}
	}
}

// sleep waits for a time (0: for ever) or until it is woken; false when ctx has ended.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	var late <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-wake:
	case <-late:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// collect takes what is over the bounds, as soon as nobody builds.
func (s *Server) collect(ctx context.Context) error {
	_, count, err := s.engine.Snapshots.Excess(ctx, s.options.GC)
	if err != nil || count == 0 {
		return err
	}
	for due := time.Now(); ; {
		if done, err := s.tryCollect(ctx); done || err != nil {
			return err
		}
		if time.Since(due) > s.pace.patience {
			if done, err := s.takeTurn(ctx); done || err != nil {
				return err
			}
			due = time.Now()
		}
		if !sleep(ctx, s.pace.retry, s.ended) {
			return context.Cause(ctx)
		}
	}
}

// tryCollect collects if nobody builds; false when somebody does.
func (s *Server) tryCollect(ctx context.Context) (bool, error) {
	if !s.gate.TryLock() {
		return false, nil
	}
	open := sync.OnceFunc(s.gate.Unlock)
	defer open()
	if err := s.engine.Store.Release(); err != nil {
		return false, err
	}
	_, ok, err := s.engine.Snapshots.TryPrune(ctx, snapshot.PruneOptions{Cache: s.options.GC, Decided: open})
	if errors.Is(err, errdef.ErrConflict) {
		return false, nil // a late call of a build that has ended
	}
	return ok, err
}

// takeTurn makes new builds wait while it waits for those that run.
func (s *Server) takeTurn(ctx context.Context) (bool, error) {
	turn := make(chan struct{})
	s.mu.Lock()
	s.turn = turn
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.turn = nil
		close(turn)
	}()
	for end := time.Now().Add(s.pace.turn); time.Now().Before(end); {
		if done, err := s.tryCollect(ctx); done || err != nil {
			return done, err
		}
		if !sleep(ctx, 20*time.Millisecond, s.ended) {
			return false, context.Cause(ctx)
		}
	}
	return false, nil
}

// awaitTurn waits while the collector has its turn.
func (s *Server) awaitTurn(ctx context.Context) error {
	s.mu.Lock()
	turn := s.turn
	s.mu.Unlock()
	if turn != nil && !sleep(ctx, 0, turn) {
		return context.Cause(ctx)
	}
	return nil
}

// gcPolicy is the rules in BuildKit's form.
func (s *Server) gcPolicy() (list []*apitypes.GCPolicy) {
	for _, r := range s.options.GC {
		list = append(list, &apitypes.GCPolicy{
			All: r.All, Filters: r.Filters, KeepDuration: int64(r.KeepFor), ReservedSpace: r.Reserved, MaxUsedSpace: r.MaxUsed, MinFreeSpace: r.MinFree,
		})
	}
	return list
}
