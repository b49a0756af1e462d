package sys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// Overlay describes a tree stacked from directories.
type Overlay struct {
	// Lowers are the read-only layers, bottom first, as absolute paths; at most
	// MaxLowers.
	Lowers []string
	// Upper takes the changes and Work is overlayfs's own empty directory on the
	// same file system. Both empty means a read-only tree.
	Upper, Work string
	// Volatile skips every sync of the upper directory. A kernel crash may then
	// lose what was written; the work directory cannot be mounted a second time.
	Volatile bool
	// IDs, when not nil, are the machine's ids that stand for the directories' own:
	// what 0 owns there is seen as IDs.UID's. Upper and Work are in one directory.
	IDs *IDNamespace
}

// MaxLowers is how many layers overlayfs stacks (OVL_MAX_STACK).
const MaxLowers = 500

// fsconfigMax is the longest value that fsconfig(2) takes, in bytes.
const fsconfigMax = 255

// MountOverlay mounts the tree detached, without devices, and returns its root.
// Closing the file unmounts it unless it has been attached somewhere. One lower
// and no upper gives a read-only clone of that directory; no lower a writable
// clone of the upper. Set-user-id bits keep working, containers need them.
// ErrUnsupported for too many layers, and where the kernel refuses overlays or
// ids.
func MountOverlay(o Overlay) (*os.File, error) {
	if len(o.Lowers) > MaxLowers {
		return nil, errdef.New(errdef.ErrUnsupported, "mount overlay: %d layers, the kernel stacks at most %d", len(o.Lowers), MaxLowers)
	}
	switch {
	case (o.Upper == "") != (o.Work == ""):
		return nil, errdef.New(errdef.ErrInvalid, "mount overlay: upper %q without work %q", o.Upper, o.Work)
	case len(o.Lowers) == 0 && o.Upper == "":
		return nil, errdef.New(errdef.ErrInvalid, "mount overlay: no directory")
	case o.IDs != nil:
		f, err := mountOverlayMapped(o)
		if err != nil {
			return nil, fmt.Errorf("mount overlay of %d layers: %w", len(o.Lowers), overlayError(err))
		}
		return f, nil
	case len(o.Lowers) == 0:
		return CloneTree(nil, o.Upper, CloneOptions{NoDev: true})
	case len(o.Lowers) == 1 && o.Upper == "":
		return CloneTree(nil, o.Lowers[0], CloneOptions{ReadOnly: true, NoDev: true})
	}
	f, err := mountOverlayNew(o)
	if errors.Is(err, errNoLowerAdd) {
		var errOld error
		if f, errOld = mountOverlayOld(o); errOld == nil || err == errNoLowerAdd {
			err = errOld
		}
	}
	if err != nil {
		return nil, fmt.Errorf("mount overlay of %d layers: %w", len(o.Lowers), overlayError(err))
	}
	return f, nil
}

// overlayError gives the refusals that people meet a kind and advice.
func overlayError(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return errdef.WithHint(errdef.As(errdef.ErrUnsupported, err), "the kernel has no overlayfs: modprobe overlay")
	case errors.Is(err, unix.EPERM) && InUserNS():
		return errdef.WithHint(errdef.As(errdef.ErrUnsupported, err), "overlay mounts of ordinary users need Linux 5.11")
	}
	return err
}

// errNoLowerAdd says that the kernel is older than 6.7, which brought
// "lowerdir+".
var errNoLowerAdd = errors.New("fsconfig: lowerdir+ is unknown")

