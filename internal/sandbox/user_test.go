package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"dhow/internal/errdef"

	"github.com/google/go-cmp/cmp"
)

func TestLookupUser(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken\nweb:x:33:34::/var/www:\n" +
		"77:x:1000:1000::/home/77:/bin/sh\nshort:x:5:6\nbig:x:4294967295:0::/:\n"
	const group = "root:x:0:\nwww:x:34:\nlog:x:4:syslog,web\nmedia:x:5:web\nmedia2:x:5:web\nweb:x:34:web\n99:x:101:\n"
	tests := []struct {
		spec string
		want User
		err  error
	}{
		{spec: "", want: User{Name: "root", Home: "/root"}},
		{spec: "web", want: User{UID: 33, GID: 34, Groups: []uint32{4, 5}, Name: "web", Home: "/var/www"}},
		{spec: "33", want: User{UID: 33, GID: 34, Groups: []uint32{4, 5}, Name: "web", Home: "/var/www"}},
		{spec: "web:log", want: User{UID: 33, GID: 4, Name: "web", Home: "/var/www"}},
		{spec: "web:4711", want: User{UID: 33, GID: 4711, Name: "web", Home: "/var/www"}},
		{spec: "77", want: User{UID: 1000, GID: 1000, Name: "77", Home: "/home/77"}},
		{spec: "4711", want: User{UID: 4711, Home: "/"}},
		{spec: "4711:99", want: User{UID: 4711, GID: 101, Home: "/"}},
		{spec: "short", want: User{UID: 5, GID: 6, Name: "short", Home: "/"}},
		{spec: "nobody", err: errdef.ErrNotFound},
		{spec: "web:nogroup", err: errdef.ErrNotFound},
		{spec: "big", err: errdef.ErrNotFound},
		{spec: "4294967296", err: errdef.ErrNotFound},
		{spec: "-1", err: errdef.ErrNotFound},
		{spec: ":101", want: User{UID: 0, GID: 101, Name: "root", Home: "/root"}},
	}
	for _, tt := range tests {
		got, err := lookupUser(passwd, group, tt.spec)
		if !errors.Is(err, tt.err) {
			t.Errorf("%q: got error %v, want %v", tt.spec, err, tt.err)
		}
		if err == nil {
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%q (-want +got):\n%s", tt.spec, diff)
			}
		}
	}
}

// The image's files are hostile input: links stay inside the image, and what
// is not a plain file of sane size is refused without a hang.
func TestLookupUserHostileImage(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	passwd := filepath.Join(dir, "etc/passwd")
	root := openDir(t, dir)

	if u, err := LookupUser(root, "1:2"); err != nil || u.UID != 1 || u.GID != 2 {
		t.Errorf("no files: got %+v, %v", u, err)
	}
	if err := os.Symlink("/../../../../../etc/passwd", passwd); err != nil {
		t.Fatal(err)
	}
	if _, err := LookupUser(root, "root"); err == nil {
		t.Error("link loop onto itself: got no error")
	}
	outside := filepath.Join(t.TempDir(), "passwd")
	write(t, outside, "evil:x:0:0::/:\n", 0o644)
	os.Remove(passwd)
	if err := os.Symlink(outside, passwd); err != nil {
		t.Fatal(err)
	}
	if _, err := LookupUser(root, "evil"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("link to the host: got %v, want not found", err)
	}
	os.Remove(passwd)
	if err := syscall.Mkfifo(passwd, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LookupUser(root, "root"); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("FIFO: got %v, want invalid", err)
	}
	os.Remove(passwd)
	write(t, passwd, "", 0o644)
	if err := os.Truncate(passwd, 1<<40); err != nil {
		t.Fatal(err)
	}
	if _, err := LookupUser(root, "root"); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("1 TB sparse file: got %v, want invalid", err)
	}
}

func FuzzLookupUser(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n", "root:x:0:a,b\n", "root:root")
	f.Add("a:::\n::::", ":::", "a:0")
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		u, err := lookupUser(passwd, group, spec)
		if err == nil && (u.UID > maxID || u.GID > maxID || u.Home == "") {
			t.Errorf("got %+v", u)
		}
	})
}
