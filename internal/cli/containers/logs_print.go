package containers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"
	"dhow/internal/logs"

	"github.com/docker/cli/templates"
)

// printer prints records of logs.
type printer struct {
	a          *app
	f          *logsFlags
	grep       *regexp.Regexp
	where      []condition
	template   *template.Template
	containers []logSource
	out        []byte // not written yet
	stderr     bool   // where out goes
}

// printAtOnce is how much is written with one call, of a log that is long.
const printAtOnce = 64 << 10

// logSource is one container whose log is printed.
type logSource struct {
	name   string
	tty    bool
	prefix string // in front of every line; "" with one container
}

// condition is one --where.
type condition struct {
	path  []string
	value string
	not   bool
}

func (f *logsFlags) printer(a *app) (*printer, error) {
	p := &printer{a: a, f: f}
	var err error
	if f.grep != "" {
		if p.grep, err = regexp.Compile(f.grep); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "--grep %q: %w", f.grep, err)
		}
	}
	for _, w := range f.where {
		key, value, ok := strings.Cut(w, "=")
		key, not := strings.CutSuffix(key, "!")
		if !ok || key == "" {
			return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "--where %q is no condition", w), "write --where level=error")
		}
		p.where = append(p.where, condition{strings.Split(key, "."), value, not})
	}
	if f.format != "" {
		if p.template, err = templates.Parse(f.format); err != nil {
			return nil, console.InvalidTemplate(f.format, err)
		}
	}
	return p, nil
}

// add adds a container, in the order of the logs.
func (p *printer) add(c *lifecycle.Container, several bool) {
	s := logSource{name: c.Name, tty: c.Config.Tty}
	if several {
		s.prefix = c.Name + " | "
		if !p.f.noColor && console.Terminal(p.a.Out) {
			h := fnv.New32a()
			h.Write([]byte(c.Name))
			const first, colours = 31, 6 // red to cyan
			s.prefix = fmt.Sprintf("\x1b[%dm%s\x1b[0m", first+h.Sum32()%colours, s.prefix)
		}
	}
	p.containers = append(p.containers, s)
}

// takes says whether a line is to be shown, and what it holds as JSON.
func (p *printer) takes(line []byte) (map[string]any, bool) {
	if p.grep != nil && !p.grep.Match(line) {
		return nil, false
	}
	if !p.f.json && len(p.where) == 0 && p.template == nil {
		return nil, true
	}
	var object map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	isJSON := d.Decode(&object) == nil && object != nil
	if (p.f.json || len(p.where) > 0) && !isJSON {
		return nil, false
	}
	for _, c := range p.where {
		if c.holds(object) == c.not {
			return nil, false
		}
	}
	return object, true
}

// holds says whether the object has the value at the path, the not aside.
func (c condition) holds(object map[string]any) bool {
	var v any = object
	for _, key := range c.path {
		m, ok := v.(map[string]any)
		if !ok {
			return false
		}
		if v, ok = m[key]; !ok {
			return false
		}
	}
	return fmt.Sprint(v) == c.value
}

// lastLines keeps the last lines of what filters have let through.
type lastLines struct {
	p     *printer
	keep  int // per container; 0 prints at once
	lines map[int][]kept
	after time.Time // what comes later is printed at once
}

type kept struct {
	at     time.Time
	text   []byte
	stderr bool
}

// last takes over the choice of last lines from package logs where lines are
// filtered here.
func (p *printer) last(o *logs.ReadOptions) *lastLines {
	l := &lastLines{p: p, lines: map[int][]kept{}, after: time.Now()}
	if o.Tail > 0 && (p.grep != nil || p.f.json || len(p.where) > 0) {
		l.keep, o.Tail = o.Tail, 0
	}
	return l
}

func (l *lastLines) take(rec logs.Merged) error {
	p := l.p
	object, ok := p.takes(rec.Line)
	if !ok {
		return nil
	}
	stderr := rec.Stream == logs.Stderr && !p.containers[rec.From].tty
	if l.keep > 0 && rec.Time.After(l.after) {
		if err := l.print(); err != nil {
			return err
		}
		l.keep = 0
	}
	if l.keep == 0 {
		if err := p.to(stderr); err != nil {
			return err
		}
		var err error
		p.out, err = p.appendText(p.out, rec, object)
		return err
	}
	text, err := p.appendText(nil, rec, object)
	list := append(l.lines[rec.From], kept{rec.Time, text, stderr})
	l.lines[rec.From] = list[max(0, len(list)-l.keep):]
	return err
}

// print prints what was kept, in the order of time.
func (l *lastLines) print() error {
	var all []kept
	for _, from := range slices.Sorted(maps.Keys(l.lines)) {
		all = append(all, l.lines[from]...)
	}
	clear(l.lines)
	slices.SortStableFunc(all, func(a, b kept) int { return a.at.Compare(b.at) })
	for _, k := range all {
		if err := l.p.to(k.stderr); err != nil {
			return err
		}
		l.p.out = append(l.p.out, k.text...)
	}
	return nil
}

// end prints what is left.
func (l *lastLines) end() error {
	if err := l.print(); err != nil {
		return err
	}
	return l.p.flush()
}

// to says where the next line goes. The two streams may be the same terminal, so
// that what goes to one is written before anything goes to the other.
func (p *printer) to(stderr bool) error {
	if len(p.out) >= printAtOnce || stderr != p.stderr {
		if err := p.flush(); err != nil {
			return err
		}
	}
	p.stderr = stderr
	return nil
}

// flush writes what was printed.
func (p *printer) flush() error {
	if len(p.out) == 0 {
		return nil
	}
	to := p.a.Out
	if p.stderr {
		to = p.a.Err
	}
	_, err := to.Write(p.out)
	p.out = p.out[:0]
	return err
}

// appendText appends a record as it is printed.
func (p *printer) appendText(dst []byte, rec logs.Merged, object map[string]any) ([]byte, error) {
	c := p.containers[rec.From]
	if rec.Lost > 0 {
		dst = fmt.Appendf(dst, "%s[%d lines are lost]\n", c.prefix, rec.Lost)
	}
	if p.template != nil {
		b := bytes.NewBuffer(dst)
		err := p.template.Execute(b, struct {
			Time               time.Time
			Name, Stream, Line string
			Attrs              map[string]string
			JSON               map[string]any
		}{rec.Time, c.name, rec.Stream.String(), string(rec.Line), attributes(rec.Attrs), object})
		if err != nil {
			return dst, console.InvalidTemplate(p.f.format, err)
		}
		return append(b.Bytes(), '\n'), nil
	}
	dst = append(dst, c.prefix...)
	if p.f.timestamps {
		dst = rec.Time.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000000Z07:00 ")
	}
	if p.f.details {
		dst = append(append(dst, details(attributes(rec.Attrs))...), ' ')
	}
	dst = append(dst, rec.Line...)
	if !rec.Partial {
		dst = append(dst, '\n')
	}
	return dst, nil
}

func attributes(raw []byte) map[string]string {
	m := map[string]string{}
	_ = json.Unmarshal(raw, &m) // made by us, or not there
	return m
}

// details is docker's form of them: "a=b,c=d", escaped.
func details(attrs map[string]string) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		list = append(list, queryEscape(k)+"="+queryEscape(attrs[k]))
	}
	return strings.Join(list, ",")
}

func queryEscape(s string) string {
	return strings.NewReplacer(",", "%2C", "=", "%3D", " ", "+").Replace(s)
}
