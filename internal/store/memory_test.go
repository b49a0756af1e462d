package store

import (
	"reflect"
	"testing"
)

// A process that waits keeps nothing of the connections that it had.
func TestIdleGivesMemoryBack(t *testing.T) {
	h, err := sqliteHeap()
	if err != nil {
		t.Fatal(err)
	}
	bytes := func(field string) int64 { // of what the allocator keeps for itself
		h.mu.Lock()
		defer h.mu.Unlock()
		return reflect.ValueOf(&h.pages).Elem().FieldByName(field).Int()
	}
	st := openStore(t, t.TempDir())
	if _, err := st.Containers(t.Context()); err != nil {
		t.Fatal(err)
	}
	open, spare := bytes("live"), bytes("freedSize")
	if open == 0 || spare == 0 {
		t.Fatalf("got %d bytes in use and %d spare, want SQLite's", open, spare)
	}
	if err := st.Idle(); err != nil {
		t.Fatal(err)
	}
	if live, free := bytes("live"), bytes("freedSize"); live >= open || free != 0 {
		t.Errorf("got %d bytes in use and %d spare, want less than %d and none", live, free, open)
	}
	if _, err := st.Containers(t.Context()); err != nil {
		t.Errorf("after that: %v", err)
	}
}
