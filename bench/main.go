// Command bench times dhow beside every other container tool it finds, on the
// same work in turn, and writes bench/RESULTS.md. It is run by hand (make
// bench) on a machine that does nothing else; it takes some minutes and 40 GB
// of disk, and leaves nothing behind.
//
// Every row is measured A B A B after a warm-up, so that a machine that slows
// down slows everybody, and reports medians. Each row has a floor: what the
// plain tools of the system need for the part of the work that nobody can skip.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	rows   *regexp.Regexp
	tools  *regexp.Regexp
	rounds int
	out    string
	work   string
	dhow   string
	peers  string
}

func parse(args []string) (options, error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	rows := flags.String("rows", ".", "`pattern` of the rows to measure")
	tools := flags.String("tools", ".", "`pattern` of the tools to measure")
	rounds := flags.Int("rounds", 0, "`number` of measurements, 0: what the row asks for")
	out := flags.String("o", "bench/RESULTS.md", "`file` for the table, - for standard output")
	work := flags.String("work", "", "`directory` for fixtures and stores (default: a new one below $TMPDIR)")
	dhow := flags.String("dhow", "bin/dhow", "`program` to measure")
	peers := flags.String("peers", "", "`directory` of further programs, looked at before $PATH")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	o := options{rounds: *rounds, out: *out, work: *work, peers: *peers}
	var err error
	if o.rows, err = regexp.Compile(*rows); err != nil {
		return o, err
	}
	if o.tools, err = regexp.Compile(*tools); err != nil {
		return o, err
	}
	o.dhow, err = filepath.Abs(*dhow)
	return o, err
}

func run(args []string) error {
	if again, err := inOwnNetwork(args); again || err != nil {
		return err
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.work == "" {
		if o.work, err = os.MkdirTemp("", "dhow-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(o.work)
	}
	if o.peers != "" {
		if err := os.Setenv("PATH", o.peers+":"+os.Getenv("PATH")); err != nil {
			return err
		}
	}
	fix, err := newFixtures(o.work)
	if err != nil {
		return fmt.Errorf("make the fixtures: %w", err)
	}
	defer fix.close()
	all := findTools(o, fix)
	stop := func() {
		for _, t := range all {
			t.stop()
		}
	}
	defer stop()
	go stopWhenInterrupted(stop)
	measured := slices.DeleteFunc(slices.Clone(all), func(t *tool) bool { return !o.tools.MatchString(t.name) })
	var results []result
	for _, r := range rows(fix) {
		if !o.rows.MatchString(r.name) {
			continue
		}
		res, err := measure(r, measured, o.rounds)
		if err != nil {
			return fmt.Errorf("row %q: %w", r.name, err)
		}
		fmt.Fprintln(os.Stderr, res.line())
		results = append(results, res)
	}
	return write(o.out, report(measured, results, time.Now()))
}

// stopWhenInterrupted ends the daemons and the program on SIGINT or SIGTERM;
// fixtures and stores stay, as after any other failure of the machine.
func stopWhenInterrupted(stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	<-signals
	stop()
	os.Exit(130)
}

// write puts the table into the file, or on standard output for "-".
func write(name, text string) error {
	if name == "-" {
		_, err := os.Stdout.WriteString(text)
		return err
	}
	return os.WriteFile(name, []byte(text), 0o644)
}
