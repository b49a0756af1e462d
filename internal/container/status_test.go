package container

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

func TestStateText(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		state State
		want  string
	}{
		{State{Status: "created"}, "Created"},
		{State{Status: "running", StartedAt: ago(5 * time.Minute)}, "Up 5 minutes"},
		{State{Status: "running", StartedAt: ago(time.Second), Health: "starting"}, "Up 1 second (health: starting)"},
		{State{Status: "running", StartedAt: ago(5 * time.Minute), Health: "healthy"}, "Up 5 minutes (healthy)"},
		{State{Status: "running", StartedAt: ago(3 * time.Hour), Health: "unhealthy"}, "Up 3 hours (unhealthy)"},
		{State{Status: "running", StartedAt: ago(0), Health: "none"}, "Up Less than a second"},
		{State{Status: "paused", StartedAt: ago(time.Minute), Health: "healthy"}, "Up About a minute (Paused)"},
		{State{Status: "restarting", ExitCode: 1, FinishedAt: ago(3 * time.Second)}, "Restarting (1) 3 seconds ago"},
		{State{Status: "exited", ExitCode: 137, FinishedAt: ago(2 * time.Hour)}, "Exited (137) 2 hours ago"},
		{State{Status: "exited", FinishedAt: ago(time.Minute), Reason: "unhealthy: HTTP 500"}, "Exited (0) About a minute ago (unhealthy: HTTP 500)"},
		{State{Status: "exited", FinishedAt: ago(time.Minute), Reason: strings.Repeat("x", 50)}, "Exited (0) About a minute ago (" + strings.Repeat("x", 39) + "…)"},
		{State{Status: "removing"}, "Removal In Progress"},
		{State{Status: "dead"}, "Dead"},
	} {
		if got := c.state.Text(now); got != c.want {
			t.Errorf("%s: got %q, want %q", c.state.Status, got, c.want)
		}
	}
}

// listings are four containers, newest first.
func listings() []Listing {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	list := make([]Listing, 4)
	for i, name := range []string{"web", "db", "old-db", "never"} {
		r := record(nil)
		r.ID, r.Name = strings.Repeat(string("abcd"[i]), 64), name
		r.Created, r.Image, r.Chain = at.Add(-time.Duration(i)*time.Hour), "sha256:1", "base:x"
		r.Config.Labels = map[string]string{"tier": name}
		list[i] = Listing{r, &State{Status: container.StateExited}}
	}
	list[0].State = &State{Status: "running", Health: "healthy", Ports: network.PortMap{
		network.MustParsePort("80/tcp"):  {{HostIP: netip.IPv4Unspecified(), HostPort: "8080"}},
		network.MustParsePort("443/tcp"): nil,
	}, Networks: map[string]*network.EndpointSettings{"net": {NetworkID: "12345"}}}
	list[1].State = &State{Status: "paused"}
	list[1].Record.Mounts = []Mount{{MountPoint: container.MountPoint{Type: mount.TypeVolume, Name: "data", Destination: "/var/lib"}}}
	list[1].Record.Image, list[1].Record.Chain = "sha256:2", "base:x:y"
	list[2].State.ExitCode = 137
	list[3].State = &State{Status: container.StateCreated}
	return list
}

