package step

import (
	"context"
	"testing"

	"dhow/internal/session"
	"dhow/internal/solve"
)

// BenchmarkStep is the whole cost of RUN true: mounts, sandbox, commit.
func BenchmarkStep(tb *testing.B) {
	b := newBench(tb, session.Options{}, Deps{})
	op := b.op("", nil...)
	op.Meta.Args = []string{"/bin/true"}
	in := []solve.Result{{Chain: b.base}}
	for tb.Loop() {
		e, err := New(b.deps, vertex(op, 1), op)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := e.Run(context.Background(), in, &testJob{}); err != nil {
			tb.Fatal(err)
		}
	}
}
