package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// User is whom a process runs as.
type User struct {
	UID, GID uint32
	// Groups are the additional group ids, without GID.
	Groups []uint32
	// Name is the login name where the image knows one, else "".
	Name string
	// Home is the home directory, "/" where the image names none.
	Home string
}

// maxUserFile bounds /etc/passwd and /etc/group of an image, in bytes.
const maxUserFile = 16 << 20

// maxID is the largest id docker accepts.
const maxID = 1<<31 - 1

// LookupUser reads who spec means from /etc/passwd and /etc/group inside root:
// "", "name", "uid", "name:group", "uid:gid" and so on, as docker's --user
// understands them. Numbers need no entry. An unknown name is ErrNotFound, a
// malformed spec or an oversized file ErrInvalid.
func LookupUser(root *os.File, spec string) (User, error) {
	passwd, err := readInRoot(root, "/etc/passwd")
	if err != nil {
		return User{}, err
	}
	group, err := readInRoot(root, "/etc/group")
	if err != nil {
		return User{}, err
	}
	return lookupUser(passwd, group, spec)
}

// LookupGroup reads which group name means, a name or a number, from /etc/group
// inside root. ErrNotFound for an unknown name.
func LookupGroup(root *os.File, name string) (uint32, error) {
	group, err := readInRoot(root, "/etc/group")
	if err != nil {
		return 0, err
	}
	return lookupGroup(group, name)
}

// readInRoot reads a small file of an image; one that is missing is empty.
func readInRoot(root *os.File, path string) (string, error) {
	f, err := sys.OpenInRoot(root, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY) // a FIFO must not hold us up
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s in the image: %w", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("open %s in the image: %w", path, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxUserFile {
		return "", errdef.New(errdef.ErrInvalid, "read %s in the image: not a regular file of at most %d bytes", path, maxUserFile)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxUserFile))
	if err != nil {
		return "", fmt.Errorf("read %s in the image: %w", path, err)
	}
	return string(data), nil
}

// lookupUser decides on the contents of the two files.
func lookupUser(passwd, group, spec string) (User, error) {
	name, groupName, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	u := User{Home: "/"}
	id, numeric := parseID(name)
	// name:password:uid:gid:gecos:home:shell (passwd(5))
	entry := find(passwd, 7, func(f []string) bool {
		n, ok := parseID(f[2])
		return ok && (f[0] == name || numeric && n == id)
	})
	switch {
	case entry != nil:
		u.Name = entry[0]
		u.UID, _ = parseID(entry[2])
		u.GID, _ = parseID(entry[3])
		if entry[5] != "" {
			u.Home = entry[5]
		}
	case numeric:
		u.UID = id
	default:
		return User{}, errdef.New(errdef.ErrNotFound, "look up user %q: no such entry in the image's /etc/passwd", name)
	}
	if !hasGroup || groupName == "" {
		u.Groups = memberships(group, u)
		return u, nil
	}
	gid, err := lookupGroup(group, groupName)
	u.GID = gid
	return u, err
}

// lookupGroup finds a group by name or number.
func lookupGroup(group, name string) (uint32, error) {
	id, numeric := parseID(name)
	// name:password:gid:members (group(5))
	entry := find(group, 4, func(f []string) bool {
		n, ok := parseID(f[2])
		return ok && (f[0] == name || numeric && n == id)
	})
	if entry != nil {
		id, _ = parseID(entry[2])
		return id, nil
	}
	if numeric {
		return id, nil
	}
	return 0, errdef.New(errdef.ErrNotFound, "look up group %q: no such entry in the image's /etc/group", name)
}

// memberships are the groups that list the user as a member.
func memberships(group string, u User) []uint32 {
	var ids []uint32
	if u.Name == "" {
		return nil
	}
	for line := range strings.Lines(group) {
		f := fields(line, 4)
		if f == nil || !slices.Contains(strings.Split(f[3], ","), u.Name) {
			continue
		}
		if id, ok := parseID(f[2]); ok && id != u.GID && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// find returns the fields of the first line that match accepts.
func find(text string, n int, match func([]string) bool) []string {
	for line := range strings.Lines(text) {
		if f := fields(line, n); f != nil && match(f) {
			return f
		}
	}
	return nil
}

// fields splits a line at its colons; missing fields at the end are empty, as
// minimal images write "name:x:1:1". It is nil for what is no entry.
func fields(line string, n int) []string {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return nil
	}
	f := strings.Split(line, ":")
	if len(f) < 3 {
		return nil
	}
	for len(f) < n {
		f = append(f, "")
	}
	return f
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}
