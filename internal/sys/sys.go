// Package sys is the edge to Linux: mounts, paths inside a root, file locks,
// atomic writes, process handles. It turns system calls into functions with Go
// errors and knows nothing of images, layers or containers.
//
// Invariant: nothing here attaches a mount to the caller's mount namespace.
// Trees are mounted detached and live as long as the *os.File that holds them,
// so a process that is killed leaves no mount behind.
//
// The least kernel is 5.12 (mount_setattr; overlay mounts inside a user namespace
// are 5.11, openat2 5.6, fsmount 5.2). Where a newer one does something better it
// is used, and the older way stays as the fallback.
package sys
