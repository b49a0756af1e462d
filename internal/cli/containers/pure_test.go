package containers

import (
	"bytes"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/logs"
	"dhow/internal/network"
	"dhow/internal/store"

	"github.com/google/go-cmp/cmp"
	api "github.com/moby/moby/api/types/container"
	dockernet "github.com/moby/moby/api/types/network"
)

func TestSplitCpArg(t *testing.T) {
	for in, want := range map[string][2]string{
		"web:/x": {"web", "/x"}, "web:": {"web", ""}, "/a:b": {"", "/a:b"}, "./a:b": {"", "./a:b"}, "file": {"", "file"}, "-": {"", "-"},
	} {
		name, p := splitCpArg(in)
		if name != want[0] || p != want[1] {
			t.Errorf("%s: got %q %q, want %q", in, name, p, want)
		}
	}
}

// printed is what a printer with these flags makes of lines.
func printed(t *testing.T, f logsFlags, lines ...string) (out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	printTo(t, &o, &e, f, lines...)
	return o.String(), e.String()
}

func printTo(t *testing.T, out, errs io.Writer, f logsFlags, lines ...string) {
	t.Helper()
	a := &app{&console.Console{Out: out, Err: errs}}
	p, err := f.printer(a)
	if err != nil {
		t.Fatal(err)
	}
	p.containers = []logSource{{name: "web"}, {name: "db", prefix: "db | "}}
	opt, err := f.options()
	if err != nil {
		t.Fatal(err)
	}
	last := p.last(&opt)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for i, l := range lines {
		from := 0
		if rest, ok := strings.CutPrefix(l, "db:"); ok {
			l, from = rest, 1
		}
		rec := logs.Record{Time: at.Add(time.Duration(i) * time.Second), Stream: logs.Stdout, Line: []byte(l), Attrs: []byte(`{"tag":"x y","a":"b"}`)}
		if strings.HasPrefix(l, "err") {
			rec.Stream = logs.Stderr
		}
		if err := last.take(logs.Merged{Record: rec, From: from}); err != nil {
			t.Fatal(err)
		}
	}
	if err := last.end(); err != nil {
		t.Fatal(err)
	}
}

// On a terminal, lines of both streams come in their order, though many are
// written at once.
func TestLogLinesKeepOrder(t *testing.T) {
	var lines []string
	for i := range 5000 {
		lines = append(lines, []string{"out", "out", "err"}[i%3]+strconv.Itoa(i))
	}
	for _, f := range []logsFlags{{}, {tail: "4999", grep: "out|err"}} {
		var both bytes.Buffer
		printTo(t, &both, &both, f, lines...)
		if want := strings.Join(lines, "\n") + "\n"; !strings.HasSuffix(want, both.String()) || both.Len() < len(want)-10 {
			t.Errorf("%+v: the lines are in another order", f)
		}
	}
}

func TestLogLines(t *testing.T) {
	lines := []string{"one", `{"level":"error","http":{"code":500},"n":1.50}`, "db:two", `{"level":"info"}`, "err"}
	for _, c := range []struct {
		name      string
		flags     logsFlags
		out, errs string
	}{
		{"all", logsFlags{}, "one\n" + lines[1] + "\ndb | two\n" + lines[3] + "\n", "err\n"},
		{"times", logsFlags{timestamps: true, grep: "^one$"}, "2026-01-02T03:04:05.000000006Z one\n", ""},
		{"details", logsFlags{details: true, grep: "^one$"}, "a=b,tag=x+y one\n", ""},
		{"json", logsFlags{json: true}, lines[1] + "\n" + lines[3] + "\n", ""},
		{"where", logsFlags{where: []string{"level=error"}}, lines[1] + "\n", ""},
		{"deep, and numbers as they are", logsFlags{where: []string{"http.code=500", "n=1.50"}}, lines[1] + "\n", ""},
		{"not", logsFlags{where: []string{"level!=error"}}, lines[3] + "\n", ""},
		{"the last of what matches", logsFlags{json: true, tail: "1"}, lines[3] + "\n", ""},
		{"a template", logsFlags{format: "{{.Name}} {{.Stream}} {{.JSON.level}}", json: true}, "web stdout error\nweb stdout info\n", ""},
	} {
		out, errs := printed(t, c.flags, lines...)
		if out != c.out || errs != c.errs {
			t.Errorf("%s: got %q and %q, want %q and %q", c.name, out, errs, c.out, c.errs)
		}
	}
}

