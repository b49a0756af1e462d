package engine

import (
	"golang.org/x/sys/unix"
)

// IO is what a build read from and wrote to disks, in bytes, with the steps it
// ran. Bytes that the kernel had in memory are not read from a disk.
type IO struct {
	Read, Written int64
}

// usage is a reading of the process's counters.
type usage struct{ in, out int64 }

// usageNow reads the counters of this process and of the children that it has
// waited for; blocks are 512 bytes (getrusage(2)).
func usageNow() usage {
	var u usage
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if unix.Getrusage(who, &r) == nil {
			u.in += r.Inblock * 512
			u.out += r.Oublock * 512
		}
	}
	return u
}

func (u usage) since(before usage) IO {
	return IO{Read: u.in - before.in, Written: u.out - before.out}
}
