package buildcontext

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Explanation says for each path of a context whether a build uses it, and
// which rule of the ignore file decided.
type Explanation struct {
	// Dir is the context directory.
	Dir string `json:"directory"`
	// IgnoreFile names the ignore file; empty when there is none.
	IgnoreFile string `json:"ignoreFile,omitempty"`
	// Items are in tree order.
	Items []Item `json:"items"`
	// Idle are the rules that decided nothing: a typo, or done with.
	Idle   []RuleRef `json:"idleRules,omitempty"`
	Totals Totals    `json:"totals"`
}

// Item is one path of an Explanation: a file, a directory that was not entered,
// or a directory of which nothing but itself is used.
type Item struct {
	Path  string `json:"path"`
	Type  string `json:"type"` // file, directory, link, other
	State State  `json:"state"`
	// Size is the length of a file in bytes.
	Size int64 `json:"size"`
	// Target is where a symbolic link points.
	Target string `json:"target,omitempty"`
	// Rule is what decided; nil when no rule matches.
	Rule *RuleRef `json:"rule,omitempty"`
}

// State is what becomes of a path.
type State string

// The states of an Item.
const (
	Used    State = "used"
	Ignored State = "ignored"
	// Skipped is a directory that was never entered, because nothing in it can
	// be used.
	Skipped State = "skipped"
)

// RuleRef points to a line of an ignore file.
type RuleRef struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Pattern string `json:"pattern"` // as written
}

func (r RuleRef) String() string {
	return fmt.Sprintf("%s:%d  %s", r.File, r.Line, printable(r.Pattern))
}

// Explain looks at dir as a build with these rules (nil: none) would, and reads
// no file. Errors are Scan's.
func Explain(ctx context.Context, dir string, rules *Rules) (Explanation, error) {
	root, abs, err := openContext(dir)
	if err != nil {
		return Explanation{}, err
	}
	defer root.Close()
	sel, err := newSelector(int(root.Fd()), Filter{Exclude: rules.Patterns()})
	if err != nil {
		return Explanation{}, err
	}
	w := &walker{root: int(root.Fd()), selector: sel, index: &index{}, explain: true}
	top, err := w.walk(ctx, workers(0))
	if err != nil {
		return Explanation{}, err
	}
	e := explainer{Explanation: Explanation{Dir: abs, Items: []Item{}, Totals: w.counts}}
	if rules != nil {
		e.IgnoreFile = rules.File
		for _, r := range rules.Rules {
			e.refs = append(e.refs, RuleRef{File: r.File, Line: r.Line, Pattern: r.Raw})
		}
	}
	e.busy = make([]bool, len(e.refs))
	e.list(top)
	for i, busy := range e.busy {
		if !busy {
			e.Idle = append(e.Idle, e.refs[i])
		}
	}
	return e.Explanation, nil
}

// explainer makes an Explanation of a walked tree.
type explainer struct {
	Explanation
	refs []RuleRef
	busy []bool // of refs: decided something
}

// list adds what is below n and reports whether any of it is used.
func (e *explainer) list(n *node) (used bool) {
	for i := range n.found {
		f := &n.found[i]
		item := Item{Path: f.Path, Type: typeName(f.Mode), Size: f.Size, Target: f.Link, State: Ignored}
		if r := f.choice.rule; r >= 0 {
			item.Rule = &e.refs[r]
			e.busy[r] = true
		}
		if f.choice.fate == taken {
			item.State = Used
		}
		switch {
		case f.Mode&unix.S_IFMT != unix.S_IFDIR:
			e.Items = append(e.Items, item)
			if item.State == Ignored {
				e.Totals.IgnoredBytes += f.Size
			}
		case f.sub == nil:
			item.State = Skipped
			e.Items = append(e.Items, item)
		default:
			// Stands before what is in it, if it has to stand at all.
			at := len(e.Items)
			e.Items = append(e.Items, item)
			if inside := e.list(f.sub); inside || item.State == Ignored {
				e.Items = slices.Delete(e.Items, at, at+1)
				if inside {
					item.State = Used
				}
			}
		}
		if item.State == Used {
			used = true
			e.Totals.add([]Entry{f.Entry})
		}
	}
	return used
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "link"
	}
	return "other"
}

