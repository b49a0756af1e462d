package lifecycle

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/supervise"

	dockertypes "github.com/moby/moby/api/types/container"
)

// PruneFilter chooses what a prune removes: docker's until, label and label!.
type PruneFilter struct {
	Before      time.Time // made before then; zero is any time
	Labels, Not []string  // KEY or KEY=VALUE, which it has all, and none of
}

// ParsePruneFilter reads values of --filter. ErrInvalid.
func ParsePruneFilter(values map[string][]string, now time.Time) (PruneFilter, error) {
	var f PruneFilter
	for key, list := range values {
		switch key {
		case "label":
			f.Labels = list
		case "label!":
			f.Not = list
		case "until":
			if len(list) > 1 {
				return f, errdef.New(errdef.ErrInvalid, "more than one until filter specified")
			}
			t, err := ParseTime(list[0], now)
			if err != nil {
				return f, err
			}
			f.Before = t
		default:
			return f, errdef.WithHint(errdef.New(errdef.ErrInvalid, "invalid filter '%s'", key), "use until, label or label!")
		}
	}
	return f, nil
}

// Takes says whether something of that age and with those labels is chosen.
func (f PruneFilter) Takes(created time.Time, labels map[string]string) bool {
	if !f.Before.IsZero() && !created.Before(f.Before) {
		return false
	}
	return container.MatchLabels(f.Labels, labels) && !slices.ContainsFunc(f.Not, func(l string) bool { return container.MatchLabels([]string{l}, labels) })
}

// ParseTime reads docker's forms of a time: a duration before now ("10m"),
// seconds since 1970, RFC 3339 and its parts. ErrInvalid.
func ParseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if sec, nano, ok := unixTime(s); ok {
		return time.Unix(sec, nano), nil
	}
	for _, layout := range []string{
		time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02",
	} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "%q is no time", s), "write 10m, 2026-01-02T15:04:05Z or seconds since 1970")
}

// unixTime reads "1136073600.000000001".
func unixTime(s string) (sec, nano int64, ok bool) {
	whole, part, dotted := strings.Cut(s, ".")
	sec, ok = digits(whole)
	if !ok || !dotted {
		return sec, 0, ok
	}
	const most = 9
	nano, ok = digits((part + strings.Repeat("0", most))[:most])
	return sec, nano, ok && len(part) <= most
}

func digits(s string) (n int64, ok bool) {
	const most = 18
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int64(c-'0')
	}
	return n, s != "" && len(s) <= most
}

// Prune removes the containers that do not run and that the filter takes. It
// returns their ids and how many bytes they had.
func (cs *Containers) Prune(ctx context.Context, f PruneFilter) (ids []string, freed int64, err error) {
	list, err := cs.List(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, c := range list {
		if c.State.Active() || c.State.Status == dockertypes.StateRemoving || !f.Takes(c.Created, c.Config.Labels) {
			continue
		}
		size, serr := diskUsage(c.Dir + "/fs")
		if errors.Is(serr, errdef.ErrNotFound) {
			serr = nil
		}
		rerr := cs.Remove(ctx, c.ID, supervise.RemoveOptions{})
		if errors.Is(rerr, errdef.ErrNotFound) || errors.Is(rerr, errdef.ErrConflict) {
			continue // removed or started meanwhile
		}
		if err = errors.Join(err, serr, rerr); rerr == nil {
			ids, freed = append(ids, c.ID), freed+size
		}
	}
	return ids, freed, err
}
