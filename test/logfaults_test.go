package test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"dhow/internal/testkit"
)

// How long each fault lasts. DHOW_LOG_FAULTS=10m has destinations down for ten
// minutes under 2 MB/s, which is the run whose table is in docs/log-faults.md; the
// other one is for every day.
type faultTimes struct {
	each, hung, down time.Duration
	slow             bool // with what takes the pauses of a parked destination
	rate             int
}

const (
	faultLine  = 2000  // bytes of a line
	faultFile  = "40m" // of the store, which has five: 100 seconds
	faultBatch = 1000  // lines of a batch at most, but for awslogs
	faultPipe  = 400   // lines, which are more than a container's pipe holds
	faultStall = 50 * time.Millisecond
)

// TestLogFaults has a container write numbered lines to every remote driver at
// once, and a second one by other protocols of some of them, while their destinations are absent, killed, hung, cut in the middle of
// batches, busy, refusing, with a wrong certificate, and down. In the end each
// destination has every line, and none more often than the faults explain. It
// runs in a mount namespace of its own, for the sockets that have fixed places.
func TestLogFaults(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs a mount namespace with /run of its own")
	}
	if os.Getenv("DHOW_LOG_FAULTS_INSIDE") == "" {
		inside(t)
		return
	}
	times := faultTimes{each: 1500 * time.Millisecond, hung: 2 * time.Second, down: 3 * time.Second, rate: 400_000}
	if s := os.Getenv("DHOW_LOG_FAULTS"); s != "" {
		down, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal("DHOW_LOG_FAULTS: ", err)
		}
		times = faultTimes{each: 5 * time.Second, hung: 35 * time.Second, down: down, rate: 2_000_000, slow: true}
	}
	f := newLogFaults(t, times)
	f.start()
	f.faults()
	f.end()
}

