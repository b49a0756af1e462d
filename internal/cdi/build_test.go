package cdi

import (
	"errors"
	"strings"
	"testing"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
)

const forBuilds = `
cdiVersion: "0.6.0"
kind: test.org/tube
devices:
- {name: b, containerEdits: {env: [B=1]}}
- {name: a, annotations: {org.mobyproject.buildkit.device.class: loud}, containerEdits: {env: [A=1]}}
- {name: free, annotations: {org.mobyproject.buildkit.device.autoallow: "true"}, containerEdits: {env: [F=1]}}
`

func TestGrant(t *testing.T) {
	dir := described(t, map[string]string{"tube.yaml": forBuilds}).dirs[0]
	const a, b, free = "test.org/tube=a", "test.org/tube=b", "test.org/tube=free"
	for name, c := range map[string]struct {
		want  []string
		maybe []string
		allow []string
		auto  []string
		off   bool
		got   []string
		err   string
		kind  error
	}{
		"none":              {},
		"free":              {want: []string{free}, got: []string{free}},
		"by configuration":  {want: []string{a}, auto: []string{a}, got: []string{a}},
		"kind by config":    {want: []string{b}, auto: []string{"test.org/tube"}, got: []string{b}},
		"not allowed":       {want: []string{a}, err: "device test.org/tube=a is requested by the build but not allowed", kind: errdef.ErrDenied},
		"two not allowed":   {want: []string{"test.org/tube=*"}, err: "devices test.org/tube=a, test.org/tube=b are", kind: errdef.ErrDenied},
		"another's":         {want: []string{a}, allow: []string{"device=" + b}, err: "not allowed", kind: errdef.ErrDenied},
		"any":               {want: []string{a}, allow: []string{"network.host", "device"}, got: []string{a}},
		"one":               {want: []string{a, free}, allow: []string{"device=" + a}, got: []string{a, free}},
		"first of kind":     {want: []string{"test.org/tube"}, allow: []string{"device=test.org/tube"}, got: []string{a}},
		"all of kind":       {want: []string{"test.org/tube=*", b}, allow: []string{"device"}, got: []string{a, b, free}},
		"class":             {want: []string{"loud"}, allow: []string{"device=loud"}, got: []string{a}},
		"alias":             {want: []string{"it"}, allow: []string{"device=" + b + ",alias=it"}, got: []string{b}},
		"missing":           {want: []string{"test.org/tube=c"}, err: `required device "test.org/tube=c" is not registered`, kind: errdef.ErrNotFound},
		"missing, optional": {maybe: []string{"test.org/tube=c", free}, got: []string{free}},
		"no name":           {want: []string{""}, err: "is not registered", kind: errdef.ErrNotFound},
		"optional, denied":  {maybe: []string{a}, err: "not allowed", kind: errdef.ErrDenied},
		"disabled":          {want: []string{free}, off: true, allow: []string{"device"}, err: "devices are disabled", kind: errdef.ErrDenied},
		"disabled, maybe":   {maybe: []string{free}, off: true},
		"bad entitlement":   {want: []string{free}, allow: []string{"device=" + a + ",colour=red"}, err: "colour", kind: errdef.ErrInvalid},
	} {
		var wanted []Wanted
		for _, n := range c.want {
			wanted = append(wanted, Wanted{Name: n})
		}
		for _, n := range c.maybe {
			wanted = append(wanted, Wanted{Name: n, Optional: true})
		}
		_, got, err := Settings{Dirs: []string{dir}, AutoAllowed: c.auto, Disabled: c.off}.Grant(wanted, c.allow)
		if diff := cmp.Diff(c.got, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if c.kind == nil && err != nil || c.kind != nil && (!errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: got %v, want %v: %s", name, err, c.kind, c.err)
		}
	}
}
