package engine

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Step states, as builds are recorded and shown.
const (
	StateCached = "cached" // taken from an earlier build
	StateRan    = "ran"
	StateShared = "shared" // another process made it while this one waited
	StateFailed = "failed"
)

// StepRecord is what is kept of one step of a build. Inputs count the steps of
// the same record, which come before it.
type StepRecord struct {
	Name      string        `json:"name"`
	Vertex    string        `json:"vertex"`
	State     string        `json:"state"`
	Kind      string        `json:"kind"` // source, exec, file, merge, diff
	Inputs    []int         `json:"inputs,omitempty"`
	Operation string        `json:"operation"`      // digest of all but the inputs
	Pin       string        `json:"pin,omitempty"`  // what a source resolved to
	Deps      []string      `json:"deps,omitempty"` // what each input added to the key
	Source    string        `json:"source,omitempty"`
	Args      []string      `json:"args,omitempty"`
	Env       []string      `json:"env,omitempty"`
	Copies    []CopyRecord  `json:"copies,omitempty"`
	Tree      string        `json:"tree,omitempty"` // digest of a local directory's manifest
	Forced    bool          `json:"forced,omitempty"`
	Line      int           `json:"line,omitempty"`
	Started   time.Time     `json:"started"`
	Took      time.Duration `json:"took"` // nanoseconds
	Reason    string        `json:"reason,omitempty"`
}

// CopyRecord is what one copy of a file step reads from one of its inputs.
type CopyRecord struct {
	Input int    `json:"input"`
	Src   string `json:"src"`
}

// history is the earlier build that steps are compared with.
type history struct {
	steps []StepRecord
	// changes lists what differs between two recorded directories; nil when one
	// of them is no longer known.
	changes func(before, now string) []fileChange
	// dockerfile is the text that the present build read.
	dockerfile string
}

// fileChange is one difference between two directories.
type fileChange struct {
	Path string
	What string // "changed", "added", "removed", "mode 0644→0755", …
}

// explain gives, for each step that ran although the earlier build has the same
// step, the reason in a few words. Pure: the reasons come from the two records.
func (h *history) explain(now []StepRecord) {
	if h == nil {
		return
	}
	before := match(h.steps, now)
	for i := range now {
		s := &now[i]
		if s.State != StateRan && s.State != StateFailed || s.Kind == "source" {
			continue
		}
		if before[i] == nil {
			s.Reason = "new step"
			continue
		}
		s.Reason = h.reason(before[i], s, before, now)
	}
}

// match finds for each present step the earlier one that it is a new run of:
// the one of the same name, else the one at the same place in the same stage.
func match(before, now []StepRecord) []*StepRecord {
	byName, byPlace := map[string]*StepRecord{}, map[string]*StepRecord{}
	for i := range before {
		s := &before[i]
		byName[instruction(s)+"\x00"+stage(s)] = s
		byPlace[place(s)] = s
	}
	found := make([]*StepRecord, len(now))
	for i := range now {
		s := &now[i]
		if b := byName[instruction(s)+"\x00"+stage(s)]; b != nil {
			found[i] = b
		} else if b := byPlace[place(s)]; b != nil && b.Kind == s.Kind && place(s) != "" {
			found[i] = b
		}
	}
	return found
}

// instruction is the step's name without its counter: "RUN make".
func instruction(s *StepRecord) string {
	if strings.HasPrefix(s.Name, "[") {
		if _, rest, ok := strings.Cut(s.Name, "] "); ok {
			return rest
		}
	}
	return s.Name
}

// place is the step's counter: "build 3/6", or "".
func place(s *StepRecord) string {
	if p, _, ok := strings.Cut(strings.TrimPrefix(s.Name, "["), "] "); ok && strings.HasPrefix(s.Name, "[") {
		p, _, _ = strings.Cut(p, "/")
		return p
	}
	return ""
}

// stage is the name of the step's stage, or "".
func stage(s *StepRecord) string {
	p := place(s)
	if i := strings.LastIndex(p, " "); i > 0 {
		return p[:i]
	}
	return ""
}

func (h *history) reason(was, is *StepRecord, before []*StepRecord, now []StepRecord) string {
	if is.Forced {
		return "--no-cache"
	}
	if was.Operation != is.Operation {
		if r := h.operationChange(was, is); r != "" {
			return r
		}
	}
	for i, in := range is.Inputs {
		if i < len(was.Deps) && i < len(is.Deps) && was.Deps[i] == is.Deps[i] {
			continue
		}
		if r := h.inputChange(is, i, before[in], &now[in]); r != "" {
			return r
		}
	}
	if was.Operation != is.Operation {
		return "options of the step changed"
	}
	return "its cached result was removed"
}

