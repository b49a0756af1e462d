package cli

import (
	"slices"
	"strings"
	"testing"
)

func TestGlobals(t *testing.T) {
	for _, c := range []struct{ args, rest, dir, err string }{
		{args: "ps -l", rest: "ps -l"},
		{args: "--config /c pull x", rest: "pull x", dir: "/c"},
		{args: "--root /r --config=/c -v", rest: "--root /r -v", dir: "/c"},
		{args: "run --config /c x", rest: "run --config /c x"},
		{args: "--context default --host= --tls=false --debug=false -l error ps", rest: "ps"},
		{args: "-c other ps", err: "dhow has no --context: there is no daemon"},
		{args: "-H unix:///x ps", err: "dhow has no --host: there is no daemon"},
		{args: "--tlsverify ps", err: "dhow has no --tlsverify"},
		{args: "-D ps", err: "dhow has no --debug: it keeps no log"},
		{args: "--log-level debug ps", err: "dhow has no --log-level"},
		{args: "--config", err: "flag needs an argument: --config"},
	} {
		dir := ""
		rest, err := takeGlobals(strings.Fields(c.args), func(key, value string) error {
			if key == "DOCKER_CONFIG" {
				dir = value
			}
			return nil
		})
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: got %v, want %q", c.args, err, c.err)
			}
			continue
		}
		if err != nil || !slices.Equal(rest, strings.Fields(c.rest)) || dir != c.dir {
			t.Errorf("%s: got %q, %q, %v", c.args, rest, dir, err)
		}
	}
}
