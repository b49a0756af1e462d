package engine

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// build is a record of FROM, context, COPY, RUN as the frontend names them.
func record(edit func(steps []StepRecord)) []StepRecord {
	steps := []StepRecord{
		{Name: "[internal] load build context", Kind: "source", Source: "local://context", Tree: "t1", State: StateRan},
		{Name: "[build 1/4] FROM docker.io/library/busybox", Kind: "source", Source: "docker-image://docker.io/library/busybox:latest@sha256:1", Pin: "sha256:1111111111111111", State: StateCached},
		{Name: "[build 2/4] COPY src /src", Kind: "file", Operation: "copy", Inputs: []int{1, 0}, Deps: []string{"base", "files"}, Copies: []CopyRecord{{Input: 1, Src: "/src"}}, State: StateCached},
		{Name: "[build 3/4] RUN make $REV", Kind: "exec", Operation: "make", Inputs: []int{2}, Deps: []string{"copied"}, Args: []string{"make"}, Env: []string{"PATH=/bin", "REV=1", "MODE=x"}, State: StateCached},
	}
	edit(steps)
	return steps
}

func TestExplain(t *testing.T) {
	changes := func(before, now string) []fileChange {
		if before != "t1" || now != "t2" {
			return nil
		}
		return []fileChange{{"README", "changed"}, {"src/a.go", "changed"}, {"src/run.sh", "mode 0644→0755"}}
	}
	ran := func(steps []StepRecord, from int) {
		for i := from; i < len(steps); i++ {
			steps[i].State = StateRan
		}
	}
	for name, c := range map[string]struct {
		now  func(steps []StepRecord)
		want []string
	}{
		"nothing": {func([]StepRecord) {}, []string{"", "", "", ""}},
		"files": {func(s []StepRecord) {
			ran(s, 2)
			s[0].Tree, s[2].Deps, s[3].Deps = "t2", []string{"base", "files2"}, []string{"copied2"}
		}, []string{"", "", "src/a.go changed, src/run.sh mode 0644→0755", "after COPY src /src"}},
		"build argument": {func(s []StepRecord) {
			ran(s, 3)
			s[3].Operation, s[3].Env = "make2", []string{"PATH=/bin", "REV=2", "MODE=x"}
		}, []string{"", "", "", "ARG REV"}},
		"environment": {func(s []StepRecord) {
			ran(s, 3)
			s[3].Operation, s[3].Env = "make2", []string{"PATH=/bin", "REV=1"}
		}, []string{"", "", "", "ENV MODE"}},
		"base image": {func(s []StepRecord) {
			ran(s, 2)
			s[1].Pin, s[2].Deps, s[3].Deps = "sha256:2222222222222222", []string{"base2", "files"}, []string{"copied2"}
		}, []string{"", "", "base image moved to sha256:222222222222", "after COPY src /src"}},
		"command": {func(s []StepRecord) {
			ran(s, 3)
			s[3].Name, s[3].Operation, s[3].Args = "[build 3/4] RUN make all", "make2", []string{"make", "all"}
		}, []string{"", "", "", "command changed"}},
		"forced": {func(s []StepRecord) {
			ran(s, 2)
			s[2].Forced, s[3].Forced = true, true
		}, []string{"", "", "--no-cache", "--no-cache"}},
		"pruned": {func(s []StepRecord) { ran(s, 3) }, []string{"", "", "", "its cached result was removed"}},
		"options": {func(s []StepRecord) {
			ran(s, 3)
			s[3].Operation = "make with network"
		}, []string{"", "", "", "options of the step changed"}},
		"new": {func(s []StepRecord) {
			ran(s, 3)
			s[3].Name = "[build 4/5] RUN other"
		}, []string{"", "", "", "new step"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := &history{steps: record(func([]StepRecord) {}), changes: changes, dockerfile: "FROM busybox\narg A REV=1\n"}
			now := record(c.now)
			h.explain(now)
			var got []string
			for _, s := range now {
				got = append(got, s.Reason)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("reasons (-want +got):\n%s", d)
			}
		})
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		file, src string
		want      bool
	}{
		{"a/b.go", "", true}, {"a/b.go", "a", true}, {"ab/c", "a", false}, {"a/b.go", "a/*.go", true},
		{"a/b/c.go", "a/*", true}, {"go.mod", "go.*", true}, {"a", "a/b", false},
	} {
		if got := within(c.file, c.src); got != c.want {
			t.Errorf("within(%q, %q): got %t, want %t", c.file, c.src, got, c.want)
		}
	}
}

func TestCriticalPath(t *testing.T) {
	steps := []StepRecord{
		{Took: 1 * time.Second}, {Took: 5 * time.Second}, {Took: 2 * time.Second, Inputs: []int{0, 1}},
		{Took: 0, Inputs: []int{2}}, {Took: 3 * time.Second, Inputs: []int{0}},
	}
	chain, total := CriticalPath(steps)
	if d := cmp.Diff([]int{1, 2}, chain); d != "" || total != 7*time.Second {
		t.Errorf("got %v, %v; want [1 2], 7s", chain, total)
	}
}
