package sys

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// modeBit is one bit of st_mode and of io/fs that mean the same.
type modeBit struct {
	unix uint32
	fs   fs.FileMode
}

func specialBits() [3]modeBit {
	return [3]modeBit{{unix.S_ISUID, fs.ModeSetuid}, {unix.S_ISGID, fs.ModeSetgid}, {unix.S_ISVTX, fs.ModeSticky}}
}

// FileMode is st_mode (inode(7)) in the form of io/fs.
func FileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	}
	for _, b := range specialBits() {
		if m&b.unix != 0 {
			mode |= b.fs
		}
	}
	return mode
}

// UnixMode is the other way round. What has several types has the first one of
// directory, link, pipe, socket and device, and what has none is a regular file.
func UnixMode(mode fs.FileMode) uint32 {
	m := uint32(mode.Perm())
	switch {
	case mode&fs.ModeDir != 0:
		m |= unix.S_IFDIR
	case mode&fs.ModeSymlink != 0:
		m |= unix.S_IFLNK
	case mode&fs.ModeNamedPipe != 0:
		m |= unix.S_IFIFO
	case mode&fs.ModeSocket != 0:
		m |= unix.S_IFSOCK
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice != 0:
		m |= unix.S_IFCHR
	case mode&fs.ModeDevice != 0:
		m |= unix.S_IFBLK
	default:
		m |= unix.S_IFREG
	}
	for _, b := range specialBits() {
		if mode&b.fs != 0 {
			m |= b.unix
		}
	}
	return m
}
