package remotecache

import (
	"errors"
	"strings"
	"testing"

	"dhow/internal/errdef"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]Options{
		"user/app:cache":                            {TypeRegistry, map[string]string{"ref": "user/app:cache"}},
		"type=registry,ref=x,mode=max":              {TypeRegistry, map[string]string{"ref": "x", "mode": "max"}},
		"type=dhow,ref=x,cache-mounts=a,b,mode=max": {TypeDhow, map[string]string{"ref": "x", "cache-mounts": "a,b", "mode": "max"}},
		`type=dhow,ref=x,"cache-mounts=a,b"`:        {TypeDhow, map[string]string{"ref": "x", "cache-mounts": "a,b"}},
		"type=inline":                               {TypeInline, map[string]string{}},
	} {
		got, err := Parse(in)
		if err != nil || got.id() != want.id() {
			t.Errorf("%s: got %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "ref=x", "type=registry,ref", `"type=registry`} {
		if got, err := Parse(in); err == nil && got.Attrs["ref"] == "" {
			t.Errorf("%q: got %v, want an error", in, got)
		}
	}
}

func TestParseExport(t *testing.T) {
	e, err := ParseExport(Options{TypeRegistry, map[string]string{"ref": "h.example/x", "mode": "max", "compression": "zstd", "compression-level": "3", "force-compression": "true", "image-manifest": "false"}})
	if err != nil {
		t.Fatal(err)
	}
	if !e.max || !e.index || e.form.Compression != "zstd" || !e.form.Force || *e.form.Level != 3 || e.ignore || e.ref.Tag != "latest" {
		t.Errorf("got %+v", e)
	}
	if e, err = ParseExport(Options{TypeRegistry, map[string]string{"ref": "h.example/x", "oci-mediatypes": "false"}}); err != nil || !e.index || !e.form.DockerTypes {
		t.Errorf("docker's types: got %+v, %v, want an index", e, err)
	}
	if e, err = ParseExport(Options{TypeRegistry, map[string]string{"ref": "h.example/x", "registry.insecure": "true"}}); err != nil || !e.plain() {
		t.Errorf("insecure: got %+v, %v, want it spoken to without TLS", e, err)
	}
	if e, err = ParseExport(Options{TypeDhow, map[string]string{"ref": "h.example/x", "cache-mounts": "/a, b"}}); err != nil || !e.ignore || strings.Join(e.mounts, " ") != "a b" {
		t.Errorf("dhow: got %+v, %v", e, err)
	}
}

func TestRefusedOptions(t *testing.T) {
	ref := map[string]string{"ref": "h.example/x"}
	with := func(kv ...string) map[string]string {
		m := map[string]string{"ref": "h.example/x"}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	for name, c := range map[string]struct {
		o    Options
		kind error
		hint string
	}{
		"gha":             {Options{"gha", nil}, errdef.ErrUnsupported, "type=dhow"},
		"s3":              {Options{"s3", nil}, errdef.ErrUnsupported, "type=registry"},
		"azblob":          {Options{"azblob", nil}, errdef.ErrUnsupported, "type=local"},
		"unknown type":    {Options{"regsitry", ref}, errdef.ErrInvalid, "type=registry"},
		"no ref":          {Options{TypeRegistry, nil}, errdef.ErrInvalid, ""},
		"unknown key":     {Options{TypeRegistry, with("moed", "max")}, errdef.ErrInvalid, "mode"},
		"mode":            {Options{TypeRegistry, with("mode", "most")}, errdef.ErrInvalid, ""},
		"estargz":         {Options{TypeRegistry, with("compression", "estargz")}, errdef.ErrUnsupported, ""},
		"docker manifest": {Options{TypeRegistry, with("oci-mediatypes", "false", "image-manifest", "true")}, errdef.ErrInvalid, ""},
		"no dest":         {Options{TypeLocal, nil}, errdef.ErrInvalid, ""},
		"tag of dhow":     {Options{TypeDhow, map[string]string{"ref": "h.example/x:1"}}, errdef.ErrInvalid, "ref=h.example/x"},
		"mode of dhow":    {Options{TypeDhow, with("mode", "min")}, errdef.ErrInvalid, ""},
		"inline, packed":  {Options{TypeInline, map[string]string{"compression": "zstd"}}, errdef.ErrInvalid, "keys"},
		"ignore-error":    {Options{TypeRegistry, with("ignore-error", "maybe")}, errdef.ErrInvalid, ""},
	} {
		_, err := ParseExport(c.o)
		if !errors.Is(err, c.kind) || !strings.Contains(errdef.Hint(err), c.hint) {
			t.Errorf("%s: got %v (hint %q), want the kind %v and a hint with %q", name, err, errdef.Hint(err), c.kind, c.hint)
		}
	}
	if _, err := ParseImport(Options{TypeInline, nil}); errdef.Hint(err) == "" {
		t.Errorf("import of type=inline: got %v, want advice", err)
	}
	if e, err := ParseExport(Options{"s3", map[string]string{"ignore-error": "true"}}); err != nil || e.deferred == nil {
		t.Errorf("s3 with ignore-error: got %v, %v, want the error kept for a warning", e, err)
	}
}
