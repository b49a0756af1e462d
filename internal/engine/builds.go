package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/opencontainers/go-digest"
)

// BuildInfo is one past build.
type BuildInfo struct {
	ID, Name, Status string
	Started          time.Time
	Finished         time.Time // zero while it runs
	Summary          Summary
}

// Builds lists past builds, the latest first; limit 0 means all.
func (e *Engine) Builds(ctx context.Context, limit int) ([]BuildInfo, error) {
	recs, err := e.Store.Builds(ctx, limit)
	if err != nil {
		return nil, err
	}
	infos := make([]BuildInfo, len(recs))
	for i, r := range recs {
		if infos[i], err = e.buildInfo(r); err != nil {
			return nil, err
		}
	}
	return infos, nil
}

func (e *Engine) buildInfo(r store.BuildRecord) (BuildInfo, error) {
	b := BuildInfo{ID: r.ID, Name: r.Name, Status: r.Status, Started: r.Started, Finished: r.Finished}
	if b.Status == StatusRunning {
		lock, free, err := e.Store.TryLock(buildLock(b.ID))
		if err != nil {
			return b, err
		}
		if free {
			b.Status = statusKilled
			if err := lock.Unlock(); err != nil {
				return b, err
			}
		}
	}
	if len(r.Summary) > 0 {
		if err := json.Unmarshal(r.Summary, &b.Summary); err != nil {
			return b, fmt.Errorf("read build %s: %w", r.ID, err)
		}
	}
	return b, nil
}

// BuildSteps is one past build by its id or the beginning of it.
func (e *Engine) BuildSteps(ctx context.Context, id string) (BuildInfo, []StepRecord, error) {
	rec, err := e.Store.Build(ctx, id)
	if err != nil {
		return BuildInfo{}, nil, err
	}
	info, err := e.buildInfo(rec)
	if err != nil {
		return info, nil, err
	}
	steps, err := decodeSteps(rec)
	return info, steps, err
}

// StepLog is where a step's output is.
type StepLog struct{ Step, File string }

// BuildLogs finds the outputs of a build's steps, of those whose name contains
// match. ErrNotFound when a match was asked for and no step has it.
func (e *Engine) BuildLogs(ctx context.Context, id, match string) ([]StepLog, error) {
	info, steps, err := e.BuildSteps(ctx, id)
	if err != nil {
		return nil, err
	}
	var logs []StepLog
	found := match == ""
	for _, s := range steps {
		if !strings.Contains(s.Name, match) {
			continue
		}
		found = true
		file := filepath.Join(e.Store.BuildsDir(), info.ID, logName(digest.Digest(s.Vertex)))
		if _, err := os.Stat(file); err == nil {
			logs = append(logs, StepLog{Step: s.Name, File: file})
		}
	}
	if !found {
		err := errdef.New(errdef.ErrNotFound, "build %s has no step with %q in its name", info.ID, match)
		return nil, errdef.WithHint(err, "dhow builds show %s lists them", info.ID)
	}
	return logs, nil
}

// RemoveBuild forgets a build that has ended, and the outputs of its steps.
// ErrNotFound; ErrConflict while it runs.
func (e *Engine) RemoveBuild(ctx context.Context, id string) error {
	rec, err := e.Store.Build(ctx, id)
	if err != nil {
		return err
	}
	lock, free, err := e.Store.TryLock(buildLock(rec.ID))
	if err != nil {
		return err
	}
	if !free {
		return errdef.New(errdef.ErrConflict, "remove build %s: it runs", rec.ID)
	}
	defer lock.Unlock()
	if err := e.Store.RemoveBuild(ctx, rec.ID); err != nil {
		return err
	}
	return sys.RemoveAll(filepath.Join(e.Store.BuildsDir(), rec.ID))
}