// options are the mount options that are the same for every tree, as pairs of
// name and value; an empty value is a flag.
//
// Nothing may depend on the lower layers but the upper's plain entries, or a
// layer could not be stacked on others or turned into a tar: no redirects of
// renamed directories, no metadata-only copies, no index of hard links.
func (o Overlay) options() [][2]string {
	opts := [][2]string{{"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "off"}, {"xino", "off"}}
	if InUserNS() {
		opts = append(opts, [2]string{"userxattr"}) // trusted.* is the initial namespace's alone
	}
	if o.Upper != "" && o.Volatile {
		opts = append(opts, [2]string{"volatile"})
	}
	return opts
}

// mountOverlayNew adds the layers one by one, so that neither their number nor
// odd characters in their names meet a limit.
func mountOverlayNew(o Overlay) (*os.File, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fd)
	if err := configureOverlay(fd, o); err != nil {
		return nil, withLog(fd, err)
	}
	if err := unix.FsconfigCreate(fd); errors.Is(err, unix.EINVAL) {
		// Before 6.5 every option is taken, and refused only here.
		return nil, fmt.Errorf("%w, or: %w", errNoLowerAdd, withLog(fd, fmt.Errorf("fsconfig create: %w", err)))
	} else if err != nil {
		return nil, withLog(fd, fmt.Errorf("fsconfig create: %w", err))
	}
	attrs := unix.MOUNT_ATTR_NODEV
	if o.Upper == "" {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, withLog(fd, fmt.Errorf("fsmount: %w", err))
	}
	return os.NewFile(uintptr(mnt), "overlay"), nil
}

func configureOverlay(fd int, o Overlay) error {
	for _, opt := range o.options() {
		if err := setOption(fd, opt[0], opt[1]); err != nil {
			return err
		}
	}
	for i := len(o.Lowers) - 1; i >= 0; i-- {
		err := setPath(fd, "lowerdir+", o.Lowers[i])
		switch {
		case errors.Is(err, unix.EINVAL) && i == len(o.Lowers)-1:
			return errNoLowerAdd
		case errors.Is(err, unix.EINVAL): // "cumulative options too large", before 6.5
			return fmt.Errorf("%w, or: %w", errNoLowerAdd, err)
		case err != nil:
			return err
		}
	}
	if o.Upper == "" {
		return nil
	}
	if err := setPath(fd, "upperdir", o.Upper); err != nil {
		return err
	}
	return setPath(fd, "workdir", o.Work)
}

func setOption(fd int, key, value string) error {
	var err error
	if value == "" {
		err = unix.FsconfigSetFlag(fd, key)
	} else {
		err = unix.FsconfigSetString(fd, key, value)
	}
	if err != nil {
		return fmt.Errorf("fsconfig %s: %w", key, err)
	}
	return nil
}

// setPath sets an option to a directory. A path that is too long for fsconfig,
// or has a backslash, which overlayfs takes away from upper directories, is
// opened and named through /proc; the kernel keeps the directory, not the name.
func setPath(fd int, key, path string) error {
	value := path
	if len(path) > fsconfigMax || strings.Contains(path, `\`) {
		f, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		value = "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	}
	if err := unix.FsconfigSetString(fd, key, value); err != nil {
		return fmt.Errorf("fsconfig %s=%s: %w", key, path, err)
	}
	return nil
}

// withLog adds what the kernel wrote about a failed file system context.
func withLog(fd int, err error) error {
	buf := make([]byte, 4096)
	var msgs []string
	for len(msgs) < 8 {
		n, rerr := unix.Read(fd, buf)
		if rerr != nil || n <= 0 {
			break
		}
		// "e overlay: too many …": the first letter is the level.
		if msg := strings.TrimSpace(string(buf[:n])); strings.HasPrefix(msg, "e ") {
			msgs = append(msgs, msg[2:])
		}
	}
	if len(msgs) == 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.Join(msgs, "; "))
}

// mountOverlayOld is the way of kernels before 6.7: mount(2), which needs a
// place to mount on and takes all options in one page. The place is found in a
// mount namespace that ends with the thread, and short links in a tmpfs of its
// own stand for the layers, so that 500 of them fit on the page.
func mountOverlayOld(o Overlay) (*os.File, error) {
	var f *os.File
	err := OnSpareThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		data, err := linkLayers(o)
		if err != nil {
			return err
		}
		flags := uintptr(unix.MS_NODEV)
		if o.Upper == "" {
			flags |= unix.MS_RDONLY
		}
		// Any directory will do to mount on: nobody else sees it.
		place := o.Lowers[0]
		if err := unix.Mount("overlay", place, "overlay", flags, data); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
		f, err = CloneTree(nil, place, CloneOptions{})
		return err
	})
	return f, err
}

// linkLayers makes a tmpfs that is attached nowhere, goes there, and links the
// directories under short names. It returns the options for mount(2).
func linkLayers(o Overlay) (string, error) {
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("fsopen tmpfs: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.FsconfigCreate(fd); err != nil {
		return "", fmt.Errorf("create tmpfs: %w", err)
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("fsmount tmpfs: %w", err)
	}
	defer unix.Close(mnt)
	if err := unix.Fchdir(mnt); err != nil { // of this thread alone: a new mount namespace unshares it
		return "", fmt.Errorf("go to tmpfs: %w", err)
	}
	link := func(path, name string) error {
		if !filepath.IsAbs(path) {
			return errdef.New(errdef.ErrInvalid, "layer %q: path is not absolute", path)
		}
		return unix.Symlinkat(path, mnt, name)
	}
	names := make([]string, len(o.Lowers))
	for i, path := range o.Lowers {
		name := strconv.FormatInt(int64(i), 36)
		names[len(names)-1-i] = name
		if err := link(path, name); err != nil {
			return "", err
		}
	}
	data := []string{"lowerdir=" + strings.Join(names, ":")}
	if o.Upper != "" {
		if err := errors.Join(link(o.Upper, "U"), link(o.Work, "W")); err != nil {
			return "", err
		}
		data = append(data, "upperdir=U", "workdir=W")
	}
	for _, opt := range o.options() {
		data = append(data, strings.TrimSuffix(opt[0]+"="+opt[1], "="))
	}
	return strings.Join(data, ","), nil
}

// OnSpareThread runs f on an OS thread that ends with it, so that f may change
// the thread's namespaces. It is never the main thread, which cannot end and is
// what /proc/self shows.
func OnSpareThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// This goroutine keeps the main thread busy while another runs f.
			done <- OnSpareThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}
