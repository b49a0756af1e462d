package lifecycle

import (
	"fmt"
	"testing"

	"dhow/internal/container"
)

// BenchmarkList lists 500 containers that rest, as ps does.
func BenchmarkList(b *testing.B) {
	h := newHouse(b)
	for i := range 500 {
		_, err := h.Create(h.ctx, CreateRequest{Record: record(fmt.Sprintf("rest-%d", i), "true", func(r *container.Record) {
			r.Config.Labels = map[string]string{"a": "b"}
		})})
		h.must(err)
	}
	for b.Loop() {
		if list, err := h.List(h.ctx); err != nil || len(list) != 500 {
			b.Fatal(err)
		}
	}
}
