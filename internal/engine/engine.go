// Package engine holds dhow's use cases: what a command does across packages.
// It owns no formats and prints nothing; callers give it requests and get data.
//
// Invariant: an Engine holds no state that is not in the store, so any number
// of processes may run engines on one root, and any of them may be killed.
package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"dhow/internal/image"
	"dhow/internal/registry"
	"dhow/internal/sandbox"
	"dhow/internal/snapshot"
	"dhow/internal/store"
)

// Options of an Engine.
type Options struct {
	Root     string // state directory; "" means DefaultRoot
	Registry registry.Options
}

// Engine is one process's way to the state directory. Safe for concurrent use.
type Engine struct {
	Store     *store.Store
	Snapshots *snapshot.Snapshots
	Images    *image.Images
	Registry  *registry.Client
}

// DefaultRoot is where state lives: $DHOW_ROOT, else /var/lib/dhow, or
// $XDG_DATA_HOME/dhow (~/.local/share/dhow) for an ordinary user.
func DefaultRoot(ordinary bool) (string, error) {
	if root := os.Getenv("DHOW_ROOT"); root != "" {
		return filepath.Abs(root)
	}
	return OwnRoot(ordinary)
}

// OwnRoot is DefaultRoot whatever $DHOW_ROOT says.
func OwnRoot(ordinary bool) (string, error) {
	if !ordinary {
		return "/var/lib/dhow", nil
	}
	if data := os.Getenv("XDG_DATA_HOME"); data != "" {
		return filepath.Join(data, "dhow"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the state directory: %w", err)
	}
	return filepath.Join(home, ".local/share/dhow"), nil
}

// FitsRoot reports whether the directory can be a state directory: it is one
// already, or empty, or not there.
func FitsRoot(dir string) (bool, error) { return store.Fits(dir) }

// Open opens the state directory, making it if needed, and clears away what
// processes that were killed have left. Close the Engine after use.
func Open(ctx context.Context, o Options) (*Engine, error) {
	s, err := store.Open(ctx, o.Root)
	if err != nil {
		return nil, err
	}
	for _, proc := range s.ReclaimedProcs() {
		if err := sandbox.ReclaimCgroups(proc); err != nil {
			return nil, fmt.Errorf("clear away cgroups of a killed process: %w", err)
		}
	}
	snaps := snapshot.New(s)
	reg := registry.New(o.Registry)
	return &Engine{Store: s, Snapshots: snaps, Registry: reg, Images: image.New(s, snaps, reg)}, nil
}

// Close ends the Engine's use of the state directory.
func (e *Engine) Close() error { return e.Store.Close() }
