package containers

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/lifecycle"
	"dhow/internal/store"

	"github.com/docker/cli/templates"
	api "github.com/moby/moby/api/types/events"
	"github.com/spf13/cobra"
)

func (a *app) eventsCommand() *cobra.Command {
	var since, until, format string
	var filter []string
	cmd := &cobra.Command{
		Use: "events [OPTIONS]", Short: "Get real time events from containers, images, networks and volumes", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			takes, err := eventFilter(filter)
			if err != nil {
				return err
			}
			write, err := a.eventWriter(format)
			if err != nil {
				return err
			}
			return a.events(cmd.Context(), since, until, func(e store.Event) error {
				if !takes(e) {
					return nil
				}
				return write(e)
			})
		},
	}
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, "Filter output based on conditions provided")
	cmd.Flags().StringVar(&format, "format", "", "Format output using a custom template: 'json', or a Go template")
	cmd.Flags().StringVar(&since, "since", "", "Show all events created since timestamp")
	cmd.Flags().StringVar(&until, "until", "", "Stream events until this timestamp")
	return cmd
}

// events tells what happened since, and what happens until then.
func (a *app) events(ctx context.Context, since, until string, tell func(store.Event) error) error {
	now := time.Now()
	from, end := now, time.Time{}
	var err error
	if since != "" {
		if from, err = lifecycle.ParseTime(since, now); err != nil {
			return fmt.Errorf("--since: %w", err)
		}
	}
	if until != "" {
		if end, err = lifecycle.ParseTime(until, now); err != nil {
			return fmt.Errorf("--until: %w", err)
		}
	}
	bounded := ctx
	if !end.IsZero() {
		var cancel context.CancelFunc
		bounded, cancel = context.WithDeadline(ctx, end)
		defer cancel()
	}
	return a.withContainers(ctx, func(cs *lifecycle.Containers) error {
		for e, err := range cs.Events(bounded, from) {
			if err != nil && bounded.Err() != nil {
				return nil // Ctrl-C, and --until, are the ways out
			}
			if err != nil {
				return err
			}
			if !end.IsZero() && e.At.After(end) {
				return nil
			}
			if err := tell(e); err != nil {
				return err
			}
		}
		return nil
	})
}

// message is an event as docker's API has it.
func message(e store.Event) api.Message {
	return api.Message{
		Type: api.Type(e.Type), Action: api.Action(e.Action), Actor: api.Actor{ID: e.Actor, Attributes: e.Attrs},
		Scope: "local", Time: e.At.Unix(), TimeNano: e.At.UnixNano(),
	}
}

// eventWriter prints events in docker's line, or by a template.
func (a *app) eventWriter(format string) (func(store.Event) error, error) {
	switch format {
	case "":
		return func(e store.Event) error {
			line := fmt.Sprintf("%s %s %s %s", e.At.Local().Format("2006-01-02T15:04:05.000000000Z07:00"), e.Type, e.Action, e.Actor)
			var attrs []string
			for _, k := range sortedKeys(e.Attrs) {
				attrs = append(attrs, k+"="+e.Attrs[k])
			}
			if len(attrs) > 0 {
				line += " (" + strings.Join(attrs, ", ") + ")"
			}
			_, err := fmt.Fprintln(a.Out, line)
			return err
		}, nil
	case "json":
		enc := json.NewEncoder(a.Out)
		return func(e store.Event) error { return enc.Encode(message(e)) }, nil
	}
	t, err := templates.Parse(format)
	if err != nil {
		return nil, console.InvalidTemplate(format, err)
	}
	return func(e store.Event) error {
		if err := t.Execute(a.Out, message(e)); err != nil {
			return console.InvalidTemplate(format, err)
		}
		_, err := fmt.Fprintln(a.Out)
		return err
	}, nil
}

// eventFilter reads docker's filters of events: one of the values of each, all
// of the labels.
func eventFilter(list []string) (func(store.Event) bool, error) {
	want, err := console.Filters(list)
	if err != nil {
		return nil, err
	}
	known := []string{"container", "event", "image", "label", "network", "scope", "type", "volume"}
	for key := range want {
		if !slices.Contains(known, key) {
			return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "invalid filter '%s'", key), "use one of %s", strings.Join(known, ", "))
		}
	}
	return func(e store.Event) bool {
		has := func(key string, f func(v string) bool) bool {
			return len(want[key]) == 0 || slices.ContainsFunc(want[key], f)
		}
		actor := func(kind string) bool {
			return has(kind, func(v string) bool {
				return e.Type == kind && (strings.HasPrefix(e.Actor, v) || e.Attrs["name"] == v) || e.Type == kindContainer && kind == kindImage && e.Attrs["image"] == v
			})
		}
		return actor(kindContainer) && actor(kindImage) && actor(kindNetwork) && actor(kindVolume) &&
			has("type", func(v string) bool { return e.Type == v }) && has("scope", func(v string) bool { return v == "local" }) &&
			has("event", func(v string) bool { return e.Action == v || strings.HasPrefix(e.Action, v+":") }) &&
			container.MatchLabels(want["label"], e.Attrs)
	}, nil
}
