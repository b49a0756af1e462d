package solve

import (
	"context"
	"errors"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/snapshot"
	"dhow/internal/store"
)

// Local is the Cache in the store of this machine.
type Local struct {
	Store *store.Store
}

var _ Cache = Local{}

// Lookup implements Cache.
func (c Local) Lookup(ctx context.Context, key string) (Record, bool, error) {
	r, err := c.Store.CacheByKey(ctx, key)
	if errors.Is(err, errdef.ErrNotFound) {
		return Record{}, false, nil
	}
	if err != nil {
		return Record{}, false, err
	}
	rec := Record{Key: r.Key, Name: r.Name, Outputs: make([]Result, len(r.Outputs))}
	for i, text := range r.Outputs {
		if text == "" {
			rec.Outputs[i].Missing = true
			continue
		}
		if rec.Outputs[i].Chain, err = snapshot.ParseChain(text); err != nil {
			return Record{}, false, err
		}
	}
	return rec, true, nil
}

// Save implements Cache.
func (c Local) Save(ctx context.Context, rec Record, links ...string) error {
	now := time.Now()
	r := store.CacheRecord{Key: rec.Key, Name: rec.Name, Created: now, LastUsed: now, Outputs: make([]string, len(rec.Outputs))}
	for _, l := range links {
		if l != rec.Key {
			r.Links = append(r.Links, l)
		}
	}
	for i, out := range rec.Outputs {
		if !out.Missing {
			r.Outputs[i] = out.Chain.String()
		}
	}
	return c.Store.PutCache(ctx, r)
}

// Link implements Cache.
func (c Local) Link(ctx context.Context, link, key string) error {
	if link == key {
		return nil
	}
	return c.Store.LinkCache(ctx, link, key)
}

// Lock implements Cache.
func (c Local) Lock(ctx context.Context, name string, waiting func()) (func(), error) {
	l, ok, err := c.Store.TryLock(name)
	if err != nil {
		return nil, err
	}
	if !ok {
		waiting()
		if l, err = c.Store.Lock(ctx, name); err != nil {
			return nil, err
		}
	}
	return func() { _ = l.Unlock() }, nil // closing a lock file cannot lose anything
}
