package engine

import (
	"context"
	"fmt"
	"os"

	fscopy "github.com/tonistiigi/fsutil/copy"
)

// copyTree copies the contents of src, and its own mode and owner, into the
// empty directory dst.
func copyTree(ctx context.Context, src, dst *os.File) error {
	path := func(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
	return fscopy.Copy(ctx, path(src), "/", path(dst), "/", func(c *fscopy.CopyInfo) {
		c.CopyDirContents = true
	})
}