// inside runs the test again where /run is its own.
func inside(t *testing.T) {
	script := "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal /run/docker/plugins && exec \"$0\" \"$@\""
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", script, self, "-test.run=^TestLogFaults$", "-test.v", "-test.timeout=60m")
	cmd.Env = append(os.Environ(), "DHOW_LOG_FAULTS_INSIDE=1", "DHOW_BIN="+shared.bin, "DHOW_BASEIMAGES="+shared.images)
	if testing.Verbose() {
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		if err := cmd.Run(); err != nil {
			t.Error(err)
		}
		return
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// logFaults is the run.
type logFaults struct {
	t       *testing.T
	times   faultTimes
	dir     string
	env     []string
	sinks   []*sink
	journal *journal
	rows    []faultRow
}

// faultRow is what one fault did.
type faultRow struct {
	name        string
	took, catch time.Duration
	stall, nap  time.Duration
	again       map[string]int
	missing     int
}

func newLogFaults(t *testing.T, times faultTimes) *logFaults {
	t.Helper()
	f := &logFaults{t: t, times: times, dir: t.TempDir()}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip(err)
	}
	f.check(goTool("build", "-o", filepath.Join(f.dir, "logwriter"), "./test/logwriter"))
	url, err := tokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.env = append(os.Environ(), "DHOW_ROOT="+filepath.Join(f.dir, "root"), "AWS_ACCESS_KEY_ID=AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY=secret",
		"GOOGLE_APPLICATION_CREDENTIALS="+f.serviceAccount(url), "GCE_METADATA_HOST=")
	f.makeSinks()
	return f
}

func (f *logFaults) makeSinks() {
	ca := filepath.Join(f.dir, "ca.pem")
	certs := f.certificates(ca)
	web := func(s *sink) { s.web = true }
	for _, s := range []struct {
		name, network string
		tls           bool
		serve         func(*sink)
		options       func(address string) map[string]string
	}{
		{"awslogs", "tcp", false, func(s *sink) { web(s); s.serveWeb("{}") }, func(a string) map[string]string {
			return map[string]string{"awslogs-endpoint": "http://" + a, "awslogs-region": "r", "awslogs-group": "g", "awslogs-create-stream": "false"}
		}},
		{"fluentd", "tcp", false, (*sink).serveForward, func(a string) map[string]string {
			return map[string]string{"fluentd-address": a, "fluentd-request-ack": "true"}
		}},
		{"gcplogs", "tcp", false, func(s *sink) { web(s); s.serveWeb("{}") }, func(a string) map[string]string {
			return map[string]string{"gcp-endpoint": "http://" + a, "gcp-project": "p"}
		}},
		{"gelf", "tcp", false, (*sink).serveStream, func(a string) map[string]string { return map[string]string{"gelf-address": "tcp://" + a} }},
		{"journald", "", false, nil, func(string) map[string]string { return nil }},
		{"loki", "tcp", false, func(s *sink) { web(s); s.serveWeb("") }, func(a string) map[string]string { return map[string]string{"loki-url": "http://" + a} }},
		{"otlp", "tcp", false, (*sink).serveGRPC, func(a string) map[string]string {
			return map[string]string{"otlp-endpoint": "http://" + a, "otlp-protocol": "grpc"}
		}},
		{"splunk", "tcp", true, func(s *sink) { web(s); s.serveWeb(`{"text":"Success","code":0}`) }, func(a string) map[string]string {
			return map[string]string{"splunk-url": "https://" + a, "splunk-token": "t", "splunk-capath": ca}
		}},
		{"syslog", "tcp", true, (*sink).serveStream, func(a string) map[string]string {
			return map[string]string{"syslog-address": "tcp+tls://" + a, "syslog-tls-ca-cert": ca}
		}},
		{"faultplugin", "unix", false, (*sink).servePlugin, func(string) map[string]string { return nil }},
		// The other ways of some of them, for a second container.
		{"fluentd without acks", "tcp", false, (*sink).serveStream, func(a string) map[string]string { return map[string]string{"fluentd-address": a} }},
		{"gelf udp", "udp", false, nil, func(a string) map[string]string {
			return map[string]string{"gelf-address": "udp://" + a, "gelf-compression-type": "none"}
		}},
		{"otlp http", "tcp", false, func(s *sink) { web(s); s.serveWeb("") }, func(a string) map[string]string { return map[string]string{"otlp-endpoint": "http://" + a} }},
		{"syslog udp", "udp", false, nil, func(a string) map[string]string { return map[string]string{"syslog-address": "udp://" + a} }},
	} {
		driver, other, _ := strings.Cut(s.name, " ")
		one := &sink{name: s.name, driver: driver, of: "all"}
		if other != "" {
			one.of = "more"
		}
		f.sinks = append(f.sinks, one)
		if s.network == "udp" {
			var err error
			if one.packets, err = newPackets(one); err != nil {
				f.t.Fatal(err)
			}
			f.t.Cleanup(one.packets.shut)
			one.options = s.options(one.packets.address)
			continue
		}
		if s.network == "" {
			f.journal = &journal{sink: one, path: "/run/systemd/journal/socket"}
			continue
		}
		var err error
		if one.door, err = newDoor(s.network, map[string]string{"tcp": "127.0.0.1:0", "unix": "/run/docker/plugins/faultplugin.sock"}[s.network]); err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(func() { one.door.Close() })
		if s.tls {
			one.certs = certs
		}
		one.options = s.options(one.door.address)
		s.serve(one)
	}
	// A plugin has to be there when the container is made.
	f.t.Cleanup(func() { f.journal.shut() })
}

// start starts a container with all destinations and one with none, whose stalls
// are compared.
func (f *logFaults) start() {
	f.must("load", "-q", "-i", filepath.Join(shared.images, "busybox.tar"))
	flags := map[string][]string{}
	for _, s := range f.sinks {
		flags[s.of] = append(flags[s.of], "--log-driver", s.driver)
		for k, v := range s.options {
			flags[s.of] = append(flags[s.of], "--log-opt", s.driver+"."+k+"="+v)
		}
		if s.driver == "faultplugin" {
			f.check(s.door.open(passing))
			defer s.door.shut()
		}
	}
	f.t.Cleanup(func() { _, _ = f.dhow("rm", "-f", "-v", "all", "more", "alone") })
	for _, name := range []string{"all", "more"} {
		f.run(name, append(flags[name], "--log-driver", "local", "--log-opt", "local.max-size="+faultFile, "--log-opt", "local.max-file=5")...)
	}
	f.run("alone", "--log-driver", "local")
}

func (f *logFaults) run(name string, flags ...string) {
	f.t.Helper()
	f.check(os.MkdirAll(filepath.Join(f.dir, name), 0o777))
	args := append([]string{"run", "-d", "--name", name, "--network", "none", "-v", f.dir + "/logwriter:/logwriter:ro", "-v", filepath.Join(f.dir, name) + ":/ctl"}, flags...)
	f.must(append(args, "busybox", "/logwriter", strconv.Itoa(f.times.rate), strconv.Itoa(faultLine), "/ctl")...)
}

// faults is the list.
func (f *logFaults) faults() {
	f.fault("absent at the start", f.times.each, func() {}, f.shutAll)
	f.fault("down", f.times.down, f.shutAll, nil)
	f.fault("killed and started again", f.times.each, f.shutAll, nil)
	f.fault("cut in the middle of batches", f.times.each, func() { f.openAll(cutting) }, nil)
	f.fault("hung", f.times.hung, func() { f.openAll(hanging) }, f.shutAll)
	f.fault("429 with Retry-After: 1", f.times.each, func() { f.answerWith(http.StatusTooManyRequests) }, nil)
	f.bitter()
	if f.times.slow {
		f.fault("401", f.times.each, func() { f.answerWith(http.StatusUnauthorized) }, func() { f.parked("splunk", "loki", "awslogs", "gcplogs") })
		f.fault("a wrong certificate", f.times.each, func() {
			f.shutAll()
			for _, s := range f.sinks {
				if s.certs != nil {
					s.certs.show(true)
				}
			}
			f.openAll(passing)
		}, func() { f.parked("splunk", "syslog") })
	}
	f.fault("supervisor killed", 0, f.killSupervisor, nil)
}

// fault lets something be wrong for a while, heals everything, and waits until the
// destinations have what was written by then.
func (f *logFaults) fault(name string, d time.Duration, begin, end func()) {
	f.t.Helper()
	f.reset()
	row := faultRow{name: name, again: map[string]int{}}
	before := map[string]int{}
	for _, s := range f.sinks {
		before[s.name] = s.duplicates()
	}
	started := time.Now()
	begin()
	f.goesOn()
	time.Sleep(d - time.Since(started))
	if end != nil {
		end()
	}
	row.took = time.Since(started)
	f.heal()
	n := f.numbers()
	healed := time.Now()
	f.caughtUp(n)
	row.catch = time.Since(healed)
	for _, s := range f.sinks {
		row.again[s.name] = s.duplicates() - before[s.name]
		if s.packets == nil {
			row.missing += max(s.missing(n[s.of])-f.excused(s), 0)
		}
	}
	row.stall, row.nap = f.stall()
	f.rows = append(f.rows, row)
	f.t.Logf("%s: %+v", name, row)
}

// goesOn waits until the container has written more than is on its way to the
// store: where a write waited for a destination it would not.
func (f *logFaults) goesOn() {
	f.t.Helper()
	enough := f.state("all").number + faultPipe
	testkit.Until(f.t, "the container to write on", func() bool { return f.state("all").number >= enough })
}

// heal makes everything right.
func (f *logFaults) heal() {
	for _, s := range f.sinks {
		s.status.Store(0)
		if s.certs != nil {
			s.certs.show(false)
		}
	}
	f.openAll(passing)
}

func (f *logFaults) openAll(mode doorMode) {
	for _, s := range f.sinks {
		if s.door != nil {
			f.check(s.door.open(mode))
		}
		if s.packets != nil {
			f.check(s.packets.open(mode))
		}
	}
	f.check(f.journal.open())
	f.journal.hang.Store(mode == hanging)
}

func (f *logFaults) shutAll() {
	for _, s := range f.sinks {
		if s.door != nil {
			s.door.shut()
		}
		if s.packets != nil {
			s.packets.shut()
		}
		if s.stop != nil {
			s.stop()
		}
	}
	f.journal.shut()
}

func (f *logFaults) answerWith(code int32) {
	for _, s := range f.sinks {
		if s.web {
			s.status.Store(code)
		}
	}
}

// bitter has one line that no HTTP server wants, which must be set aside alone.
func (f *logFaults) bitter() {
	for _, name := range []string{"all", "more"} {
		f.check(os.WriteFile(filepath.Join(f.dir, name, "bitter"), nil, 0o666))
	}
	f.fault("400 for one line", f.times.each, func() {}, nil)
}

// parked checks that destinations are shown as such.
func (f *logFaults) parked(drivers ...string) {
	out := f.must("logs", "stat", "--format", "{{.Driver}} {{.State}}", "all")
	for _, d := range drivers {
		if !strings.Contains(out, d+" parked") {
			f.t.Errorf("%s is not parked: %s", d, out)
		}
	}
}

func (f *logFaults) killSupervisor() {
	for _, name := range []string{"all", "more"} {
		pid, err := strconv.Atoi(f.must("inspect", "--format", "{{.Dhow.SupervisorPid}}", name))
		f.check(err)
		f.check(syscall.Kill(pid, syscall.SIGKILL))
		testkit.Until(f.t, "the end of the supervisor", func() bool { return syscall.Kill(pid, 0) != nil })
	}
	f.must("ps") // any command starts others
	f.reset()    // until then nobody reads
}

// numbers is how many lines each container has written.
func (f *logFaults) numbers() map[string]int {
	return map[string]int{"all": f.state("all").number, "more": f.state("more").number}
}

// caughtUp waits until all destinations have the lines up to n of their container, but
// for what each rejected. Of those over UDP it is known only that all were sent.
func (f *logFaults) caughtUp(n map[string]int) {
	f.t.Helper()
	patience := 3*time.Minute + f.times.down
	last := ""
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		behind := ""
		for _, s := range f.sinks {
			m := s.missing(n[s.of])
			if m > 0 && s.packets != nil {
				m = n[s.of] - f.sent(s)
			}
			if m > 0 && m > f.excused(s) {
				behind += fmt.Sprintf(" %s %d", s.name, m)
			}
		}
		if behind == "" {
			f.t.Log("last:", last)
			return
		}
		last = behind
		if time.Now().After(end) {
			out, _ := f.dhow("logs", "stat", "all", "more")
			f.t.Fatalf("of %v lines are missing:%s\n%s\n%s", n, behind, out, f.complaints())
		}
	}
}

