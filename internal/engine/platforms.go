package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"dhow/internal/frontend"

	"github.com/containerd/platforms"
)

// platformWarning tells of results for other platforms than those that were asked
// for; "" when there is nothing to tell. The words are BuildKit's.
func platformWarning(asked string, res *frontend.Result) string {
	want := map[string]bool{}
	if asked == "" {
		want[platforms.FormatAll(platforms.Normalize(platforms.DefaultSpec()))] = true
	}
	for v := range strings.SplitSeq(asked, ",") {
		if v == "" {
			continue
		}
		p, err := platforms.Parse(v)
		if err != nil {
			return fmt.Sprintf("Invalid platform result requested %q: %v", v, err)
		}
		name := platforms.FormatAll(platforms.Normalize(p))
		if want[name] {
			return fmt.Sprintf("Duplicate platform result requested %q", v)
		}
		want[name] = true
	}
	got := map[string]bool{}
	for _, t := range res.Targets {
		p := platforms.Normalize(t.Platform)
		name := platforms.FormatAll(p)
		if p.OSVersion = ""; !want[name] && want[platforms.FormatAll(p)] {
			name = platforms.FormatAll(p) // who asks for no version takes any
		}
		got[name] = true
	}
	switch {
	case maps.Equal(want, got):
		return ""
	case len(want) > 1 && !res.Multi:
		return "Multiple platforms requested but result is not multi-platform"
	case len(want) == 1 && len(got) == 1:
		return fmt.Sprintf("Requested platform %q does not match result platform %q", named(want), named(got))
	}
	return fmt.Sprintf("Requested platforms %s do not match result platforms %s", named(want), named(got))
}

func named(set map[string]bool) string { return strings.Join(slices.Sorted(maps.Keys(set)), ",") }
