package logs

import (
	"maps"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/logs/awslogs"
	"dhow/internal/logs/driver"
	"dhow/internal/logs/fluentd"
	"dhow/internal/logs/gcplogs"
	"dhow/internal/logs/gelf"
	"dhow/internal/logs/journald"
	"dhow/internal/logs/loki"
	"dhow/internal/logs/otlp"
	"dhow/internal/logs/plugin"
	"dhow/internal/logs/splunk"
	"dhow/internal/logs/syslog"
)

// Drivers that are the local store itself.
const (
	driverJSONFile = "json-file"
	driverLocal    = "local"
	driverNone     = "none"
)

// kinds has the drivers that ship lines elsewhere.
func kinds() map[string]func() driver.Kind {
	return map[string]func() driver.Kind{
		"awslogs":  awslogs.Kind,
		"fluentd":  fluentd.Kind,
		"gcplogs":  gcplogs.Kind,
		"gelf":     gelf.Kind,
		"journald": journald.Kind,
		"loki":     loki.Kind,
		"otlp":     otlp.Kind,
		"splunk":   splunk.Kind,
		"syslog":   syslog.Kind,
	}
}

// Names returns the names of all drivers, sorted.
func Names() []string {
	names := slices.Collect(maps.Keys(kinds()))
	names = append(names, driverJSONFile, driverLocal, driverNone)
	slices.Sort(names)
	return names
}

// kind returns the driver of the name with all options it takes.
func kind(name string) (driver.Kind, error) {
	var k driver.Kind
	switch name {
	case driverNone:
	case driverJSONFile:
		k.Options = driver.Describing(driver.StoreOptions())
	case driverLocal:
		k.Options = driver.StoreOptions()
	default:
		make, ok := kinds()[name]
		if socket := plugin.Find(name); !ok && socket != "" {
			k = plugin.Kind(socket)
			break
		}
		if !ok {
			err := errdef.New(errdef.ErrInvalid, "no log driver named %q", name)
			return k, errdef.WithHint(err, "there are %s, and docker's plugins whose socket is in /run/docker/plugins", strings.Join(Names(), ", "))
		}
		k = make()
	}
	if k.Options = maps.Clone(k.Options); k.Options == nil {
		k.Options = map[string]func(string) error{}
	}
	if !isStore(name) {
		maps.Copy(k.Options, driver.CacheOptions())
	}
	maps.Copy(k.Options, driver.SharedOptions())
	return k, nil
}

// Check returns an ErrInvalid error when there is no such driver, or one of the
// options is unknown to it, has a value it cannot use, or does not go with the
// others. The message names the option.
func Check(name string, options map[string]string) error {
	k, err := kind(name)
	if err != nil {
		return err
	}
	if name == driverNone {
		return nil // docker takes any option with it
	}
	o := driver.Options(options)
	if err := k.CheckOptions(name, o); err != nil {
		return err
	}
	if o["max-buffer-size"] != "" && o["mode"] != "non-blocking" {
		return errdef.New(errdef.ErrInvalid, "log opt max-buffer-size of %s is for mode=non-blocking", name)
	}
	if o["rate-policy"] != "" && o["rate"] == "" {
		return errdef.New(errdef.ErrInvalid, "log opt rate-policy of %s needs a rate", name)
	}
	for _, prefix := range []string{"", "cache-"} {
		single := o[prefix+"max-file"] == "1" || o[prefix+"max-size"] == "-1"
		if o.Bool(prefix+"compress") && single {
			return errdef.New(errdef.ErrInvalid, "log opt %scompress of %s needs a %smax-size and a %smax-file of at least 2", prefix, name, prefix, prefix)
		}
	}
	return nil
}

// CheckAll is Check for all destinations of one container, which may have one
// local store only.
func CheckAll(drivers []Driver) error {
	local := ""
	seen := map[string]bool{}
	for _, d := range drivers {
		if err := Check(d.Name, d.Options); err != nil {
			return err
		}
		if seen[d.Name] {
			return errdef.New(errdef.ErrInvalid, "log driver %s is given twice", d.Name)
		}
		seen[d.Name] = true
		switch d.Name {
		case driverJSONFile, driverLocal, driverNone:
			if local != "" {
				return errdef.New(errdef.ErrInvalid, "log drivers %s and %s do not go together: there is one local store", local, d.Name)
			}
			local = d.Name
		}
	}
	if local == driverNone && len(drivers) > 1 {
		return errdef.WithHint(
			errdef.New(errdef.ErrInvalid, "log driver none does not go with others: lines are shipped from the local store"),
			"give cache-disabled=true to the other driver to have no local lines to read")
	}
	return nil
}
