package session

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"dhow/internal/errdef"

	"github.com/moby/buildkit/util/suggest"
)

// MaxSecret bounds the value of one secret, in bytes; BuildKit has the same.
const MaxSecret = 500 << 10

// SecretSource says where the value of a secret comes from. With neither File
// nor Env, an environment variable named like the id is used if there is one,
// else a file named like the id.
type SecretSource struct {
	ID   string
	File string // path
	Env  string // name of an environment variable of this process

	value []byte // of a file that can be read only once, such as a shell's <(command)
}

// ParseSecret reads the value of --secret: "id=ID[,src=FILE|,env=NAME][,type=
// file|env]", in csv, so that quotes protect commas. With type=env, src names
// the variable. ErrInvalid, with a suggestion for a mistyped key.
func ParseSecret(value string) (SecretSource, error) {
	var s SecretSource
	typ := ""
	err := eachField("secret", value, []string{"id", "src", "source", "env", "type"}, func(key, val string) error {
		switch key {
		case "id":
			s.ID = val
		case "src", "source":
			s.File = val
		case "env":
			s.Env = val
		case "type":
			if val != "file" && val != "env" {
				return withSuggestion(errdef.New(errdef.ErrInvalid, "secret %q: got the type %q, want file or env", value, val), val, "file", "env")
			}
			typ = val
		}
		return nil
	})
	if err != nil {
		return SecretSource{}, err
	}
	if typ == "env" && s.Env == "" {
		s.Env, s.File = s.File, ""
	}
	switch {
	case s.ID == "":
		return SecretSource{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "secret %q: it has no id", value), "write id=NAME,src=FILE or id=NAME,env=NAME")
	case s.File != "" && s.Env != "":
		return SecretSource{}, errdef.New(errdef.ErrInvalid, "secret %q: it names a file and a variable, want one of them", value)
	}
	return s, nil
}

// check decides between file and variable, and looks whether it is there.
func (s SecretSource) check() (SecretSource, error) {
	if s.ID == "" {
		return s, errdef.New(errdef.ErrInvalid, "secret: it has no id")
	}
	if s.File == "" && s.Env == "" {
		if _, ok := os.LookupEnv(s.ID); ok {
			s.Env = s.ID
		} else {
			s.File = s.ID
		}
	}
	if s.Env != "" {
		// A variable that is unset is an empty secret, as with docker: CI sets
		// some variables only on some branches.
		_, err := s.read()
		return s, err
	}
	fi, err := os.Stat(s.File)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, errdef.New(errdef.ErrNotFound, "secret %s: %w", s.ID, err)
	case err != nil:
		return s, fmt.Errorf("secret %s: %w", s.ID, err)
	case fi.IsDir():
		return s, errdef.New(errdef.ErrInvalid, "secret %s: %s is a directory", s.ID, s.File)
	case fi.Size() > MaxSecret:
		return s, s.tooBig(s.File)
	case !fi.Mode().IsRegular():
		val, err := s.read()
		s.value = append([]byte{}, val...)
		return s, err
	}
	f, err := os.Open(s.File)
	if err != nil {
		return s, fmt.Errorf("secret %s: %w", s.ID, err)
	}
	return s, f.Close()
}

func (s SecretSource) read() ([]byte, error) {
	if s.Env != "" {
		val := os.Getenv(s.Env)
		if len(val) > MaxSecret {
			return nil, s.tooBig("$" + s.Env)
		}
		return []byte(val), nil
	}
	if s.value != nil {
		return bytes.Clone(s.value), nil
	}
	f, err := os.Open(s.File)
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", s.ID, err)
	}
	defer f.Close()
	val, err := io.ReadAll(io.LimitReader(f, MaxSecret+1))
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", s.ID, err)
	}
	if len(val) > MaxSecret {
		return nil, s.tooBig(s.File)
	}
	return val, nil
}

func (s SecretSource) tooBig(where string) error {
	return errdef.New(errdef.ErrInvalid, "secret %s: %s has more than %d KiB", s.ID, where, MaxSecret>>10)
}

// eachField calls set for every key=value of a csv flag value; keys are lower
// case and one of those known.
func eachField(kind, value string, known []string, set func(key, val string) error) error {
	r := csv.NewReader(strings.NewReader(value))
	fields, err := r.Read()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return errdef.New(errdef.ErrInvalid, "%s: the value is empty", kind)
		}
		return errdef.New(errdef.ErrInvalid, "%s %q: %w", kind, value, err)
	}
	for _, field := range fields {
		key, val, ok := strings.Cut(field, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		isKnown := false
		for _, k := range known {
			isKnown = isKnown || k == key
		}
		if !isKnown {
			return withSuggestion(errdef.New(errdef.ErrInvalid, "%s %q: unknown key %q", kind, value, key), key, known...)
		}
		if !ok {
			return errdef.New(errdef.ErrInvalid, "%s %q: %q must be key=value", kind, value, field)
		}
		if err := set(key, val); err != nil {
			return err
		}
	}
	return nil
}

func withSuggestion(err error, got string, known ...string) error {
	if near, ok := suggest.Search(got, known, true); ok {
		return errdef.WithHint(err, "did you mean %q?", near)
	}
	return errdef.WithHint(err, "known are: %s", strings.Join(known, ", "))
}
