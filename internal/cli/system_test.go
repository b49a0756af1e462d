package cli

import (
	"strings"
	"testing"
	"time"
)

func TestPruneRule(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	for args, want := range map[string]string{
		"":                               "0s",
		"until=24h":                      "24h0m0s",
		"unused-for=90m":                 "1h30m0s",
		"until=2026-01-02T01:00:00Z":     "2h0m0s",
		"until=soon":                     "!is no time",
		"until=1h until=2h":              "!expects only one value",
		"until=1h unused-for=2h":         "!expects only one value",
		"type=exec.cachemount":           "0s type==exec.cachemount",
		"type!=regular":                  "0s type!=regular",
		"description~=go.build until=1h": "1h0m0s description~=go.build",
		"id=abc shared":                  "0s id~=abc,shared",
		"private=true inuse=":            "0s private,inuse",
		"shared=false":                   "!is there or not",
		"parent=k":                       "0s parents==k",
		"label=x":                        "!is not known",
		"type":                           "!bad format of filter",
	} {
		r, err := pruneRule(strings.Fields(args), now)
		got := strings.TrimSpace(r.KeepFor.String() + " " + strings.ReplaceAll(strings.Join(r.Filters, ";"), `"`, ""))
		if fail, ok := strings.CutPrefix(want, "!"); ok {
			if err == nil || !strings.Contains(err.Error(), fail) {
				t.Errorf("%s: got %q, %v, want the error %q", args, got, err, fail)
			}
		} else if err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", args, got, err, want)
		}
	}
}