// complaints is what the supervisors said of themselves.
func (f *logFaults) complaints() string {
	var b strings.Builder
	files, err := filepath.Glob(filepath.Join(f.dir, "root/containers/*/supervisor.log"))
	f.check(err)
	for _, path := range files {
		text, err := os.ReadFile(path)
		f.check(err)
		fmt.Fprintf(&b, "%s:\n%s\n", path, text)
	}
	return b.String()
}

// excused is how many lines a destination may lack: what it rejected, and what the
// store could not keep for it, which is counted.
func (f *logFaults) excused(s *sink) int {
	n := f.rejected(s)
	if !f.times.slow {
		return n
	}
	return n + f.counted(s, "DroppedLines")
}

// sent is how many lines dhow counts as delivered, or dropped before that.
func (f *logFaults) sent(s *sink) int {
	return f.counted(s, "ShippedLines") + f.counted(s, "DroppedLines")
}

// counted is one of the numbers of dhow logs stat.
func (f *logFaults) counted(s *sink, what string) int {
	f.t.Helper()
	out := f.must("logs", "stat", "--format", "{{.Driver}} {{."+what+"}}", s.of)
	for line := range strings.Lines(out) {
		if driver, count, _ := strings.Cut(strings.TrimSpace(line), " "); driver == s.driver {
			n, err := strconv.Atoi(count)
			f.check(err)
			return n
		}
	}
	f.t.Fatalf("%s is not in %s", s.name, out)
	return 0
}

