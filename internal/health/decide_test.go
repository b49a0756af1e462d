package health

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	options "dhow/internal/container"
	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
)

func TestDecide(t *testing.T) {
	defaults := Settings{Interval: 30 * time.Second, Timeout: 30 * time.Second, StartInterval: 5 * time.Second, Retries: 3}
	own := Settings{Interval: time.Second, Timeout: 2 * time.Second, StartPeriod: 3 * time.Second, StartInterval: 4 * time.Second, Retries: 5}
	tests := []struct {
		name  string
		hc    *container.HealthConfig
		shell []string
		o     options.HealthOptions
		want  string // what is tried, "" for no check, "!…" for an error
		s     Settings
	}{
		{"nothing", nil, nil, options.HealthOptions{}, "", Settings{}},
		{"none", &container.HealthConfig{Test: []string{"NONE"}}, nil, options.HealthOptions{}, "", Settings{}},
		{"numbers alone", &container.HealthConfig{Retries: 4}, nil, options.HealthOptions{}, "", Settings{}},
		{"exec form", &container.HealthConfig{Test: []string{"CMD", "a", "b c"}}, []string{"/bin/bash", "-c"}, options.HealthOptions{}, `["a" "b c"]`, defaults},
		{"shell form", &container.HealthConfig{Test: []string{"CMD-SHELL", "a b"}}, nil, options.HealthOptions{}, `["/bin/sh" "-c" "a b"]`, defaults},
		{"the image's shell", &container.HealthConfig{Test: []string{"CMD-SHELL", "a"}}, []string{"/bin/bash", "-ec"}, options.HealthOptions{}, `["/bin/bash" "-ec" "a"]`, defaults},
		{"numbers", &container.HealthConfig{Test: []string{"CMD", "a"}, Interval: time.Second, Timeout: 2 * time.Second, StartPeriod: 3 * time.Second, StartInterval: 4 * time.Second, Retries: 5}, nil, options.HealthOptions{}, `["a"]`, own},
		{"http", &container.HealthConfig{Interval: time.Second, Timeout: 2 * time.Second, StartPeriod: 3 * time.Second, StartInterval: 4 * time.Second, Retries: 5}, nil, options.HealthOptions{HTTP: ":80"}, "http://localhost:80/", own},
		{"tcp", nil, nil, options.HealthOptions{TCP: "[::1]:5432"}, "tcp [::1]:5432", defaults},
		{"grpc", nil, nil, options.HealthOptions{GRPC: ":9/x.Y"}, "grpc localhost:9/x.Y", defaults},
		{"two probes", nil, nil, options.HealthOptions{TCP: ":1", HTTP: ":2"}, "!more than one", Settings{}},
		{"probe and program", &container.HealthConfig{Test: []string{"CMD", "a"}}, nil, options.HealthOptions{TCP: ":1"}, "!more than one", Settings{}},
		{"probe and none", &container.HealthConfig{Test: []string{"NONE"}}, nil, options.HealthOptions{TCP: ":1"}, "!NONE together", Settings{}},
		{"unknown form", &container.HealthConfig{Test: []string{"EXEC", "a"}}, nil, options.HealthOptions{}, "!want CMD, CMD-SHELL or NONE", Settings{}},
		{"no program", &container.HealthConfig{Test: []string{"CMD"}}, nil, options.HealthOptions{}, "!names no program", Settings{}},
		{"short interval", &container.HealthConfig{Test: []string{"CMD", "a"}, Interval: time.Microsecond}, nil, options.HealthOptions{}, "!the interval is 1µs, want at least 1ms", Settings{}},
		{"negative period", &container.HealthConfig{Test: []string{"CMD", "a"}, StartPeriod: -1}, nil, options.HealthOptions{}, "!the start period is", Settings{}},
		{"negative retries", &container.HealthConfig{Test: []string{"CMD", "a"}, Retries: -1}, nil, options.HealthOptions{}, "!retries is -1", Settings{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Decide(tt.hc, tt.shell, tt.o)
			if msg, wrong := strings.CutPrefix(tt.want, "!"); wrong {
				if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), msg) {
					t.Fatalf("got %v, want %q", err, msg)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c == nil {
				c = &Check{Argv: nil}
				if tt.want != "" {
					t.Fatal("got no check")
				}
			} else if got := c.String(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if c.Settings != tt.s {
				t.Errorf("got %+v, want %+v", c.Settings, tt.s)
			}
		})
	}
}

func TestParseTargets(t *testing.T) {
	for text, want := range map[string]string{
		":8080/healthz=200-399":           "http://localhost:8080/healthz [{200 399}]",
		":8080":                           "http://localhost:8080/ [{200 399}]",
		"localhost:80?x=y":                "http://localhost:80/?x=y [{200 399}]",
		":80/?x=y=200,204-206":            "http://localhost:80/?x=y [{200 200} {204 206}]",
		"https://:8443/a":                 "https://localhost:8443/a [{200 399}]",
		"https://example.com/a":           "https://example.com:443/a [{200 399}]",
		"http://10.0.0.2/":                "http://10.0.0.2:80/ [{200 399}]",
		"[::1]:80":                        "http://[::1]:80/ [{200 399}]",
		"HTTP://[fe80::1]":                "http://[fe80::1]:80/ [{200 399}]",
		"a.b:1/=299-200":                  "http://a.b:1/=299-200 [{200 399}]", // no range, so part of the path
		"":                                "!there is no port",
		"8080":                            "!there is no port",
		"/healthz":                        "!there is no port",
		":0/":                             "!the port is not a number",
		":65536/":                         "!the port is not a number",
		"ftp://:1/":                       "!neither http nor https",
		":1/a b":                          "!has a space",
		":1/a\r\nX: y":                    "!has a space, a control",
		":1/a#b":                          "!fragment",
		"a@b:1/":                          `!the host has the character '@'`,
		"[fe80::1%\n]:1":                  `!the host has the character '\n'`,
		"[fe80::1%eth0]:1/":               "http://[fe80::1%eth0]:1/ [{200 399}]",
		":1/" + strings.Repeat("a", 4096): "!too long",
	} {
		got, err := ParseHTTP(text)
		if msg, wrong := strings.CutPrefix(want, "!"); wrong {
			if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), msg) || errdef.Hint(err) == "" {
				t.Errorf("http %.50q: got %v, want %q and a hint", text, err, msg)
			}
			continue
		}
		if err != nil {
			t.Errorf("http %q: %v", text, err)
			continue
		}
		if s := fmt.Sprint(got.String(), " ", got.Ranges); s != want {
			t.Errorf("http %q: got %s, want %s", text, s, want)
		}
	}
	for text, want := range map[string]string{
		":5432": "localhost:5432", "127.0.0.1:1": "127.0.0.1:1", "[::1]:1": "[::1]:1", "localhost:7": "localhost:7",
		"db:5432": "!is a name", "5432": "!no port", ":x": "!the port",
	} {
		got, err := ParseTCP(text)
		if msg, wrong := strings.CutPrefix(want, "!"); wrong {
			if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), msg) {
				t.Errorf("tcp %q: got %v, want %q", text, err, msg)
			}
		} else if err != nil || got.String() != want {
			t.Errorf("tcp %q: got %v %v, want %s", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		":9000": "grpc localhost:9000", ":9000/": "grpc localhost:9000", ":9000/a.b/C": "grpc localhost:9000/a.b/C",
		"x:1": "!is a name", "/a": "!no port",
	} {
		got, err := ParseGRPC(text)
		if msg, wrong := strings.CutPrefix(want, "!"); wrong {
			if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), msg) {
				t.Errorf("grpc %q: got %v, want %q", text, err, msg)
			}
		} else if err != nil || got.String() != want {
			t.Errorf("grpc %q: got %v %v, want %s", text, got, err, want)
		}
	}
}

