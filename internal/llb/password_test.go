package llb

import "testing"

func TestHidePasswords(t *testing.T) {
	for in, want := range map[string]string{
		"load git source https://me:secret@host/r.git#main":    "load git source https://me:xxxxx@host/r.git#main",
		"ADD http://:s3:cr%40t@h/f http://a:b@c:80/d /x":       "ADD http://:xxxxx@h/f http://a:xxxxx@c:80/d /x",
		"FROM docker.io/library/alpine:3@sha256:00":            "FROM docker.io/library/alpine:3@sha256:00",
		"ADD https://host:8080/a@b git@github.com:a/b.git /x":  "ADD https://host:8080/a@b git@github.com:a/b.git /x",
		"RUN curl http://host:80/ -d me@there && echo a://b c": "RUN curl http://host:80/ -d me@there && echo a://b c",
	} {
		if got := HidePasswords(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
