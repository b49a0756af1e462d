package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dhow/internal/sys"
)

// progress is how far one destination has come: the file ship/<driver>. It is
// written after each batch, and read by anybody (Stat).
type progress struct {
	Segment      uint64 // the place from which on lines have not been shipped
	Offset       int64
	Lines, Bytes uint64 // of the log before that place

	Shipped, Dropped, Rejected count
	Through                    time.Time // time of the last line that was shipped
	Waiting                    time.Time // time of the first line that was not, if that is known

	Error   string    // of the last try, "" once one succeeds
	ErrorAt time.Time // when it failed
	Next    time.Time // when it will be tried again
	Parked  bool      // the destination does not want us; tried again seldom

	LastReject string // why the last line that it does not want was rejected
}

// count is lines and their bytes.
type count struct{ Lines, Bytes uint64 }

func (c *count) add(lines, bytes int) {
	c.Lines += uint64(lines)
	c.Bytes += uint64(bytes)
}

func (c *count) plus(o count) { c.Lines, c.Bytes = c.Lines+o.Lines, c.Bytes+o.Bytes }

// minus takes off what was added by mistake.
func (c *count) minus(o count) {
	c.Lines, c.Bytes = c.Lines-min(o.Lines, c.Lines), c.Bytes-min(o.Bytes, c.Bytes)
}

func (p *progress) place() place {
	return place{segment: p.Segment, offset: p.Offset, totals: totals{p.Lines, p.Bytes}}
}

func (p *progress) moveTo(to place) {
	p.Segment, p.Offset, p.Lines, p.Bytes = to.segment, to.offset, to.lines, to.bytes
}

const (
	shipDir      = "ship"
	longestError = 400
)

// openProgress opens the file of a destination; fresh says that it is new.
func openProgress(dir, name string) (f *sys.Slots, p progress, fresh bool, err error) {
	if err := os.MkdirAll(filepath.Join(dir, shipDir), 0o700); err != nil {
		return nil, p, false, err
	}
	if f, err = sys.OpenSlots(shipPath(dir, name), &p); err != nil {
		return nil, p, false, err
	}
	return f, p, f.Fresh(), nil
}

// keepIn writes the progress, with as much of the errors as there is room for.
func (p progress) keepIn(f *sys.Slots) error {
	for _, text := range []*string{&p.Error, &p.LastReject} {
		if len(*text) > longestError {
			*text = (*text)[:longestError] + "…"
		}
	}
	err := f.Write(p)
	if errors.Is(err, sys.ErrTooLong) {
		p.Error, p.LastReject = err.Error(), ""
		err = f.Write(p)
	}
	return err
}

// States of a destination.
const (
	stateOK       = "ok"
	stateRetrying = "retrying"
	stateParked   = "parked"
)

// Destination is how one destination of a log stands.
type Destination struct {
	Driver   string
	Shipped  count // lines and bytes that the destination has
	Waiting  count // that it does not have yet
	Dropped  count // that were rotated away before they could be shipped
	Rejected count // that the destination does not want
	// Lag is the age of the oldest line that waits.
	Lag   time.Duration
	State string // stateOK, stateRetrying or stateParked
	Error string // of the last try; "" when it succeeded
	// ErrorAt is when that failed, Next when it will be tried again.
	ErrorAt, Next time.Time
	// LastReject is why the last line in Rejected was rejected, and Parked the path
	// of a file with such lines; "" if there are none.
	LastReject, Parked string
}

// Statistics is how a log stands. Lines are counted since the container was
// created.
type Statistics struct {
	Lines, Bytes uint64        // stored
	Disk         int64         // bytes that the store takes
	Store        string        // the driver that is the store: json-file, local, or "" for none
	Lost         count         // could not be written
	Limited      count         // were more than option rate allows
	Error        string        `json:",omitempty"` // of the last write that failed; "" when it succeeded
	ErrorAt      time.Time     `json:",omitzero"`
	Destinations []Destination `json:",omitempty"`
}

