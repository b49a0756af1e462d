package logs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// With driver json-file, segments also have docker's names, as hard links beside
// the directory of segments: <id>-json.log is the current one, <id>-json.log.1 or
// .1.gz the one before, and so on. The names are for other programs; dhow reads
// by numbers. They are derived: whatever state a crash left them in, link puts
// them right.

// LogPath returns the path of docker's json-file of the container with this id,
// for a log that is kept in dir by these drivers; "" when none of them is
// json-file.
func LogPath(dir, id string, drivers []Driver) string {
	for _, d := range drivers {
		if d.Name == driverJSONFile {
			return filepath.Join(dir, id+"-json.log")
		}
	}
	return ""
}

// link gives docker's names to the segments (oldest first) and takes them from
// what is no segment any more. The name of the current one is never missing.
func link(dir, base string, all []segment) error {
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	stale := map[string]bool{}
	for _, name := range names {
		if name == base || strings.HasPrefix(name, base+".") {
			stale[name] = true
		}
	}
	var problems []error
	// Oldest first, so that no name stands for two segments at any time.
	for i, s := range all {
		if s.format != formatJSON {
			continue
		}
		name := base
		if age := len(all) - 1 - i; age > 0 {
			name += "." + strconv.Itoa(age)
		}
		if s.gz {
			name += ".gz"
		}
		delete(stale, name)
		problems = append(problems, linkOne(s.path(dir), filepath.Join(dir, name)))
	}
	for name := range stale {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

func linkOne(target, name string) error {
	var a, b unix.Stat_t
	if err := unix.Lstat(target, &a); err != nil {
		return &os.PathError{Op: "lstat", Path: target, Err: err}
	}
	if unix.Lstat(name, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino {
		return nil
	}
	beside := filepath.Join(filepath.Dir(name), ".link")
	os.Remove(beside)
	if err := os.Link(target, beside); err != nil {
		return err
	}
	return os.Rename(beside, name)
}
