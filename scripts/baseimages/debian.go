package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// debianRoots are the packages that the debian stand-in is asked to have; what
// they depend on comes with them.
func debianRoots() []string {
	return []string{"base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils", "findutils",
		"grep", "gzip", "hostname", "libc-bin", "mawk", "passwd", "sed", "tar"}
}

// debianPackages returns the names of all packages a stand-in is made of, sorted:
// its roots and what they depend on. Alternatives and virtual packages are left to what already provides
// them: nothing here is configured, only unpacked.
func debianPackages(roots []string) ([]string, error) {
	args := append([]string{"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
		"--no-breaks", "--no-replaces", "--no-enhances"}, roots...)
	out, err := exec.Command("apt-cache", args...).Output()
	if err != nil {
		return nil, fmt.Errorf("apt-cache depends: %w", err)
	}
	// Packages stand at the margin, their relations are indented.
	var names []string
	for line := range strings.Lines(string(out)) {
		name := strings.TrimSpace(line)
		switch {
		case name == "" || strings.HasPrefix(line, " ") || strings.HasPrefix(line, "<"):
		case strings.HasPrefix(name, "debconf"), strings.HasPrefix(name, "cdebconf"), strings.Contains(name, ":"), strings.HasPrefix(name, "perl"):
			// Asked for by maintainer scripts alone, which are not run.
		case !slices.Contains(debianRoots(), name) && unneeded(name):
		default:
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// debianFingerprint names the packages and the versions that apt would fetch.
func debianFingerprint(roots []string) (string, error) {
	names, err := debianPackages(roots)
	if err != nil {
		return "", err
	}
	out, err := exec.Command("apt-cache", append([]string{"show", "--no-all-versions"}, names...)...).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache show: %w (is the package list fetched? apt-get update)", err)
	}
	stamp := revision + " debian"
	for line := range strings.Lines(string(out)) {
		if sum, ok := strings.CutPrefix(line, "SHA256: "); ok {
			stamp += " " + strings.TrimSpace(sum)
		}
	}
	return stamp, nil
}

// debianImage downloads the packages into dir, where they stay for the next
// time, and unpacks them into one layer, without running maintainer scripts.
func debianImage(dir string, roots []string) (imageSpec, error) {
	names, err := debianPackages(roots)
	if err != nil {
		return imageSpec{}, err
	}
	debs, err := download(dir, names)
	if err != nil {
		return imageSpec{}, err
	}
	t := newTree()
	for _, d := range []string{"usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "dev", "proc", "sys", "run", "var"} {
		t.dir(d, 0o755)
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		t.symlink(link, "usr/"+link)
	}
	t.dir("root", 0o700)
	t.dir("tmp", 0o1777)
	for _, deb := range debs {
		if err := unpack(t, deb); err != nil {
			return imageSpec{}, fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
	}
	configure(t)
	return imageSpec{
		layers:  []layerFunc{t.write},
		history: []string{"debian stand-in: " + strings.Join(names, " ")},
		env:     []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		cmd:     []string{"bash"},
	}, nil
}

// download leaves the archives of the named packages in dir and returns them.
// apt-get skips those that are there already.
func download(dir string, names []string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	cmd := exec.Command("apt-get", append([]string{"download", "-q"}, names...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("apt-get download: %w\n%s", err, out)
	}
	var debs []string
	for _, name := range names {
		found, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("apt-get download %s: left no file", name)
		}
		slices.Sort(found)
		debs = append(debs, found[len(found)-1])
	}
	return debs, nil
}

func unpack(t *tree, deb string) error {
	out, err := exec.Command("dpkg-deb", "--fsys-tarfile", deb).Output()
	if err != nil {
		return fmt.Errorf("dpkg-deb: %w", err)
	}
	return t.merge(bytes.NewReader(out))
}

// configure does what the maintainer scripts would have done, as far as a
// shell and its tools need it.
func configure(t *tree) {
	for _, name := range []string{"passwd", "group"} {
		if master := t.nodes["usr/share/base-passwd/"+name+".master"]; master != nil {
			t.file("etc/"+name, master.body, 0o644)
		}
	}
	t.file("etc/shadow", []byte("root:*:19000:0:99999:7:::\n"), 0o640)
	if t.nodes["usr/bin/sh"] == nil {
		t.symlink("usr/bin/sh", "dash")
	}
	if t.nodes["usr/bin/awk"] == nil {
		t.symlink("usr/bin/awk", "mawk")
	}
	if t.nodes["etc/os-release"] == nil {
		t.symlink("etc/os-release", "../usr/lib/os-release")
	}
}
