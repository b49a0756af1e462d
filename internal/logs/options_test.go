package logs

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/logs/driver"
	"dhow/internal/testkit"
)

// dockerOptions are all options of the drivers in docker's engine 29
// (daemon/logger), with a value each. etwlogs is Windows' alone.
func dockerOptions() map[string]map[string]string {
	attributes := map[string]string{"tag": "{{.Name}}", "labels": "a,b", "labels-regex": "^a", "env": "A", "env-regex": "^A"}
	cache := map[string]string{"cache-disabled": "true", "cache-max-size": "10m", "cache-max-file": "3", "cache-compress": "true"}
	shared := map[string]string{"mode": "non-blocking", "max-buffer-size": "4m"}
	with := func(own map[string]string, more ...map[string]string) map[string]string {
		all := maps.Clone(own)
		for _, m := range append(more, shared) {
			maps.Copy(all, m)
		}
		return all
	}
	store := map[string]string{"max-size": "10m", "max-file": "3", "compress": "true"}
	return map[string]map[string]string{
		"json-file": with(store, attributes),
		"local":     with(store),
		"none":      with(store, attributes),
		"journald":  with(attributes, cache),
		"syslog": with(map[string]string{
			"syslog-address": "tcp+tls://h:1", "syslog-facility": "local3", "syslog-format": "rfc5424", "syslog-tls-ca-cert": "/ca",
			"syslog-tls-cert": "/c", "syslog-tls-key": "/k", "syslog-tls-skip-verify": "true",
		}, attributes, cache),
		"gelf": with(map[string]string{
			"gelf-address": "udp://h:1", "gelf-compression-type": "zlib", "gelf-compression-level": "9",
		}, attributes, cache),
		"fluentd": with(map[string]string{
			"fluentd-address": "tls://h:1", "fluentd-async": "true", "fluentd-async-reconnect-interval": "1s", "fluentd-buffer-limit": "8m",
			"fluentd-max-retries": "3", "fluentd-request-ack": "true", "fluentd-retry-wait": "1s", "fluentd-sub-second-precision": "true",
			"fluentd-write-timeout": "1s", "fluentd-read-timeout": "1s",
		}, attributes, cache),
		"splunk": with(map[string]string{
			"splunk-url": "https://h:1", "splunk-token": "t", "splunk-source": "s", "splunk-sourcetype": "t", "splunk-index": "i",
			"splunk-capath": "/ca", "splunk-caname": "n", "splunk-insecureskipverify": "true", "splunk-format": "json",
			"splunk-verify-connection": "true", "splunk-gzip": "true", "splunk-gzip-level": "3", "splunk-index-acknowledgment": "true",
		}, attributes, cache),
		"awslogs": with(map[string]string{
			"awslogs-region": "r", "awslogs-endpoint": "http://h:1", "awslogs-group": "g", "awslogs-stream": "s", "awslogs-create-group": "true",
			"awslogs-create-stream": "true", "awslogs-datetime-format": "%Y", "awslogs-credentials-endpoint": "/c",
			"awslogs-force-flush-interval-seconds": "5", "awslogs-max-buffered-events": "100", "tag": "t",
		}, cache),
		"gcplogs": with(map[string]string{
			"gcp-project": "p", "gcp-log-cmd": "true", "gcp-meta-zone": "z", "gcp-meta-name": "n", "gcp-meta-id": "i",
			"labels": "a", "labels-regex": "^a", "env": "A", "env-regex": "^A",
		}, cache),
	}
}