// operationChange says what is new in the step itself.
func (h *history) operationChange(was, is *StepRecord) string {
	if names := envChanges(was.Env, is.Env); len(names) > 0 && slices.Equal(was.Args, is.Args) {
		for i, n := range names {
			if h.isArg(n) {
				names[i] = "ARG " + n
			} else {
				names[i] = "ENV " + n
			}
		}
		return list(names)
	}
	if !slices.Equal(was.Args, is.Args) {
		return "command changed"
	}
	if instruction(was) != instruction(is) {
		return "instruction changed"
	}
	return ""
}

// isArg says whether the Dockerfile declares the name by ARG.
func (h *history) isArg(name string) bool {
	re := regexp.MustCompile(`(?im)^\s*ARG\s+(.*\s)?` + regexp.QuoteMeta(name) + `(\s|=|$)`)
	return re.MatchString(h.dockerfile)
}

// envChanges names the variables that differ.
func envChanges(was, is []string) []string {
	vars := func(env []string) map[string]string {
		m := make(map[string]string, len(env))
		for _, e := range env {
			k, v, _ := strings.Cut(e, "=")
			m[k] = v
		}
		return m
	}
	a, b := vars(was), vars(is)
	var names []string
	for k, v := range b {
		if w, ok := a[k]; !ok || w != v {
			names = append(names, k)
		}
	}
	for k := range a {
		if _, ok := b[k]; !ok {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	return names
}

// inputChange says why an input is not what it was.
func (h *history) inputChange(step *StepRecord, i int, was, in *StepRecord) string {
	if in.Kind != "source" {
		if in.State == StateRan || in.State == StateShared || was == nil || was.Operation != in.Operation {
			return "after " + instruction(in)
		}
		return ""
	}
	switch {
	case in.Tree != "":
		if was == nil || was.Tree == "" || h.changes == nil {
			return "files of the context changed"
		}
		changes := selected(h.changes(was.Tree, in.Tree), step.Copies, i)
		if len(changes) == 0 {
			return ""
		}
		words := make([]string, len(changes))
		for n, c := range changes {
			words[n] = c.Path + " " + c.What
		}
		return list(words)
	case was != nil && was.Pin == in.Pin:
		return ""
	case strings.HasPrefix(in.Source, "docker-image://"), strings.HasPrefix(in.Source, "oci-layout://"):
		if was != nil && imageName(was.Source) != imageName(in.Source) {
			return "base image is now " + imageName(in.Source)
		}
		return "base image moved to " + short(in.Pin)
	default:
		return in.Source + " moved to " + short(in.Pin)
	}
}

func imageName(source string) string {
	_, name, _ := strings.Cut(source, "://")
	name, _, _ = strings.Cut(name, "@")
	return name
}

// short cuts a digest or commit to what people compare.
func short(pin string) string {
	if algo, hex, ok := strings.Cut(pin, ":"); ok && len(hex) > 12 {
		return algo + ":" + hex[:12]
	}
	if len(pin) > 12 {
		return pin[:12]
	}
	return pin
}

// selected keeps the changes that the step's copies from input i can see. A
// step that does not say what it reads sees all.
func selected(changes []fileChange, copies []CopyRecord, input int) []fileChange {
	var srcs []string
	for _, c := range copies {
		if c.Input == input {
			srcs = append(srcs, strings.Trim(path.Clean("/"+c.Src), "/"))
		}
	}
	if len(srcs) == 0 {
		return changes
	}
	return slices.DeleteFunc(changes, func(c fileChange) bool {
		return !slices.ContainsFunc(srcs, func(src string) bool { return within(c.Path, src) })
	})
}

// within says whether a file is the pattern's, or lies below what it matches.
func within(file, src string) bool {
	if src == "" {
		return true
	}
	parts := strings.Split(file, "/")
	depth := strings.Count(src, "/") + 1
	if len(parts) < depth {
		return false
	}
	ok, err := path.Match(src, strings.Join(parts[:depth], "/"))
	return ok || err != nil
}

// list joins the first few of many.
func list(words []string) string {
	const most = 3
	if len(words) <= most {
		return strings.Join(words, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(words[:most], ", "), len(words)-most)
}

// CriticalPath returns the steps whose times add up to the longest chain of
// steps that waited for each other, first to last, and the sum.
func CriticalPath(steps []StepRecord) (chain []int, total time.Duration) {
	sum := make([]time.Duration, len(steps))
	from := make([]int, len(steps))
	last := -1
	for i, s := range steps {
		from[i] = -1
		for _, in := range s.Inputs {
			if from[i] < 0 || sum[in] > sum[from[i]] {
				from[i] = in
			}
		}
		sum[i] = s.Took
		if from[i] >= 0 {
			sum[i] += sum[from[i]]
		}
		if last < 0 || sum[i] > sum[last] {
			last = i
		}
	}
	if last < 0 {
		return nil, 0
	}
	for i := last; i >= 0; i = from[i] {
		if steps[i].Took > 0 {
			chain = append(chain, i)
		}
	}
	slices.Reverse(chain)
	return chain, sum[last]
}
