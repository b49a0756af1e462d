package sys

import (
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"
)

func TestModes(t *testing.T) {
	for m, want := range map[uint32]fs.FileMode{
		unix.S_IFREG | 0o644:                0o644,
		unix.S_IFDIR | unix.S_ISVTX | 0o777: fs.ModeDir | fs.ModeSticky | 0o777,
		unix.S_IFREG | unix.S_ISUID | 0o755: fs.ModeSetuid | 0o755,
		unix.S_IFREG | unix.S_ISGID | 0o750: fs.ModeSetgid | 0o750,
		unix.S_IFLNK | 0o777:                fs.ModeSymlink | 0o777,
		unix.S_IFIFO | 0o600:                fs.ModeNamedPipe | 0o600,
		unix.S_IFSOCK | 0o600:               fs.ModeSocket | 0o600,
		unix.S_IFBLK | 0o660:                fs.ModeDevice | 0o660,
		unix.S_IFCHR | 0o666:                fs.ModeDevice | fs.ModeCharDevice | 0o666,
	} {
		if got := FileMode(m); got != want {
			t.Errorf("%o: got %v, want %v", m, got, want)
		}
		if got := UnixMode(want); got != m {
			t.Errorf("%v: got %o, want %o", want, got, m)
		}
	}
	if got := UnixMode(fs.ModeDir | fs.ModeSymlink); got != unix.S_IFDIR {
		t.Errorf("of two types: got %o, want a directory", got)
	}
}
