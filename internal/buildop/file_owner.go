package buildop

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/solve"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"
)

// maxUserFile bounds /etc/passwd and /etc/group, in bytes.
const maxUserFile = 10 << 20

// ownerOf finds out whom an action's files belong to; nil when the action does
// not say. Names are looked up in the tree that root opens for the input they
// come with. A name that is not there means root, as with docker, but not
// without a word.
func ownerOf(opt *pb.ChownOpt, root func(input int64) (dir, error), job solve.Job) (*owner, error) {
	if opt == nil {
		return nil, nil
	}
	own := &owner{}
	switch u := opt.User.GetUser().(type) {
	case *pb.UserOpt_ByID:
		own.uid, own.gid = u.ByID, u.ByID
	case *pb.UserOpt_ByName:
		f, ok, err := userEntry(u.ByName, "/etc/passwd", root, job)
		if err != nil {
			return nil, err
		}
		if ok {
			own.uid, own.gid = f[0], f[1]
		}
	}
	switch g := opt.Group.GetUser().(type) {
	case *pb.UserOpt_ByID:
		own.gid = g.ByID
	case *pb.UserOpt_ByName:
		f, ok, err := userEntry(g.ByName, "/etc/group", root, job)
		if err != nil {
			return nil, err
		}
		if ok {
			own.gid = f[0]
		}
	}
	return own, nil
}

// userEntry returns the two numbers of a name's line in a file of the image:
// uid and gid in passwd, gid and 0 in group.
func userEntry(name *pb.NamedUserOpt, file string, root func(int64) (dir, error), job solve.Job) ([2]uint32, bool, error) {
	var ids [2]uint32
	if name.Input < 0 {
		err := errdef.New(errdef.ErrInvalid, "owner %q: the destination is empty and has no %s", name.Name, file)
		return ids, false, errdef.WithHint(err, "give the owner as a number")
	}
	tree, err := root(name.Input)
	if err != nil {
		return ids, false, err
	}
	defer tree.close()
	f, err := openIn(tree, file)
	if err != nil {
		return ids, false, err
	}
	if f != nil {
		defer f.Close()
		ids, ok, err := findUser(f, name.Name)
		if ok || err != nil {
			return ids, ok, wrapFile(file, err)
		}
	}
	job.Warn("owner %q is not in %s of the destination: the files belong to root", name.Name, file)
	return ids, false, nil
}

func wrapFile(file string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("read %s: %w", file, err)
}

// openIn opens a regular file of a tree; nil when there is none.
func openIn(tree dir, file string) (*os.File, error) {
	p, err := resolve(tree, file, true)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if p.leaf == nil {
		return nil, nil
	}
	if !p.leaf.isFile() {
		return nil, errdef.New(errdef.ErrInvalid, "%s is not a regular file", file)
	}
	fd, err := p.dir().openFile(*p.leaf)
	if err != nil {
		return nil, pathError("open", file, err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, pathError("open", file, err)
	}
	return os.NewFile(uintptr(fd), file), nil
}

// findUser reads passwd(5) or group(5): name:password:id:id:… Lines that make
// no sense are passed over, as libc does.
func findUser(r io.Reader, name string) (ids [2]uint32, found bool, err error) {
	s := bufio.NewScanner(io.LimitReader(r, maxUserFile))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		f := strings.Split(strings.TrimSpace(s.Text()), ":")
		if len(f) < 3 || f[0] != name {
			continue
		}
		first, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			continue
		}
		ids[0] = uint32(first)
		if len(f) > 3 {
			if second, err := strconv.ParseUint(f[3], 10, 32); err == nil {
				ids[1] = uint32(second)
			}
		}
		return ids, true, nil
	}
	return ids, false, s.Err()
}
