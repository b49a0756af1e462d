package container

import (
	"encoding/json"
	"slices"
)

// Kept is the record as it is kept: JSON without the fields that are zero, which
// come back as zero when it is read. Of docker's objects these are two thirds, and
// a listing reads hundreds of them.
func (r *Record) Kept() ([]byte, error) {
	object, err := objectOf(r)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"Config", "Host", "Health", "Restart"} {
		part, err := objectOf(object[name])
		if err != nil {
			return nil, err
		}
		if part == nil { // null
			continue
		}
		dropZeros(part)
		if object[name], err = json.Marshal(part); err != nil {
			return nil, err
		}
	}
	dropZeros(object)
	return json.Marshal(object)
}

// Kept is the state as it is kept, likewise.
func (s State) Kept() ([]byte, error) {
	object, err := objectOf(s)
	if err != nil {
		return nil, err
	}
	dropZeros(object)
	return json.Marshal(object)
}

func objectOf(v any) (map[string]json.RawMessage, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var object map[string]json.RawMessage
	return object, json.Unmarshal(text, &object)
}

// dropZeros takes out what a struct's fields are anyway. It is not for maps, nor
// does it go into lists: a zero in one says that it is there.
func dropZeros(object map[string]json.RawMessage) {
	for name, text := range object {
		switch string(text) {
		case "null":
			delete(object, name)
		case "false", "0", `""`:
			if !slices.Contains(pointers(), name) {
				delete(object, name)
			}
		}
	}
}

// pointers are docker's fields that tell a zero from nothing.
func pointers() []string {
	return []string{"ArgsEscaped", "Init", "MemorySwappiness", "OomKillDisable", "PidsLimit", "StopTimeout", "Umask"}
}
