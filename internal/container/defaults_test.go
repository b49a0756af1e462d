package container

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"dhow/internal/errdef"

	"github.com/moby/moby/api/types/container"
)

func TestParseDefaultsRefuses(t *testing.T) {
	for data, want := range map[string]string{
		`{"log-driver": 1}`:                    "want a name or a list of names",
		`{"log-drivr": "local"}`:               `unknown field "log-drivr"`,
		`{"storage-driver": "zfs"}`:            "storage-driver",
		`{"log-driver": ["local", "local"]}`:   "stands twice",
		`{"log-opts": {"loki.loki-url": "x"}}`: "there is no --log-driver loki",
		`{"default-shm-size": "many"}`:         "invalid size",
		`{"default-ipc-mode": "host"}`:         "default-ipc-mode",
		`{"default-cgroupns-mode": "x"}`:       "default-cgroupns-mode",
		`{"dns": ["nowhere"]}`:                 "nowhere",
		`{} {}`:                                "something follows",
		`{"init": true`:                        "unexpected EOF",
		`[]`:                                   "cannot unmarshal array",
	} {
		if _, err := ParseDefaults([]byte(data)); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q in it", data, err, want)
		}
	}
}

func parseDefaults(t *testing.T, data string) *Defaults {
	t.Helper()
	d, err := ParseDefaults([]byte(data))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDecideLogDrivers(t *testing.T) {
	type opts = map[string]string
	for _, c := range []struct {
		name, settings string
		drivers, opts  []string
		want           []LogDriver
	}{
		{"nothing", `{}`, nil, nil, []LogDriver{{"json-file", opts{}}}},
		{"options alone", `{}`, nil, []string{"max-size=1m"}, []LogDriver{{"json-file", opts{"max-size": "1m"}}}},
		{"the settings' driver", `{"log-driver": "local", "log-opts": {"max-size": "5m", "max-file": "3"}}`, nil, []string{"max-size=1m"},
			[]LogDriver{{"local", opts{"max-size": "1m", "max-file": "3"}}}},
		{"named as the settings do", `{"log-driver": "local", "log-opts": {"max-size": "5m"}}`, []string{"local"}, nil, []LogDriver{{"local", opts{"max-size": "5m"}}}},
		{"another one", `{"log-driver": "local", "log-opts": {"max-size": "5m"}}`, []string{"json-file"}, nil, []LogDriver{{"json-file", opts{}}}},
		{"several", `{"log-driver": ["local", "loki"], "log-opts": {"max-size": "5m", "loki.loki-url": "http://l"}}`, nil, nil,
			[]LogDriver{{"local", opts{"max-size": "5m"}}, {"loki", opts{"loki-url": "http://l"}}}},
		{"one of several", `{"log-driver": ["local", "loki"], "log-opts": {"max-size": "5m", "loki.loki-url": "http://l"}}`, []string{"loki"}, nil,
			[]LogDriver{{"loki", opts{"loki-url": "http://l"}}}},
	} {
		asked, err := ParseLogDrivers(c.drivers, c.opts)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseDefaults(t, c.settings).DecideLogDrivers(asked)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, %v, want %v", c.name, got, err, c.want)
		}
	}
	asked, _ := ParseLogDrivers(nil, []string{"max-size=1m"})
	if _, err := parseDefaults(t, `{"log-driver": "none"}`).DecideLogDrivers(asked); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("options for none: got %v", err)
	}
}

const allDefaults = `{"default-runtime": "runc", "default-shm-size": "128m", "default-ulimits": {"nofile": {"Soft": 10, "Hard": 20}, "core": {"Soft": 0}},
	"default-ipc-mode": "shareable", "default-cgroupns-mode": "host", "init": true, "no-new-privileges": true,
	"dns": ["9.9.9.9"], "dns-opts": ["ndots:2"], "dns-search": ["example.org"], "userns-remap": "default"}`

// Every setting counts where the command line says nothing, and none where it
// does.
func TestApplyDefaults(t *testing.T) {
	for _, c := range []struct{ name, host, want string }{
		{"nothing said", `{}`,
			`{"Runtime": "runc", "ShmSize": 134217728, "Ulimits": [{"Name": "core"}, {"Name": "nofile", "Soft": 10, "Hard": 20}], "IpcMode": "shareable",
			"CgroupnsMode": "host", "Init": true, "SecurityOpt": ["no-new-privileges"], "Dns": ["9.9.9.9"], "DnsOptions": ["ndots:2"], "DnsSearch": ["example.org"]}`},
		{"all said",
			`{"Runtime": "crun", "ShmSize": 1, "Ulimits": [{"Name": "core", "Soft": 1}, {"Name": "nofile", "Soft": 1}], "IpcMode": "private", "CgroupnsMode": "private",
			"Init": false, "SecurityOpt": ["no-new-privileges=false"], "Dns": ["1.1.1.1"], "DnsOptions": ["x"], "DnsSearch": ["y"]}`, ``},
	} {
		if c.want == "" {
			c.want = c.host
		}
		got := Record{Host: &container.HostConfig{}}
		want := container.HostConfig{}
		if err := errors.Join(json.Unmarshal([]byte(c.host), got.Host), json.Unmarshal([]byte(c.want), &want)); err != nil {
			t.Fatal(err)
		}
		if err := parseDefaults(t, allDefaults).Apply(&got); err != nil {
			t.Fatal(err)
		}
		want.LogConfig = container.LogConfig{Type: DefaultLogDriver, Config: map[string]string{}}
		if a, b := asJSON(t, got.Host), asJSON(t, want); a != b {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, a, b)
		}
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestCheckIDs(t *testing.T) {
	for host, want := range map[string]string{
		`{}`: "", `{"NetworkMode": "container:x"}`: "", `{"NetworkMode": "none"}`: "",
		`{"Privileged": true}`:       "privileged mode",
		`{"NetworkMode": "host"}`:    "the host's network namespace",
		`{"PidMode": "host"}`:        "the host PID namespace",
		`{"PidMode": "container:x"}`: "PID namespace of another container",
		`{"IpcMode": "container:x"}`: "IPC namespace of another container",
	} {
		r := Record{Host: &container.HostConfig{}}
		if err := json.Unmarshal([]byte(host), r.Host); err != nil {
			t.Fatal(err)
		}
		switch err := r.CheckIDs(); {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v, want %q", host, err, want)
		}
	}
}
