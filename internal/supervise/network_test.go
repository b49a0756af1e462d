package supervise

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"dhow/internal/sandbox"
	"dhow/internal/store"
)

// A process can end in the moment in which its supervisor is replaced: it is taken
// over, and its network cannot be. Its address is free again with its end all the
// same.
func TestDisconnectWithoutNetwork(t *testing.T) {
	ctx := t.Context()
	st, err := store.Open(ctx, filepath.Join(t.TempDir(), "root"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	s := ended(st)
	s.nets = Networks(st)
	err = st.UpdateNetworks(ctx, func(tx *store.NetworkTx) error {
		if err := tx.PutNetwork(store.NetworkRecord{ID: "n", Name: "n", Record: json.RawMessage(`{}`)}); err != nil {
			return err
		}
		return tx.PutEndpoint(store.EndpointRecord{Network: "n", Container: s.id, Name: "c", IP4: "192.0.2.2", Record: json.RawMessage(`{}`)})
	})
	if err != nil {
		t.Fatal(err)
	}
	s.disconnect(ctx, &run{proc: &sandbox.Process{}})
	err = st.UpdateNetworks(ctx, func(tx *store.NetworkTx) error {
		left, err := tx.EndpointsOf(s.id)
		if len(left) > 0 {
			t.Errorf("got %+v, want none left", left)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
