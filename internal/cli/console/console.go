// Package console is what all commands of the command line share: the streams
// of the process, the opened engine, errors and exit codes, flags that are
// refused by name, tables and docker's templates, the display of layers. It
// knows no command.
//
// Invariant: what goes wrong is told in one form ("dhow: …", then "hint: …"),
// and mapped to a status in one place.
package console

import (
	"context"
	"fmt"
	"io"

	"dhow/internal/engine"
)

// Version is what `dhow version` says, set by the linker.
type Version struct {
	Version, Commit string
}

// Console is what all commands share: the streams of the process and global
// flags.
type Console struct {
	In         io.Reader
	Out, Err   io.Writer
	Version    Version
	Root       string   // state directory; "" is the default one
	Profile    string   // whose logins are used
	Offline    bool     // no registry is asked
	Unverified []string // hosts whose certificates are not checked
	Ordinary   bool     // the user is not root outside
	Warning    string   // of entering the user namespace
	// Opened is told of the state directory that a command has opened; nil is not.
	Opened func(root string)
}

// StateDir is the state directory that the flags, the environment or the user
// decide.
func (c *Console) StateDir() (string, error) {
	if c.Root != "" {
		return c.Root, nil
	}
	return engine.DefaultRoot(c.Ordinary)
}

// open opens the state directory.
func (c *Console) open(ctx context.Context) (*engine.Engine, error) {
	if c.Warning != "" {
		fmt.Fprintln(c.Err, "dhow: "+c.Warning)
	}
	root, err := c.StateDir()
	if err != nil {
		return nil, err
	}
	e, err := engine.Open(ctx, engine.Options{Root: root, Registry: c.RegistryOptions()})
	if err == nil && c.Opened != nil {
		c.Opened(root)
	}
	return e, err
}

// WithEngine runs f on an open engine.
func (c *Console) WithEngine(ctx context.Context, f func(*engine.Engine) error) error {
	e, err := c.open(ctx)
	if err != nil {
		return err
	}
	err = f(e)
	if cerr := e.Close(); err == nil {
		err = cerr
	}
	return err
}