func TestPrometheus(t *testing.T) {
	var b bytes.Buffer
	if err := writePrometheus(&b, []statRow{{Container: "web", Driver: "syslog", DroppedLines: 3, LagSeconds: 0.5}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# TYPE dhow_log_dropped_lines_total counter\ndhow_log_dropped_lines_total{container=\"web\",driver=\"syslog\"} 3\n",
		"dhow_log_lag_seconds{container=\"web\",driver=\"syslog\"} 0.5\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("got %s, want %q in it", b.String(), want)
		}
	}
}

func TestStatsNumbers(t *testing.T) {
	before := api.CPUStats{CPUUsage: api.CPUUsage{TotalUsage: 100}, SystemUsage: 1000, OnlineCPUs: 2}
	now := api.CPUStats{CPUUsage: api.CPUUsage{TotalUsage: 200}, SystemUsage: 1400, OnlineCPUs: 2}
	if got := cpuShare(before, now); got != 50 {
		t.Errorf("got %v %%, want 50", got)
	}
	if got := cpuShare(now, before); got != 0 {
		t.Errorf("after a restart: got %v, want 0", got)
	}
	if got := memoryUsed(api.MemoryStats{Usage: 100, Stats: map[string]uint64{"inactive_file": 30}}); got != 70 {
		t.Errorf("got %v, want 70", got)
	}
	r := newStatsRow(sampled{StatsResponse: api.StatsResponse{ID: strings.Repeat("a", 64), Name: "/web"}, asked: "web"}, api.StatsResponse{}, false)
	if r.CPUPerc != "--" || r.MemUsage != "-- / --" || r.ID != "aaaaaaaaaaaa" || r.Name != "web" {
		t.Errorf("one that does not run: got %+v", r)
	}
}

func TestPortLines(t *testing.T) {
	got := portLines(dockernet.PortMap{
		dockernet.MustParsePort("443/tcp"): {{HostIP: netip.IPv6Unspecified(), HostPort: "8443"}, {HostIP: netip.IPv4Unspecified(), HostPort: "8443"}},
		dockernet.MustParsePort("80/tcp"):  {{HostPort: "8080"}},
		dockernet.MustParsePort("9/udp"):   nil,
	})
	want := []string{"80/tcp -> 0.0.0.0:8080", "443/tcp -> 0.0.0.0:8443", "443/tcp -> [::]:8443"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestEventFilter(t *testing.T) {
	e := store.Event{Type: "container", Action: "exec_start: ls", Actor: "abc", Attrs: map[string]string{"name": "web", "image": "nginx", "tier": "x"}}
	for filter, want := range map[string]bool{
		"": true, "container=web": true, "container=ab": true, "container=db": false, "type=container": true, "type=network": false,
		"event=exec_start": true, "event=start": false, "image=nginx": true, "image=redis": false, "label=tier": true, "label=tier=y": false,
		"network=web": false, "type=network type=container": true,
	} {
		takes, err := eventFilter(strings.Fields(filter))
		if err != nil {
			t.Fatal(err)
		}
		if got := takes(e); got != want {
			t.Errorf("%q: got %t, want %t", filter, got, want)
		}
	}
}

func TestNetworkRequest(t *testing.T) {
	f := networkCreateFlags{ipv4: true, subnets: []string{"10.1.0.5/16", "fd00::/64"}, gateways: []string{"10.1.0.1"}, ranges: []string{"10.1.128.0/17"},
		aux: []string{"router=fd00::5"}, labels: []string{"a=1"}, options: []string{"com.docker.network.bridge.name=br9"}}
	o, err := f.request("net")
	if err != nil {
		t.Fatal(err)
	}
	want := network.CreateOptions{
		Name: "net", Labels: map[string]string{"a": "1"}, Options: map[string]string{"com.docker.network.bridge.name": "br9"},
		Pools: []network.Pool{
			{Subnet: netip.MustParsePrefix("10.1.0.0/16"), Range: netip.MustParsePrefix("10.1.128.0/17"), Gateway: netip.MustParseAddr("10.1.0.1")},
			{Subnet: netip.MustParsePrefix("fd00::/64"), Aux: map[string]netip.Addr{"router": netip.MustParseAddr("fd00::5")}},
		},
	}
	if d := cmp.Diff(want, o, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
