// Command baseimages makes stand-ins for the base images that examples, tests
// and benchmarks start from, on a machine that reaches no image registry. It
// needs no container tool: it writes docker archives straight from Debian
// packages and the local Go toolchain.
//
// The stand-ins behave like the images they are named after only as far as
// this project needs; nobody who reaches a registry should use them.
//
//	busybox      Debian's busybox-static and a link for each applet
//	alpine:3.20  the same, with alpine's files, adduser and addgroup
//	golang:1.24  the alpine stand-in and GOROOT at /usr/local/go
//	debian       a minimal set of Debian packages, fetched by apt-get download
//	services     debian with PostgreSQL, Redis and nginx
//
// The same inputs give the same bytes, so that image identities can be compared.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "baseimages:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("baseimages", flag.ContinueOnError)
	out := flags.String("o", "dist/baseimages", "`directory` for the archives and for downloaded packages")
	load := flags.String("load", "", "`program` to load the archives with (PROGRAM load -i FILE)")
	push := flags.String("push", "", "`registry` (HOST:PORT) to push to, over plain http")
	only := flags.String("only", "busybox,alpine,golang", "comma-separated `images` to make; there are debian and services too")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	makers := makers(*out)
	for _, name := range strings.Split(*only, ",") {
		i := slices.IndexFunc(makers, func(m maker) bool { return m.name == name })
		if i < 0 {
			return fmt.Errorf("no stand-in for %q: want busybox, alpine, golang, debian or services", name)
		}
		archive, err := ensure(makers[i], *out)
		if err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
		fmt.Println(archive)
		if *load != "" {
			if err := loadInto(*load, archive); err != nil {
				return err
			}
		}
		if *push != "" {
			if err := pushTo(*push, makers[i].tags, archive); err != nil {
				return fmt.Errorf("push %s: %w", name, err)
			}
		}
	}
	return nil
}

// ensure returns the archive of m, made anew unless it was made from the same
// inputs before.
func ensure(m maker, dir string) (string, error) {
	stamp, err := m.fingerprint()
	if err != nil {
		return "", err
	}
	archive := filepath.Join(dir, m.name+".tar")
	stampFile := archive + ".stamp"
	if old, err := os.ReadFile(stampFile); err == nil && string(old) == stamp {
		if _, err := os.Stat(archive); err == nil {
			return archive, nil
		}
	}
	spec, err := m.image()
	if err != nil {
		return "", err
	}
	spec.tags = m.tags
	if err := writeArchive(archive, spec); err != nil {
		return "", err
	}
	return archive, os.WriteFile(stampFile, []byte(stamp), 0o644)
}

// loadInto gives the archive to a container tool.
func loadInto(program, archive string) error {
	cmd := exec.Command(program, "load", "-i", archive)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return nil
}