func TestDockersOptions(t *testing.T) {
	for name, options := range dockerOptions() {
		if err := Check(name, options); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, options := range map[string]map[string]string{
		"awslogs multiline": {"awslogs-group": "g", "awslogs-multiline-pattern": "^x"},
		"awslogs format":    {"awslogs-group": "g", "awslogs-format": "json/emf"},
		"gelf tcp":          {"gelf-address": "tcp://h:1", "gelf-tcp-max-reconnect": "2", "gelf-tcp-reconnect-delay": "2"},
	} {
		of, _, _ := strings.Cut(name, " ")
		if err := Check(of, options); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is of another driver, or of nobody, is refused by its name.
	for _, name := range Names() {
		for _, option := range []string{"max-sise", "etw-x"} {
			if err := Check(name, map[string]string{option: "1"}); name != driverNone && (err == nil || !strings.Contains(err.Error(), option)) {
				t.Errorf("%s takes %s: %v", name, option, err)
			}
		}
	}
	if err := Check("etwlogs", nil); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("etwlogs: got %v", err)
	}
}

// Every option of every driver is explained.
func TestOptionsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/logging.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range Names() {
		k, err := kind(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, option := range slices.Sorted(maps.Keys(k.Options)) {
			if !strings.Contains(string(text), "`"+option+"`") && !strings.Contains(string(text), "`"+option+"=") {
				t.Errorf("option %s of %s is not in docs/logging.md", option, name)
			}
		}
	}
}

func TestMaxLine(t *testing.T) {
	for _, test := range []struct {
		driver, limit string
		length        int
		want          []int // lengths of the records
	}{
		{"local", "", 1<<20 + 1, []int{1 << 20, 1}},
		{"local", "64k", 64<<10 - 1, []int{64<<10 - 1}},
		{"local", "64k", 100 << 10, []int{64 << 10, 36 << 10}},
		{"local", "4m", 3 << 20, []int{3 << 20}},
		{"json-file", "", 1<<20 + 1, []int{1 << 20, 1}},
		{"json-file", "64k", 100 << 10, []int{64 << 10, 36 << 10}},
		{"json-file", "4m", 3 << 20, []int{3 << 20}},
	} {
		t.Run(fmt.Sprint(test.driver, test.limit, test.length), func(t *testing.T) {
			dir := t.TempDir()
			options := map[string]string{}
			if test.limit != "" {
				options["max-line"] = test.limit
			}
			s := mustOpen(t, dir, testConfig(test.driver, options))
			write(t, s.Stream(Stdout), "before\n"+strings.Repeat("x", test.length)+"\nafter\n")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			for _, tail := range []int{0, 3 + len(test.want) - 1} {
				var got []int
				for r, err := range Read(t.Context(), dir, ReadOptions{Tail: tail}) {
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, len(r.Line))
				}
				if want := append(append([]int{6}, test.want...), 5); !slices.Equal(got, want) {
					t.Errorf("tail %d: got records of %v bytes, want %v", tail, got, want)
				}
			}
		})
	}
	for _, bad := range []string{"1k", "17m", "x", "-1"} {
		if err := Check("local", map[string]string{"max-line": bad}); err == nil || !strings.Contains(err.Error(), "max-line") {
			t.Errorf("%s: got %v", bad, err)
		}
	}
}

// A destination gets lines as long as the store keeps them, also after an update.
func TestMaxLineShipped(t *testing.T) {
	f := &fake{}
	c := testConfig("fake", map[string]string{"max-line": "2m"})
	c.kind = f.kind(driver.Delivery{})
	s, err := Open(t.TempDir(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	write(t, s.Stream(Stdout), strings.Repeat("x", 3<<19)+"\n")
	testkit.Until(t, "the line", func() bool { return len(f.lines()) == 1 })
	if got := len(f.lines()[0]); got != 3<<19 {
		t.Errorf("got %d bytes", got)
	}
	c.Drivers[0].Options = map[string]string{"max-line": "32k"}
	if err := s.Update(c.Drivers); err != nil {
		t.Fatal(err)
	}
	write(t, s.Stream(Stdout), strings.Repeat("y", 40<<10)+"\n")
	testkit.Until(t, "both parts", func() bool { return len(f.lines()) == 3 })
	if got := len(f.lines()[1]); got != 32<<10 {
		t.Errorf("got %d bytes", got)
	}
}
