// Package logs keeps what containers write, reads it back, and delivers it.
//
// Every line goes first to the local store: a directory of bounded, rotated,
// indexed files with one writer, the container's supervisor (Open). Anybody may
// read it at any time, without a lock and without the writer's knowledge (Read).
// A driver that ships lines elsewhere is a cursor over this store; package
// logs/driver has the seam and the packages below logs the drivers.
//
// It is not about terminals, colours or containers: names and options come in as
// strings, records go out.
//
// # The store
//
// A log is a directory with
//
//	store.json            what reading needs to know: Descriptor
//	lock                  held (flock) by the writer; free means that nobody writes
//	segments/<n>.json     entries of docker's json-file, or
//	segments/<n>.local    entries of the compact format
//	segments/<n>.….gz     the same, compressed: one gzip member a block
//	segments/<n>.….idx    where blocks begin, and the lines and times in them
//	segments/<n>.raw      lines of n.json that are no UTF-8, as they were
//	<stream>.begun        the beginning of a line that is not complete
//	losses                how many lines were never stored
//	ship/<driver>         how far a destination has come
//	ship/<driver>.parked  lines that it does not want
//	wanted                closed by a writer to be, for one who only ships (Ship)
//	<id>-json.log[.k]     docker's names of the json segments, as hard links
//
// Segments have ascending numbers; only the last one grows. A reader that has come
// to the end of one, and then sees the next, has read all of it.
//
// Invariant: a line that Write took is in a segment before Write returns, or is
// counted as lost. An entry is whole or is not there: what a crash tore is cut
// before the next one is written, and readers never take it for an entry.
package logs

import (
	"math"
	"slices"

	"dhow/internal/logs/driver"
)

// The vocabulary that callers share with the drivers.
type (
	Record = driver.Record
	Stream = driver.Stream
	Info   = driver.Info
)

// The streams of a container.
const (
	Stdout = driver.Stdout
	Stderr = driver.Stderr
)

// Driver is one destination of a container's output: a driver's name and its
// options (--log-opt).
type Driver struct {
	Name    string
	Options map[string]string
}

// Bounds of a log, unless options say otherwise: docker's for its driver local.
const (
	defaultMaxSize  = 20_000_000
	defaultMaxFiles = 5
)

// defaultMaxLine is how long a line may be, in bytes, unless options say otherwise:
// longer ones are several records (Partial).
const defaultMaxLine = 1 << 20

// shape is how the local store is kept, which follows from the drivers.
type shape struct {
	format   format // 0: nothing is kept
	maxSize  int64  // of a segment before the next one begins
	maxFiles int    // segments, the current one among them
	compress bool
	maxLine  int            // bytes of a line before it is cut
	hidden   bool           // lines are only kept to be shipped
	options  driver.Options // of the driver that is the store
}

// shapeOf decides the local store. The driver that is one decides; without one it
// is the compact form, as docker's dual logging has it.
func shapeOf(drivers []Driver) shape {
	s := shape{format: formatCompact, maxLine: defaultMaxLine}
	prefix := "cache-"
	if len(drivers) == 0 {
		s.format, prefix = formatJSON, ""
	} else {
		s.options = drivers[0].Options
	}
	for _, d := range slices.Backward(drivers) {
		s.maxLine = int(driver.Options(d.Options).Memory("max-line", int64(s.maxLine)))
		switch d.Name {
		case driverNone:
			return shape{}
		case driverJSONFile:
			s.format, s.options, prefix = formatJSON, d.Options, ""
		case driverLocal:
			s.options, prefix = d.Options, ""
		}
	}
	s.maxSize = s.options.Size(prefix+"max-size", defaultMaxSize)
	s.maxFiles = s.options.Int(prefix+"max-file", defaultMaxFiles)
	s.compress = s.maxFiles > 1 && s.maxSize != math.MaxInt64
	if s.options[prefix+"compress"] != "" {
		s.compress = s.options.Bool(prefix + "compress")
	}
	s.hidden = prefix != "" && s.options.Bool("cache-disabled")
	return s
}
