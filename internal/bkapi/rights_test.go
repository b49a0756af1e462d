package bkapi

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/cdi"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/tonistiigi/fsutil"
)

// runs makes a definition of a step that writes a variable to its output.
func runs(t *testing.T, variable string, o ...llb.RunOption) *llb.Definition {
	t.Helper()
	o = append(o, llb.Args([]string{"/prog", "env", variable}), llb.WithCustomName("the step"))
	def, err := llb.Local("prog", llb.SharedKeyHint("x")).Run(o...).Root().Marshal(t.Context())
	must(t, err)
	return def
}

// printed is what a build's steps wrote.
func printed(seen []*client.SolveStatus) string {
	var b strings.Builder
	for _, s := range seen {
		for _, l := range s.Logs {
			b.Write(l.Data)
		}
	}
	return b.String()
}

func TestDevices(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "tube.yaml"), []byte(`
cdiVersion: "0.6.0"
kind: test.org/tube
devices:
- {name: one, containerEdits: {env: [TUBE=first]}}
- {name: free, annotations: {org.mobyproject.buildkit.device.autoallow: "true"}, containerEdits: {env: [TUBE=free]}}
`), 0o644))
	settings := cdi.Settings{Dirs: []string{dir}}
	_, c := serveWith(t, Options{Devices: settings})
	workers, err := c.ListWorkers(t.Context())
	must(t, err)
	if d := workers[0].CDIDevices; len(d) != 2 || d[0].Name != "test.org/tube=free" || !d[0].AutoAllow || d[1].AutoAllow {
		t.Errorf("got the devices %+v, want free, which all may have, and one", d)
	}
	settings.Disabled = true
	_, without := serveWith(t, Options{Devices: settings})
	mounts := map[string]fsutil.FS{"prog": program(t)}
	for _, test := range []struct {
		on        *client.Client
		device    string
		allow     []string
		out, fail string
	}{
		{on: c, device: "free", out: "free"},
		{on: c, device: "one", fail: "device test.org/tube=one is requested by the build but not allowed"},
		{on: c, device: "one", allow: []string{"device=test.org/tube=one"}, out: "first"},
		{on: c, device: "two", allow: []string{"device"}, fail: "is not registered"},
		{on: without, device: "free", fail: "devices are disabled"},
		{on: without, device: "free", allow: []string{"device"}, fail: "granting entitlement device is not allowed"},
	} {
		def := runs(t, "TUBE", llb.AddCDIDevice(llb.CDIDeviceName("test.org/tube="+test.device)))
		seen, err := solve(t, test.on, def, client.SolveOpt{LocalMounts: mounts, AllowedEntitlements: test.allow})
		if test.fail != "" {
			if err == nil || !strings.Contains(err.Error(), test.fail) {
				t.Errorf("%s with %v: got %v, want %q", test.device, test.allow, err, test.fail)
			}
			continue
		}
		must(t, err)
		if got := printed(seen); got != test.out {
			t.Errorf("%s with %v: got %q, want %q", test.device, test.allow, got, test.out)
		}
	}
}

// TestEntitlements: a step gets a right that the server lets clients ask for and
// that the client asked for.
func TestEntitlements(t *testing.T) {
	for _, right := range []struct {
		name string
		use  llb.RunOption
	}{
		{"network.host", llb.Network(pb.NetMode_HOST)},
		{"security.insecure", llb.Security(pb.SecurityMode_INSECURE)},
	} {
		o := client.SolveOpt{LocalMounts: map[string]fsutil.FS{"prog": program(t)}}
		def := runs(t, "PATH", right.use)
		_, may := serveWith(t, Options{Entitlements: []string{right.name}})
		if _, err := solve(t, may, def, o); err == nil || !strings.Contains(err.Error(), right.name+" is not allowed") {
			t.Errorf("%s, not asked for: got %v, want it refused", right.name, err)
		}
		o.AllowedEntitlements = []string{right.name}
		if _, err := solve(t, may, def, o); err != nil {
			t.Errorf("%s, asked for: %v", right.name, err)
		}
		if _, err := solve(t, serve(t), def, o); err == nil || !strings.Contains(err.Error(), "granting entitlement "+right.name+" is not allowed") {
			t.Errorf("%s, of a server that grants none: got %v, want it refused", right.name, err)
		}
	}
}
