package cli

import (
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/snapshot"

	"github.com/docker/go-units"
)

// GCConfig is how buildkitd.toml and buildkitd's flags bound the build cache.
type GCConfig struct {
	GC       *bool     `toml:"gc"`
	Keep     diskSpace `toml:"gckeepstorage"` // older word for reservedSpace
	Reserved diskSpace `toml:"reservedSpace"`
	MaxUsed  diskSpace `toml:"maxUsedSpace"`
	MinFree  diskSpace `toml:"minFreeSpace"`
	Policy   []struct {
		All      bool      `toml:"all"`
		Filters  []string  `toml:"filters"`
		KeepFor  gcAge     `toml:"keepDuration"`
		Keep     diskSpace `toml:"keepBytes"` // older word for reservedSpace
		Reserved diskSpace `toml:"reservedSpace"`
		MaxUsed  diskSpace `toml:"maxUsedSpace"`
		MinFree  diskSpace `toml:"minFreeSpace"`
	} `toml:"gcpolicy"`
}

// diskSpace is bytes, or a part of the disk.
type diskSpace struct{ bytes, percent int64 }

// UnmarshalText reads "10GB", "20%" or a number of bytes.
func (d *diskSpace) UnmarshalText(text []byte) (err error) {
	s := strings.Trim(string(text), `"`)
	switch part, ok := strings.CutSuffix(s, "%"); {
	case s == "":
	case ok:
		if d.percent, err = strconv.ParseInt(part, 10, 64); err == nil && (d.percent < 0 || d.percent > 100) {
			err = strconv.ErrRange
		}
	default:
		d.bytes, err = units.RAMInBytes(s)
	}
	if err != nil {
		return errdef.New(errdef.ErrInvalid, "disk space %q: %w", s, err)
	}
	return nil
}

// of is the space in bytes on a disk of that size. A part of it is rounded up, to
// GB from GiB, as BuildKit does.
func (d diskSpace) of(total int64) int64 {
	if d.bytes != 0 || d.percent == 0 {
		return d.bytes
	}
	return (total/100*d.percent/(1<<30) + 1) * 1e9
}

// gcAge is a time for which things are kept.
type gcAge struct{ time.Duration }

// UnmarshalText reads "48h" or a number of seconds.
func (a *gcAge) UnmarshalText(text []byte) error {
	s := strings.Trim(string(text), `"`)
	if n, err := strconv.ParseInt(s, 10, 32); err == nil {
		a.Duration = time.Duration(n) * time.Second
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return errdef.New(errdef.ErrInvalid, "duration %q: %w", s, err)
	}
	a.Duration = d
	return nil
}

// setKeepStorage reads RESERVED[,FREE[,MAXIMUM]]; a bare number is MB.
func (c *GCConfig) setKeepStorage(text string) error {
	fields := []*diskSpace{&c.Reserved, &c.MinFree, &c.MaxUsed}
	parts := strings.Split(text, ",")
	if len(parts) > len(fields) {
		return errdef.New(errdef.ErrInvalid, "--oci-worker-gc-keepstorage %q: want RESERVED[,FREE[,MAXIMUM]]", text)
	}
	*fields[0], *fields[1], *fields[2] = diskSpace{}, diskSpace{}, diskSpace{}
	for i, part := range parts {
		if mb, err := strconv.ParseInt(part, 10, 32); err == nil {
			fields[i].bytes = mb * 1e6
		} else if err := fields[i].UnmarshalText([]byte(part)); err != nil {
			return errdef.New(errdef.ErrInvalid, "--oci-worker-gc-keepstorage %q: %w", text, err)
		}
	}
	return nil
}

// rules are what the configuration comes to on a disk of that size; none if
// garbage is not collected. Without a policy they are BuildKit's defaults.
func (c GCConfig) rules(total int64) (list []snapshot.Rule, err error) {
	if c.GC != nil && !*c.GC {
		return nil, nil
	}
	for _, p := range c.Policy {
		if p.Reserved == (diskSpace{}) {
			p.Reserved = p.Keep
		}
		list = append(list, snapshot.Rule{
			All: p.All, Filters: p.Filters, KeepFor: p.KeepFor.Duration,
			Reserved: p.Reserved.of(total), MaxUsed: p.MaxUsed.of(total), MinFree: p.MinFree.of(total),
		})
		if _, err := snapshot.Matching(nil, p.Filters); err != nil {
			return nil, err
		}
	}
	if len(list) > 0 {
		return list, nil
	}
	if c.unbounded() {
		c.Reserved = c.Keep
	}
	if c.unbounded() {
		c.Reserved, c.MaxUsed = diskSpace{bytes: min(diskSpace{percent: 10}.of(total), 10e9)}, diskSpace{bytes: min(diskSpace{percent: 80}.of(total), 100e9)}
		c.MinFree = diskSpace{percent: 20}
	}
	bounds := snapshot.Rule{Reserved: c.Reserved.of(total), MaxUsed: c.MaxUsed.of(total), MinFree: c.MinFree.of(total)}
	old, last := bounds, bounds
	old.KeepFor, last.All = 60*24*time.Hour, true
	return []snapshot.Rule{
		{ // what is easily made again
			Filters: []string{"type==source.local", "type==exec.cachemount", "type==source.git.checkout"},
			KeepFor: 48 * time.Hour, MaxUsed: 512e6,
		},
		old, bounds, last,
	}, nil
}

func (c GCConfig) unbounded() bool {
	return c.Reserved == diskSpace{} && c.MaxUsed == diskSpace{} && c.MinFree == diskSpace{}
}