// rejected is how many lines the destination did not want: the bitter one.
func (f *logFaults) rejected(s *sink) int {
	if _, err := os.Stat(filepath.Join(f.dir, s.of, "bitter")); s.web && err != nil && f.tasted() {
		return 1
	}
	return 0
}

func (f *logFaults) tasted() bool {
	for _, r := range f.rows {
		if strings.HasPrefix(r.name, "429") {
			return true
		}
	}
	return false
}

// writerState is what the writer says of itself.
type writerState struct {
	number     int
	stall, nap time.Duration
}

func (f *logFaults) state(name string) writerState {
	f.t.Helper()
	data, err := os.ReadFile(filepath.Join(f.dir, name, "state"))
	for end := time.Now().Add(testkit.Patience); err != nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		data, err = os.ReadFile(filepath.Join(f.dir, name, "state"))
	}
	f.check(err)
	var s writerState
	var stall, nap int
	_, err = fmt.Sscan(string(data), &s.number, &stall, &nap)
	f.check(err)
	s.stall, s.nap = time.Duration(stall)*time.Microsecond, time.Duration(nap)*time.Microsecond
	return s
}

// reset has the writer measure from now on.
func (f *logFaults) reset() {
	for _, name := range []string{"all", "more", "alone"} {
		path := filepath.Join(f.dir, name, "reset")
		f.check(os.WriteFile(path, nil, 0o666))
		for end := time.Now().Add(testkit.Patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(path); err != nil {
				break
			}
		}
	}
}

