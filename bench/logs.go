package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// logRows are those about what containers write.
func logRows() []row {
	return []row{
		logWriteRow(),
		readsLog("logs of those lines", "≥ 10× docker", 5, logMB, ""),
		readsLog("logs -n 10 of those lines", "≤ 20 ms", 5, logMB, "", "-n", "10"),
		readsLog("logs -n 10 of 5 GB", "≤ 20 ms", 5, 5000, longAgo, "-n", "10"),
		readsLog("logs --since 1m of 5 GB, of which ten lines are younger", "≤ 20 ms", 5, 5000, longAgo, "--since", "1m"),
		logProcessorRow(),
		logLatencyRow("p50", "≤ 5 ms", 50), logLatencyRow("p99", "≤ 20 ms", 99),
		logMemoryRow(),
	}
}

const (
	logMB   = 200
	longAgo = "; sleep 62; seq 10"
)

// logged runs a container that writes so many MB of lines of 100 bytes to its end.
func (t *tool) logged(mb int, then string) command {
	script := fmt.Sprintf("yes %s | head -c %d000000", strings.Repeat("x", 99), mb) + then
	flags := []string{"run", "-d", "--name", "bench-1", "--log-driver", "json-file", "--log-opt", "max-size=100g"}
	run := t.cli(append(append(flags, t.runFlags...), "busybox", "sh", "-c", script)...)
	return t.shell("set -e\n" + quote(run.args) + " > /dev/null\n" + quote(t.cli("wait", "bench-1").args) + " > /dev/null")
}

func logWriteRow() row {
	return row{
		name: fmt.Sprintf("%d MB of lines of 100 bytes to json-file, detached", logMB), goal: "≥ 5× docker", rounds: 3,
		job: func(t *tool, _ int) (job, bool) {
			if t.cli == nil {
				return job{}, false
			}
			return job{before: steps(t.base, t.clear), cmd: t.logged(logMB, "")}, true
		},
	}
}

// readsLog is a row that reads such a log.
func readsLog(name, goal string, rounds, mb int, then string, flags ...string) row {
	return row{
		name: name, goal: goal, rounds: rounds,
		job: func(t *tool, round int) (job, bool) {
			if t.cli == nil {
				return job{}, false
			}
			read := t.shell(quote(t.cli(append(append([]string{"logs"}, flags...), "bench-1")...).args) + " > /dev/null")
			return prepared(t, round, t.logged(mb, then), job{cmd: read, after: t.clear})
		},
	}
}

// logProcessorRow has a container write and then wait, and asks how long the
// processes that keep it have worked since.
func logProcessorRow() row {
	return row{
		name: "processor time of the pipeline for each GB", goal: "≤ 1/3 of docker's", rounds: 3,
		job: func(t *tool, _ int) (job, bool) {
			if t.cli == nil || t.keepers == nil {
				return job{}, false
			}
			script := fmt.Sprintf("read x < /w/in; yes %s | head -c 1000000000; echo done > /w/out; exec sleep 1000", strings.Repeat("x", 99))
			return job{measure: func() (sample, error) {
				dir, start, err := t.controlled(script, "--log-driver", "json-file", "--log-opt", "max-size=100g")
				if err != nil {
					return sample{}, err
				}
				defer os.RemoveAll(dir)
				if err := steps(t.base, t.clear, ignoreOutput(start))(); err != nil {
					return sample{}, err
				}
				before := t.worked()
				if len(before) == 0 {
					return sample{}, errors.New("nothing keeps the container")
				}
				if err := os.WriteFile(filepath.Join(dir, "in"), []byte("go\n"), 0); err != nil {
					return sample{}, err
				}
				if _, err := os.ReadFile(filepath.Join(dir, "out")); err != nil {
					return sample{}, err
				}
				time.Sleep(time.Second) // what is left in pipes
				var sum time.Duration
				for pid, after := range t.worked() {
					if was, ok := before[pid]; ok {
						sum += after - was
					}
				}
				return sample{wall: sum}, nil
			}, after: t.clear}, true
		},
	}
}

// controlled is a container that runs a script with a directory at /w, in which
// the FIFOs in and out are.
func (t *tool) controlled(script string, flags ...string) (dir string, start command, err error) {
	if dir, err = os.MkdirTemp("", "bench-log-"); err != nil {
		return "", start, err
	}
	for _, name := range []string{"in", "out"} {
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o666); err != nil {
			return "", start, err
		}
	}
	args := append(append([]string{"run", "-d", "--name", "bench-1", "-v", dir + ":/w"}, flags...), t.runFlags...)
	return dir, t.shell(quote(t.cli(append(args, "busybox", "sh", "-c", script)...).args) + " > /dev/null"), nil
}

