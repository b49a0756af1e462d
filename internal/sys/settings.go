package sys

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// UserConfigDir is the user's directory of settings, "" when there is none. env
// reads the environment.
func UserConfigDir(env func(string) string) string {
	if dir := env("XDG_CONFIG_HOME"); dir != "" {
		return dir
	}
	if home := env("HOME"); home != "" {
		return filepath.Join(home, ".config")
	}
	return ""
}

// ConfigDirs are dhow's directories of settings: the user's first, the machine's,
// below etc, last.
func ConfigDirs(env func(string) string, etc string) []string {
	dirs := []string{filepath.Join(etc, "dhow")}
	if own := UserConfigDir(env); own != "" {
		dirs = slices.Insert(dirs, 0, filepath.Join(own, "dhow"))
	}
	return dirs
}

// DockerDirs are docker's directories of settings, in which daemon.json and
// certs.d are: the user's first, the machine's, below etc, last.
func DockerDirs(env func(string) string, etc string) []string {
	dirs := []string{env("DOCKER_CONFIG"), "", filepath.Join(etc, "docker")}
	if own := UserConfigDir(env); own != "" {
		dirs[1] = filepath.Join(own, "docker")
	}
	return slices.DeleteFunc(dirs, func(d string) bool { return d == "" })
}

// maxSettings is the size in bytes up to which a file of settings is read.
const maxSettings = 1 << 20

// ReadSettings reads a file of settings; nil when there is none, or one that is
// another user's. ErrInvalid for what is no file of a sensible size.
func ReadSettings(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxSettings) {
		err = errdef.New(errdef.ErrInvalid, "%s: it is no file of at most %d bytes", path, maxSettings)
	}
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	return data, err
}

// ReadJSONSettings reads a file of settings that is one JSON value into v, and says
// whether there is one, as ReadSettings does. ErrInvalid names the file.
func ReadJSONSettings(path string, v any) (bool, error) {
	data, err := ReadSettings(path)
	if err != nil || data == nil {
		return false, err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, errdef.New(errdef.ErrInvalid, "read %s: %w", path, err)
	}
	return true, nil
}
