package containers

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"dhow/internal/cli/console"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"

	"github.com/docker/go-units"
	"github.com/moby/go-archive"
	"github.com/spf13/cobra"
)

// cpFlags are those of dhow cp.
type cpFlags struct{ archive, followLink, quiet bool }

func (a *app) cpCommand() *cobra.Command {
	var f cpFlags
	cmd := &cobra.Command{
		Use: "cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n  dhow cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH", Short: "Copy files/folders between a container and the local filesystem",
		Args: console.ExactArgs(2), ValidArgsFunction: a.completeCp,
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" || args[1] == "" {
				return errdef.New(errdef.ErrInvalid, "source and destination can not be empty")
			}
			from, source := splitCpArg(args[0])
			to, dest := splitCpArg(args[1])
			switch {
			case from != "" && to != "":
				return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "copying between containers is not supported"), "dhow cp %s - | dhow cp - %s", args[0], args[1])
			case from != "":
				return a.copyFrom(cmd.Context(), &f, from, source, dest)
			case to != "":
				return a.copyTo(cmd.Context(), &f, source, to, dest)
			}
			return errdef.New(errdef.ErrInvalid, "must specify at least one container source")
		},
	}
	cmd.Flags().BoolVarP(&f.archive, "archive", "a", false, "Archive mode (copy all uid/gid information)")
	cmd.Flags().BoolVarP(&f.followLink, "follow-link", "L", false, "Always follow symbol link in SRC_PATH")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "Suppress progress output during copy")
	return cmd
}

// splitCpArg tells CONTAINER:PATH from a path of this machine, which may have a
// colon when it begins with a slash or a dot.
func splitCpArg(arg string) (name, p string) {
	if filepath.IsAbs(arg) {
		return "", arg
	}
	name, p, ok := strings.Cut(arg, ":")
	if !ok || strings.HasPrefix(name, ".") {
		return "", arg
	}
	return name, p
}

// copyFrom copies out of a container.
func (a *app) copyFrom(ctx context.Context, f *cpFlags, name, source, dest string) error {
	return a.withContainers(ctx, func(cs *lifecycle.Containers) error {
		st, err := cs.StatPath(ctx, name, source)
		if err != nil {
			return err
		}
		rebase := ""
		if f.followLink && st.Mode&fs.ModeSymlink != 0 {
			target := st.LinkTarget
			if !path.IsAbs(target) {
				target = path.Join(path.Dir(path.Clean("/"+source)), target)
			}
			source, rebase = archive.GetRebaseName(source, target)
			if st, err = cs.StatPath(ctx, name, source); err != nil {
				return err
			}
		}
		if dest == "-" {
			return cs.CopyFrom(ctx, name, source, a.Out)
		}
		if dest, err = localPath(dest); err != nil {
			return err
		}
		r, w := io.Pipe()
		go func() { w.CloseWithError(cs.CopyFrom(ctx, name, source, w)) }()
		defer r.Close()
		size := &counter{r: r}
		var content io.Reader = size
		if !f.archive {
			content = ownedBy(content, os.Getuid(), os.Getgid())
		}
		info := archive.CopyInfo{Path: source, Exists: true, IsDir: st.Mode.IsDir(), RebaseName: rebase}
		if rebase != "" {
			_, base := archive.SplitPathDirEntry(source)
			content = archive.RebaseArchiveEntries(content, base, rebase)
		}
		if err := archive.CopyTo(content, info, dest); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r); err != nil { // CopyFrom ends behind the archive's end
			return err
		}
		a.copied(f, size.n, dest)
		return nil
	})
}

// localPath makes a path absolute and keeps what its end says: "dir/." is its
// contents.
func localPath(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", err
	}
	abs = archive.PreserveTrailingDotOrSeparator(abs, p)
	if _, err := os.Stat(filepath.Dir(filepath.Clean(abs))); err != nil {
		return "", errdef.New(errdef.ErrNotFound, "invalid output path: directory %q does not exist", filepath.Dir(filepath.Clean(abs)))
	}
	return abs, nil
}

