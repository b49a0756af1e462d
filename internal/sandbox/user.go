package sandbox

import "os"

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

// LookupUser reads who spec means from /etc/passwd and /etc/group inside root:
// "", "name", "uid", "name:group", "uid:gid" and so on, as docker's --user
// understands them. Numbers need no entry. An unknown name is ErrNotFound, a
// malformed spec or an oversized file ErrInvalid.
func LookupUser(root *os.File, spec string) (User, error) { panic("not written yet") }
