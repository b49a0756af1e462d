package container

import (
	"encoding/json"
	"slices"
)

// usual stands for the paths that docker hides or protects in every container, in
// a record as it is kept. One from before the list grew has the new ones, too.
const usual = "usual"

// Kept is the record as it is kept, for ReadRecord: JSON without the fields that
// are zero, and without lists of paths that are the same in all. Of docker's
// objects these are five sixths, and a listing reads hundreds of them.
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
		if name == "Host" {
			if err := shorten(part); err != nil {
				return nil, err
			}
		}
		if object[name], err = json.Marshal(part); err != nil {
			return nil, err
		}
	}
	dropZeros(object)
	return json.Marshal(object)
}

// shorten puts usual where the lists are that it stands for.
func shorten(host map[string]json.RawMessage) error {
	for name, paths := range map[string][]string{"MaskedPaths": MaskedPaths(), "ReadonlyPaths": ReadonlyPaths()} {
		text, err := json.Marshal(paths)
		if err != nil {
			return err
		}
		if string(host[name]) == string(text) {
			host[name] = json.RawMessage(`["` + usual + `"]`)
		}
	}
	return nil
}

// ReadRecord reads what Kept returned.
func ReadRecord(text []byte) (*Record, error) {
	r := &Record{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, err
	}
	if h := r.Host; h != nil {
		if slices.Equal(h.MaskedPaths, []string{usual}) {
			h.MaskedPaths = MaskedPaths()
		}
		if slices.Equal(h.ReadonlyPaths, []string{usual}) {
			h.ReadonlyPaths = ReadonlyPaths()
		}
	}
	return r, nil
}

// Kept is the state as it is kept, likewise, for json.Unmarshal.
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
