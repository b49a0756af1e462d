package lifecycle

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"dhow/internal/container"
	"dhow/internal/supervise"

	dockertypes "github.com/moby/moby/api/types/container"
)

// BenchmarkProbe measures what a health probe costs in CPU, the supervisor's own
// and that of what it starts.
func BenchmarkProbe(b *testing.B) {
	h := newHouse(b)
	for name, change := range map[string]func(*container.Record){
		"command": func(r *container.Record) {
			r.Config.Healthcheck = &dockertypes.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Hour}
		},
		"tcp": func(r *container.Record) {
			r.Config.Healthcheck = &dockertypes.HealthConfig{Interval: time.Hour}
			r.Health.TCP = ":1"
		},
		"http": func(r *container.Record) {
			r.Config.Healthcheck = &dockertypes.HealthConfig{Interval: time.Hour}
			r.Health.HTTP = ":8080/"
		},
	} {
		b.Run(name, func(b *testing.B) {
			script := "sleep 600"
			if name == "http" {
				script = "while :; do { echo 'HTTP/1.1 200 OK'; echo; } | nc -l -p 8080; done"
			}
			c := h.start(record("bench-"+name, script, change))
			c, err := h.Find(h.ctx, c.ID)
			h.must(err)
			client := supervise.For(c.Dir)
			own, children := cpuOf(b, c.State.Supervisor)
			for b.Loop() {
				if _, err := client.Probe(h.ctx); err != nil {
					b.Fatal(err)
				}
			}
			own2, children2 := cpuOf(b, c.State.Supervisor)
			b.ReportMetric(float64((own2-own).Microseconds())/float64(b.N), "µs-own/probe")
			b.ReportMetric(float64((children2-children).Microseconds())/float64(b.N), "µs-started/probe")
			h.must(h.Remove(h.ctx, c.ID, supervise.RemoveOptions{Force: true}))
		})
	}
}

// cpuOf is the time that a process has used, and that of the children that it
// has waited for, in ticks of 10 ms.
func cpuOf(b *testing.B, pid int) (own, children time.Duration) {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	var ticks [4]int
	for i := range ticks {
		if ticks[i], err = strconv.Atoi(f[11+i]); err != nil {
			b.Fatal(err)
		}
	}
	const tick = 10 * time.Millisecond
	return time.Duration(ticks[0]+ticks[1]) * tick, time.Duration(ticks[2]+ticks[3]) * tick
}
