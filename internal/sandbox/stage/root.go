package stage

import "syscall"

// buildRoot makes the plan's root the root directory of this mount namespace
// and lets go of the host's, before a single path of the image is looked at:
// whatever links the image holds, there is no host left to reach.
//
// New file systems are mounted first, detached, because the kernel lets a user
// namespace mount proc and sysfs only while it can still see a full one.
func buildRoot(p *Plan) *failure {
	if p.Inside {
		return nil
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fail("make the mount namespace private", errnoOf(err))
	}
	if f := makeFilesystems(p); f != nil {
		return f
	}
	old, e := openat(atFdcwd, "/", oPath|syscall.O_DIRECTORY, 0)
	if e != 0 {
		return fail("open the old root", e)
	}
	if e := moveMount(p.Root, old); e != 0 {
		return fail("attach the root file system", e)
	}
	if err := syscall.Fchdir(p.Root); err != nil {
		return fail("enter the root file system", errnoOf(err))
	}
	if err := syscall.PivotRoot(".", "."); err != nil {
		return fail("pivot_root", errnoOf(err))
	}
	// "." is now the old root, stacked on the new one; its place is free once it
	// is unmounted (pivot_root(2), "pivot_root(".", ".")").
	if err := syscall.Fchdir(old); err != nil {
		return fail("enter the old root", errnoOf(err))
	}
	if err := syscall.Unmount(".", syscall.MNT_DETACH); err != nil {
		return fail("unmount the old root", errnoOf(err))
	}
	syscall.Close(old)
	if err := syscall.Chdir("/"); err != nil {
		return fail("enter the new root", errnoOf(err))
	}
	return nil
}

// makeFilesystems replaces each Mount's Type by a detached mount in FD.
func makeFilesystems(p *Plan) *failure {
	for i := range p.Mounts {
		m := &p.Mounts[i]
		if m.FD >= 0 {
			continue
		}
		fd, e := newMount(m.Type, m.Options, m.Attrs)
		if e == syscall.EINVAL && p.InUserNS && m.Type == "devpts" {
			// gid 5 (tty) has no meaning where a single id is mapped.
			fd, e = newMount(m.Type, without(m.Options, "gid"), m.Attrs)
		}
		if (e == syscall.EPERM || e == syscall.EBUSY) && m.Fallback >= 0 {
			fd, e = m.Fallback, 0
		}
		if e != 0 {
			return fail("mount "+m.Type+" for "+m.Dest, e)
		}
		m.FD = fd
	}
	return nil
}

func without(options []Setting, name string) []Setting {
	var kept []Setting
	for _, o := range options {
		if o.Name != name {
			kept = append(kept, o)
		}
	}
	return kept
}

// fillRoot fills the new root: mounts, devices, masks.
func fillRoot(p *Plan) *failure {
	if p.Inside {
		return nil
	}
	root, e := openat(atFdcwd, "/", oPath|syscall.O_DIRECTORY, 0)
	if e != 0 {
		return fail("open the root", e)
	}
	t := tree{root: root}
	for i := range p.Mounts {
		m := &p.Mounts[i]
		if m.Type == "proc" && len(p.Sysctls) > 0 {
			if f := setSysctls(m.FD, p.Sysctls); f != nil {
				return f
			}
		}
		if f := t.attach(m); f != nil {
			return f
		}
	}
	for _, d := range p.Devices {
		if f := t.attachDevice(d); f != nil {
			return f
		}
	}
	for _, l := range p.Links {
		t.link(l)
	}
	if f := t.protect(p); f != nil {
		return f
	}
	if p.RootReadOnly {
		if e := setMountAttr(root, 0, attrReadOnly); e != 0 {
			return fail("make the root read-only", e)
		}
	}
	syscall.Close(root)
	return nil
}

// setSysctls writes below /proc/sys through the still detached proc, where
// nothing can be mounted in the way (CVE-2025-52881).
func setSysctls(proc int, sysctls []Setting) *failure {
	for _, s := range sysctls {
		path := "sys/" + s.Name
		fd, e := openat2(proc, path, syscall.O_WRONLY, resolveBeneath|resolveNoSymlinks|resolveNoXdev)
		if e != 0 {
			return fail("open /proc/"+path, e)
		}
		_, err := syscall.Write(fd, []byte(s.Value))
		syscall.Close(fd)
		if err != nil {
			return fail("set sysctl "+s.Name+"="+s.Value, errnoOf(err))
		}
	}
	return nil
}

// tree does path work below the root. All of it goes through openat2, which
// walks as if root were "/" and refuses magic links.
type tree struct{ root int }

