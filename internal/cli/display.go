package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"dhow/internal/buildcontext"
	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/export"

	"github.com/docker/go-units"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/frontend/subrequests/lint"
	"github.com/moby/buildkit/util/progress/progressui"
)

// display shows a build's progress on standard error while it runs.
type display struct {
	quiet    bool
	logs     bool // it shows the steps' output
	events   chan *client.SolveStatus
	finished chan struct{}
	once     sync.Once
	warnings []client.VertexWarning // valid after close
}

// newDisplay starts showing, and makes the request report to it.
func (a *app) newDisplay(f *buildFlags, r *engine.BuildRequest) (*display, error) {
	mode := progressui.DisplayMode(f.progress)
	d := &display{quiet: f.quiet, events: make(chan *client.SolveStatus, 256), finished: make(chan struct{})}
	switch f.progress {
	case "quiet", "none":
		d.quiet = true
		mode = progressui.QuietMode
	case "auto", "plain", "tty", "rawjson":
	default:
		err := errdef.New(errdef.ErrInvalid, "--progress %q is not known", f.progress)
		return nil, errdef.WithHint(err, "use auto, none, plain, quiet, rawjson or tty")
	}
	if f.quiet || r.Call != "" {
		mode = progressui.QuietMode
	}
	d.logs = mode != progressui.QuietMode && mode != progressui.RawJSONMode
	ui, err := progressui.NewDisplay(outFile(a.Err), mode)
	if err != nil {
		return nil, errdef.WithHint(errdef.As(errdef.ErrInvalid, err), "use --progress plain")
	}
	go func() {
		defer close(d.finished)
		// The display ends when the channel is closed; a terminal that went away
		// must not end the build.
		d.warnings, _ = ui.UpdateFrom(context.Background(), d.events)
		for range d.events {
		}
	}()
	r.Progress = func(s *client.SolveStatus) { d.events <- s }
	return d, nil
}

// outFile keeps a terminal recognisable as one.
func outFile(w io.Writer) io.Writer {
	if f, ok := w.(*os.File); ok {
		return f
	}
	return w
}

// close ends the display and waits until all is shown.
func (d *display) close() {
	d.once.Do(func() { close(d.events) })
	<-d.finished
}

// withoutLog drops a failed step's output from the error when it was shown
// already.
func (d *display) withoutLog(err error) error {
	var step *engine.StepError
	if d.logs && errors.As(err, &step) {
		step.Log = nil
	}
	return err
}

// printBuild prints what came of a build.
func (a *app) printBuild(f *buildFlags, d *display, res *engine.BuildResult) error {
	if f.quiet {
		if id := export.ImageID(res.Exports); id != "" {
			fmt.Fprintln(a.Out, id)
		}
		return nil
	}
	if f.explain {
		return a.printExplanation(a.Err, f.format, res.Steps)
	}
	if d.quiet || f.progress == "rawjson" {
		return nil
	}
	a.printWarnings(d.warnings)
	if c := res.Context; c != nil {
		fmt.Fprintln(a.Err, contextLine(*c))
	}
	for _, s := range res.Steps {
		if s.Reason != "" {
			fmt.Fprintf(a.Err, "%s ← %s\n", short(s.Name), s.Reason)
		}
	}
	fmt.Fprintln(a.Err, summaryLine(res))
	return nil
}

// contextLine is the one line about the build context.
func contextLine(t buildcontext.Totals) string {
	line := fmt.Sprintf("context: %d %s, %s used", t.Files, console.Plural(t.Files, "file"), units.HumanSize(float64(t.Bytes)))
	if t.IgnoredFiles+t.PrunedDirs == 0 {
		return line + ", nothing ignored"
	}
	return line + fmt.Sprintf("; %d %s and %d whole %s ignored", t.IgnoredFiles, console.Plural(t.IgnoredFiles, "file"), t.PrunedDirs, directories(t.PrunedDirs))
}

func directories(n int) string {
	if n == 1 {
		return "directory"
	}
	return "directories"
}

