package container

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
)

// Defaults are settings for every container that is created: what is used where
// the command line says nothing. The keys are those of docker's daemon.json that
// are about containers.
type Defaults struct {
	LogDriver       names                       `json:"log-driver"` // a name, or a list of them
	LogOpts         map[string]string           `json:"log-opts"`   // a key may begin with its driver's name and a dot
	UsernsRemap     string                      `json:"userns-remap"`
	Runtime         string                      `json:"default-runtime"`
	ShmSize         size                        `json:"default-shm-size"`
	Ulimits         map[string]container.Ulimit `json:"default-ulimits"`
	IpcMode         container.IpcMode           `json:"default-ipc-mode"`
	CgroupnsMode    container.CgroupnsMode      `json:"default-cgroupns-mode"`
	Init            bool                        `json:"init"`
	NoNewPrivileges bool                        `json:"no-new-privileges"`
	DNS             []netip.Addr                `json:"dns"`
	DNSOptions      []string                    `json:"dns-opts"`
	DNSSearch       []string                    `json:"dns-search"`
}

// names is a string or a list of strings.
type names []string

func (n *names) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*n = names{one}
		return nil
	}
	var list []string
	if json.Unmarshal(data, &list) != nil {
		return errors.New("want a name or a list of names")
	}
	*n = list
	return nil
}

// size is a number of bytes, or a string such as "64m".
type size int64

func (s *size) UnmarshalJSON(data []byte) error {
	n, err := units.RAMInBytes(strings.Trim(string(data), `"`))
	if err == nil && n < 0 {
		err = errors.New("want a size")
	}
	*s = size(n)
	return err
}

// ParseDefaults reads settings: one JSON object. ErrInvalid for what it is not,
// for a key that dhow does not know, and a value that cannot be.
func ParseDefaults(data []byte) (*Defaults, error) {
	d := &Defaults{}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(d); err != nil {
		return nil, invalid("%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if dec.More() {
		return nil, invalid("something follows the object")
	}
	if _, err := d.logDrivers(); err != nil {
		return nil, err
	}
	if !d.IpcMode.IsEmpty() && !d.IpcMode.IsPrivate() && !d.IpcMode.IsShareable() {
		return nil, invalid("default-ipc-mode %q: want private or shareable", d.IpcMode)
	}
	if !d.CgroupnsMode.Valid() {
		return nil, invalid("default-cgroupns-mode %q: want private or host", d.CgroupnsMode)
	}
	return d, nil
}

// Apply completes the record with the settings. It is called once, before Merge.
func (d *Defaults) Apply(r *Record) error {
	h := r.Host
	drivers, err := d.DecideLogDrivers(r.Logs)
	if err != nil {
		return err
	}
	r.SetLogDrivers(drivers)
	if h.Runtime == "" {
		h.Runtime = d.Runtime
	}
	if h.ShmSize == 0 {
		h.ShmSize = int64(d.ShmSize)
	}
	for name, limit := range d.Ulimits {
		if slices.ContainsFunc(h.Ulimits, func(u *container.Ulimit) bool { return u.Name == name }) {
			continue
		}
		limit.Name = name
		h.Ulimits = append(h.Ulimits, &limit)
	}
	slices.SortFunc(h.Ulimits, func(a, b *container.Ulimit) int { return strings.Compare(a.Name, b.Name) })
	if h.IpcMode.IsEmpty() {
		h.IpcMode = d.IpcMode
	}
	if h.CgroupnsMode.IsEmpty() {
		h.CgroupnsMode = d.CgroupnsMode
	}
	if h.Init == nil && d.Init {
		h.Init = &d.Init
	}
	if d.NoNewPrivileges && !slices.ContainsFunc(h.SecurityOpt, func(o string) bool { return strings.HasPrefix(o, "no-new-privileges") }) {
		h.SecurityOpt = append(h.SecurityOpt, "no-new-privileges")
	}
	if len(h.DNS) == 0 {
		h.DNS = d.DNS
	}
	if len(h.DNSOptions) == 0 {
		h.DNSOptions = d.DNSOptions
	}
	if len(h.DNSSearch) == 0 {
		h.DNSSearch = d.DNSSearch
	}
	return nil
}
