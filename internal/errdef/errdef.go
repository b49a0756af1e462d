// Package errdef names the kinds of failure that dhow tells apart, and carries
// the one line of advice that goes with a failure. It decides nothing: kinds
// are compared with errors.Is, and mapped to exit codes in one place (cli).
//
// Invariant: a kind never changes the text of the error it marks.
package errdef

import (
	"errors"
	"fmt"
)

// The kinds of failure.
var (
	ErrNotFound    = errors.New("not found")
	ErrConflict    = errors.New("conflict")      // exists already, in use, or changed meanwhile
	ErrInvalid     = errors.New("invalid")       // the input is wrong: flag, Dockerfile, reference
	ErrDenied      = errors.New("denied")        // credentials or permissions
	ErrUnavailable = errors.New("unavailable")   // network, registry or kernel did not answer; trying again may help
	ErrUnsupported = errors.New("not supported") // understood and refused by name
	ErrIntegrity   = errors.New("integrity")     // digest or size is not what was promised
	ErrNoSpace     = errors.New("no space left") // a disk or a limit is full
)

// marked is an error with a kind and advice, both optional.
type marked struct {
	error
	kind error
	hint string
}

func (m *marked) Unwrap() error        { return m.error }
func (m *marked) Is(target error) bool { return m.kind != nil && target == m.kind }

// New formats an error of the given kind. The format may use %w.
func New(kind error, format string, args ...any) error {
	return &marked{error: fmt.Errorf(format, args...), kind: kind}
}

// As marks err with kind and keeps its text. A nil err stays nil.
func As(kind, err error) error {
	if err == nil {
		return nil
	}
	return &marked{error: err, kind: kind}
}

// WithHint adds the one thing the user should do next. A nil err stays nil.
func WithHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &marked{error: err, hint: fmt.Sprintf(format, args...)}
}

// Hint returns the outermost advice in err's tree, or "".
func Hint(err error) string {
	if m, ok := err.(*marked); ok && m.hint != "" {
		return m.hint
	}
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		return Hint(u.Unwrap())
	case interface{ Unwrap() []error }:
		for _, e := range u.Unwrap() {
			if h := Hint(e); h != "" {
				return h
			}
		}
	}
	return ""
}