func TestFilter(t *testing.T) {
	ancestor := func(name string) (Ancestor, error) {
		switch name {
		case "base":
			return Ancestor{"sha256:1", "base:x"}, nil
		case "top":
			return Ancestor{"sha256:2", "base:x:y"}, nil
		}
		return Ancestor{}, errdef.New(errdef.ErrNotFound, "no %s", name)
	}
	for _, c := range []struct {
		filters string
		all     bool
		last    int
		want    string
	}{
		{"", false, 0, "web db"},
		{"", true, 0, "web db old-db never"},
		{"", false, 3, "web db old-db"},
		{"", false, 1, "web"},
		{"name=db", true, 0, "db old-db"},
		{"name=^/db$", true, 0, "db"},
		{"name=web name=never", true, 0, "web never"},
		{"id=bb", false, 0, "db"},
		{"status=exited", false, 0, "old-db"},
		{"status=created status=paused", false, 0, "db never"},
		{"exited=137", true, 0, "old-db"},
		{"exited=0", true, 0, ""},
		{"health=healthy", false, 0, "web"},
		{"health=none", false, 0, "db"},
		{"label=tier", true, 0, "web db old-db never"},
		{"label=tier=db", true, 0, "db"},
		{"label=tier label=other", true, 0, ""},
		{"before=db", true, 0, "old-db never"},
		{"since=old-db", true, 0, "web db"},
		{"volume=data", false, 0, "db"},
		{"volume=/var/lib", false, 0, "db"},
		{"network=net", false, 0, "web"},
		{"network=123", false, 0, "web"},
		{"publish=8080", false, 0, "web"},
		{"publish=8000-8100/tcp", false, 0, "web"},
		{"publish=80", false, 0, ""},
		{"expose=443", false, 0, "web"},
		{"expose=443/udp", false, 0, ""},
		{"ancestor=base", false, 0, "web db"},
		{"ancestor=top", false, 0, "db"},
		{"ancestor=missing", false, 0, ""},
		{"is-task=true", true, 0, ""},
		{"is-task=false", false, 0, "web db"},
	} {
		values := map[string][]string{}
		for _, f := range strings.Fields(c.filters) {
			k, v, _ := strings.Cut(f, "=")
			values[k] = append(values[k], v)
		}
		f, err := ParseFilter(values, ancestor)
		if err != nil {
			t.Errorf("%s: %v", c.filters, err)
			continue
		}
		f.All, f.Last = f.All || c.all, c.last
		got, err := f.Choose(listings())
		if err != nil {
			t.Errorf("%s: %v", c.filters, err)
		}
		var names []string
		for _, l := range got {
			names = append(names, l.Record.Name)
		}
		if strings.Join(names, " ") != c.want {
			t.Errorf("%s, all %v, last %d: got %v, want %s", c.filters, c.all, c.last, names, c.want)
		}
	}
	for _, bad := range []string{"nope=1", "exited=x", "status=gone", "health=ill", "name=(", "publish=1:2", "publish=x", "is-task=maybe"} {
		k, v, _ := strings.Cut(bad, "=")
		if _, err := ParseFilter(map[string][]string{k: {v}}, ancestor); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want it refused", bad, err)
		}
	}
	// A name wins over the beginning of an id.
	list := listings()
	list[0].Record.ID = "db" + list[0].Record.ID[2:]
	f, _ := ParseFilter(map[string][]string{"before": {"db"}}, ancestor)
	f.All = true
	if got, err := f.Choose(list); err != nil || len(got) != 2 {
		t.Errorf("before db: got %d containers and %v, want 2", len(got), err)
	}
	f, _ = ParseFilter(map[string][]string{"before": {"missing"}}, ancestor)
	if _, err := f.Choose(listings()); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("before a missing one: got %v", err)
	}
}

func TestSummary(t *testing.T) {
	l := listings()[0]
	l.Record.Config.Cmd = []string{"nginx", "-g"}
	sum := l.Record.Summary(l.State, "nginx", l.State.StartedAt)
	if sum.Command != "nginx -g" || sum.Names[0] != "/web" || sum.Image != "nginx" || sum.State != "running" || sum.Health.Status != "healthy" {
		t.Errorf("got %+v", sum)
	}
	var ports []string
	for _, p := range sum.Ports {
		data, _ := json.Marshal(p)
		ports = append(ports, string(data))
	}
	want := []string{`{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}`, `{"IP":"","PrivatePort":443,"Type":"tcp"}`}
	if d := cmp.Diff(want, ports); d != "" {
		t.Errorf("ports (-want +got):\n%s", d)
	}
}

func TestInspect(t *testing.T) {
	l := listings()[0]
	l.Record.Config.Entrypoint, l.Record.Config.Cmd = []string{"/entry"}, []string{"a", "b"}
	l.State.Pid, l.State.Reason = 42, "unhealthy: HTTP 500"
	in := l.Record.Inspect(l.State, InspectFacts{Dir: "/root/containers/x", LogPath: "/log", Health: &container.Health{Status: "healthy"}})
	data, err := json.Marshal([]any{in})
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"Id", "Created", "Path", "Args", "State", "Image", "HostsPath", "LogPath", "Name", "RestartCount", "HostConfig", "Config", "NetworkSettings", "Mounts"} {
		if _, ok := got[0][key]; !ok {
			t.Errorf("%s is missing", key)
		}
	}
	if got[0]["Path"] != "/entry" || got[0]["Name"] != "/web" || got[0]["HostsPath"] != "/root/containers/x/hosts" {
		t.Errorf("got %s", data)
	}
	state := got[0]["State"].(map[string]any)
	if state["Running"] != true || state["Pid"] != 42.0 || state["Health"].(map[string]any)["Status"] != "healthy" || state["StartedAt"] != "0001-01-01T00:00:00Z" {
		t.Errorf("state: got %v", state)
	}
	if got[0]["Dhow"].(map[string]any)["Reason"] != "unhealthy: HTTP 500" {
		t.Errorf("got %v", got[0]["Dhow"])
	}
}
