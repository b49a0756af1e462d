package main

import (
	"fmt"
	"strings"
)

// memoryOf is the memory of what a row does.
func memoryOf(r row, what string) row {
	r.name, r.goal, r.rounds, r.memory, r.floor = "peak memory of that "+what, "≤ 150 MB", 1, true, nil
	return r
}

// copyRow copies the image into a directory and unpacks nothing.
func copyRow(fix *fixtures) row {
	return row{
		name: "copy of that image to a directory, without unpacking", goal: "≥ 1.5× skopeo", rounds: 3, cold: true,
		job: func(t *tool, _ int) (job, bool) {
			if t.copy == nil {
				return job{}, false
			}
			return job{before: t.fresh, late: func() command { return t.copy(fix.registry + "/bench/big:1") }}, true
		},
	}
}

// slowRow pulls it from a registry that gives each connection slowRate.
func slowRow(fix *fixtures) row {
	return row{
		name: fmt.Sprintf("pull of that image, %d MB/s for each connection", slowRate>>20), goal: "≥ 2× docker", rounds: 1, cold: true,
		job: func(t *tool, _ int) (job, bool) {
			if t.pull == nil {
				return job{}, false
			}
			return job{before: t.fresh, late: func() command { return t.pull(fix.slow + "/bench/big:1") }}, true
		},
	}
}

// nextRow pulls a later version of an image that is there, which differs in one
// of its two layers.
func nextRow(fix *fixtures) row {
	return row{
		name: "pull of its next version, one layer of two changed", goal: "only that layer's bytes", rounds: 3, cold: true,
		job: func(t *tool, _ int) (job, bool) {
			// skopeo's directories know nothing of each other.
			if t.pull == nil || t.name == "skopeo" {
				return job{}, false
			}
			before := func() error {
				if err := t.fresh(); err != nil {
					return err
				}
				_, err := t.pull(fix.registry + "/bench/big:1").run()
				return err
			}
			return job{before: before, late: func() command { return t.pull(fix.registry + "/bench/big:2") }, sent: fix.given.Load}, true
		},
	}
}

func nextBytesRow(fix *fixtures) row {
	r := nextRow(fix)
	r.name, r.rounds, r.sent = "bytes of that", 1, true
	return r
}

// manyRow pulls small images at once, by as many commands.
func manyRow(fix *fixtures) row {
	return row{
		name: fmt.Sprintf("%d small images pulled at once", smallImages), goal: "≥ 3× docker", rounds: 3, cold: true,
		job: func(t *tool, _ int) (job, bool) {
			if t.pull == nil {
				return job{}, false
			}
			all := func() command {
				var env []string
				var line strings.Builder
				for i := range smallImages {
					one := t.pull(fmt.Sprintf("%s/bench/small%d:1", fix.registry, i))
					env = one.env
					fmt.Fprintf(&line, "%s > /dev/null || kill $$ & ", quote(one.args))
				}
				return command{args: []string{"sh", "-c", line.String() + "wait"}, env: env}
			}
			return job{before: t.fresh, late: all}, true
		},
	}
}

// changeRow pushes an image whose last layer, one small file, is all that changed
// since the last push.
func changeRow(fix *fixtures) row {
	return row{
		name: "push of that image after a change of one file", goal: "≥ 5× docker", rounds: 3,
		job: func(t *tool, round int) (job, bool) {
			if t.push == nil || t.build == nil {
				return job{}, false
			}
			tag := fmt.Sprintf("%s/bench/change-%s:1", fix.registry, t.name)
			before := func() error {
				steps := []func() error{}
				if round == 0 {
					steps = append(steps, t.fresh)
				}
				steps = append(steps, func() error { return fix.changeApp(fmt.Sprintf("%s %d", t.name, round)) }, func() error {
					_, err := t.build(build{context: fix.app, tag: tag}).run()
					return err
				})
				for _, step := range steps {
					if err := step(); err != nil {
						return err
					}
				}
				return nil
			}
			return job{before: before, late: func() command { return t.push(tag) }, sent: fix.sent.Load}, true
		},
	}
}

func changeBytesRow(fix *fixtures) row {
	r := changeRow(fix)
	r.name, r.goal, r.sent = "bytes of that push", "the layer and the documents", true
	return r
}