func FuzzTargets(f *testing.F) {
	for _, s := range []string{":8080/healthz=200-399", "https://a:1/?q=2", "[::1]:80", ":1/x=200,301-302", "[::%\n]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if h, err := ParseHTTP(s); err == nil {
			req := (&httpProbe{target: *h}).request()
			if strings.Count(req, "\r\n") != 6 || strings.Count(req, "\n") != 6 || h.Port == 0 || len(h.Ranges) == 0 {
				t.Errorf("%q makes the request %q", s, req)
			}
		}
		if p, err := ParseTCP(s); err == nil && p.Port == 0 {
			t.Errorf("%q has no port", s)
		}
		if g, err := ParseGRPC(s); err == nil && g.Port == 0 {
			t.Errorf("%q has no port", s)
		}
	})
}

func TestMerge(t *testing.T) {
	image := &container.HealthConfig{Test: []string{"CMD", "image"}, Interval: 7 * time.Second, Retries: 2}
	type in struct {
		user, image *container.HealthConfig
		labels      map[string]string
		o           options.HealthOptions
		r           options.RestartOptions
	}
	tests := []struct {
		name string
		in   in
		hc   *container.HealthConfig
		o    options.HealthOptions
		r    options.RestartOptions
		err  string
	}{
		{name: "nothing"},
		{name: "the image's", in: in{image: image}, hc: image},
		{name: "numbers of the user's", in: in{image: image, user: &container.HealthConfig{Retries: 9}},
			hc: &container.HealthConfig{Test: []string{"CMD", "image"}, Interval: 7 * time.Second, Retries: 9}},
		{name: "numbers without a check", in: in{user: &container.HealthConfig{Retries: 9}}},
		{name: "none", in: in{image: image, user: &container.HealthConfig{Test: []string{"NONE"}}, labels: map[string]string{LabelHTTP: ":1"}},
			hc: &container.HealthConfig{Test: []string{"NONE"}, Interval: 7 * time.Second, Retries: 2}},
		{name: "a flag's probe counts more than all", in: in{image: image, labels: map[string]string{LabelHTTP: ":1"}, o: options.HealthOptions{TCP: ":2"}},
			hc: &container.HealthConfig{Interval: 7 * time.Second, Retries: 2}, o: options.HealthOptions{TCP: ":2"}},
		{name: "a label counts more than the image's", in: in{image: image, labels: map[string]string{LabelHTTP: ":1", LabelInterval: "3s", LabelRetries: "1", LabelTimeout: "4s", LabelStartPeriod: "5s", LabelStartInterval: "6s"}},
			hc: &container.HealthConfig{Interval: 3 * time.Second, Timeout: 4 * time.Second, StartPeriod: 5 * time.Second, StartInterval: 6 * time.Second, Retries: 1},
			o:  options.HealthOptions{HTTP: ":1"}},
		{name: "a flag's program counts more than a label", in: in{image: image, user: &container.HealthConfig{Test: []string{"CMD", "mine"}}, labels: map[string]string{LabelGRPC: ":1"}},
			hc: &container.HealthConfig{Test: []string{"CMD", "mine"}, Interval: 7 * time.Second, Retries: 2}},
		{name: "actions and ready", in: in{labels: map[string]string{LabelOnFailure: "kill", LabelReadyCmd: "x y", LabelReadyInterval: "2s"}},
			o: options.HealthOptions{OnFailure: "kill", Ready: &options.ReadyCheck{Test: []string{"CMD-SHELL", "x y"}, Interval: 2 * time.Second}}},
		{name: "on unhealthy", in: in{labels: map[string]string{LabelOnUnhealthy: "3"}}, r: options.RestartOptions{OnUnhealthy: true, Max: 3}},
		{name: "on unhealthy, without end", in: in{labels: map[string]string{LabelOnUnhealthy: "true"}}, r: options.RestartOptions{OnUnhealthy: true}},
		{name: "flags before labels", in: in{labels: map[string]string{LabelOnFailure: "kill"}, r: options.RestartOptions{OnUnhealthy: true}}, r: options.RestartOptions{OnUnhealthy: true}},
		{name: "both", in: in{o: options.HealthOptions{OnFailure: "stop"}, r: options.RestartOptions{OnUnhealthy: true}}, err: "stop together with"},
		{name: "bad action", in: in{labels: map[string]string{LabelOnFailure: "explode"}}, err: `got "explode"`},
		{name: "bad number", in: in{labels: map[string]string{LabelHTTP: ":1", LabelRetries: "-1"}}, err: LabelRetries},
		{name: "bad duration", in: in{labels: map[string]string{LabelInterval: "soon"}}, err: LabelInterval},
		{name: "bad times", in: in{labels: map[string]string{LabelOnUnhealthy: "yes"}}, err: LabelOnUnhealthy},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, r := tt.in.o, tt.in.r
			hc, err := Merge(tt.in.user, tt.in.image, tt.in.labels, &o, &r)
			if tt.err != "" {
				if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.hc, hc); diff != "" {
				t.Errorf("HEALTHCHECK (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.o, o); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.r, r); diff != "" {
				t.Errorf("restart (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOnFailure(t *testing.T) {
	last := Result{ExitCode: 3, Output: "\n  cannot\treach it\nmore\n"}
	tests := []struct {
		o      options.HealthOptions
		r      options.RestartOptions
		inRow  int
		action Action
		reason string
	}{
		{action: None, reason: "unhealthy: cannot reach it"},
		{o: options.HealthOptions{OnFailure: "kill"}, action: Kill, reason: "unhealthy: cannot reach it"},
		{o: options.HealthOptions{OnFailure: "stop"}, action: Stop, reason: "unhealthy: cannot reach it"},
		{o: options.HealthOptions{OnFailure: "restart"}, inRow: 100, action: Restart, reason: "unhealthy: cannot reach it"},
		{r: options.RestartOptions{OnUnhealthy: true}, inRow: 100, action: Restart, reason: "unhealthy: cannot reach it"},
		{r: options.RestartOptions{OnUnhealthy: true, Max: 2}, inRow: 1, action: Restart, reason: "unhealthy: cannot reach it"},
		{r: options.RestartOptions{OnUnhealthy: true, Max: 2}, inRow: 2, action: None, reason: "unhealthy: cannot reach it; left so after 2 restarts"},
	}
	for _, tt := range tests {
		action, reason := OnFailure(tt.o, tt.r, tt.inRow, last)
		if action != tt.action || reason != tt.reason {
			t.Errorf("%+v %+v %d: got %s %q, want %s %q", tt.o, tt.r, tt.inRow, action, reason, tt.action, tt.reason)
		}
	}
	if _, reason := OnFailure(options.HealthOptions{}, options.RestartOptions{}, 0, Result{ExitCode: 7}); reason != "unhealthy: the probe exited with 7" {
		t.Errorf("got %q", reason)
	}
	if _, reason := OnFailure(options.HealthOptions{}, options.RestartOptions{}, 0, Result{Output: strings.Repeat("x", 500)}); len(reason) > 250 {
		t.Errorf("the reason has %d bytes", len(reason))
	}
}
