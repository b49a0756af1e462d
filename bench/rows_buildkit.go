package main

// buildkitRows are BuildKit's own client on dhow's server and on BuildKit's.
func buildkitRows(fix *fixtures) []row {
	served := func(name, goal string, rounds int, cold bool, cmd func(t *tool) command) row {
		return row{name: name, goal: goal, rounds: rounds, cold: cold, job: func(t *tool, round int) (job, bool) {
			if len(t.ping.args) == 0 {
				return job{}, false
			}
			j := job{cmd: cmd(t)}
			if cold {
				j.before = t.fresh
			}
			return j, true
		}}
	}
	return []row{
		served("buildctl, a call that asks for nothing", "–", 21, false, func(t *tool) command { return t.ping }),
		served("buildctl build, nothing changed, 21 steps", "≥ 3× buildkitd", 21, false, func(t *tool) command {
			return t.build(build{context: fix.steps21})
		}),
		served("buildctl build, nothing changed, 13 steps, 10,000 files of 60 MB", "≥ 3× buildkitd", 11, false, func(t *tool) command {
			return t.build(build{context: fix.project})
		}),
		served("buildctl build of that with an empty store", "≥ 3× buildkitd", 3, true, func(t *tool) command {
			return t.build(build{context: fix.project})
		}),
	}
}
