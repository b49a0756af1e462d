package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestScan(t *testing.T) {
	const value = "hunter2-\xff\xfe-correct?horse~battery>staple"
	key := "-----BEGIN PRIVATE KEY-----\n" + strings.Repeat("MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n", 40) + "-----END PRIVATE KEY-----\n"
	needles := []Needle{{"token", []byte(value + "\n")}, {"key", []byte(key)}, {"pin", []byte("4711\n")}, {"tiny", []byte("abc")}, {"empty", nil}}
	std, url := base64.StdEncoding, base64.RawURLEncoding
	wrapped := func(s string) string {
		var b strings.Builder
		for e := std.EncodeToString([]byte(s)); len(e) > 0; {
			n := min(76, len(e))
			b.WriteString(e[:n] + "\n")
			e = e[n:]
		}
		return b.String()
	}
	dir, _, err := apply(t, ApplyOptions{Archive: true},
		file("a/plain", "x"+value+"y"), file("a/only", value), file("a/newline", value+"\n"), file("a/env", "export TOKEN="+value+"\n"),
		file("a/half", value[:20]), file("a/none", strings.Repeat("nothing to see here\n", 100000)),
		file("b/far", strings.Repeat("x", 3<<20)+value), file("b/cut", strings.Repeat("x", scanChunk-7)+value+strings.Repeat("z", scanChunk)),
		file("c/0", std.EncodeToString([]byte(value))), file("c/1", std.EncodeToString([]byte("1"+value+"23"))), file("c/2", std.EncodeToString([]byte("u:"+value+"\n"))),
		file("c/3", `{"auth":"`+std.EncodeToString([]byte("abc"+value))+`"}`), file("c/url", url.EncodeToString([]byte("a"+value))), file("c/wrapped", wrapped(strings.Repeat("p", 50)+value)),
		file("k/key", "before "+key+" after"), file("k/stripped", strings.TrimSpace(key)), file("k/begin", key[:100]), file("k/base64", wrapped(key)), file("k/crlf", strings.ReplaceAll(wrapped("12"+key), "\n", "\r\n")),
		file("p/pin", "4711\n"), file("p/other", "call 4711 now"), file("p/abc", "abc"),
		file("n/"+std.EncodeToString([]byte("name"))+"hunter2-\xff\xfe-correct?horse~battery>staple", ""), symlink("l/link", "/x/"+value),
		with(file("x/attr", ""), func(i *item) { i.PAXRecords = map[string]string{"SCHILY.xattr.user.token": value} }),
		with(dir("x/dir", 0o755), func(i *item) { i.PAXRecords = map[string]string{"SCHILY.xattr.user.token": value} }),
		device("dev/p", tar.TypeFifo, 0, 0),
	)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Scan(context.Background(), dir, needles)
	if err != nil {
		t.Fatal(err)
	}
	want := []Finding{
		{"a/env", "token", "contents"}, {"a/newline", "token", "contents"}, {"a/only", "token", "contents"}, {"a/plain", "token", "contents"},
		{"b/cut", "token", "contents"}, {"b/far", "token", "contents"},
		{"c/0", "token", "contents, base64"}, {"c/1", "token", "contents, base64"}, {"c/2", "token", "contents, base64"}, {"c/3", "token", "contents, base64"},
		{"c/url", "token", "contents, base64url"}, {"c/wrapped", "token", "contents, base64"},
		{"k/base64", "key", "contents, base64"}, {"k/crlf", "key", "contents, base64"}, {"k/key", "key", "contents"}, {"k/stripped", "key", "contents"},
		{"l/link", "token", "link target"}, {"n/bmFtZQ==" + value, "token", "name"}, {"p/pin", "pin", "contents"},
		{"x/attr", "token", "xattr user.token"}, {"x/dir", "token", "xattr user.token"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("findings (-want +got):\n%s", d)
	}
	if got, err := Scan(context.Background(), dir, needles[3:]); got != nil || err != nil {
		t.Errorf("too short values: got %v, %v", got, err)
	}
}

// TestScanAlignments puts a value behind 0 to 2 bytes and before as many, for
// all lengths from the least on.
func TestScanAlignments(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for n := minNeedle; n < 40; n++ {
		value := sample(n)
		value[n-1] = 0xfb // not a line break; a character where the alphabets differ
		for before := range 3 {
			for after := range 3 {
				text := bytes.Repeat([]byte{0xff}, before)
				text = append(append(text, value...), bytes.Repeat([]byte{0xfe}, after)...)
				for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
					if err := os.WriteFile(path, []byte(e.EncodeToString(text)), 0o600); err != nil {
						t.Fatal(err)
					}
					got, err := Scan(context.Background(), dir, []Needle{{"s", value}})
					if err != nil || len(got) == 0 {
						t.Fatalf("%d bytes, %d before, %d after: got %v, %v", n, before, after, got, err)
					}
				}
			}
		}
	}
}

func BenchmarkScan(b *testing.B) {
	dir := b.TempDir()
	data := sample(64 << 20)
	if err := os.WriteFile(filepath.Join(dir, "f"), data, 0o600); err != nil {
		b.Fatal(err)
	}
	unix.Sync()
	for _, n := range []int{1, 4} {
		var needles []Needle
		for i := range n {
			needles = append(needles, Needle{fmt.Sprint(i), []byte(fmt.Sprintf("ghp_%dsomeTokenOf40Characters0123456789", i))})
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if _, err := Scan(context.Background(), dir, needles); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
