// Package buildcontext reads the directory a build is given: which files take
// part (.dockerignore and the filters of the build graph), what they are
// (mode, link target, extended attributes, digest of the bytes), and why each
// of them is in or out. It also turns the contexts that are no directories
// (standard input, an archive behind a URL) into one.
//
// A context is read in place and never copied: a Tree is a sorted list of
// entries and an open directory. Files whose stat data has not changed since
// the last scan are not read again; an index file remembers their digests
// (docs/on-disk.md has its format).
//
// The package knows nothing of layers, caches or Dockerfiles.
//
// Invariant: nothing outside the context directory is ever opened or followed,
// whatever links it holds, and a directory in which no file can take part is
// never entered.
package buildcontext
