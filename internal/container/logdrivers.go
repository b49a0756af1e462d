package container

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"dhow/internal/errdef"

	"github.com/moby/moby/api/types/container"
)

// DefaultLogDriver is docker's.
const DefaultLogDriver = "json-file"

// ParseLogDrivers reads --log-driver and --log-opt, whose keys may begin with the
// name of the driver that they are for; else they are for the first. Without a
// name there is one driver with none, for Defaults.Apply to name.
func ParseLogDrivers(names, options []string) ([]LogDriver, error) {
	if len(names) == 0 {
		names = []string{""}
	} else if slices.Contains(names, "") {
		return nil, invalid("--log-driver: the name is empty")
	}
	var drivers []LogDriver
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return nil, invalid("--log-driver %s stands twice", name)
		}
		drivers = append(drivers, LogDriver{Name: name, Options: map[string]string{}})
	}
	for _, o := range options {
		key, value, ok := strings.Cut(o, "=")
		if !ok || key == "" {
			return nil, invalid("--log-opt %q: got no value, want KEY=VALUE", o)
		}
		to := 0
		if driver, rest, dotted := strings.Cut(key, "."); dotted {
			to, key = slices.Index(names, driver), rest
			if to < 0 {
				return nil, errdef.WithHint(invalid("--log-opt %q: there is no --log-driver %s", o, driver), "add --log-driver %s", driver)
			}
		}
		if drivers[to].Name == "none" {
			return nil, invalid("invalid logging opts for driver none")
		}
		drivers[to].Options[key] = value
	}
	return drivers, nil
}

// logDrivers are the settings' drivers.
func (d *Defaults) logDrivers() ([]LogDriver, error) {
	names := []string(d.LogDriver)
	if len(names) == 0 {
		names = []string{DefaultLogDriver}
	}
	var options []string
	for _, key := range slices.Sorted(maps.Keys(d.LogOpts)) {
		options = append(options, key+"="+d.LogOpts[key])
	}
	drivers, err := ParseLogDrivers(names, options)
	if err != nil {
		return nil, fmt.Errorf("log-driver and log-opts of the settings: %w", err)
	}
	return drivers, nil
}

// DecideLogDrivers completes what was asked for: no driver means the settings', and
// one that the settings have gets their options, unless it has them itself.
func (d *Defaults) DecideLogDrivers(asked []LogDriver) ([]LogDriver, error) {
	settings, err := d.logDrivers()
	if err != nil {
		return nil, err
	}
	decided := slices.Clone(asked)
	if len(decided) == 0 {
		decided = []LogDriver{{}}
	}
	if decided[0].Name == "" {
		decided[0].Name = settings[0].Name
		for _, s := range settings[1:] {
			decided = append(decided, LogDriver{Name: s.Name})
		}
	}
	for i := range decided {
		for _, s := range settings {
			if s.Name == decided[i].Name {
				decided[i].Options = mergeMap(decided[i].Options, s.Options)
			}
		}
	}
	if decided[0].Name == "none" && len(decided[0].Options) > 0 {
		return nil, invalid("invalid logging opts for driver none")
	}
	return decided, nil
}

// SetLogDrivers sets what was decided, where docker has the first, too.
func (r *Record) SetLogDrivers(drivers []LogDriver) {
	r.Logs = drivers
	r.Host.LogConfig = container.LogConfig{Type: drivers[0].Name, Config: drivers[0].Options}
}
