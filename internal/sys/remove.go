package sys

// RemoveAll removes path and all below it, also directories without
// permissions. It follows no links and does not enter other file systems or
// mounts: it fails there with the rest removed. A path that does not exist is
// no error.
func RemoveAll(path string) error { panic("sys.RemoveAll") }
