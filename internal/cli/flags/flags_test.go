package flags

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/pflag"
)

// parse reads a command line of create.
func parse(args ...string) (*container.Record, error) {
	f := New()
	fl := pflag.NewFlagSet("create", pflag.ContinueOnError)
	f.Register(fl)
	if err := fl.Parse(args); err != nil {
		return nil, err
	}
	return f.Record(fl, fl.Args())
}

func TestCreateRecord(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"env": "FILE=1\nA=file\n", "labels": "l=file\nm=file\n", "seccomp.json": "{ \"defaultAction\": \"SCMP_ACT_ALLOW\" }\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := parse("--name", "web", "-it", "-e", "A=1", "--env-file", dir+"/env", "-l", "l=flag", "--label-file", dir+"/labels",
		"--entrypoint", "", "-w", "/w", "-u", "1:2", "--stop-timeout", "3", "--init", "--rm", "--umask", "027",
		"--security-opt", "seccomp="+dir+"/seccomp.json", "--security-opt", "systempaths=unconfined",
		"-v", "/anon", "-v", "/h:/c:ro", "-v", "./rel:/r", "--mount", "type=tmpfs,target=/m", "--tmpfs", "/t:size=1m",
		"--device", "/dev/null:/dev/x:r", "--device", "/dev/zero:rw",
		"--cpus", "1.5", "-m", "64m", "--pids-limit", "9", "--ulimit", "nofile=1:2",
		"--group-add", "5", "--pid", "host", "--annotation", "k=v", "--sysctl", "net.core.somaxconn=1",
		"img", "cmd", "-x")
	if err != nil {
		t.Fatal(err)
	}
	c, h := r.Config, r.Host
	abs, _ := filepath.Abs("rel")
	for what, ok := range map[string]bool{
		"name":       r.Name == "web" && c.Image == "img" && slices.Equal(c.Cmd, []string{"cmd", "-x"}),
		"streams":    c.Tty && c.OpenStdin && c.AttachStdin && c.AttachStdout && c.StdinOnce,
		"env":        slices.Equal(c.Env, []string{"FILE=1", "A=file", "A=1"}),
		"labels":     c.Labels["l"] == "flag" && c.Labels["m"] == "file",
		"entrypoint": slices.Equal(c.Entrypoint, []string{""}),
		"process":    c.WorkingDir == "/w" && c.User == "1:2" && *c.StopTimeout == 3 && *h.Init && h.AutoRemove && *h.Umask == 0o27,
		"security":   slices.Equal(h.SecurityOpt, []string{`seccomp={"defaultAction":"SCMP_ACT_ALLOW"}`}) && h.MaskedPaths != nil && len(h.MaskedPaths) == 0,
		"volumes":    slices.Equal(h.Binds, []string{"/h:/c:ro", abs + ":/r"}) && len(c.Volumes) == 1 && h.Tmpfs["/t"] == "size=1m" && h.Mounts[0].Target == "/m",
		"devices":    h.Devices[0].PathInContainer == "/dev/x" && h.Devices[0].CgroupPermissions == "r" && h.Devices[1].CgroupPermissions == "rw" && h.Devices[1].PathInContainer == "/dev/zero",
		"limits":     h.NanoCPUs == 1.5e9 && h.Memory == 64<<20 && *h.PidsLimit == 9 && h.Ulimits[0].Hard == 2,
		"modes":      h.PidMode.IsHost() && h.GroupAdd[0] == "5" && h.Annotations["k"] == "v" && h.Sysctls["net.core.somaxconn"] == "1",
		"logs":       len(r.Logs) == 1 && r.Logs[0].Name == "",
		"network":    h.NetworkMode == "default",
	} {
		if !ok {
			t.Errorf("%s: got %+v\n%+v", what, c, h)
		}
	}
}

func TestCreateNetwork(t *testing.T) {
	r, err := parse("--network", "name=net,alias=a,ip=10.0.0.5", "--network-alias", "b", "img")
	if err == nil {
		t.Errorf("got %+v, want two kinds of alias refused", r)
	}
	r, err = parse("--network", "net", "--network", "name=other,gw-priority=3", "--ip", "10.0.0.5", "--network-alias", "a", "--mac-address", "02:00:00:00:00:01",
		"-p", "127.0.0.1:8080:80/tcp", "-p", "9000-9001:9000-9001/udp", "-p", "target=5,published=6", "--expose", "70-71", "-P", "--dns", "1.1.1.1", "--link", "db:d", "img")
	if err != nil {
		t.Fatal(err)
	}
	ep := r.Networking.EndpointsConfig
	if n := ep["net"]; n.Aliases[0] != "a" || n.IPAMConfig.IPv4Address.String() != "10.0.0.5" || n.MacAddress.String() != "02:00:00:00:00:01" || n.Links[0] != "db:d" {
		t.Errorf("net: got %+v", n)
	}
	if ep["other"].GwPriority != 3 || r.Host.NetworkMode != "net" || !r.Host.PublishAllPorts || r.Host.DNS[0].String() != "1.1.1.1" {
		t.Errorf("got %+v", ep["other"])
	}
	var ports []string
	for p, list := range r.Host.PortBindings {
		for _, b := range list {
			ip := ""
			if b.HostIP.IsValid() {
				ip = b.HostIP.String()
			}
			ports = append(ports, ip+":"+b.HostPort+"->"+p.String())
		}
	}
	slices.Sort(ports)
	if d := cmp.Diff([]string{"127.0.0.1:8080->80/tcp", ":6->5/tcp", ":9000->9000/udp", ":9001->9001/udp"}, ports); d != "" {
		t.Errorf("ports (-want +got):\n%s", d)
	}
	for _, p := range []string{"80/tcp", "9001/udp", "5/tcp", "70/tcp", "71/tcp"} {
		if _, ok := r.Config.ExposedPorts[network.MustParsePort(p)]; !ok {
			t.Errorf("%s is not exposed: %v", p, r.Config.ExposedPorts)
		}
	}
}

