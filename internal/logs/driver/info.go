package driver

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/docker/cli/templates"
)

// Info is what drivers may know of a container. Fields and methods have docker's
// names, because tag templates ({{.Name}}, {{.ImageName}}) use them.
type Info struct {
	ContainerID         string // 64 hexadecimal digits
	ContainerName       string
	ContainerEntrypoint string
	ContainerArgs       []string
	ContainerImageID    string // sha256:…
	ContainerImageName  string // as the user wrote it
	ContainerCreated    time.Time
	ContainerEnv        []string // KEY=value
	ContainerLabels     map[string]string
	DaemonName          string // "dhow"
	Config              map[string]string
}

// ID returns the first 12 digits of the container's id.
func (i *Info) ID() string { return short(i.ContainerID) }

// FullID returns the container's id.
func (i *Info) FullID() string { return i.ContainerID }

// Name returns the container's name.
func (i *Info) Name() string { return strings.TrimPrefix(i.ContainerName, "/") }

// ImageID returns the first 12 digits of the image's id.
func (i *Info) ImageID() string { return short(i.ContainerImageID) }

// ImageFullID returns the image's id.
func (i *Info) ImageFullID() string { return i.ContainerImageID }

// ImageName returns the image's name.
func (i *Info) ImageName() string { return i.ContainerImageName }

// Command returns the entrypoint and its arguments, joined by spaces.
func (i *Info) Command() string {
	return strings.Join(append([]string{i.ContainerEntrypoint}, i.ContainerArgs...), " ")
}

// Hostname returns the name of the machine.
func (i *Info) Hostname() (string, error) { return os.Hostname() }

func short(id string) string {
	_, hex, ok := strings.Cut(id, ":")
	if !ok {
		hex = id
	}
	return hex[:min(12, len(hex))]
}

// Tag carries out the template of option tag, or otherwise when that is not set.
func (i Info) Tag(o Options, otherwise string) (string, error) {
	i.Config = o
	text := o.Or("tag", otherwise)
	if text == "" {
		return "", nil
	}
	t, err := templates.New("log-tag").Parse(text)
	if err != nil {
		return "", fmt.Errorf("log opt tag=%s: %w", text, err)
	}
	var b strings.Builder
	if err := t.Execute(&b, &i); err != nil {
		return "", fmt.Errorf("log opt tag=%s: %w", text, err)
	}
	return b.String(), nil
}

// CheckTag checks a template for option tag by carrying it out.
func CheckTag(text string) error {
	_, err := Info{}.Tag(Options{"tag": text}, "")
	return err
}

// Attributes returns the labels and environment variables that the options
// labels, labels-regex, env and env-regex choose. rename, if not nil, gives the
// names their form.
func (i Info) Attributes(o Options, rename func(string) string) (map[string]string, error) {
	env := map[string]string{}
	for _, e := range i.ContainerEnv {
		if k, v, ok := strings.Cut(e, "="); ok {
			env[k] = v
		}
	}
	chosen := map[string]string{}
	for _, from := range []struct {
		list, pattern string
		values        map[string]string
	}{{o["labels"], o["labels-regex"], i.ContainerLabels}, {o["env"], o["env-regex"], env}} {
		if err := choose(chosen, from.values, from.list, from.pattern, rename); err != nil {
			return nil, err
		}
	}
	return chosen, nil
}

func choose(into, values map[string]string, list, pattern string, rename func(string) string) error {
	if rename == nil {
		rename = func(s string) string { return s }
	}
	for name := range strings.SplitSeq(list, ",") {
		if v, ok := values[name]; ok {
			into[rename(name)] = v
		}
	}
	if pattern == "" {
		return nil
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	for name, v := range values {
		if re.MatchString(name) {
			into[rename(name)] = v
		}
	}
	return nil
}