// stall returns the longest write since reset, and what the machine alone explains:
// the longest write of the container without destinations, or sleep of either.
func (f *logFaults) stall() (stall, nap time.Duration) {
	all, more, alone := f.state("all"), f.state("more"), f.state("alone")
	return max(all.stall, more.stall), max(all.nap, more.nap, alone.nap, alone.stall)
}

// end stops the containers while everything is hung, ships the rest, and sums up.
func (f *logFaults) end() {
	memory := f.memory()
	f.openAll(hanging)
	f.goesOn()
	before := time.Now()
	f.must("stop", "-t", "60", "all")
	hung := time.Since(before)
	f.must("stop", "more")
	before = time.Now()
	f.must("stop", "alone")
	alone := time.Since(before)
	n := f.numbers()
	f.shutAll()
	f.heal()
	f.must("logs", "ship", "--timeout", "5m", "all", "more")
	f.caughtUp(n)
	lost := 0
	for _, s := range f.sinks {
		if s.packets != nil {
			f.t.Logf("%s: of %d lines %d were sent or counted as dropped, %d came", s.name, n[s.of], f.sent(s), n[s.of]-s.missing(n[s.of]))
			if sent := f.sent(s); sent != n[s.of] {
				f.t.Errorf("%s: %d lines were sent or dropped of %d", s.name, sent, n[s.of])
			}
			continue
		}
		// What is missing beyond what was counted is lost. What came although it was
		// counted as dropped was on the way when a destination that does not answer
		// went down, to be sent again, and had been rotated away by then.
		missing, counted := s.missing(n[s.of]), f.excused(s)
		lost += max(missing-counted, 0)
		unsure := 0
		if !s.answers() {
			unsure = 10 * faultBatch
		}
		if counted-missing > unsure {
			f.t.Errorf("%s: %d lines are missing, but %d were counted as dropped or rejected", s.name, missing, counted)
		} else if counted != missing {
			f.t.Logf("%s: %d lines came though they were counted as dropped", s.name, counted-missing)
		}
	}
	f.table()
	f.t.Logf("%v lines, %d lost; stop with every destination hung %v, without destinations %v; supervisor with ten destinations %s",
		n, lost, hung.Round(time.Millisecond), alone.Round(time.Millisecond), memory)
	if lost != 0 {
		f.t.Errorf("%d lines are lost", lost)
	}
	if code := f.must("inspect", "--format", "{{.State.ExitCode}}", "all"); code != "0" { // it would have been killed after a minute
		f.t.Errorf("the container ended with %s", code)
	}
	f.judge()
}

