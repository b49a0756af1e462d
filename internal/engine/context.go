package engine

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"

	"dhow/internal/buildcontext"
	"dhow/internal/errdef"
	"dhow/internal/layer"
	"dhow/internal/sys"
)

// prepareContext finds the build context and the Dockerfile.
//
//	context       Dockerfile     frontend gets
//	directory     inside         local "context", local "dockerfile" = its directory
//	directory     elsewhere, -   the same, the text of "-" in a temporary directory
//	-             (in the tar)   a temporary directory with what stdin held
//	URL           (in the tree)  the URL: the frontend's git and http sources
func (e *Engine) prepareContext(ctx context.Context, r *BuildRequest, p *prepared) error {
	switch {
	case r.Context == "-" && r.Dockerfile == "-":
		return errdef.New(errdef.ErrInvalid, "context and Dockerfile cannot both come from standard input")
	case r.Context == "-":
		return e.contextFromStdin(ctx, r, p)
	case remote(r.Context):
		return e.contextFromURL(ctx, r, p)
	}
	dir, err := filepath.Abs(r.Context)
	if err != nil {
		return err
	}
	if st, err := os.Stat(dir); err != nil {
		err := errdef.New(errdef.ErrNotFound, "build context %q: %w", r.Context, plain(err))
		return errdef.WithHint(err, "give a directory, a URL, or - for standard input")
	} else if !st.IsDir() {
		err := errdef.New(errdef.ErrInvalid, "build context %q is not a directory", r.Context)
		return errdef.WithHint(err, "use -f %s with a directory as context", r.Context)
	}
	p.dirs["context"], p.dirs["dockerfile"] = dir, dir
	p.name = dir
	switch r.Dockerfile {
	case "":
	case "-":
		return e.dockerfileFromStdin(ctx, r.Stdin, p)
	default:
		return dockerfileAt(r, dir, p)
	}
	return nil
}

// dockerfileAt follows docker: -f is relative to the working directory.
func dockerfileAt(r *BuildRequest, dir string, p *prepared) error {
	file, err := filepath.Abs(r.Dockerfile)
	if err != nil {
		return err
	}
	if _, err := os.Stat(file); err != nil {
		err := errdef.New(errdef.ErrNotFound, "Dockerfile %q: %w", r.Dockerfile, plain(err))
		if _, inside := os.Stat(filepath.Join(dir, r.Dockerfile)); inside == nil {
			return errdef.WithHint(err, "-f is relative to the working directory: try -f %s", filepath.Join(r.Context, r.Dockerfile))
		}
		return err
	}
	p.dirs["dockerfile"] = filepath.Dir(file)
	p.attrs["filename"] = filepath.Base(file)
	p.name += "\x00" + file
	return nil
}

func (e *Engine) contextFromStdin(ctx context.Context, r *BuildRequest, p *prepared) error {
	dir, err := e.Store.TempDir("context-")
	if err != nil {
		return err
	}
	p.cleanup = func() { _ = sys.RemoveAll(dir) } // the process's temporary directory is removed in any case
	c, err := buildcontext.FromReader(ctx, r.Stdin, buildcontext.PrepareOptions{Dir: dir, Unpack: unpack, DockerfileGiven: r.Dockerfile != ""})
	if err != nil {
		return err
	}
	p.dirs["context"], p.dirs["dockerfile"] = c.Dir, c.Dir
	p.name = "-"
	if c.Dockerfile != "" {
		p.dirs["dockerfile"], p.attrs["filename"] = filepath.Dir(c.Dockerfile), filepath.Base(c.Dockerfile)
	}
	if r.Dockerfile != "" {
		p.attrs["filename"] = filepath.ToSlash(r.Dockerfile)
	}
	return nil
}

func (e *Engine) dockerfileFromStdin(_ context.Context, in io.Reader, p *prepared) error {
	dir, err := e.Store.TempDir("dockerfile-")
	if err != nil {
		return err
	}
	p.cleanup = func() { _ = sys.RemoveAll(dir) }
	file, err := buildcontext.DockerfileFromReader(in, dir)
	if err != nil {
		return err
	}
	// As with docker, the context's .dockerignore holds for a Dockerfile that
	// comes from elsewhere; the frontend reads it beside the context.
	p.dirs["dockerfile"], p.attrs["filename"] = filepath.Dir(file), filepath.Base(file)
	p.name += "\x00-"
	return nil
}

func (e *Engine) contextFromURL(ctx context.Context, r *BuildRequest, p *prepared) error {
	p.attrs["context"] = r.Context
	p.name = r.Context
	switch r.Dockerfile {
	case "":
		return nil
	case "-":
		p.attrs["dockerfilekey"] = "dockerfile"
		return e.dockerfileFromStdin(ctx, r.Stdin, p)
	}
	p.attrs["filename"] = strings.TrimPrefix(filepath.ToSlash(r.Dockerfile), "./")
	return nil
}

// unpack is how a tar, packed or not, becomes a context: an archive, not a layer.
func unpack(ctx context.Context, dir string, r io.Reader) error {
	plain, _, err := layer.Decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	// The same bounds as for a layer: far above any context, far below what a few
	// kilobytes of a bomb can ask for.
	limits := layer.Limits{MaxBytes: 256 << 30, MaxFiles: 20_000_000, MaxEntrySize: 256 << 30}
	_, err = layer.Apply(ctx, dir, plain, layer.ApplyOptions{Archive: true, Limits: limits})
	return err
}

// plain takes the operation and path off an error of package os that is about
// to be named anyway.
func plain(err error) error {
	if pe, ok := err.(*os.PathError); ok {
		return pe.Err
	}
	return err
}