// open finds path as an O_PATH descriptor.
func (t tree) open(path string, flags, resolve uint64) (int, syscall.Errno) {
	return openat2(t.root, path, oPath|flags, resolveInRoot|resolveNoMagicLinks|resolve)
}

// attach puts m at its destination, which is made where it is missing.
func (t tree) attach(m *Mount) *failure {
	var st syscall.Stat_t
	if err := syscall.Fstat(m.FD, &st); err != nil {
		return fail("look at the mount for "+m.Dest, errnoOf(err))
	}
	dir := st.Mode&syscall.S_IFMT == syscall.S_IFDIR
	resolve := uint64(0)
	if m.NoLinks {
		resolve = resolveNoSymlinks
	}
	target, e := t.open(m.Dest, 0, resolve)
	if e == syscall.ENOENT { // with NoLinks a link would have been ELOOP
		target, e = t.create(m.Dest, dir)
	}
	if e == syscall.ELOOP && m.NoLinks {
		return &failure{FailSetup, e, "mount on " + m.Dest + ": the image has a symbolic link there"}
	}
	if e != 0 {
		return fail("make the mount point "+m.Dest, e)
	}
	defer syscall.Close(target)
	if e := moveMount(m.FD, target); e != 0 {
		if e == syscall.ENOTDIR {
			return fail("mount on "+m.Dest+": one of source and target is a directory, the other is not", e)
		}
		return fail("mount on "+m.Dest, e)
	}
	return nil
}

// maxLinks is how many dangling links a path may lead through, as the kernel's.
const maxLinks = 40

// create makes path, a directory or an empty file, and its missing parents.
// Links that lead nowhere yet are followed inside the root and what they point
// to is made, as images link /etc/resolv.conf into an empty /run.
func (t tree) create(path string, dir bool) (int, syscall.Errno) {
	rest := split(path)
	done, links := "/", 0
	for len(rest) > 0 {
		name := rest[0]
		fd, e := t.open(done+name, 0, 0)
		if e == 0 && len(rest) == 1 {
			return fd, 0
		}
		if e == 0 {
			syscall.Close(fd)
			done, rest = done+name+"/", rest[1:]
			continue
		}
		if e != syscall.ENOENT {
			return -1, e
		}
		target, e := t.createOne(done, name, dir || len(rest) > 1)
		if e != 0 {
			return -1, e
		}
		if target == "" {
			continue // made; opened by the next turn
		}
		if links++; links > maxLinks {
			return -1, syscall.ELOOP
		}
		if target[0] == '/' {
			done = "/"
		}
		rest = append(split(target), rest[1:]...)
	}
	return t.open(done, 0, 0)
}

// createOne makes name in the directory parent, or returns the target of the
// link that is there.
func (t tree) createOne(parent, name string, dir bool) (link string, e syscall.Errno) {
	p, e := t.open(parent, syscall.O_DIRECTORY, 0)
	if e != 0 {
		return "", e
	}
	defer syscall.Close(p)
	if dir {
		e = mkdirat(p, name, 0o755)
	} else {
		var fd int
		if fd, e = openat(p, name, syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY|syscall.O_NOFOLLOW, 0o644); e == 0 {
			syscall.Close(fd)
		}
	}
	if e == syscall.EEXIST {
		return readlinkat(p, name)
	}
	if e == 0 {
		t.tellStub(parent, name)
	}
	return "", e
}

// tellStub reports a new mount point if it is in the root's own mount: what is
// made in a tmpfs or a volume is no part of the root's changes.
func (t tree) tellStub(parent, name string) {
	if fd, e := t.open(parent, syscall.O_DIRECTORY, resolveNoXdev); e == 0 {
		syscall.Close(fd)
		send(SyncFD, append([]byte{MsgStub}, parent+name...), -1)
	}
}

// split gives the names in path, without empty and "." ones. ".." is kept: the
// kernel resolves it in the root, also behind links.
func split(path string) []string {
	var names []string
	for start, i := 0, 0; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		if s := path[start:i]; s != "" && s != "." {
			names = append(names, s)
		}
		start = i + 1
	}
	return names
}