// judge compares what happened with what was promised.
func (f *logFaults) judge() {
	for _, r := range f.rows {
		// A write to a full pipe takes as long as the supervisor is not scheduled:
		// the run that measures has a machine of its own.
		if f.times.slow && r.stall > faultStall+2*r.nap {
			f.t.Errorf("%s: a write took %v, where the machine explains %v", r.name, r.stall, r.nap)
		}
		for _, s := range f.sinks {
			breaks := 2
			if s.door != nil {
				breaks += s.door.cuts
			}
			most := breaks * faultBatch
			if !s.answers() {
				most *= 10 // what was sent within the last two seconds, too
			}
			if r.again[s.name] > most {
				f.t.Errorf("%s: %s got %d lines again, want at most %d", r.name, s.name, r.again[s.name], most)
			}
		}
	}
}

// table prints the rows as docs/log-faults.md has them.
func (f *logFaults) table() {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', 0)
	fmt.Fprint(w, "| fault\t| lasted\t| until all had all\t| longest write\t| machine\t| lost\t")
	for _, s := range f.sinks {
		fmt.Fprintf(w, "| %s\t", s.name)
	}
	fmt.Fprintln(w, "|")
	for _, r := range f.rows {
		fmt.Fprintf(w, "| %s\t| %.1f s\t| %.1f s\t| %.1f ms\t| %.1f ms\t| %d\t", r.name, r.took.Seconds(), r.catch.Seconds(), float64(r.stall.Microseconds())/1e3, float64(r.nap.Microseconds())/1e3, r.missing)
		for _, s := range f.sinks {
			fmt.Fprintf(w, "| %d\t", r.again[s.name])
		}
		fmt.Fprintln(w, "|")
	}
	w.Flush()
	f.t.Logf("\n%s", b.String())
}

// memory is the most that the supervisor had, and what it has.
func (f *logFaults) memory() string {
	pid := f.must("inspect", "--format", "{{.Dhow.SupervisorPid}}", "all")
	data, err := os.ReadFile("/proc/" + pid + "/status")
	f.check(err)
	var list []string
	for line := range strings.Lines(string(data)) {
		for _, key := range []string{"VmHWM", "RssAnon"} {
			if rest, ok := strings.CutPrefix(line, key+":"); ok {
				list = append(list, key+" "+strings.Join(strings.Fields(rest), " "))
			}
		}
	}
	return strings.Join(list, ", ")
}

func (f *logFaults) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *logFaults) dhow(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(shared.bin, "dhow"), args...)
	cmd.Env = f.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("dhow %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func (f *logFaults) must(args ...string) string {
	f.t.Helper()
	out, err := f.dhow(args...)
	f.check(err)
	return out
}

// serviceAccount writes the key file of an account of Google's, whose tokens come
// from the URL.
func (f *logFaults) serviceAccount(url string) string {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	f.check(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	f.check(err)
	data, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "x@example.com", "token_uri": url,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	f.check(err)
	path := filepath.Join(f.dir, "key.json")
	f.check(os.WriteFile(path, data, 0o600))
	return path
}

// certificates makes one that the authority in the file stands for, and another.
func (f *logFaults) certificates(ca string) *certificates {
	make := func() tls.Certificate {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		f.check(err)
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		f.check(err)
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	c := &certificates{right: make(), other: make()}
	f.check(os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.right.Certificate[0]}), 0o600))
	return c
}

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }
