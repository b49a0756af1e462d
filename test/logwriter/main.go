// Command logwriter writes numbered lines at a steady rate, as the container of
// TestLogFaults: logwriter BYTES_PER_SECOND LINE_LENGTH DIRECTORY. Each line has its
// number as q000000001q. It keeps the file "state" in the directory up to date: the
// last number, then in microseconds how long one write took at most, and how much
// longer than asked for it slept at most, which says how busy the machine is. When
// somebody makes the file "reset" there the two start again, and for "bitter" the
// next line has that word in it.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "logwriter:", err)
		os.Exit(1)
	}
}

type writer struct {
	dir           string
	number        int
	stall, asleep time.Duration
}

func run(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("usage: logwriter BYTES_PER_SECOND LINE_LENGTH DIRECTORY")
	}
	rate, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	length, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	w := &writer{dir: args[3]}
	start, told := time.Now(), time.Now()
	for {
		select {
		case <-term:
			return w.tell()
		default:
		}
		if time.Since(told) > 100*time.Millisecond {
			told = time.Now()
			if err := w.tell(); err != nil {
				return err
			}
		}
		if ahead := time.Duration(float64(w.number*length)/float64(rate)*1e9) - time.Since(start); ahead > 0 {
			const nap = 2 * time.Millisecond
			before := time.Now()
			time.Sleep(nap)
			w.asleep = max(w.asleep, time.Since(before)-nap)
			continue
		}
		if err := w.line(length); err != nil {
			return err
		}
	}
}

func (w *writer) line(length int) error {
	w.number++
	text := fmt.Sprintf("q%09dq ", w.number)
	if w.asked("bitter") {
		text += "bitter "
	}
	text += strings.Repeat("x", max(length-len(text)-1, 0)) + "\n"
	before := time.Now()
	_, err := os.Stdout.WriteString(text)
	w.stall = max(w.stall, time.Since(before))
	return err
}

// asked takes the file if somebody made it. It looks seldom.
func (w *writer) asked(name string) bool {
	return w.number%64 == 0 && os.Remove(filepath.Join(w.dir, name)) == nil
}

func (w *writer) tell() error {
	if os.Remove(filepath.Join(w.dir, "reset")) == nil {
		w.stall, w.asleep = 0, 0
	}
	beside := filepath.Join(w.dir, ".state")
	text := fmt.Sprintf("%d %d %d\n", w.number, w.stall.Microseconds(), w.asleep.Microseconds())
	if err := os.WriteFile(beside, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(beside, filepath.Join(w.dir, "state"))
}
