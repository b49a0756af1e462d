package main

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// revision is part of every fingerprint; it grows when this program makes
// something else from the same inputs.
const revision = "1"

// busyboxPath is where Debian's busybox-static installs the one program.
const busyboxPath = "/bin/busybox"

//go:embed files/passwd
var passwdFile []byte

//go:embed files/group
var groupFile []byte

//go:embed files/adduser
var adduserScript []byte

//go:embed files/addgroup
var addgroupScript []byte

// A maker knows how one stand-in comes about. fingerprint stands for all of
// image's inputs and is cheap.
type maker struct {
	name        string
	tags        []string
	fingerprint func() (string, error)
	image       func() (imageSpec, error)
}

// makers lists the stand-ins. Downloads are kept below dir.
func makers(dir string) []maker {
	return []maker{
		{"busybox", []string{"busybox:latest"}, busyboxFingerprint, busyboxImage},
		{"alpine", []string{"alpine:3.20", "alpine:latest"}, busyboxFingerprint, alpineImage},
		{"golang", []string{"golang:1.24", "golang:latest"}, golangFingerprint, golangImage},
		{"debian", []string{"debian:latest", "debian:stable", "debian:bookworm"},
			func() (string, error) { return debianFingerprint(debianRoots()) },
			func() (imageSpec, error) { return debianImage(filepath.Join(dir, "debs"), debianRoots()) }},
		{"services", []string{"debian:services"},
			func() (string, error) {
				roots, err := servicesRoots()
				if err != nil {
					return "", err
				}
				return debianFingerprint(roots)
			},
			func() (imageSpec, error) {
				roots, err := servicesRoots()
				if err != nil {
					return imageSpec{}, err
				}
				return debianImage(filepath.Join(dir, "debs"), roots)
			}},
	}
}

func busyboxFingerprint() (string, error) {
	f, err := os.Open(busyboxPath)
	if err != nil {
		return "", fmt.Errorf("%w (install the package busybox-static)", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return revision + " busybox " + hex.EncodeToString(h.Sum(nil)), nil
}

// busyboxTree is the file tree that busybox and alpine share. Applets are hard
// links in the one and symbolic links in the other, as in the real images.
func busyboxTree(symlinks bool) (*tree, error) {
	body, err := os.ReadFile(busyboxPath)
	if err != nil {
		return nil, fmt.Errorf("%w (install the package busybox-static)", err)
	}
	list, err := exec.Command(busyboxPath, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the applets of %s: %w", busyboxPath, err)
	}
	t := newTree()
	for _, d := range []string{"bin", "dev", "etc", "home", "proc", "sbin", "sys", "usr", "usr/bin", "usr/local",
		"usr/local/bin", "usr/sbin", "var", "var/spool", "var/spool/mail", "var/www"} {
		t.dir(d, 0o755)
	}
	t.dir("root", 0o700)
	t.dir("tmp", 0o1777)
	t.dir("var/tmp", 0o1777)
	t.file("bin/busybox", body, 0o755)
	for _, applet := range strings.Fields(string(list)) {
		switch {
		case applet == "busybox":
		case symlinks:
			t.symlink("bin/"+applet, "/bin/busybox")
		default:
			t.hardlink("bin/"+applet, "bin/busybox")
		}
	}
	t.symlink("usr/bin/env", "/bin/env")
	t.file("etc/passwd", passwdFile, 0o644)
	t.file("etc/group", groupFile, 0o644)
	t.file("etc/shadow", []byte("root:*:0:0:99999:7:::\n"), 0o640)
	t.file("etc/nsswitch.conf", []byte("hosts: files dns\n"), 0o644)
	return t, nil
}

func busyboxImage() (imageSpec, error) {
	t, err := busyboxTree(false)
	if err != nil {
		return imageSpec{}, err
	}
	return imageSpec{
		layers:  []layerFunc{t.write},
		history: []string{"busybox stand-in: Debian busybox-static"},
		env:     []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		cmd:     []string{"sh"},
	}, nil
}

func alpineTree() (*tree, error) {
	t, err := busyboxTree(true)
	if err != nil {
		return nil, err
	}
	t.file("etc/os-release", []byte(`NAME="Alpine Linux"
ID=alpine
VERSION_ID=3.20.0
PRETTY_NAME="Alpine Linux v3.20 (stand-in)"
`), 0o644)
	t.file("etc/alpine-release", []byte("3.20.0\n"), 0o644)
	t.file("usr/sbin/adduser", adduserScript, 0o755)
	t.file("usr/sbin/addgroup", addgroupScript, 0o755)
	return t, nil
}

func alpineImage() (imageSpec, error) {
	t, err := alpineTree()
	if err != nil {
		return imageSpec{}, err
	}
	return imageSpec{
		layers:  []layerFunc{t.write},
		history: []string{"alpine stand-in: Debian busybox-static"},
		env:     []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		cmd:     []string{"/bin/sh"},
	}, nil
}

// goroot is the toolchain that runs this program, as `go env GOROOT` tells it.
func goroot() (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

func golangFingerprint() (string, error) {
	base, err := busyboxFingerprint()
	if err != nil {
		return "", err
	}
	root, err := goroot()
	if err != nil {
		return "", err
	}
	version, err := os.ReadFile(filepath.Join(root, "VERSION"))
	if err != nil {
		return "", err
	}
	return base + " " + string(version), nil
}

func golangImage() (imageSpec, error) {
	base, err := alpineTree()
	if err != nil {
		return imageSpec{}, err
	}
	root, err := goroot()
	if err != nil {
		return imageSpec{}, err
	}
	t := newTree()
	t.dir("go", 0o1777)
	t.dir("go/bin", 0o1777)
	t.dir("go/src", 0o1777)
	t.dir("usr/local", 0o755)
	if err := t.copyFrom(root, "usr/local/go"); err != nil {
		return imageSpec{}, err
	}
	return imageSpec{
		layers:  []layerFunc{base.write, t.write},
		history: []string{"alpine stand-in: Debian busybox-static", "golang stand-in: " + runtime.Version()},
		env: []string{
			"PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"GOLANG_VERSION=" + strings.TrimPrefix(runtime.Version(), "go"),
			"GOTOOLCHAIN=local",
			"GOPATH=/go",
		},
		cmd:     []string{"/bin/sh"},
		workdir: "/go",
	}, nil
}