func TestCreateLife(t *testing.T) {
	r, err := parse("--restart", "on-failure:3", "--restart", "on-unhealthy:2", "--restart-delay", "1s",
		"--health-http", ":8080/healthz", "--health-interval", "5s", "--health-on-failure", "kill", "--ready-tcp", ":80", "--ready-interval", "1s",
		"--log-driver", "syslog", "--log-driver", "json-file", "--log-opt", "syslog-address=udp://h:1", "--log-opt", "json-file.max-size=1m", "img")
	if err != nil {
		t.Fatal(err)
	}
	want := container.HealthOptions{HTTP: ":8080/healthz", OnFailure: "kill", Ready: &container.ReadyCheck{TCP: ":80", Interval: time.Second}}
	if d := cmp.Diff(want, r.Health); d != "" {
		t.Errorf("health (-want +got):\n%s", d)
	}
	if d := cmp.Diff(container.RestartOptions{Delay: time.Second, OnUnhealthy: true, Max: 2}, r.Restart); d != "" {
		t.Errorf("restart (-want +got):\n%s", d)
	}
	if p := r.Host.RestartPolicy; p.Name != "on-failure" || p.MaximumRetryCount != 3 || r.Config.Healthcheck.Interval != 5*time.Second {
		t.Errorf("got %+v", p)
	}
	logs := []container.LogDriver{{Name: "syslog", Options: map[string]string{"syslog-address": "udp://h:1"}}, {Name: "json-file", Options: map[string]string{"max-size": "1m"}}}
	if d := cmp.Diff(logs, r.Logs); d != "" {
		t.Errorf("logs (-want +got):\n%s", d)
	}
	r, err = parse("--no-healthcheck", "img")
	if err != nil || !slices.Equal(r.Config.Healthcheck.Test, []string{"NONE"}) {
		t.Errorf("--no-healthcheck: got %+v, %v", r, err)
	}
}

func TestCreateMistakes(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--pull sometimes", `--pull "sometimes"`},
		{"--pid nope", "--pid: invalid PID mode"},
		{"--uts nope", "--uts: invalid UTS mode"},
		{"--userns nope", "--userns nope: there is no such mode"},
		{"--cgroupns nope", "--cgroupns: invalid CGROUP mode"},
		{"--memory-swappiness 101", "range is 0-100"},
		{"--restart :3", "no policy provided before colon"},
		{"--restart on-failure:x", "must be an integer"},
		{"--restart on-unhealthy:x", "must be an integer"},
		{"--restart always --rm", "cannot specify both --restart and --rm"},
		{"--no-healthcheck --health-cmd x", "--no-healthcheck conflicts"},
		{"--no-healthcheck --health-http :1", "--no-healthcheck conflicts"},
		{"--health-retries -1", "--health-retries cannot be negative"},
		{"--health-interval -1s", "--health-interval cannot be negative"},
		{"-a nothing", "valid streams are"},
		{"--env-file /nonexistent", "no such file"},
		{"--label-file /nonexistent", "no such file"},
		{"--security-opt nothing", "invalid --security-opt"},
		{"--security-opt seccomp=/nonexistent", "opening seccomp profile"},
		{"--device rel", "bad format for path"},
		{"--device gpu=all", "neither a path nor a device"},
		{"--device /dev/null:/x:q", "bad mode specified"},
		{"--network name=net,driver-opt=a=b", "driver-opt"},
		{"--network net --link-local-ip 169.254.1.1", "dhow has no --link-local-ip"},
		{"-v ::", "invalid volume"},
		{"-v rel", "must be absolute"},
		{"-p 99999", "invalid"},
		{"-p x=y,z", "invalid publish opts format"},
		{"--expose x", "invalid range format for --expose"},
		{"--ip nope", "is not an IPv4 address"},
		{"--ip6 1.2.3.4", "is not an IPv6 address"},
		{"--mac-address nope", "is not a valid mac address"},
		{"--network a --network host", "both user-defined and non-user-defined"},
		{"--network a --network a", "specified multiple times"},
		{"--network-alias x", "only supported for user-defined networks"},
		{"--network container:x --expose 5", "container type network mode"},
		{"--log-driver none --log-opt a=b", "invalid logging opts for driver none"},
		{"--log-opt gelf.x=y", "there is no --log-driver gelf"},
		{"--log-driver syslog --log-driver syslog", "stands twice"},
		{"--log-opt novalue", "want KEY=VALUE"},
		{"--gpus all,capabilities=video", `device capability "video"`},
		{"--storage-opt size=1g", "dhow has no --storage-opt"},
		{"--isolation hyperv", "it is for Windows"},
		{"--volume-driver nfs", "there is one driver, local"},
		{"--disable-content-trust=false", "dhow has no --disable-content-trust=false"},
	} {
		_, err := parse(append(strings.Fields(c.args), "img")...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in it", c.args, err, c.want)
		}
	}
	if _, err := parse("--pid", "nope", "img"); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v, want it to be invalid", err)
	}
}

func TestProxies(t *testing.T) {
	value := "http://proxy"
	got := withProxies([]string{"http_proxy=mine"}, map[string]*string{"http_proxy": &value, "HTTP_PROXY": &value, "NO_PROXY": nil})
	if d := cmp.Diff([]string{"http_proxy=mine", "HTTP_PROXY=http://proxy"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
