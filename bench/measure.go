package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A sample is one run of one command.
type sample struct {
	wall time.Duration
	peak int64 // bytes of memory, of the largest process that took part
	sent int64 // bytes, see job.sent
}

// A job is what one tool does for one round of a row.
type job struct {
	before func() error // not timed
	cmd    command
	late   func() command // instead of cmd, for one that is to use the store that before makes
	minus  *command       // its time is taken off
	per    int            // the difference is divided by this; 0 means 1
	sent   func() int64   // a counter of bytes, that grows while the command runs; nil: nobody counts
	// measure, when not nil, takes the place of cmd.
	measure func() (sample, error)
	after   func() error // not timed, after the last round
}

// A row is one line of the table.
type row struct {
	name   string
	goal   string
	rounds int
	cold   bool // starts from an empty store every time: there is nothing to warm up
	memory bool // the figure is the peak, not the time
	sent   bool // the figure is what was sent, not the time
	floor  func(round int) command
	job    func(t *tool, round int) (job, bool)
}

// A result has the samples of a row by tool; "" is the floor.
type result struct {
	row     row
	order   []string
	samples map[string][]sample
	failed  map[string]error
}

// measure runs the row on every tool in turn, round by round; round 0 warms up. A peer that fails is reported and left out of the row.
func measure(r row, tools []*tool, rounds int) (result, error) {
	if rounds == 0 {
		rounds = r.rounds
	}
	res := result{row: r, samples: map[string][]sample{}, failed: map[string]error{}}
	for _, t := range tools {
		res.order = append(res.order, t.name)
	}
	first := 0
	if r.cold {
		first = 1
	}
	for round := first; round <= rounds; round++ {
		if r.floor != nil {
			s, err := r.floor(round).run()
			if err != nil {
				return res, fmt.Errorf("floor: %w", err)
			}
			if round > 0 {
				res.samples[""] = append(res.samples[""], s)
			}
		}
		for _, t := range tools {
			j, ok := r.job(t, round)
			if !ok || res.failed[t.name] != nil {
				continue
			}
			s, err := t.perform(j)
			if j.after != nil && (round == rounds || err != nil) {
				err = errors.Join(err, j.after())
			}
			if err != nil {
				res.failed[t.name] = err
				fmt.Fprintf(os.Stderr, "%s: %s: %v\n", r.name, t.name, err)
				continue
			}
			if round > 0 {
				res.samples[t.name] = append(res.samples[t.name], s)
			}
		}
	}
	return res, nil
}

// perform does a job and looks at the memory of the tool's daemons too.
func (t *tool) perform(j job) (sample, error) {
	if j.before != nil {
		if err := j.before(); err != nil {
			return sample{}, fmt.Errorf("prepare: %w", err)
		}
	}
	// What the tool before wrote shall not be written during this measurement.
	syscall.Sync()
	var daemons []int
	if t.daemons != nil {
		daemons = t.daemons()
	}
	for _, pid := range daemons {
		// "5" resets the peak resident set size (proc(5), clear_refs).
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	}
	if j.late != nil {
		j.cmd = j.late()
	}
	before := int64(0)
	if j.sent != nil {
		before = j.sent()
	}
	if j.measure != nil {
		s, err := j.measure()
		s.wall /= time.Duration(max(j.per, 1))
		return s, err
	}
	// A child's peak begins with that of the process that forked it.
	debug.FreeOSMemory()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
	s, err := j.cmd.run()
	if err != nil {
		return s, err
	}
	if j.sent != nil {
		s.sent = j.sent() - before
	}
	for _, pid := range daemons {
		s.peak = max(s.peak, peakOf(pid))
	}
	if j.minus != nil {
		m, err := j.minus.run()
		if err != nil {
			return s, err
		}
		s.wall -= m.wall
	}
	s.wall /= time.Duration(max(j.per, 1))
	return s, nil
}

// peakOf reads the peak resident set size of a running process, in bytes.
func peakOf(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// A command is a command line with what it needs around it.
type command struct {
	args []string
	env  []string // added to ours
	dir  string
}

// run starts the command, waits for it and tells what it took. Its output is
// only shown when it fails.
func (c command) run() (sample, error) {
	cmd := exec.Command(c.args[0], c.args[1:]...)
	cmd.Env = append(os.Environ(), c.env...)
	cmd.Dir = c.dir
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start)
	if err != nil {
		text := output.String()
		return sample{}, fmt.Errorf("%s: %w\n%s", strings.Join(c.args, " "), err, text[max(0, len(text)-2000):])
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return sample{}, errors.New("no resource usage from wait4")
	}
	return sample{wall: wall, peak: usage.Maxrss << 10}, nil
}

// median returns the middle one of the values that pick takes.
func median(samples []sample, pick func(sample) float64) float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = pick(s)
	}
	slices.Sort(values)
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}

// figure is what the table shows of a tool: milliseconds or megabytes.
func (r result) figure(tool string) (float64, bool) {
	s := r.samples[tool]
	if len(s) == 0 {
		return 0, false
	}
	if r.row.memory {
		return median(s, func(s sample) float64 { return float64(s.peak) / (1 << 20) }), true
	}
	if r.row.sent {
		return median(s, func(s sample) float64 { return float64(s.sent) / 1000 }), true
	}
	return median(s, func(s sample) float64 { return float64(s.wall) / float64(time.Millisecond) }), true
}