// worked is the processor time that the tool's processes have taken: those that
// keep containers, and daemons.
func (t *tool) worked() map[int]time.Duration {
	pids := t.keepers()
	if t.daemons != nil {
		pids = append(pids, t.daemons()...)
	}
	const tick = 10 * time.Millisecond
	worked := map[int]time.Duration{}
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		f := strings.Fields(rest)
		var sum time.Duration
		for _, i := range []int{11, 12} { // utime, stime (proc_pid_stat(5))
			n, _ := strconv.Atoi(f[i])
			sum += time.Duration(n) * tick
		}
		worked[pid] = sum
	}
	return worked
}

// logLatencyRow passes lines with the time through a container to logs -f.
func logLatencyRow(name, goal string, percent int) row {
	const lines = 500
	return row{
		name: "from a write to logs -f, " + name, goal: goal, rounds: 3,
		job: func(t *tool, _ int) (job, bool) {
			if t.cli == nil {
				return job{}, false
			}
			return job{measure: func() (sample, error) {
				dir, start, err := t.controlled("exec cat /w/in")
				if err != nil {
					return sample{}, err
				}
				defer os.RemoveAll(dir)
				if err := steps(t.base, t.clear, ignoreOutput(start))(); err != nil {
					return sample{}, err
				}
				times, err := t.passes(filepath.Join(dir, "in"), lines)
				if err != nil {
					return sample{}, err
				}
				slices.Sort(times)
				return sample{wall: times[len(times)*percent/100]}, nil
			}, after: t.clear}, true
		},
	}
}

// passes measures each line from the FIFO to the output of logs -f.
func (t *tool) passes(fifo string, lines int) ([]time.Duration, error) {
	in, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	follow := t.cli("logs", "-f", "bench-1")
	cmd := exec.Command(follow.args[0], follow.args[1:]...)
	cmd.Env = append(os.Environ(), follow.env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	time.Sleep(time.Second) // until it follows
	read := bufio.NewReader(out)
	var times []time.Duration
	for range lines {
		before := time.Now()
		if _, err := fmt.Fprintln(in, before.UnixNano()); err != nil {
			return nil, err
		}
		if _, err := read.ReadString('\n'); err != nil {
			return nil, err
		}
		times = append(times, time.Since(before))
		time.Sleep(5 * time.Millisecond)
	}
	return times, nil
}

// logMemoryRow has three destinations, one of them down, and 2 MB of lines a second.
// It looks at it when the start is over.
func logMemoryRow() row {
	return row{
		name: "memory of a supervisor with three destinations, one of them down", goal: "≤ 16 MB", rounds: 1, memory: true,
		job: func(t *tool, _ int) (job, bool) {
			if t.name != "dhow" { // docker has one destination
				return job{}, false
			}
			return job{measure: func() (sample, error) {
				var addresses [3]string
				for i := range addresses {
					l, err := net.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						return sample{}, err
					}
					defer l.Close()
					addresses[i] = l.Addr().String()
					switch i {
					case 0:
						go swallow(l)
					case 1:
						go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							io.Copy(io.Discard, r.Body)
							w.WriteHeader(http.StatusNoContent)
						}))
					case 2:
						l.Close()
					}
				}
				script := fmt.Sprintf("while :; do yes %s | head -n 2000; sleep 0.1; done", strings.Repeat("x", 99))
				args := append([]string{"run", "-d", "--name", "bench-1"}, t.runFlags...)
				args = append(args, "--log-driver", "local", "--log-driver", "syslog", "--log-opt", "syslog.syslog-address=tcp://"+addresses[0],
					"--log-driver", "loki", "--log-opt", "loki.loki-url=http://"+addresses[1], "--log-driver", "gelf", "--log-opt", "gelf.gelf-address=tcp://"+addresses[2])
				run := t.shell(quote(t.cli(append(args, "busybox", "sh", "-c", script)...).args) + " > /dev/null")
				if err := steps(t.base, t.clear, ignoreOutput(run))(); err != nil {
					return sample{}, err
				}
				time.Sleep(5 * time.Second) // what a start needs is given back by then
				var peak int64
				for range 40 {
					time.Sleep(250 * time.Millisecond)
					for _, pid := range t.keepers() {
						peak = max(peak, proportional(pid))
					}
				}
				return sample{peak: peak}, nil
			}, after: t.clear}, true
		},
	}
}

// swallow reads connections and keeps nothing.
func swallow(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go io.Copy(io.Discard, c)
	}
}