// summaryLine tells where the time went.
func summaryLine(res *engine.BuildResult) string {
	all, cached, ran := engine.Count(res.Steps)
	line := fmt.Sprintf("%d %s: %d cached, %d ran; %s", all, console.Plural(all, "step"), cached, ran, seconds(res.Took))
	if path, total := engine.CriticalPath(res.Steps); ran > 0 && len(path) > 0 {
		names := make([]string, 0, len(path))
		for _, i := range path {
			names = append(names, fmt.Sprintf("%s %s", short(res.Steps[i].Name), seconds(res.Steps[i].Took)))
		}
		const most = 4
		if len(names) > most {
			names = append([]string{"…"}, names[len(names)-most:]...)
		}
		line += fmt.Sprintf("\ncritical path %s: %s", seconds(total), strings.Join(names, " → "))
		line += fmt.Sprintf("\ndisk: %s read, %s written", units.HumanSize(float64(res.IO.Read)), units.HumanSize(float64(res.IO.Written)))
	}
	return line
}

func seconds(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

// short cuts a step's name to a line's part.
func short(name string) string {
	if strings.HasPrefix(name, "[") {
		if _, rest, ok := strings.Cut(name, "] "); ok {
			name = rest
		}
	}
	const most = 60
	if r := []rune(name); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return name
}

func (a *app) printWarnings(list []client.VertexWarning) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(a.Err, "\n%d %s found:\n", len(list), console.Plural(len(list), "warning"))
	for _, w := range list {
		fmt.Fprintf(a.Err, " - %s\n", w.Short)
		if w.URL != "" {
			fmt.Fprintf(a.Err, "   %s\n", w.URL)
		}
	}
	fmt.Fprintln(a.Err)
}

// printExplanation is the table of --explain and `dhow builds show`.
func (a *app) printExplanation(w io.Writer, format string, steps []engine.StepRecord) error {
	switch format {
	case "json":
		enc := json.NewEncoder(a.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(steps)
	case "", "text":
	default:
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "--format %q is not known", format), "use text or json")
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "STATE\tTIME\tSTEP\tWHY")
	for _, s := range steps {
		took := ""
		if s.State != engine.StateCached {
			took = seconds(s.Took)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", s.State, took, clip(s.Name), s.Reason)
	}
	return tw.Flush()
}

func clip(s string) string {
	const most = 72
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// printAnswer prints what the frontend answered to --call.
func (a *app) printAnswer(f *buildFlags, call string, answer map[string][]byte) error {
	if f.format == "json" {
		fmt.Fprintln(a.Out, strings.TrimRight(string(answer["result.json"]), "\n"))
	} else if call == "check" || call == "lint" {
		var list lint.LintResults
		if err := json.Unmarshal(answer["result.json"], &list); err != nil {
			return fmt.Errorf("read the frontend's answer: %w", err)
		}
		if len(list.Warnings) == 0 && list.Error == nil {
			fmt.Fprintln(a.Out, "Check complete, no warnings found.")
			return nil
		}
		fmt.Fprintf(a.Out, "Check complete, %d %s found!\n", len(list.Warnings), console.Plural(len(list.Warnings), "warning"))
		if err := list.PrintTo(a.Out, nil); err != nil {
			return err
		}
		if list.Error != nil {
			list.PrintErrorTo(a.Out, nil)
		}
		return console.ExitError{Code: 1}
	} else {
		fmt.Fprint(a.Out, string(answer["result.txt"]))
	}
	if code := answer["result.statuscode"]; len(code) > 0 && string(code) != "0" {
		return console.ExitError{Code: 1}
	}
	return nil
}

// printContext lists what a build of the directory would use.
func (a *app) printContext(ctx context.Context, f *buildFlags, dir string) error {
	st, err := os.Stat(dir)
	if err != nil || !st.IsDir() {
		return errdef.New(errdef.ErrInvalid, "--print-context: %q is no directory", dir)
	}
	dockerfile := f.file
	if dockerfile == "" || dockerfile == "-" {
		dockerfile = filepath.Join(dir, "Dockerfile")
	}
	rules := &buildcontext.Rules{}
	name, err := buildcontext.FindIgnoreFile(dir, dockerfile)
	if err != nil {
		return err
	}
	if name != "" {
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		if rules, err = buildcontext.ParseIgnore(file, filepath.Base(name)); err != nil {
			return err
		}
	}
	e, err := buildcontext.Explain(ctx, dir, rules)
	if err != nil {
		return err
	}
	if f.format == "json" {
		return e.WriteJSON(a.Out)
	}
	return e.WriteText(a.Out)
}
