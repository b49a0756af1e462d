package bkapi

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"dhow/internal/testkit"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
)

func TestSameBuildRunsOnce(t *testing.T) {
	c := serve(t)
	prog := program(t)
	st := llb.Local("prog", llb.SharedKeyHint("x")).Run(llb.Args([]string{"/prog", "env", "X"}), llb.WithCustomName("the step")).Root()
	def, err := st.Marshal(t.Context())
	must(t, err)
	ran := make(chan int, 4)
	var g errgroup.Group
	for range cap(ran) {
		g.Go(func() error {
			n := 0
			statuses := make(chan *client.SolveStatus)
			read := make(chan struct{})
			go func() {
				defer close(read)
				for s := range statuses {
					for _, v := range s.Vertexes {
						if v.Name == "the step" && v.Completed != nil && !v.Cached {
							n++
						}
					}
				}
			}()
			_, err := c.Solve(t.Context(), def, client.SolveOpt{LocalMounts: map[string]fsutil.FS{"prog": prog}}, statuses)
			<-read
			ran <- n
			return err
		})
	}
	must(t, g.Wait())
	total := 0
	for range cap(ran) {
		total += <-ran
	}
	if total != 1 {
		t.Errorf("the step ran %d times, want once", total)
	}
}

// perBuild is more than what a server remembers for a minute of a build that has
// ended, in bytes.
const perBuild = 512 << 10

// heap is what lives of the Go heap, in bytes.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestManyBuilds(t *testing.T) {
	c := serve(t)
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(list)
	}
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\nARG N\nCOPY f /f\nLABEL n=$N\n", "f": "body"})
	build := func(i int) error {
		_, err := c.Solve(t.Context(), nil, client.SolveOpt{
			Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"build-arg:N": fmt.Sprint(i)},
			LocalMounts: map[string]fsutil.FS{"context": dir, "dockerfile": dir},
		}, nil)
		return err
	}
	must(t, build(-1))
	before, alive, used := open(), runtime.NumGoroutine(), heap()
	var g errgroup.Group
	for i := range 50 {
		g.Go(func() error { return build(i) })
	}
	must(t, g.Wait())
	// What is closed by finalizers and timers goes within seconds.
	bounded := func() bool {
		return open() <= before+10 && runtime.NumGoroutine() <= alive+10 && heap() <= used+50*perBuild
	}
	for end := time.Now().Add(testkit.Patience); !bounded(); time.Sleep(50 * time.Millisecond) {
		runtime.GC() // directories that were read close with their trees
		if time.Now().After(end) {
			t.Errorf("after 50 builds: got %d open files, %d goroutines and a heap of %d KiB, want about the %d, %d and %d of before",
				open(), runtime.NumGoroutine(), heap()>>10, before, alive, used>>10)
			list, err := os.ReadDir("/proc/self/fd")
			must(t, err)
			for _, e := range list[len(list)-5:] {
				to, _ := os.Readlink("/proc/self/fd/" + e.Name())
				t.Log(to)
			}
			return
		}
	}
}
