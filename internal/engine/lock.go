package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"dhow/internal/errdef"
	"dhow/internal/frontend"
	"dhow/internal/layer"
	"dhow/internal/llb"
	"dhow/internal/source"
)

// DefaultLockFile is where the lock of a build lies: beside its Dockerfile, by that
// one's name. ErrInvalid for a Dockerfile that is no file here.
func (r *BuildRequest) DefaultLockFile() (string, error) {
	switch {
	case r.Dockerfile == "-" || r.Context == "-" || remote(r.Context):
		return "", errdef.WithHint(errdef.New(errdef.ErrInvalid, "the Dockerfile is no file that a lock could lie beside"), "name the lock with --lock-file")
	case r.Dockerfile != "":
		return r.Dockerfile + ".lock", nil
	}
	return filepath.Join(r.Context, "Dockerfile.lock"), nil
}

// readLock reads a lock file; "" is none.
func readLock(name string) (*source.Lock, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdef.WithHint(errdef.New(errdef.ErrNotFound, "lock file %s: there is none", name), "make it with: dhow lock")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(layer.LimitReader(f, source.MaxLock, name))
	if err != nil {
		return nil, err
	}
	lock, err := source.ParseLock(raw)
	if err != nil {
		return nil, fmt.Errorf("lock file %s: %w", name, err)
	}
	return lock, nil
}

// Lock finds out what every source of the build stands for now: the base images,
// named contexts, URLs and git refs of the request's target, or of all stages when
// it names none. Nothing is built but what the frontend has to read.
func (e *Engine) Lock(ctx context.Context, r BuildRequest) (*source.Lock, error) {
	p, err := e.prepare(ctx, &r)
	if err != nil {
		return nil, err
	}
	defer p.cleanup()
	targets := []string{r.Target}
	if r.Target == "" {
		if targets, err = e.stages(ctx, &r, p); err != nil {
			return nil, err
		}
	}
	lock := source.NewLock()
	for _, target := range targets {
		if _, err := e.ask(ctx, &r, p, lock, map[string]string{"target": target}); err != nil {
			return nil, err
		}
	}
	return lock, nil
}

// ask runs the frontend with further attributes, off the record.
func (e *Engine) ask(ctx context.Context, r *BuildRequest, p *prepared, lock *source.Lock, attrs map[string]string) (*BuildResult, error) {
	one := *p
	one.attrs = maps.Clone(p.attrs)
	maps.Copy(one.attrs, attrs)
	j, err := r.job(&one)
	if err != nil {
		return nil, err
	}
	j.Lock, j.Unrecorded = lock, true
	return e.RunJob(ctx, j)
}

// stages are the targets that together need all stages: the last stage, which may
// have no name, and all that have one.
func (e *Engine) stages(ctx context.Context, r *BuildRequest, p *prepared) ([]string, error) {
	res, err := e.ask(ctx, r, p, nil, map[string]string{"requestid": "frontend.targets"})
	if err != nil {
		return nil, err
	}
	var list struct{ Targets []struct{ Name string } }
	if err := json.Unmarshal(res.Answer["result.json"], &list); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode the frontend's list of stages: %w", err)
	}
	out := []string{""}
	for _, t := range list.Targets {
		if t.Name != "" {
			out = append(out, t.Name)
		}
	}
	return out, nil
}

// pinSources fills the job's lock from the graphs that the frontend made.
func (b *building) pinSources(ctx context.Context, res *frontend.Result) error {
	seen := map[*llb.Vertex]bool{}
	var walk func(v *llb.Vertex) error
	walk = func(v *llb.Vertex) error {
		if seen[v] {
			return nil
		}
		seen[v] = true
		for _, in := range v.Inputs {
			if err := walk(in.Vertex); err != nil {
				return err
			}
		}
		return b.deps.Pin(ctx, v)
	}
	for _, t := range res.Targets {
		if t.Edge == nil {
			continue
		}
		if err := walk(t.Edge.Vertex); err != nil {
			return err
		}
	}
	return nil
}
