package supervise

import (
	"encoding/json"
	"fmt"
	"maps"

	"dhow/internal/container"
	"dhow/internal/store"
)

// Parse reads the row of a container.
func Parse(row store.Container) (*container.Record, container.State, error) {
	var st container.State
	rec, err := container.ReadRecord(row.Record)
	if err == nil {
		err = json.Unmarshal(row.State, &st)
	}
	if err != nil {
		return nil, st, fmt.Errorf("read the record of container %s: %w", row.Name, err)
	}
	return rec, st, nil
}

// Event is what happened to a container, with the attributes that docker gives:
// image, name, labels, and those of the action.
func Event(rec *container.Record, action string, attrs map[string]string) store.Event {
	all := maps.Clone(rec.Config.Labels)
	if all == nil {
		all = map[string]string{}
	}
	all["image"], all["name"] = rec.Config.Image, rec.Name
	maps.Copy(all, attrs)
	return store.Event{Type: "container", Action: action, Actor: rec.ID, Attrs: all}
}
