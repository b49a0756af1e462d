package main

import (
	"fmt"
	"path/filepath"
	"slices"
)

// always is a floor that is the same command in every round.
func always(args ...string) func(int) command {
	return func(int) command { return command{args: args} }
}

// rows is the table.
func rows(fix *fixtures) []row {
	first := []row{
		startRow(), stepRow(fix), cachedRow(fix), uncachedRow(fix), toolchainRow(fix), pullRow(fix), memoryOf(pullRow(fix), "pull"), copyRow(fix), memoryOf(copyRow(fix), "copy"), slowRow(fix),
		nextRow(fix), nextBytesRow(fix), manyRow(fix), pushRow(fix), memoryOf(pushRow(fix), "build and push"), changeRow(fix), changeBytesRow(fix),
		cacheRow(fix, "registry cache, sent again after one of 10,000 files changed", &fix.project),
		cacheRow(fix, "registry cache, sent again after 6 kB of a cache mount of 60 MB changed", &fix.cached),
		memoryRow(fix), versionRow(),
	}
	return slices.Concat(first, buildkitRows(fix), containerRows())
}

func startRow() row {
	return row{
		name: "run --rm --network none busybox true", goal: "≤ 20 ms, ≥ 7× docker", rounds: 21,
		floor: always("bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "/bin/true"),
		job: func(t *tool, round int) (job, bool) {
			if t.run == nil {
				return job{}, false
			}
			j := job{cmd: t.run("busybox", "true")}
			if round == 0 {
				j.before = t.base
			}
			return j, true
		},
	}
}

// stepRow takes a build of one step off a build of 21.
func stepRow(fix *fixtures) row {
	return row{
		name: "one RUN step", goal: "≤ 12 ms", rounds: 5,
		job: func(t *tool, round int) (job, bool) {
			if t.build == nil {
				return job{}, false
			}
			short := t.build(build{context: fix.steps1, tag: "bench/steps", noCache: true})
			j := job{cmd: t.build(build{context: fix.steps21, tag: "bench/steps", noCache: true}), minus: &short, per: 20}
			if round == 0 {
				j.before = t.base
			}
			return j, true
		},
	}
}

func cachedRow(fix *fixtures) row {
	return row{
		name: "cached build, 13 steps, 10,000 files of 60 MB", goal: "≤ 40 ms, ≥ 10× docker", rounds: 11,
		floor: always("git", "-C", fix.project, "status", "--porcelain"),
		job: func(t *tool, round int) (job, bool) {
			if t.build == nil {
				return job{}, false
			}
			j := job{cmd: t.build(build{context: fix.project, tag: "bench/project"})}
			if round == 0 {
				j.before = t.base
			}
			return j, true
		},
	}
}

func uncachedRow(fix *fixtures) row {
	return row{
		name: "the same with --no-cache", goal: "≤ 1.6 s, ≥ 4× docker", rounds: 3,
		job: func(t *tool, round int) (job, bool) {
			if t.build == nil {
				return job{}, false
			}
			j := job{cmd: t.build(build{context: fix.project, tag: "bench/project", noCache: true})}
			if round == 0 {
				j.before = t.base
			}
			return j, true
		},
	}
}

func toolchainRow(fix *fixtures) row {
	return row{
		name: "COPY of a Go toolchain, no cache", goal: "≥ 5× docker", rounds: 3, cold: true,
		floor: func(round int) command {
			return command{args: []string{"cp", "-a", filepath.Join(fix.toolchain, "go"), filepath.Join(fix.work, fmt.Sprintf("cp-%d", round))}}
		},
		job: func(t *tool, _ int) (job, bool) {
			if t.build == nil {
				return job{}, false
			}
			return job{before: t.fresh, cmd: t.build(build{context: fix.toolchain, tag: "bench/toolchain", noCache: true})}, true
		},
	}
}

func pullRow(fix *fixtures) row {
	return row{
		name: "pull and unpack of a 480 MB image (2 layers), loopback", goal: "≥ 3× docker, ≥ 1.5× skopeo", rounds: 3, cold: true,
		floor: always("sh", "-c", "for l in "+fix.layerFiles+"; do gzip -dc $l > /dev/null & done; wait"),
		job: func(t *tool, _ int) (job, bool) {
			if t.pull == nil {
				return job{}, false
			}
			return job{before: t.fresh, late: func() command { return t.pull(fix.registry + "/bench/big:1") }}, true
		},
	}
}

// pushRow changes the content every time, so that nothing is there already.
func pushRow(fix *fixtures) row {
	return row{
		name: "build + push of that image", goal: "≥ 3× docker", rounds: 3, cold: true,
		job: func(t *tool, round int) (job, bool) {
			if t.build == nil {
				return job{}, false
			}
			tag := fmt.Sprintf("%s/bench/push-%s:%d", fix.registry, t.name, round)
			before := func() error {
				if err := fix.touch(tag); err != nil {
					return err
				}
				return t.fresh()
			}
			return job{before: before, cmd: t.build(build{context: fix.big, tag: tag, noCache: true, push: true})}, true
		},
	}
}

// cacheRow sends the cache of a build to a registry, changes a file, and measures
// what is sent for the next build. Tools that keep no cache in a registry, or not
// its mounts, send less and find less.
func cacheRow(fix *fixtures, name string, context *string) row {
	return row{
		name: name, goal: "–", rounds: 3, sent: true,
		job: func(t *tool, round int) (job, bool) {
			if t.cache == nil {
				return job{}, false
			}
			repo := fmt.Sprintf("%s/cache/%s-%s", fix.registry, filepath.Base(*context), t.name)
			cmd := t.cache(build{context: *context, tag: "bench/cache"}, repo)
			before := func() error {
				if round == 0 {
					if err := t.base(); err != nil {
						return err
					}
				}
				if err := fix.change(fmt.Sprintf("before %s %d", t.name, round)); err != nil {
					return err
				}
				if _, err := cmd.run(); err != nil {
					return err
				}
				return fix.change(fmt.Sprintf("after %s %d", t.name, round))
			}
			return job{before: before, cmd: cmd, sent: fix.sent.Load}, true
		},
	}
}

func memoryRow(fix *fixtures) row {
	return row{
		name: "peak memory, build of a 2 GB context", goal: "≤ 200 MB", rounds: 1, cold: true, memory: true,
		job: func(t *tool, round int) (job, bool) {
			if t.build == nil {
				return job{}, false
			}
			if err := fix.makeHuge(); err != nil {
				return job{before: func() error { return err }}, true
			}
			return job{before: t.fresh, cmd: t.build(build{context: fix.huge, tag: "bench/huge", noCache: true})}, true
		},
	}
}

func versionRow() row {
	return row{
		name: "version", goal: "≤ 12 ms", rounds: 31,
		floor: always("true"),
		job: func(t *tool, _ int) (job, bool) {
			return job{cmd: t.versionCmd}, len(t.versionCmd.args) > 0
		},
	}
}
