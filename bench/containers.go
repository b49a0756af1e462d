package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// containerRows are those about containers that run. Every tool has its
// default network; bench is in a network namespace of its own.
func containerRows() []row {
	return append([]row{
		bridgeRow(), backgroundRow(), removeRow(), atOnceRow(), execRow(), probeRow(), memoryIdleRow(), listRow(), throughputRow(), requestRow(),
	}, logRows()...)
}

// names are those of n containers, "bench-1" and so on.
func containerNames(n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("bench-%d", i+1))
	}
	return list
}

// inBackground is the command line of one container in the background.
func (t *tool) inBackground(name string, flags ...string) string {
	args := append(append([]string{"run", "-d", "--name", name}, t.runFlags...), flags...)
	return quote(t.cli(append(args, "busybox", "sleep", "1000")...).args) + " > /dev/null"
}

// shell is a command of the tool's that is several.
func (t *tool) shell(line string) command {
	c := t.cli()
	c.args = []string{"sh", "-c", line}
	return c
}

// startAll starts containers one after the other.
func (t *tool) startAll(list []string, flags ...string) command {
	var lines []string
	for _, name := range list {
		lines = append(lines, t.inBackground(name, flags...))
	}
	return t.shell("set -e\n" + strings.Join(lines, "\n"))
}

// clear removes every container of the tool's, of this row or the one before.
func (t *tool) clear() error {
	_, err := t.shell("ids=$(" + quote(t.cli("ps", "-aq").args) + "); test -z \"$ids\" || " + quote(t.cli("rm", "-f").args) + " $ids > /dev/null").run()
	return err
}

// prepared is a job whose preparations are made once, in the warm-up.
func prepared(t *tool, round int, prepare command, j job) (job, bool) {
	if t.cli == nil {
		return job{}, false
	}
	if round == 0 {
		j.before = steps(t.base, t.clear, ignoreOutput(prepare))
	}
	return j, true
}

// steps does one thing after the other.
func steps(list ...func() error) func() error {
	return func() error {
		for _, f := range list {
			if err := f(); err != nil {
				return err
			}
		}
		return nil
	}
}

func bridgeRow() row {
	return row{
		name: "run --rm busybox true, bridge network", goal: "≤ 35 ms, ≥ 7× docker", rounds: 21,
		job: func(t *tool, round int) (job, bool) {
			if t.cli == nil {
				return job{}, false
			}
			return prepared(t, round, t.shell("true"), job{cmd: t.cli(append(append([]string{"run", "--rm"}, t.runFlags...), "busybox", "true")...)})
		},
	}
}

func backgroundRow() row {
	return row{
		name: "run -d, 20 times", goal: "≥ 5× docker", rounds: 5,
		job: func(t *tool, _ int) (job, bool) {
			if t.cli == nil {
				return job{}, false
			}
			return job{before: steps(t.base, t.clear), cmd: t.startAll(containerNames(20))}, true
		},
	}
}

func removeRow() row {
	return row{
		name: "rm -f of 20 running containers", goal: "≥ 5× docker", rounds: 5,
		job: func(t *tool, _ int) (job, bool) {
			if t.cli == nil {
				return job{}, false
			}
			list := containerNames(20)
			return job{before: steps(t.base, t.clear, ignoreOutput(t.startAll(list))), cmd: t.cli(append([]string{"rm", "-f"}, list...)...)}, true
		},
	}
}

func atOnceRow() row {
	return row{
		name: "64 run -d at once, until the last one runs", goal: "≥ 5× docker", rounds: 5,
		job: func(t *tool, _ int) (job, bool) {
			if t.cli == nil {
				return job{}, false
			}
			var lines []string
			for _, name := range containerNames(64) {
				lines = append(lines, t.inBackground(name)+" &")
			}
			line := strings.Join(lines, "\n") + "\nwait; test $(" + quote(t.cli("ps", "-q").args) + " | wc -l) = 64"
			return job{before: steps(t.base, t.clear), cmd: t.shell(line)}, true
		},
	}
}

func execRow() row {
	return row{
		name: "exec NAME true", goal: "≤ 15 ms", rounds: 21,
		job: func(t *tool, round int) (job, bool) {
			if t.cli == nil {
				return job{}, false
			}
			return prepared(t, round, t.startAll(containerNames(1)), job{cmd: t.cli("exec", "bench-1", "true")})
		},
	}
}

// probeRow takes what the machine does with 20 containers that nobody probes off
// what it does when they are, and divides by the probes.
func probeRow() row {
	const containers, window = 20, 10 * time.Second
	return row{
		name: "processor time of one health probe (CMD true)", goal: "≤ 4 ms", rounds: 3,
		job: func(t *tool, _ int) (job, bool) {
			if t.cli == nil || t.name == "podman" { // probes through timers of systemd
				return job{}, false
			}
			idle := steps(t.base, t.clear, ignoreOutput(t.startAll(containerNames(containers))))
			checked := steps(t.clear, ignoreOutput(t.startAll(containerNames(containers), "--health-cmd", "true", "--health-interval", "1s")))
			return job{measure: func() (sample, error) {
				if err := idle(); err != nil {
					return sample{}, err
				}
				base, err := busy(window)
				if err != nil {
					return sample{}, err
				}
				if err := checked(); err != nil {
					return sample{}, err
				}
				with, err := busy(window)
				return sample{wall: (with - base) / time.Duration(containers*int(window/time.Second))}, err
			}}, true
		},
	}
}

