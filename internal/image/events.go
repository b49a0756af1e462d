package image

import (
	"strconv"

	"dhow/internal/oci"
	"dhow/internal/store"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
)

// event is what happened to an image, in docker's words. The name is one that it
// has, or else its id.
func event(action events.Action, id digest.Digest, name string) store.Event {
	if name == "" {
		name = string(id)
	}
	return store.Event{Type: string(events.ImageEventType), Action: string(action), Actor: string(id), Attrs: map[string]string{"name": name}}
}

// TransferEvent is a pull or push, which is of a name.
func TransferEvent(action events.Action, ref oci.Ref) store.Event {
	return store.Event{
		Type: string(events.ImageEventType), Action: string(action), Actor: ref.Familiar(), Attrs: map[string]string{"name": ref.FamiliarName()},
	}
}

// removalEvents are those of an image that goes, with the names that go with it.
func removalEvents(id digest.Digest, gone []image.DeleteResponse) []store.Event {
	var list []store.Event
	for _, g := range gone {
		if g.Untagged != "" {
			list = append(list, event(events.ActionUnTag, id, g.Untagged))
		}
	}
	return append(list, event(events.ActionDelete, id, ""))
}

func pruneEvent(freed uint64) store.Event {
	return store.Event{
		Type: string(events.ImageEventType), Action: string(events.ActionPrune), Attrs: map[string]string{"reclaimed": strconv.FormatUint(freed, 10)},
	}
}
