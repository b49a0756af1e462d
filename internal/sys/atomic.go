package sys

import "os"

// WriteFileAtomic replaces the file at path by data: readers see the old bytes
// or the new ones, also after a crash of the machine.
func WriteFileAtomic(path string, data []byte, perm os.FileMode) error { panic("sys.WriteFileAtomic") }