// busy is the time that processors were in use while nothing is started here.
func busy(window time.Duration) (time.Duration, error) {
	time.Sleep(2 * time.Second) // what starts is up
	before, err := processorTime()
	if err != nil {
		return 0, err
	}
	time.Sleep(window)
	after, err := processorTime()
	return after - before, err
}

// processorTime is how long the machine's processors have worked
// (proc_stat(5): user, nice, system, then idle and waiting, then interrupts).
func processorTime() (time.Duration, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	const tick = 10 * time.Millisecond
	f := strings.Fields(strings.SplitN(string(data), "\n", 2)[0])
	total := 0
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.Atoi(f[i])
		if err != nil {
			return 0, err
		}
		total += n
	}
	return time.Duration(total) * tick, nil
}

// memoryIdleRow adds up the proportional share of everything that is not the
// containers' own, for 20 containers that sleep.
func memoryIdleRow() row {
	const containers = 20
	return row{
		name: "memory for each of 20 idle containers", goal: "≤ 5 MB", rounds: 1, memory: true,
		job: func(t *tool, _ int) (job, bool) {
			if t.cli == nil {
				return job{}, false
			}
			return job{before: steps(t.base, t.clear, ignoreOutput(t.startAll(containerNames(containers)))), measure: func() (sample, error) {
				time.Sleep(5 * time.Second)
				var sum int64
				for _, pid := range t.keepers() {
					sum += proportional(pid)
				}
				return sample{peak: sum / containers}, nil
			}}, true
		},
	}
}

// proportional is a process's share of the memory that it has, in bytes.
func proportional(pid int) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0 // it has ended
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// processes are those whose command line has the text in it, and that were started
// with the directory in it or in their environment: others may use the same
// programs at the same time.
func processes(text, dir string) []int {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is good
	var pids []int
	for _, p := range paths {
		line, err := os.ReadFile(p)
		if err != nil || !strings.Contains(strings.ReplaceAll(string(line), "\x00", " "), text) {
			continue
		}
		env, err := os.ReadFile(filepath.Join(filepath.Dir(p), "environ"))
		if err != nil || !strings.Contains(string(line)+string(env), dir+"/") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

func listRow() row {
	return row{
		name: "ps -a with 500 stopped and 50 running containers", goal: "≤ 30 ms", rounds: 11,
		job: func(t *tool, round int) (job, bool) {
			if t.cli == nil {
				return job{}, false
			}
			var lines []string
			for i := range 500 {
				lines = append(lines, quote(t.cli(append(append([]string{"create", "--name", fmt.Sprintf("rest-%d", i)}, t.runFlags...), "busybox", "true")...).args)+" > /dev/null")
			}
			for _, name := range containerNames(50) {
				lines = append(lines, t.inBackground(name))
			}
			return prepared(t, round, t.shell("set -e\n"+strings.Join(lines, "\n")), job{cmd: t.cli("ps", "-a")})
		},
	}
}

// servedMB is the size of the large file in the two rows about published ports.
const servedMB = 512

// serve is a container that serves a large file and a small one over http.
func (t *tool) serve() command {
	script := fmt.Sprintf("mkdir /tmp/w; echo small > /tmp/w/small; dd if=/dev/zero of=/tmp/w/large bs=1M count=%d 2>/dev/null; exec httpd -f -p 80 -h /tmp/w", servedMB)
	args := append(append([]string{"run", "-d", "--name", "bench-1", "--tmpfs", "/tmp", "-p", t.port + ":80"}, t.runFlags...), "busybox", "sh", "-c", script)
	ready := "for i in $(seq 100); do wget -q -O /dev/null http://127.0.0.1:" + t.port + "/small && sleep 2 && exit; sleep 0.1; done; exit 1"
	return t.shell(quote(t.cli(args...).args) + " > /dev/null && { " + ready + "; }")
}

// served is a row that asks the container above for a file, n times.
func served(name, goal, file string, n int) row {
	return row{
		name: name, goal: goal, rounds: 7,
		job: func(t *tool, round int) (job, bool) {
			if t.cli == nil {
				return job{}, false
			}
			return prepared(t, round, t.serve(), job{per: n, measure: func() (sample, error) {
				start := time.Now()
				for range n {
					if err := fetch("http://127.0.0.1:" + t.port + "/" + file); err != nil {
						return sample{}, err
					}
				}
				return sample{wall: time.Since(start)}, nil
			}, after: t.clear})
		},
	}
}

// fetch reads a whole answer over a connection of its own.
func fetch(url string) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func throughputRow() row {
	return served(fmt.Sprintf("%d MB through a published port", servedMB), "≤ 1.1× docker's time", "large", 1)
}

func requestRow() row {
	return served("one small request through a published port", "≤ 1.1× docker's time", "small", 300)
}

// inOwnNetwork runs bench again in a network namespace of its own, where the
// daemons may make bridges and rules. It returns false in that namespace.
func inOwnNetwork(args []string) (bool, error) {
	const mark = "DHOW_BENCH_NETWORK"
	if os.Getenv(mark) != "" {
		return false, exec.Command("ip", "link", "set", "lo", "up").Run()
	}
	self, err := os.Executable()
	if err != nil {
		return true, err
	}
	cmd := exec.Command("unshare", append([]string{"--net", "--mount", self}, args...)...)
	cmd.Env = append(os.Environ(), mark+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return true, cmd.Run()
}