// copied tells how much was copied.
func (a *app) copied(f *cpFlags, n int64, dest string) {
	if !f.quiet && console.Terminal(a.Err) {
		fmt.Fprintf(a.Err, "Successfully copied %s to %s\n", units.HumanSizeWithPrecision(float64(n), 3), dest)
	}
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// ownedBy is an archive in which everything belongs to one user.
func ownedBy(r io.Reader, uid, gid int) io.Reader {
	pr, pw := io.Pipe()
	go func() {
		tr, tw := tar.NewReader(r), tar.NewWriter(pw)
		for {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				pw.CloseWithError(tw.Close())
				return
			}
			if err == nil {
				h.Uid, h.Gid, h.Uname, h.Gname = uid, gid, "", ""
				err = tw.WriteHeader(h)
			}
			if err == nil {
				_, err = io.Copy(tw, tr)
			}
			if err != nil {
				pw.CloseWithError(err)
				return
			}
		}
	}()
	return pr
}

// copyTo copies into a container.
func (a *app) copyTo(ctx context.Context, f *cpFlags, source, name, dest string) error {
	return a.withContainers(ctx, func(cs *lifecycle.Containers) error {
		to, err := destination(ctx, cs, name, dest)
		if err != nil {
			return err
		}
		if source == "-" {
			if !to.IsDir {
				return errdef.New(errdef.ErrInvalid, `destination "%s:%s" must be a directory`, name, dest)
			}
			return cs.CopyTo(ctx, name, to.Path, a.In, f.archive)
		}
		abs, err := filepath.Abs(source)
		if err != nil {
			return err
		}
		from, err := archive.CopyInfoSourcePath(archive.PreserveTrailingDotOrSeparator(abs, source), f.followLink)
		if err != nil {
			return errdef.As(errdef.ErrNotFound, err)
		}
		content, w := io.Pipe()
		go func() {
			_, name := archive.SplitPathDirEntry(from.Path)
			if from.RebaseName != "" {
				name = from.RebaseName
			}
			w.CloseWithError(lifecycle.Pack(w, from.Path, name, nil))
		}()
		defer content.Close()
		dir, prepared, err := archive.PrepareArchiveCopy(content, from, to)
		if err != nil {
			return errdef.As(errdef.ErrInvalid, err)
		}
		defer prepared.Close()
		size := &counter{r: prepared}
		if err := cs.CopyTo(ctx, name, dir, size, f.archive); err != nil {
			return err
		}
		a.copied(f, size.n, name+":"+dest)
		return nil
	})
}

// destination looks at where a copy goes; a link is followed.
func destination(ctx context.Context, cs *lifecycle.Containers, name, dest string) (archive.CopyInfo, error) {
	info := archive.CopyInfo{Path: dest}
	st, err := cs.StatPath(ctx, name, dest)
	if err == nil && st.Mode&fs.ModeSymlink != 0 {
		target := st.LinkTarget
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(path.Clean("/"+dest)), target)
		}
		info.Path = target
		st, err = cs.StatPath(ctx, name, target)
	}
	if errors.Is(err, errdef.ErrNotFound) {
		if _, ferr := cs.Find(ctx, name); ferr != nil {
			return info, ferr // it is the container that is not there
		}
		return info, nil // it may be made
	}
	if err != nil {
		return info, err
	}
	if !st.Mode.IsDir() && !st.Mode.IsRegular() {
		return info, errdef.New(errdef.ErrInvalid, `destination "%s:%s" must be a directory or a regular file`, name, dest)
	}
	info.Exists, info.IsDir = true, st.Mode.IsDir()
	return info, nil
}

// completeCp offers containers, with the colon that goes behind.
func (a *app) completeCp(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	names, _ := a.completeContainers(anyState)(cmd, nil, prefix)
	for i := range names {
		names[i] += ":"
	}
	return names, cobra.ShellCompDirectiveNoSpace
}
