package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// line is the row on one line, for somebody who watches.
func (r result) line() string {
	parts := []string{r.row.name + ":"}
	for _, name := range append([]string{""}, r.order...) {
		if f, ok := r.figure(name); ok {
			if name == "" {
				name = "floor"
			}
			parts = append(parts, fmt.Sprintf("%s %s", name, r.format(f)))
		}
	}
	return strings.Join(parts, "  ")
}

func (r result) format(f float64) string {
	switch {
	case r.row.memory:
		return fmt.Sprintf("%.0f MB", f)
	case r.row.sent && f >= 10_000:
		return fmt.Sprintf("%.1f MB", f/1000)
	case r.row.sent:
		return fmt.Sprintf("%.0f kB", f)
	case f >= 10_000:
		return fmt.Sprintf("%.1f s", f/1000)
	case f >= 100:
		return fmt.Sprintf("%.0f ms", f)
	default:
		return fmt.Sprintf("%.1f ms", f)
	}
}

// report is the whole RESULTS.md.
func report(tools []*tool, results []result, now time.Time) string {
	var b strings.Builder
	b.WriteString("# Measurements\n\nMade by `make bench`; how each row is measured is in bench/README.md. Medians; in brackets how many\ntimes as long (or as much memory) as dhow. The floor is what plain system tools need for the part that\nnobody can skip.\n\n")
	fmt.Fprintf(&b, "%s. %s.\n\n", now.UTC().Format("2 January 2006"), machine())
	for _, t := range tools {
		fmt.Fprintf(&b, "- %s: %s\n", t.name, t.version)
	}
	b.WriteString("\n| row | goal | floor |")
	for _, t := range tools {
		fmt.Fprintf(&b, " %s |", t.name)
	}
	b.WriteString("\n|---|---|---|" + strings.Repeat("---|", len(tools)) + "\n")
	for _, r := range results {
		b.WriteString(r.tableRow(tools))
	}
	b.WriteString(failures(results))
	return b.String()
}

func (r result) tableRow(tools []*tool) string {
	cells := []string{r.row.name, r.row.goal}
	base := "dhow"
	own, ok := r.figure(base)
	if !ok {
		base = "dhow buildkitd"
		own, _ = r.figure(base)
	}
	for _, name := range append([]string{""}, names(tools)...) {
		f, ok := r.figure(name)
		switch {
		case !ok:
			cells = append(cells, "–")
		case name == "" || name == base || own == 0:
			cells = append(cells, r.format(f))
		default:
			cells = append(cells, fmt.Sprintf("%s (%.1f×)", r.format(f), f/own))
		}
	}
	return "| " + strings.Join(cells, " | ") + " |\n"
}

// failures lists what a tool could not do, with the first line of why.
func failures(results []result) string {
	var b strings.Builder
	for _, r := range results {
		for _, name := range r.order {
			if err := r.failed[name]; err != nil {
				first, _, _ := strings.Cut(err.Error(), "\n")
				fmt.Fprintf(&b, "- %s, %s: %s\n", r.row.name, name, first)
			}
		}
	}
	if b.Len() == 0 {
		return ""
	}
	return "\nFailed, and left out:\n\n" + b.String()
}

func names(tools []*tool) []string {
	var all []string
	for _, t := range tools {
		all = append(all, t.name)
	}
	return all
}

// machine describes where the figures come from.
func machine() string {
	model := "unknown processor"
	info, _ := os.ReadFile("/proc/cpuinfo")
	cores := 0
	for line := range strings.Lines(string(info)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name":
			model = strings.TrimSpace(value)
			cores++
		}
	}
	var sys syscall.Sysinfo_t
	_ = syscall.Sysinfo(&sys)
	kernel, _ := exec.Command("uname", "-sr").Output()
	load, _ := os.ReadFile("/proc/loadavg")
	return fmt.Sprintf("%d × %s, %d GB of memory, %s, load average at the end %s",
		cores, model, uint64(sys.Totalram)*uint64(sys.Unit)>>30, strings.TrimSpace(string(kernel)), firstField(string(load)))
}

func firstField(s string) string {
	field, _, _ := strings.Cut(s, " ")
	return field
}
