package volume

import (
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdef"
)

// Filter reads the filters of "volume ls": name, label, driver, dangling. A
// volume has to meet one value of each kind, and all labels. ErrInvalid.
func Filter(filters map[string][]string) (func(Volume) bool, error) {
	dangling, asked, err := oneBool("dangling", filters["dangling"])
	if err != nil {
		return nil, err
	}
	for key := range filters {
		if !slices.Contains([]string{"name", "label", "driver", "dangling"}, key) {
			return nil, errdef.New(errdef.ErrInvalid, "invalid filter '%s': want name, label, driver or dangling", key)
		}
	}
	return func(v Volume) bool {
		switch {
		case asked && dangling != (len(v.Users) == 0):
		case len(filters["driver"]) > 0 && !slices.Contains(filters["driver"], Driver):
		case len(filters["name"]) > 0 && !slices.ContainsFunc(filters["name"], func(s string) bool { return strings.Contains(v.Name, s) }):
		case !hasLabels(v, filters["label"]):
		default:
			return true
		}
		return false
	}, nil
}

// PruneFilter reads the filters of "volume prune": label and "label!". The "all"
// among them is what --all says too. ErrInvalid.
func PruneFilter(filters map[string][]string) (filter func(Volume) bool, all bool, err error) {
	all, _, err = oneBool("all", filters["all"])
	if err != nil {
		return nil, false, err
	}
	for key := range filters {
		if !slices.Contains([]string{"label", "label!", "all"}, key) {
			return nil, false, errdef.New(errdef.ErrInvalid, "invalid filter '%s': want label, label! or all", key)
		}
	}
	return func(v Volume) bool {
		unwanted := slices.ContainsFunc(filters["label!"], func(l string) bool { return hasLabels(v, []string{l}) })
		return hasLabels(v, filters["label"]) && !unwanted
	}, all, nil
}

// oneBool reads a filter that is yes or no.
func oneBool(key string, values []string) (value, given bool, err error) {
	for _, s := range values {
		b, err := strconv.ParseBool(s)
		if err != nil || given && b != value {
			return false, false, errdef.New(errdef.ErrInvalid, "invalid filter '%s=%s': want true or false", key, s)
		}
		value, given = b, true
	}
	return value, given, nil
}

// hasLabels says whether the volume has every label, given as "key" or
// "key=value".
func hasLabels(v Volume, labels []string) bool {
	for _, l := range labels {
		key, want, exact := strings.Cut(l, "=")
		got, ok := v.Labels[key]
		if key == anonymousLabel {
			got, ok = "", v.Anonymous
		}
		if !ok || exact && got != want {
			return false
		}
	}
	return true
}
