package lifecycle

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/sys"
)

// Settings reads the settings for containers: config.json in /etc/dhow and in the
// user's directory of settings, of which the user's keys count first. env reads the
// environment. ErrInvalid names the file that cannot be used.
func Settings(env func(string) string) (*container.Defaults, error) {
	return readSettings(env, "/etc")
}

func readSettings(env func(string) string, etc string) (*container.Defaults, error) {
	merged := map[string]json.RawMessage{}
	for _, dir := range slices.Backward(sys.ConfigDirs(env, etc)) {
		path := filepath.Join(dir, "config.json")
		data, err := sys.ReadSettings(path)
		if err != nil {
			return nil, err
		}
		if data == nil {
			continue
		}
		var keys map[string]json.RawMessage
		if _, err = container.ParseDefaults(data); err == nil {
			err = json.Unmarshal(data, &keys)
		}
		if err != nil {
			return nil, errdef.As(errdef.ErrInvalid, fmt.Errorf("read the settings %s: %w", path, err))
		}
		maps.Copy(merged, keys)
	}
	if len(merged) == 0 {
		return &container.Defaults{}, nil
	}
	data, err := json.Marshal(merged)
	if err != nil {
		return nil, err
	}
	d, err := container.ParseDefaults(data) // options of one file may not go with drivers of the other
	if err != nil {
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	return d, nil
}