// Stat looks at a log. It may be written at the same time.
func Stat(dir string, now time.Time) (Statistics, error) {
	var s Statistics
	end, err := endOf(dir)
	if err != nil {
		return s, fmt.Errorf("log statistics: %w", err)
	}
	s.Lines, s.Bytes = end.lines, end.bytes
	s.Disk = diskUse(dir)
	d, err := readDescriptor(dir)
	if err != nil {
		return s, fmt.Errorf("log statistics: %w", err)
	}
	s.Store = map[string]string{formatJSON.String(): driverJSONFile, formatCompact.String(): driverLocal}[d.Format]
	var l losses
	if err := sys.ReadSlots(filepath.Join(dir, lossesFile), &l); err != nil {
		return s, fmt.Errorf("log statistics: %w", err)
	}
	s.Lost, s.Limited, s.Error, s.ErrorAt = l.Lost, l.Limited, l.Error, l.ErrorAt
	names, err := destinations(dir)
	if err != nil {
		return s, fmt.Errorf("log statistics: %w", err)
	}
	for _, driver := range names {
		d, err := destination(dir, driver, end, now)
		if err != nil {
			return s, fmt.Errorf("log statistics: %w", err)
		}
		s.Destinations = append(s.Destinations, d)
	}
	return s, nil
}

// destinations returns the drivers that a log is shipped by, sorted.
func destinations(dir string) ([]string, error) {
	names, err := readNames(filepath.Join(dir, shipDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var list []string
	for _, name := range names {
		if driver, err := url.PathUnescape(name); err == nil && !strings.Contains(name, parkedSuffix) {
			list = append(list, driver)
		}
	}
	slices.Sort(list)
	return list, nil
}

// shipPath returns the file of a destination. Names of plugins may have slashes.
func shipPath(dir, driver string) string {
	return filepath.Join(dir, shipDir, url.PathEscape(driver))
}

const parkedSuffix = ".parked"

func destination(dir, driver string, end place, now time.Time) (Destination, error) {
	d := Destination{Driver: driver, State: stateOK}
	var p progress
	if err := sys.ReadSlots(shipPath(dir, driver), &p); err != nil {
		return d, err
	}
	d.Shipped, d.Dropped, d.Rejected = p.Shipped, p.Dropped, p.Rejected
	// What was rotated away meanwhile is dropped, though it is kept as that only when
	// the destination is there again.
	first, err := startOf(dir)
	if err != nil {
		return d, err
	}
	if first.lines > p.Lines {
		d.Dropped.Lines += first.lines - p.Lines
		d.Dropped.Bytes += first.bytes - min(p.Bytes, first.bytes)
		p.Lines, p.Bytes = first.lines, first.bytes
	}
	d.Waiting = count{end.lines - min(p.Lines, end.lines), end.bytes - min(p.Bytes, end.bytes)}
	if d.Waiting.Lines > 0 {
		since := p.Waiting
		if since.Before(p.Through) {
			since = p.Through
		}
		if !since.IsZero() {
			d.Lag = max(now.Sub(since), 0)
		}
	}
	d.LastReject = p.LastReject
	d.Error, d.ErrorAt, d.Next = p.Error, p.ErrorAt, p.Next
	switch {
	case p.Parked:
		d.State = stateParked
	case p.Error != "":
		d.State = stateRetrying
	}
	if _, err := os.Stat(shipPath(dir, driver) + parkedSuffix); err == nil {
		d.Parked = shipPath(dir, driver) + parkedSuffix
	}
	return d, nil
}

// startOf returns what a log had before what it has now.
func startOf(dir string) (totals, error) {
	all, err := segments(dir)
	if err != nil || len(all) == 0 {
		return totals{}, err
	}
	x := readIndex(all[0].indexPath(dir), maxOffset(dir, all[0]))
	return totals{x.lines, x.bytes}, nil
}

// endOf returns the place behind the last entry of a log.
func endOf(dir string) (place, error) {
	all, err := segments(dir)
	if err != nil || len(all) == 0 {
		return place{}, err
	}
	last := all[len(all)-1]
	sf, err := openSegment(dir, last.number, last.format)
	if err != nil {
		return place{}, err
	}
	defer sf.close()
	sf.chunk = shipSize
	if err := sf.seek(len(sf.idx.blocks)); err != nil {
		return place{}, err
	}
	var e entry
	for {
		ok, err := sf.next(&e)
		if err != nil || !ok {
			return place{last.number, sf.good, sf.count}, err
		}
	}
}

// diskUse adds up the files of a log's segments.
func diskUse(dir string) int64 {
	names, err := readNames(filepath.Join(dir, segmentsDir))
	if err != nil {
		return 0
	}
	var sum int64
	for _, name := range names {
		if st, err := os.Stat(filepath.Join(dir, segmentsDir, name)); err == nil {
			sum += st.Size()
		}
	}
	return sum
}