// WriteJSON writes the explanation as one JSON document.
func (e Explanation) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(e)
}

// Bounds of the text form.
const (
	pathColumn  = 56 // longer paths push the rule to the right
	largestRows = 5
)

// WriteText writes the explanation for a person: one line a path, and a summary.
func (e Explanation) WriteText(w io.Writer) error {
	out := bufio.NewWriter(w)
	rules := "no ignore file"
	if e.IgnoreFile != "" {
		rules = "rules from " + printable(e.IgnoreFile)
	}
	fmt.Fprintf(out, "Build context %s, %s\n\n", printable(e.Dir), rules)
	width := 0
	for _, item := range e.Items {
		width = max(width, min(utf8.RuneCountInString(item.label()), pathColumn))
	}
	for _, item := range e.Items {
		size := ""
		if item.State != Skipped && item.Type == "file" {
			size = humanSize(item.Size)
		}
		line := fmt.Sprintf("%-8s %9s  %-*s", item.State, size, width, item.label())
		if item.Rule != nil {
			line += "  " + item.Rule.String()
		}
		fmt.Fprintln(out, strings.TrimRight(line, " "))
	}
	if len(e.Items) > 0 {
		fmt.Fprintln(out)
	}
	e.writeSummary(out)
	return out.Flush()
}

func (e Explanation) writeSummary(out io.Writer) {
	n := e.Totals
	parts := []string{count(n.Files, "file", "files"), count(n.Dirs, "directory", "directories")}
	if n.Links > 0 {
		parts = append(parts, count(n.Links, "link", "links"))
	}
	if n.Other > 0 {
		parts = append(parts, count(n.Other, "special file", "special files"))
	}
	fmt.Fprintf(out, "Used:     %s, %s\n", strings.Join(parts, ", "), humanSize(n.Bytes))
	fmt.Fprintf(out, "Ignored:  %s, %s\n", count(n.IgnoredFiles, "file", "files"), humanSize(n.IgnoredBytes))
	fmt.Fprintf(out, "Skipped:  %s\n", count(n.PrunedDirs, "directory never entered", "directories never entered"))
	if n.Sockets > 0 {
		fmt.Fprintf(out, "Left out: %s\n", count(n.Sockets, "socket", "sockets"))
	}
	if large := e.largest(); len(large) > 1 {
		fmt.Fprintf(out, "\nLargest files used:\n")
		for _, item := range large {
			fmt.Fprintf(out, "%9s  %s\n", humanSize(item.Size), item.label())
		}
	}
	if len(e.Idle) > 0 {
		fmt.Fprintf(out, "\nRules that decided nothing:\n")
		for _, r := range e.Idle {
			fmt.Fprintf(out, "  %s\n", r)
		}
	}
}

// largest returns the files that matter most to the size of the context, when
// there are enough files to lose sight of them.
func (e Explanation) largest() []Item {
	var files []Item
	for _, item := range e.Items {
		if item.State == Used && item.Type == "file" {
			files = append(files, item)
		}
	}
	if len(files) <= 2*largestRows {
		return nil
	}
	slices.SortStableFunc(files, func(a, b Item) int { return cmp.Compare(b.Size, a.Size) })
	return files[:largestRows]
}

// label is the path as shown: directories end in a slash, links show where
// they point.
func (i Item) label() string {
	switch i.Type {
	case "directory":
		return printable(i.Path) + "/"
	case "link":
		return printable(i.Path) + " -> " + printable(i.Target)
	}
	return printable(i.Path)
}

// printable quotes text that would not stay on its line or would talk to the
// terminal.
func printable(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return strconv.Quote(text)
	}
	return text
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// humanSize is a size in the units docker shows: powers of 1000.
func humanSize(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v := float64(n)
	for _, unit := range []string{"kB", "MB", "GB"} {
		if v /= 1000; v < 999.5 {
			return fmt.Sprintf("%.3g %s", v, unit)
		}
	}
	return fmt.Sprintf("%.3g TB", v/1000)
}