// attachDevice puts a host device node at its path, or makes one there.
func (t tree) attachDevice(d Device) *failure {
	if d.FD >= 0 {
		return t.attach(&Mount{Dest: d.Path, FD: d.FD})
	}
	what := "make device " + d.Path
	names := split(d.Path)
	name := names[len(names)-1]
	parent := d.Path[:len(d.Path)-len(name)]
	dir, e := t.open(parent, syscall.O_DIRECTORY, 0)
	if e == syscall.ENOENT {
		dir, e = t.create(parent, true)
	}
	if e != 0 {
		return fail(what, e)
	}
	defer syscall.Close(dir)
	if err := syscall.Mknodat(dir, name, d.Mode, int(d.Number)); err != nil {
		return fail(what, errnoOf(err))
	}
	// The mode once more, without the umask. Nobody else is here to replace the
	// name by a link.
	if err := syscall.Fchmodat(dir, name, d.Mode&0o7777, 0); err != nil {
		return fail(what, errnoOf(err))
	}
	if err := syscall.Fchownat(dir, name, int(d.UID), int(d.GID), atNoFollow); err != nil {
		return fail(what, errnoOf(err))
	}
	return nil
}

// link makes a symbolic link; one that is there already stays, and so does
// whatever a read-only /dev of the user's holds.
func (t tree) link(l Setting) {
	names := split(l.Name)
	parent := l.Name[:len(l.Name)-len(names[len(names)-1])]
	if fd, e := t.open(parent, syscall.O_DIRECTORY, 0); e == 0 {
		symlinkat(l.Value, fd, names[len(names)-1])
		syscall.Close(fd)
	}
}

// protect masks paths and makes paths read-only. Sources and targets are both
// descriptors, so that nothing can be swapped between look and mount
// (CVE-2025-31133, CVE-2025-52565).
func (t tree) protect(p *Plan) *failure {
	for _, path := range p.ReadOnly {
		fd, e := t.openProtected(path)
		if e == syscall.ENOENT {
			continue
		}
		if e != 0 {
			return fail("make "+path+" read-only", e)
		}
		clone, e := cloneMount(fd, atRecursive)
		if e == 0 {
			e = setMountAttr(clone, atRecursive, attrReadOnly|attrNoSuid|attrNoDev|attrNoExec)
		}
		if e == 0 {
			e = moveMount(clone, fd)
		}
		if e != 0 {
			return fail("make "+path+" read-only", e)
		}
		syscall.Close(fd)
		syscall.Close(clone)
	}
	m := mask{t: t, null: p.Null, empty: -1}
	for _, path := range p.Masked {
		if f := m.apply(path); f != nil {
			return f
		}
	}
	return nil
}

// openProtected opens a path of proc or sysfs, which no link may lead away
// from: a mask on the link's target would leave the real path bare.
func (t tree) openProtected(path string) (int, syscall.Errno) {
	return t.open(path, 0, resolveNoSymlinks)
}

// mask hides paths: files behind the null device, directories behind one empty
// read-only tmpfs. Each source is moved to its first place and cloned for the
// others, because older kernels clone only what is attached.
type mask struct {
	t           tree
	null, empty int // -1 until known
	nullPlaced  bool
	emptyPlaced bool
}

func (m *mask) apply(path string) *failure {
	what := "mask " + path
	target, e := m.t.openProtected(path)
	if e == syscall.ENOENT || e == syscall.ENOTDIR {
		return nil
	}
	if e != 0 {
		return fail(what, e)
	}
	defer syscall.Close(target)
	var st syscall.Stat_t
	if err := syscall.Fstat(target, &st); err != nil {
		return fail(what, errnoOf(err))
	}
	if m.empty < 0 {
		opts := []Setting{{"nr_blocks", "1"}, {"nr_inodes", "1"}, {"mode", "755"}}
		if m.empty, e = newMount("tmpfs", opts, attrReadOnly|attrNoSuid|attrNoDev|attrNoExec); e != 0 {
			return fail(what, e)
		}
	}
	src, placed := m.null, &m.nullPlaced
	if st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		src, placed = m.empty, &m.emptyPlaced
	}
	if *placed {
		if src, e = cloneMount(src, 0); e != 0 {
			return fail(what, e)
		}
		defer syscall.Close(src)
	}
	if e := moveMount(src, target); e != 0 {
		return fail(what, e)
	}
	*placed = true
	return m.verify(path, src)
}

// verify looks the path up again: it must lead to the mask now.
func (m *mask) verify(path string, src int) *failure {
	var want, got syscall.Stat_t
	fd, e := m.t.openProtected(path)
	if e != 0 {
		return fail("verify the mask of "+path, e)
	}
	defer syscall.Close(fd)
	err1, err2 := syscall.Fstat(fd, &got), syscall.Fstat(src, &want)
	if err1 != nil || err2 != nil || got.Dev != want.Dev || got.Ino != want.Ino {
		return fail("verify the mask of "+path, syscall.EXDEV)
	}
	return nil
}
