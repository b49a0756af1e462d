package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// servicesRoots are the packages of the debian stand-in and those of three
// servers, whose health checks are tested.
func servicesRoots() ([]string, error) {
	postgres, err := currentPostgres()
	if err != nil {
		return nil, err
	}
	return append(debianRoots(), "nginx", "redis-server", "redis-tools", postgres, strings.Replace(postgres, "-", "-client-", 1)), nil
}

// currentPostgres is the package that Debian's "postgresql" stands for.
func currentPostgres() (string, error) {
	out, err := exec.Command("apt-cache", "depends", "postgresql").Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache depends postgresql: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: postgresql-"); ok && name[0] >= '0' && name[0] <= '9' {
			return "postgresql-" + name, nil
		}
	}
	return "", fmt.Errorf("apt-cache depends postgresql: names no version")
}

// unneeded tells which packages servers do without: what their maintainer
// scripts call, what starts them on a whole machine, and a compiler.
func unneeded(name string) bool {
	return slices.ContainsFunc([]string{"adduser", "dpkg", "init-system-helpers", "install-info", "iproute2", "libdebian-installer", "libelogind",
		"libfile-find-rule-perl", "libllvm", "libnewt", "libnumber-compare-perl", "libperl", "libslang", "libtext-glob-perl", "libtextwrap",
		"locales", "lsb-base", "postgresql-client-common", "postgresql-common", "ssl-cert", "sysvinit-utils", "usrmerge", "usr-is-merged"},
		func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}
