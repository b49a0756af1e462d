package errdef

import (
	"errors"
	"fmt"
	"testing"
)

func TestKindsAndHints(t *testing.T) {
	cause := errors.New("cause")
	err := WithHint(New(ErrNotFound, "open x: %w", cause), "try %s", "y")
	for _, e := range []error{err, fmt.Errorf("more: %w", err), errors.Join(cause, err)} {
		if !errors.Is(e, ErrNotFound) || !errors.Is(e, cause) || errors.Is(e, ErrInvalid) {
			t.Errorf("%v: wrong kind", e)
		}
		if got := Hint(e); got != "try y" {
			t.Errorf("%v: got the hint %q", e, got)
		}
	}
	if got, want := err.Error(), "open x: cause"; got != want {
		t.Errorf("text: got %q, want %q", got, want)
	}
	if got := Hint(WithHint(err, "outer")); got != "outer" {
		t.Errorf("got the hint %q, want the outermost", got)
	}
	if As(ErrInvalid, nil) != nil || WithHint(nil, "x") != nil || Hint(nil) != "" {
		t.Error("nil is not kept")
	}
}
